"""`model.generate`, replaced on one model object: transformers prepares the call, hasten writes the text.

The original `generate` runs with a decoding method of hasten's (its `custom_generate` hook), so defaults,
warnings, validation, logits processors and stopping criteria are transformers' own.

What differs from the original, because it has to:
    - sampled texts: the noise of every position comes from a seed taken from torch's global generator, so the
      distribution is the same and `torch.manual_seed` repeats a text with any drafter, but not the same text;
    - in a batch, each row ends by itself: a custom stopping criterion that returns one answer for the whole
      batch is asked about each row alone, and ended rows are filled with the pad token, also without an eos
      token, and also in `scores` and `logits` (0 for the pad token, -inf elsewhere);
    - in a batch, processors and criteria that may keep a state are copied, one copy a row;
    - models without an attention mask (RWKV) read padding as text in the original; here it is never read;
    - `past_key_values` of the returned object is None.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from hasten.core import DecodeStats
from hasten.drafters import Drafter
from hasten.dropin.arguments import config_value, refuse_arguments, refuse_model, refuse_options
from hasten.dropin.decoding import Decoding, DrafterChoice
from hasten.errors import ModelError
from hasten.models.causal_lm import CausalLM
from hasten.models.forwards.choose import prepare
from hasten.models.forwards.forward import device_of
from hasten.models.forwards.stand_in import restore as restore_modules
from hasten.text.engine import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LARGE_BYTES = 2**28
"""of weights: smaller models answer before anybody asks what they are doing"""
_log = logging.getLogger("hasten")

Model = TypeVar("Model")


def accelerate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    drafter: str | Drafter = "auto",
    num_draft_tokens: int | None = None,
    store: str | os.PathLike[str] | None = None,
    index: str | os.PathLike[str] | None = None,
    forward: str = "stock",
) -> Model:
    """Make ``model.generate`` faster; the same model object comes back, with the same weights.

    ``model.generate`` then takes what transformers' takes and returns what it returns. It takes two arguments
    more: ``drafter`` (a name, an object, or one a row; "off" is plain decoding) and ``num_draft_tokens``. The
    original is ``model.generate.original``; ``hasten.restore(model)`` puts it back. Accelerating a model
    again replaces the options. The module docstring lists where results differ.

    Args:
        model: a transformers causal language model, also one wrapped by PEFT or torch.compile.
        tokenizer: for ``stop_strings``, where the call brings none.
        drafter: "auto", "off", a system's name, several joined by "+", or an object.
        num_draft_tokens: a fixed tree size; None lets the cost policy choose.
        store: a file written by ``model.generate.language_model.save_store``.
        index: a corpus index, for the drafters that look texts up.
        forward: how passes run, as for ``hasten.load``: "auto" measures and keeps the fastest. "compiled" and
            "packed" lay the weights out anew; until ``hasten.restore(model)`` gives back the very modules and
            Parameters, the model can be run and saved, and training or converting it raises ConfigError. If
            its modules are changed all the same, the next call prepares it again.

    Raises:
        ConfigError: the model is in training mode, or an option cannot work.
        ModelError: not a causal language model of transformers.
    """
    holder: Any = _without_compiler(model)
    if not callable(getattr(holder, "generate", None)) or not hasattr(holder, "config"):
        raise ModelError(
            f"{type(model).__name__} has no generate; give a causal language model of transformers"
        )
    target = _innermost(holder)
    refuse_model(target, holder)
    own = vars(holder).get("generate")
    if isinstance(own, Accelerated):
        restore(holder)
    options = {
        "tokenizer": tokenizer,
        "drafter": drafter,
        "store": store,
        "index": index,
        "forward": forward,
    }
    holder.generate = Accelerated(holder, target, num_draft_tokens, options)
    return model


def restore(model: Model) -> Model:
    """Undo ``accelerate``; a model that was not accelerated stays as it is.

    Weights that were laid out anew are put back: the same modules with the same Parameters as before.
    """
    holder: Any = _without_compiler(model)
    accelerated = vars(holder).get("generate")
    if isinstance(accelerated, Accelerated):
        if accelerated.replaced is None:
            del holder.generate
        else:
            holder.generate = accelerated.replaced
        restore_modules(_innermost(holder))
    return model


def custom_generate(  # noqa: PLR0917
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    drafter: DrafterChoice = None,
    num_draft_tokens: int | None = None,
    **model_kwargs: Any,
) -> Any:
    """For single calls: ``model.generate(..., custom_generate=hasten.custom_generate)``.

    The model object keeps what drafters learn from call to call. transformers gives such a function neither
    the streamer nor the tokenizer, so ``streamer`` gets nothing but the prompt, and ``stop_strings`` raise
    its own error; ``accelerate`` has no such limits. Arguments and errors are those of ``accelerate``.
    """
    refuse_model(model, model)
    language_model = vars(model).get("_hasten_language_model")
    if language_model is None or not _is_current(language_model, model):
        language_model = LanguageModel(CausalLM(model))
        model._hasten_language_model = language_model
    decoding = Decoding(language_model, drafter, num_draft_tokens)
    return decoding(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)


class Accelerated:
    """What stands in for ``model.generate``. One call at a time; others wait.

    Attributes:
        original: the `generate` it stands in for.
        stats: DecodeStats of the last call, one a row.
    """

    def __init__(
        self, holder: Any, target: Any, num_draft_tokens: int | None, options: dict[str, Any]
    ) -> None:
        self.replaced = vars(holder).get("generate")
        self.original = holder.generate
        self.stats: list[DecodeStats] = []
        self._holder = holder
        self._target = target
        self._num_draft_tokens = num_draft_tokens
        self._options = options
        self._lock = threading.RLock()
        self._language_model = self._load()

    @property
    def language_model(self) -> LanguageModel:
        """The engine behind: drafters, their stores, and the target's abilities."""
        if not _is_current(self._language_model, self._target):  # moved, converted or changed since
            self._language_model = self._load()
        return self._language_model

    def _load(self) -> LanguageModel:
        options = self._options
        restore_modules(self._target)
        prepared = prepare(self._target, options["forward"])
        language_model = LanguageModel(
            CausalLM(self._target, forward=prepared.forward),
            options["tokenizer"],
            drafter=options["drafter"],
            index=options["index"],
        )
        if options["store"] is not None:
            language_model.load_store(options["store"])
        return language_model

    def __call__(  # noqa: PLR0917
        self,
        inputs: torch.Tensor | None = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        synced_gpus: bool | None = None,
        assistant_model: Any = None,
        streamer: Any = None,
        negative_prompt_ids: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        custom_generate: Any = None,
        *,
        tokenizer: Any = None,
        drafter: DrafterChoice = None,
        num_draft_tokens: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """See ``accelerate`` and `GenerationMixin.generate` of transformers.

        Raises:
            ConfigError: an argument that cannot be honoured; the message names it and the remedy.
            PromptError, ModelError: token ids outside the vocabulary; NaN logits.
        """
        prepared = {
            "inputs": inputs,
            "generation_config": generation_config,
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
            "streamer": streamer,
        }
        prepared = {name: value for name, value in prepared.items() if value is not None}
        if isinstance(custom_generate, Decoding):  # this model inside another accelerated one: PEFT's base
            return self.original(**prepared, custom_generate=custom_generate, **kwargs)
        refuse_arguments(
            kwargs
            | {
                "synced_gpus": synced_gpus,
                "assistant_model": assistant_model,
                "negative_prompt_ids": negative_prompt_ids,
                "negative_prompt_attention_mask": negative_prompt_attention_mask,
                "custom_generate": custom_generate,
            }
        )
        refuse_model(self._target, self._holder)
        return self._decode(prepared, kwargs, tokenizer, drafter, num_draft_tokens)

    def _decode(
        self,
        prepared: dict[str, Any],
        kwargs: dict[str, Any],
        tokenizer: Any,
        drafter: DrafterChoice,
        num_draft_tokens: int | None,
    ) -> Any:
        """The original `generate`, and hasten's decoding in it."""
        with self._lock:
            stop_strings = self._take_stop_strings(prepared, kwargs, tokenizer)
            self._say_what_the_first_call_does()
            self._replace_cache(prepared, kwargs)
            decoding = Decoding(
                self.language_model,
                drafter,
                self._num_draft_tokens if num_draft_tokens is None else num_draft_tokens,
                streamer=prepared.get("streamer"),
                stop_strings=stop_strings,
                tokenizer=self._options["tokenizer"] if tokenizer is None else tokenizer,
            )
            result = self.original(**prepared, custom_generate=decoding, **kwargs)
            if decoding.stats is None:
                raise ModelError(
                    f"generate of {type(self._target).__name__} does not use custom_generate, so the text "
                    "was written without hasten; use hasten.restore(model)"
                )
            self.stats = decoding.stats
            return result

    def _say_what_the_first_call_does(self) -> None:
        target = self.language_model.target
        if "probe" not in vars(target) and target.num_bytes() >= _LARGE_BYTES:
            _log.warning(
                "first call: trying what %s can verify in one pass; some seconds, once", target.architecture
            )

    def _take_stop_strings(self, prepared: dict[str, Any], kwargs: dict[str, Any], tokenizer: Any) -> Any:
        """The stop strings in force, hidden from `generate`, which has no tokenizer for its custom methods.

        Without a tokenizer they stay where they are, and `generate` raises its own error.
        """
        if tokenizer is None and self._options["tokenizer"] is None:
            return None
        given = prepared.get("generation_config")
        own = config_value(self._target.generation_config, "stop_strings")
        in_force = config_value(given, "stop_strings")
        if "stop_strings" in kwargs:
            in_force = kwargs.pop("stop_strings")
        elif in_force is None:
            in_force = own
        if config_value(given, "stop_strings") is not None:
            prepared["generation_config"] = copy.deepcopy(given)
            prepared["generation_config"].stop_strings = None
        if own is not None:
            kwargs["stop_strings"] = None
        return in_force

    def _replace_cache(self, prepared: dict[str, Any], kwargs: dict[str, Any]) -> None:
        """Keeps `generate` from making a cache of the whole answer's size, which nothing would use."""
        configs = prepared.get("generation_config"), self._target.generation_config
        values = (
            kwargs.get("cache_implementation"),
            *(config_value(c, "cache_implementation") for c in configs),
        )
        in_force = next((value for value in values if value is not None), None)
        refuse_options({"cache_implementation": in_force}.get)
        if in_force is not None:
            kwargs["cache_implementation"] = "dynamic"

    def __getstate__(self) -> dict[str, Any]:
        """Locks cannot be copied; a copied model gets one of its own."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())


def _without_compiler(model: Any) -> Any:
    """torch.compile's wrapper sets attributes on what it wraps; others show attributes of what they wrap."""
    while "_orig_mod" in getattr(model, "_modules", ()):
        model = model._orig_mod
    return model


def _innermost(model: Any) -> Any:
    """The transformers model inside wrappers; adapters are modules of it."""
    while True:
        inner = _without_compiler(model)
        if hasattr(inner, "peft_config") and hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        if inner is model:
            return model
        model = inner


def _is_current(language_model: LanguageModel, model: Any) -> bool:
    """Whether the model is where it was, in the type and with the vocabulary that it had."""
    target = language_model.target
    return bool(
        target.device == device_of(model.get_input_embeddings())
        and target.dtype == model.dtype
        and isinstance(target, CausalLM)
        and target.is_current
    )
