"""Which arguments of `generate` have a meaning here; every other one is refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from hasten.errors import ConfigError, ModelError


class _Option(NamedTuple):
    name: str
    allowed: tuple[Any, ...]
    """values besides None that change nothing"""
    why: str


_BEAMS = "beams and groups of beams are searched, not drafted"
_OTHER_SPECULATION = "hasten drafts itself; choose what drafts with drafter="
_INNER = "the passes over draft trees have other inner states than those over single tokens"
_TWO_PASSES = "it takes a second pass of its own for every token"
_CACHE = "hasten keeps its own cache"

_SAME_CACHES = ("static", "sliding_window", "hybrid", "hybrid_chunked", "dynamic")
"""values of ``cache_implementation`` with which the same text is written, as it is with hasten's cache"""

_OPTIONS = (
    _Option("num_beams", (1,), _BEAMS),
    _Option("num_beam_groups", (1,), _BEAMS),
    _Option("constraints", (), _BEAMS),
    _Option("force_words_ids", (), _BEAMS),
    _Option("penalty_alpha", (0, 0.0), "contrastive search ranks continuations by inner states"),
    _Option("dola_layers", (), "DoLa contrasts layers of the model"),
    _Option("prompt_lookup_num_tokens", (), _OTHER_SPECULATION + "; 'prompt-lookup' is one of the names"),
    _Option("assistant_early_exit", (), _OTHER_SPECULATION),
    _Option("use_mtp", (False,), _OTHER_SPECULATION),
    _Option("guidance_scale", (1, 1.0), _TWO_PASSES),
    _Option("output_attentions", (False,), _INNER),
    _Option("output_hidden_states", (False,), _INNER),
    _Option("cache_implementation", _SAME_CACHES, f"{_CACHE}, which is neither quantised nor offloaded"),
    _Option("token_healing", (False,), "it rewrites the prompt"),
)

_ARGUMENTS = (
    _Option("assistant_model", (), _OTHER_SPECULATION),
    _Option("synced_gpus", (False,), "rows of different processes would gain different numbers of tokens"),
    _Option("negative_prompt_ids", (), _TWO_PASSES),
    _Option("negative_prompt_attention_mask", (), _TWO_PASSES),
    _Option("custom_generate", (), "it would replace hasten's own loop"),
    _Option("inputs_embeds", (), "drafts are token ids, and so must the prompt be; give input_ids"),
    _Option("past_key_values", (), _CACHE + "; give the whole text as input_ids"),
    _Option("cache_params", (), _CACHE + "; give the whole text as input_ids"),
    _Option("adapter_names", (), "rows leave the batch when they end; choose one with set_adapter"),
    _Option("alora_offsets", (), "the adapter would have to follow draft trees"),
)

_PREPARED = {
    "attention_mask",
    "position_ids",
    "past_key_values",
    "cache_params",
    "use_cache",
    "logits_to_keep",
}
"""What `generate` itself hands to a decoding method for a text model."""


def refuse_arguments(given: Mapping[str, Any]) -> None:
    """ConfigError for an argument of the call that cannot be honoured."""
    _refuse(_ARGUMENTS, given.get)
    refuse_options(given.get)


def refuse_options(get: Callable[[str], Any]) -> None:
    """ConfigError for a generation option that cannot be honoured; ``get`` gives the value of a name."""
    _refuse(_OPTIONS, get)


def config_value(config: GenerationConfig | None, name: str) -> Any:
    return getattr(config, name, None)


def _refuse(options: tuple[_Option, ...], get: Callable[[str], Any]) -> None:
    for option in options:
        value = get(option.name)
        if value is None or any(value is allowed or _equal(value, allowed) for allowed in option.allowed):
            continue
        shown = repr(value) if isinstance(value, bool | int | float | str) else f"<{type(value).__name__}>"
        remedy = f"leave {option.name} out"
        if option.allowed:
            remedy = f"use {option.name}={option.allowed[-1]!r}"
        raise ConfigError(
            f"{option.name}={shown} does not work with hasten: {option.why}; {remedy}, "
            "or call model.generate.original(...)"
        )


def _equal(value: Any, allowed: Any) -> bool:
    return isinstance(value, bool | int | float | str) and bool(value == allowed)


def refuse_model_inputs(model_kwargs: Mapping[str, Any]) -> None:
    """ConfigError for model inputs beyond a text: images, token types, a filled cache."""
    for name, value in model_kwargs.items():
        if value is not None and name not in _PREPARED:
            raise ConfigError(
                f"{name} does not work with hasten: a prompt is token ids and nothing else; "
                f"leave {name} out, or call model.generate.original(...)"
            )
        if name in ("past_key_values", "cache_params") and getattr(value, "_is_user_defined", False):
            _refuse(_ARGUMENTS, {name: value}.get)


def padding_of(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
) -> list[int]:
    """How many tokens of each row [batch, tokens] are padding on the left.

    Raises ConfigError where zeros of the mask are anything else, or positions are not those of the mask.
    """
    if attention_mask is None:
        mask = torch.ones_like(input_ids, dtype=torch.bool)
    else:
        mask = attention_mask.to(input_ids.device) != 0
    counts = mask.sum(1)
    padding = mask.shape[1] - counts
    left = torch.arange(mask.shape[1], device=mask.device)[None] >= padding[:, None]
    for row in (counts.eq(0) | (mask != left).any(1)).nonzero()[:, 0].tolist():
        raise ConfigError(
            f"attention_mask={mask[row].int().tolist()} of row {row} hides more than padding on the left; "
            "pad with padding_side='left', leave a token in every row, and pass the tokenizer's "
            "attention_mask, or call model.generate.original(...)"
        )
    if position_ids is not None and position_ids.dim() == 2:
        expected = (mask.long().cumsum(-1) - 1).expand_as(input_ids)
        if not bool((position_ids.to(mask.device) == expected)[mask.expand_as(input_ids)].all()):
            raise ConfigError(
                "position_ids other than 0, 1, 2, ... do not work with hasten; leave position_ids out, "
                "or call model.generate.original(...)"
            )
    return [int(count) for count in padding.tolist()]


def refuse_model(model: Any, wrapper: Any) -> None:
    """ConfigError or ModelError for a model that cannot be accelerated now."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} is an encoder-decoder model; hasten.accelerate takes causal language "
            "models"
        )
    for name, config in getattr(wrapper, "peft_config", {}).items() if wrapper is not model else ():
        if getattr(config, "is_prompt_learning", False):
            raise ConfigError(
                f"adapter {name!r} ({type(config).__name__}) prepends learnt inputs, which draft trees "
                "cannot carry; hasten works with adapters that change layers, such as LoRA"
            )
        if getattr(config, "alora_invocation_tokens", None):
            raise ConfigError(
                f"adapter {name!r} starts at alora_invocation_tokens={config.alora_invocation_tokens}, which "
                "draft trees cannot follow; hasten works with adapters that are always on, such as LoRA"
            )
    if model.training:
        raise ConfigError("the model is in training mode, where dropout is on; call model.eval() first")
