"""One method, a group of prompts, their answers and their time: hasten's drafters, and transformers'."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from hasten.core import SamplingParams
from hasten.drafters import Drafter, make_drafter
from hasten.drafters.own import is_own
from hasten.errors import ConfigError, ModelError
from hasten.models.draft.draft_lm import DraftLM
from hasten.models.target import Target
from hasten.text.decode import Step
from hasten.text.engine import LanguageModel
from hasten.values import known_ids
from hasten.verify import Verifier, find_verifier

PLAIN = "plain"
ASSISTED = "hf-assisted"
COMPILED = "hf-compiled"
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "hf": {},
    COMPILED: {"cache_implementation": "static"},  # which makes it run its forward pass through torch.compile
    "hf-prompt-lookup": {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 3},  # as hasten's own
    ASSISTED: {},
}
"""name -> what transformers' ``generate`` is told besides"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method wrote to prompts answered side by side, how long that took, and in how many passes.

    ``milliseconds`` is None for transformers, which does not say where its time goes.
    """

    token_ids: list[list[int]]
    """one list a prompt"""
    texts: list[str]
    seconds: float
    """of the whole call"""
    num_passes: int
    num_steps: int
    """a pass is a step of every prompt whose text was not finished"""
    num_draft_tokens: int = 0
    milliseconds: Mapping[str, float] | None = None
    """of all passes, by phase"""
    seeds: tuple[int, ...] = ()
    """one a prompt, that of the noise it was drawn with; none of programs that draw their own"""
    prefill_seconds: float | None = None
    """of the call, until the prompts were read; None where a program does not say"""
    expected_tokens: float | None = None
    """that the draft trees promised, one a step for the target's own included; of drafters that say so"""

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids))


class Method(Protocol):
    """Answers a group of prompts side by side."""

    name: str

    def answer(self, prompts: list[list[int]], params: SamplingParams) -> Answer: ...

    def start(self, prompts: list[list[int]], params: SamplingParams) -> None:
        """Begin with nothing learnt, but warm: compiled, allocated, passes measured on these prompts."""
        ...


@dataclass(slots=True)
class _Work:
    """The passes of a call, added up; a request's own statistics count a shared pass for each request."""

    num_passes: int = 0
    num_steps: int = 0
    num_draft_tokens: int = 0
    expected_tokens: float = 0.0
    milliseconds: Counter[str] = field(default_factory=Counter)

    def add(self, step: Step) -> None:
        self.num_passes += 1
        self.num_steps += len(step.gains)
        self.num_draft_tokens += sum(len(gain.tree) for gain in step.gains)
        self.expected_tokens += sum(1 + float(gain.tree.scores.sum()) for gain in step.gains)
        self.milliseconds.update(step.milliseconds)


def parts_of_method(name: str) -> tuple[str, Verifier]:
    """The drafter and the rule that a method's name stands for. Raises ConfigError for an unknown rule."""
    start = name.rfind(":") if is_own(name) else 0  # a file's own path may hold slashes
    drafter, _, rule = name[start:].partition("/")
    return name[:start] + drafter, find_verifier(rule or "follow")


