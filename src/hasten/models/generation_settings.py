"""What a causal checkpoint's generation_config says of its texts: what it demands, and what it suggests.

Tokens that it forces, forbids or biases are part of the model and apply to every text, as in transformers.
How it suggests to sample does not: that is what SamplingParams say. Where a suggestion would change greedy
texts too, so that they differ from those of transformers' `generate`, there is a warning.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import GenerationConfig

from hasten.core import LogitsProcessor

DEMANDED = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
_SUGGESTED = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "stop_strings": (None,),
}
"""what changes greedy texts -> its values that change nothing"""


def demanded_processors(
    model: Any, prompt_length: int, max_length: int, device: torch.device
) -> list[LogitsProcessor]:
    """New logits processors for one text; none for most checkpoints.

    Args:
        max_length: where a forced end of text stands, prompt included.
    """
    demands = {name: getattr(model.generation_config, name, None) for name in DEMANDED}
    demands = {name: value for name, value in demands.items() if value is not None}
    if not demands:
        return []
    ends = model.generation_config.eos_token_id
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        **demands, eos_token_id=ends, max_length=max_length
    )
    model._prepare_special_tokens(settings, True, device=device)
    return list(model._get_logits_processor(settings, prompt_length, device=device))


def warn_of_suggestions(model: Any) -> None:
    """A UserWarning where greedy texts of transformers' `generate` follow settings that are not used here."""
    values = {name: getattr(model.generation_config, name, None) for name in _SUGGESTED}
    found = [f"{name}={value!r}" for name, value in values.items() if value not in _SUGGESTED[name]]
    if found:
        warnings.warn(
            f"the generation_config of this checkpoint suggests {', '.join(found)}, which hasten does not "
            "apply: give SamplingParams what you want, such as stop= or logits_processors= of transformers",
            UserWarning,
            stacklevel=3,
        )
