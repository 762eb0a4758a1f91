"""One method, one prompt, one answer with its time: hasten's drafters, and transformers as the yardstick."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from hasten.core import DecodeStats, SamplingParams
from hasten.drafters import Drafter, make_drafter
from hasten.engine import LanguageModel
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM

PLAIN = "plain"
BASELINES: dict[str, dict[str, int]] = {"hf": {}, "hf-prompt-lookup": {"prompt_lookup_num_tokens": 10}}
"""name -> what transformers' ``generate`` is told besides"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method wrote, how long the whole call took, and in how many passes.

    ``stats`` is None for transformers, which does not say where its time goes.
    """

    token_ids: list[int]
    text: str
    seconds: float
    num_steps: int
    stats: DecodeStats | None = None


class Method(Protocol):
    """Answers prompts one by one."""

    name: str

    def answer(self, prompt_ids: list[int], params: SamplingParams) -> Answer: ...

    def start(self, prompt_ids: list[int], params: SamplingParams) -> None:
        """Begin with nothing learnt, but warm: compiled, allocated, passes measured on this prompt."""
        ...


class HastenMethod:
    """A drafter by name on the shared target, with a store of its own that starts empty.

    Args:
        is_cold: forget after every prompt.

    Raises ConfigError for an unknown drafter.
    """

    def __init__(self, name: str, target: CausalLM, tokenizer: Any, *, is_cold: bool = False) -> None:
        self.name = name
        self._is_cold = is_cold
        self._drafter_name = "off" if name == PLAIN else name
        self._target = target
        self._tokenizer = tokenizer
        self._language_model = self._open()

    def start(self, prompt_ids: list[int], params: SamplingParams) -> None:
        self._language_model = self._open()
        # The drafter is thrown away with all it learnt; what a pass costs is remembered.
        self._language_model.generate(prompt_ids, params, drafter=self._new_drafter())

    def answer(self, prompt_ids: list[int], params: SamplingParams) -> Answer:
        drafter = self._new_drafter() if self._is_cold else None
        start = time.perf_counter()
        output = self._language_model.generate(prompt_ids, params, drafter=drafter)
        seconds = time.perf_counter() - start
        return Answer(output.token_ids, output.text, seconds, output.stats.num_steps, output.stats)

    def _open(self) -> LanguageModel:
        """One of its own: its cost policy learns what this method's passes cost, no other's."""
        return LanguageModel(self._target, self._tokenizer, drafter=self._drafter_name)

    def _new_drafter(self) -> Drafter:
        return make_drafter(self._drafter_name, self._target.vocab_size)


class TransformersMethod:
    """transformers' own greedy ``generate``, whatever the temperature of the others."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        if name not in BASELINES:
            raise ConfigError(f"baseline {name!r} is unknown; choose {', '.join(BASELINES)}")
        self.name = name
        self._model = model
        self._tokenizer = tokenizer

    def start(self, prompt_ids: list[int], params: SamplingParams) -> None:
        self.answer(prompt_ids, replace(params, max_new_tokens=min(8, params.max_new_tokens)))

    def answer(self, prompt_ids: list[int], params: SamplingParams) -> Answer:
        input_ids = torch.tensor([prompt_ids], device=self._model.device)
        with _count_passes(self._model) as passes:
            start = time.perf_counter()
            output = self._model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=params.max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self._pad_token_id,
                **BASELINES[self.name],
            )
            token_ids = output[0, len(prompt_ids) :].tolist()
            text = str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
            seconds = time.perf_counter() - start
        return Answer(token_ids, text, seconds, passes[0])

    @property
    def _pad_token_id(self) -> int:
        """Nothing is padded, but without one ``generate`` warns."""
        configured = self._model.generation_config.pad_token_id
        return 0 if configured is None else int(configured)


@contextmanager
def _count_passes(model: Any) -> Iterator[list[int]]:
    passes = [0]

    def count(*_: object) -> None:
        passes[0] += 1

    handle = model.register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()