class HastenMethod:
    """A drafter by name on the shared target, with a store of its own that starts empty.

    Args:
        name: of the drafter, or DRAFTER/RULE to verify by another rule than "follow".
        policy: how much to draft, by name.
        num_draft_tokens: a fixed size of the trees in its place.
        is_cold: forget after every call.
        index: a corpus index, for the drafters that look texts up.
        draft: a draft model, which is shared as the target is.

    Raises ConfigError for an unknown drafter or rule.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        tokenizer: Any,
        *,
        policy: str = "cost",
        num_draft_tokens: int | None = None,
        is_cold: bool = False,
        index: Path | None = None,
        draft: DraftLM | None = None,
    ) -> None:
        self.name = name
        drafter_name, self.verifier = parts_of_method(name)
        self._choices: dict[str, Any] = {"policy": policy, "verify": self.verifier}
        if drafter_name != PLAIN:
            self._choices["num_draft_tokens"] = num_draft_tokens
        self._is_cold = is_cold
        self._drafter_name = "off" if drafter_name == PLAIN else drafter_name
        self._target = target
        self._tokenizer = tokenizer
        self._resources: dict[str, Any] = {"index": index, "draft": draft}
        self._language_model = self._open()

    def start(self, prompts: list[list[int]], params: SamplingParams) -> None:
        self._language_model = self._open()
        # The drafter is thrown away with all it learnt; what a pass costs is remembered.
        self._generate(prompts, params, self._new_drafter())

    def answer(self, prompts: list[list[int]], params: SamplingParams) -> Answer:
        return self._generate(prompts, params, self._new_drafter() if self._is_cold else None)

    def _generate(self, prompts: list[list[int]], params: SamplingParams, drafter: Drafter | None) -> Answer:
        work = _Work()
        start = time.perf_counter()
        outputs = self._language_model.generate(
            prompts, params, drafter=drafter, batch_size=len(prompts), trace=work.add, **self._choices
        )
        seconds = time.perf_counter() - start
        return Answer(
            [output.token_ids for output in outputs],
            [output.text for output in outputs],
            seconds,
            work.num_passes,
            work.num_steps,
            work.num_draft_tokens,
            work.milliseconds,
            tuple(output.seed for output in outputs),
            max(output.stats.prefill_ms for output in outputs) / 1000,
            work.expected_tokens,
        )

    def _open(self) -> LanguageModel:
        """One of its own: its cost policy learns what this method's passes cost, no other's."""
        return LanguageModel(self._target, self._tokenizer, drafter=self._drafter_name, **self._resources)

    def _new_drafter(self) -> Drafter:
        return make_drafter(self._drafter_name, self._language_model.resources)


class TransformersMethod:
    """transformers' own ``generate``.

    At a temperature it samples by the same law as the others, with the seed of the prompts, but draws other
    random numbers: its text is another one and cannot be compared.

    Args:
        assistant: (model, tokenizer) of a draft, for ``hf-assisted``, which runs with transformers' own
            defaults: how many tokens are drafted, and how sure the draft must be of them.

    Raises ConfigError for ``hf-assisted`` without a draft, ModelError for ``hf-compiled`` where transformers
    does not compile.
    """

    def __init__(
        self, name: str, model: Any, tokenizer: Any, assistant: tuple[Any, Any] | None = None
    ) -> None:
        if name == ASSISTED and assistant is None:
            raise ConfigError(f"{ASSISTED} needs a draft model; give one with --draft, or leave it out")
        if name == COMPILED and model.device.type == "cpu":
            raise ModelError("transformers compiles its generate on GPUs only")
        self.name = name
        self._model = model
        self._tokenizer = tokenizer
        self._assistant = assistant if name == ASSISTED else None

    def start(self, prompts: list[list[int]], params: SamplingParams) -> None:
        if self.name != COMPILED:  # a static cache has the size of the whole answer, and is compiled for it
            params = replace(params, max_new_tokens=min(8, params.max_new_tokens))
        self.answer(prompts, params)

    def answer(self, prompts: list[list[int]], params: SamplingParams) -> Answer:
        # A hook would be compiled too, and compiled anew whenever its count changes.
        counting = nullcontext(_Passes()) if self.name == COMPILED else _count_passes(self._model)
        with counting as passes:
            start = time.perf_counter()
            token_ids = self._generate(prompts, params)
            texts = [str(self._tokenizer.decode(row, skip_special_tokens=True)) for row in token_ids]
            seconds = time.perf_counter() - start
        num_passes = passes.count or max(map(len, token_ids))
        num_steps = sum(min(num_passes, len(row)) for row in token_ids)  # finished rows are padded on
        prefill = None if passes.first_ended is None else passes.first_ended - start
        return Answer(token_ids, texts, seconds, num_passes, num_steps, prefill_seconds=prefill)

    def _generate(self, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
        """Prompts padded on the left; of each answer what was written until its first end-of-text token."""
        width = max(map(len, prompts))
        padded = [[self._pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        stop = [] if params.ignore_eos else self._stop_token_ids
        with _seeded(params.seed or 0, self._model.device):
            output = self._model.generate(
                torch.tensor(padded, device=self._model.device),
                attention_mask=torch.tensor(mask, device=self._model.device),
                max_new_tokens=params.max_new_tokens,
                eos_token_id=stop or None,
                pad_token_id=self._pad_token_id,
                **_sampling(params.temperature),
                **self._assistance(stop),
                **TRANSFORMERS[self.name],
            )
        return [_until(stop, row) for row in output[:, width:].tolist()]

    def _assistance(self, stop: list[int]) -> dict[str, Any]:
        """transformers asks for the tokenizers exactly where the vocabularies have different sizes."""
        if self._assistant is None:
            return {}
        model, tokenizer = self._assistant
        model.generation_config.eos_token_id = stop or None  # else drafts end where the text does not
        sizes = {one.config.get_text_config().vocab_size for one in (self._model, model)}
        both = {"tokenizer": self._tokenizer, "assistant_tokenizer": tokenizer}
        return {"assistant_model": model} | (both if len(sizes) > 1 else {})

    @property
    def _stop_token_ids(self) -> list[int]:
        return known_ids(self._model.generation_config.eos_token_id, "eos_token_id")

    @property
    def _pad_token_id(self) -> int:
        """Masked wherever it stands, so any will do; but without one ``generate`` warns."""
        configured = self._model.generation_config.pad_token_id
        return 0 if configured is None else int(configured)


def _sampling(temperature: float) -> dict[str, Any]:
    """Every option by name, so that none is left to the model's own generation settings."""
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """transformers draws from torch's global generators; afterwards they are as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _until(stop: list[int], token_ids: list[int]) -> list[int]:
    """The tokens up to the first of these, which is kept."""
    end = next((index for index, token_id in enumerate(token_ids) if token_id in stop), len(token_ids))
    return token_ids[: end + 1]


@dataclass(slots=True)
class _Passes:
    count: int = 0
    first_ended: float | None = None
    """by the clock: the first pass reads the prompt"""


@contextmanager
def _count_passes(model: Any) -> Iterator[_Passes]:
    passes = _Passes()

    def count(*_: object) -> None:
        passes.count += 1
        if passes.first_ended is None:
            passes.first_ended = time.perf_counter()

    handle = model.register_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()
