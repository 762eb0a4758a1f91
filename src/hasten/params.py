"""What callers ask of a text: how its tokens are drawn, where it ends, what is reported; knows no model."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence as AbstractSequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from hasten import values

if TYPE_CHECKING:
    import torch

LogitsProcessor: TypeAlias = "Callable[..., torch.Tensor]"
"""As in transformers: (input_ids [1, tokens], scores [1, vocab]) -> scores [1, vocab]."""

_PENALTY = "between -2 and 2; 0 changes nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How a token is drawn from logits and when a sequence ends.

    ``temperature=0`` is greedy. ``seed=None`` draws a fresh seed for every prompt, a given one is that of the
    first prompt and ``prompt_seeds`` says that of the others; the result reports it, so that any text can be
    written again. ``stop`` strings end the text *before* the string; the token ids keep the token that
    completed it. A special token among them stops as its id does. ``logits_processors`` are called as
    transformers calls them, once per token in order; those that keep a state are copied, one for each text.

    What changes the logits of a position is applied in this order, which is that of transformers and vLLM:
    ``logit_bias``, ``repetition_penalty``, ``frequency_penalty``, ``presence_penalty``, ``min_tokens``, what
    the checkpoint demands, ``logits_processors``, ``temperature``, ``top_k``, ``top_p``, ``min_p``,
    ``typical_p``. All of it is as exact under speculation as plain decoding is.

    Values are read once, when this is made: numbers may be those of numpy or torch, ``stop``,
    ``stop_token_ids`` and ``logits_processors`` single ones, arrays or iterators. They become ints, floats
    and tuples. What a checkpoint suggests for sampling (its temperature, top_k, penalties) is not used here.

    Raises ConfigError for a value that cannot work.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    stop: str | AbstractSequence[str] = ()
    stop_token_ids: AbstractSequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    """before so many tokens are written no end token and none of ``stop_token_ids`` can be drawn, and stop
    strings do not count (vLLM)"""
    typical_p: float = 1.0
    """locally typical sampling (arXiv 2202.00666): tokens whose information is closest to the entropy, up to
    this probability"""
    repetition_penalty: float = 1.0
    """positive logits of tokens in the prompt or the text are divided by it, others multiplied (CTRL,
    arXiv 1909.05858); 1 changes nothing"""
    frequency_penalty: float = 0.0
    """taken off a token's logit as often as it was written, the prompt left out (OpenAI)"""
    presence_penalty: float = 0.0
    """taken off once if it was written at all, the prompt left out (OpenAI)"""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """token id -> what is added to its logit; -inf forbids it"""
    logprobs: int | None = None
    """how many of the likeliest tokens ``Output.logprobs`` tells beside each written one; None: none"""
    logits_processors: AbstractSequence[LogitsProcessor] = ()

    def __post_init__(self) -> None:
        self._read("max_new_tokens", values.whole, "a whole number, at least 1", lambda value: value >= 1)
        in_range = "0 (greedy) or more, and finite"
        self._read("temperature", values.real, in_range, lambda value: 0 <= value < float("inf"))
        if self.top_k is not None:
            self._read("top_k", values.whole, "a whole number, at least 1, or None for all", lambda k: k >= 1)
        self._read("top_p", values.real, "above 0 and at most 1", lambda value: 0 < value <= 1)
        self._read("min_p", values.real, "between 0 and 1", lambda value: 0 <= value <= 1)
        self._read("typical_p", values.real, "above 0 and at most 1", lambda value: 0 < value <= 1)
        self._read("n", values.whole, "a whole number, at least 1", lambda value: value >= 1)
        if self.seed is not None:
            in_range = "a whole number between 0 and 2**64 - 1, or None"
            self._read("seed", values.whole, in_range, lambda value: 0 <= value < 2**64)
        self._set("stop", values.texts(self.stop, "stop"))
        self._set("stop_token_ids", values.token_ids(self.stop_token_ids, "stop_token_ids"))
        self._set("ignore_eos", values.flag(self.ignore_eos, "ignore_eos"))
        self._read_penalties()
        self._read("min_tokens", values.whole, "a whole number, 0 or more", lambda value: value >= 0)
        if self.min_tokens > self.max_new_tokens:
            raise values.wrong("min_tokens", self.min_tokens, f"at most max_new_tokens={self.max_new_tokens}")
        if self.logprobs is not None:
            remedy = "a whole number, 0 or more, or None for no log-probabilities"
            self._read("logprobs", values.whole, remedy, lambda value: value >= 0)
        self._set("logits_processors", values.callables(self.logits_processors, "logits_processors"))

    def _read_penalties(self) -> None:
        positive = "above 0, and finite; 1 changes nothing"
        self._read("repetition_penalty", values.real, positive, lambda value: 0 < value < float("inf"))
        for name in ("frequency_penalty", "presence_penalty"):
            self._read(name, values.real, _PENALTY, lambda value: -2 <= value <= 2)
        self._set("logit_bias", values.biases(self.logit_bias, "logit_bias"))

    def _read(
        self, name: str, read: Callable[..., Any], remedy: str, is_possible: Callable[[Any], bool]
    ) -> None:
        found = read(getattr(self, name), name, remedy)
        if not is_possible(found):
            raise values.wrong(name, found, remedy)
        self._set(name, found)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def changes_logits(self) -> bool:
        """Whether anything is done to logits that depends on the text before, or on which tokens they are."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1
            or self.frequency_penalty
            or self.presence_penalty
            or self.min_tokens
            or self.logits_processors
        )


def sampling_params(params: SamplingParams | None) -> SamplingParams:
    """The defaults for None. Raises ConfigError for anything else that is no SamplingParams."""
    if params is not None and not isinstance(params, SamplingParams):
        raise values.wrong("params", params, "hasten.SamplingParams(...)")
    return params or SamplingParams()


def prompt_seeds(seed: int | None, count: int) -> list[int]:
    """The seed of every prompt of a call, so that their noise is independent.

    A given seed is that of the first prompt; prompt i >= 1 has the i-th output of the generator SplitMix64
    (Steele, Lea and Flood 2014) that starts at the seed. Without one, every prompt's is drawn afresh.
    """
    if seed is None:
        return [secrets.randbits(63) for _ in range(count)]
    return [seed if index == 0 else _split_mix(seed + index * 0x9E3779B97F4A7C15) for index in range(count)]


def _split_mix(state: int) -> int:
    mixed = state % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return mixed ^ (mixed >> 31)
