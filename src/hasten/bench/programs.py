"""Where baselines run and who judges texts: in this process, or each in a process of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence as AbstractSequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Protocol

import torch
from transformers.utils import logging

from hasten.bench.agreement import Check, Judgement, Judging, judge_of, own_judge
from hasten.bench.baselines import BASELINES, Given
from hasten.bench.methods import Answer, Method
from hasten.bench.models import load_stock
from hasten.bench.processes import IDLE_SHARE, Remote
from hasten.core import SamplingParams
from hasten.errors import MissingExtra, ModelError
from hasten.models.causal_lm import CausalLM
from hasten.models.llamacpp.target import is_gguf
from hasten.models.target import Target

_JUDGE = "the judge"


class Programs(Protocol):
    """Makes what a benchmark compares hasten with."""

    def baselines(self, names: AbstractSequence[str]) -> tuple[list[Method], dict[str, str]]:
        """Those of these names that can run the model here, and why the others cannot."""
        ...

    def judge(self, target: Target) -> Judging:
        """Who knows what the target's model writes. Raises ModelError."""
        ...

    def stock_passes(self, rows: tuple[int, ...]) -> dict[int, float] | None:
        """Milliseconds of passes with transformers' own layers; None where there are none."""
        ...

    def idle_shares(self) -> dict[str, float]:
        """Of one processor, that a process used while others had their turn; they should be 0."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class InThisProcess:
    """Baselines beside hasten, on one stock copy of the model: less memory, but they disturb each other.

    Args:
        stock: gives transformers' model and tokenizer, the layers untouched, which share nothing with
            hasten's; called when first needed.
        stock_draft: the same of a draft model, or None.
    """

    stock: Callable[[], tuple[Any, Any]]
    stock_draft: Callable[[], tuple[Any, Any]] | None = None
    _given: Given | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.stock = cache(self.stock)

    def baselines(self, names: AbstractSequence[str]) -> tuple[list[Method], dict[str, str]]:
        """See Programs."""
        return _those_that_can(names, self._make)

    def _make(self, name: str) -> Method:
        if self._given is None:
            draft = None if self.stock_draft is None else self.stock_draft()
            self._given = given(self.stock(), draft)
        return BASELINES[name].make(name, self._given)

    def judge(self, target: Target) -> Judging:
        """See Programs."""
        model, _ = self.stock()
        return judge_of(model, lambda dtype: copy.deepcopy(model).to(dtype))

    def stock_passes(self, rows: tuple[int, ...]) -> dict[int, float] | None:
        """See Programs."""
        return CausalLM(self.stock()[0]).measure_cost(rows=rows)

    def idle_shares(self) -> dict[str, float]:
        """See Programs."""
        return {}

    def close(self) -> None:
        """Nothing to end."""


class WithoutTransformers:
    """No baselines, and a judge of the target's own passes, for models that transformers does not run."""

    def baselines(self, names: AbstractSequence[str]) -> tuple[list[Method], dict[str, str]]:
        """See Programs."""
        return [], dict.fromkeys(names, "it starts from a transformers checkpoint")

    def judge(self, target: Target) -> Judging:
        """See Programs."""
        return own_judge(target)

    def stock_passes(self, rows: tuple[int, ...]) -> dict[int, float] | None:
        """See Programs."""
        return None

    def idle_shares(self) -> dict[str, float]:
        """See Programs."""
        return {}

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A stock model by name, to be loaded wherever it is needed."""

    name: str
    dtype: str
    device: str | None = None
    shape: str | None = None

    def load(self) -> tuple[Any, Any]:
        """(model, tokenizer) of transformers, the layers untouched."""
        return load_stock(self.name, dtype=self.dtype, device=self.device, shape=self.shape)


@dataclass(slots=True)
class InProcesses:
    """Every baseline in a process of its own, which waits there for its turn; and the judge in another.

    Where the model's dtype is a rough one that the CPU may not compute with, a baseline is tried in float32
    as well, and what is faster is measured: it is what a user would choose.
    """

    model: Checkpoint
    draft: Checkpoint | None = None
    remotes: dict[str, Remote] = field(default_factory=dict, init=False)
    """by name: all that run"""

    def baselines(self, names: AbstractSequence[str]) -> tuple[list[Method], dict[str, str]]:
        """See Programs."""
        for name in names:  # all load side by side
            for dtype in self._dtypes():
                label = f"{name} in {dtype}"
                make = partial(_make_baseline, name, replace(self.model, dtype=dtype), self.draft)
                self.remotes[label] = Remote(label, make)
        return _those_that_can(names, self._ready)

    def _dtypes(self) -> list[str]:
        is_rough = self.model.dtype in ("bfloat16", "float16") and self.model.device in (None, "cpu")
        return [self.model.dtype, *(["float32"] if is_rough and not torch.cuda.is_available() else [])]

    def _ready(self, name: str) -> Method:
        """Raises the last problem where it is ready in no dtype."""
        ways: dict[str, Remote] = {}
        problem: Exception | None = None
        for dtype in self._dtypes():
            label = f"{name} in {dtype}"
            try:
                self.remotes[label].ready()
                ways[dtype] = self.remotes[label]
            except (MissingExtra, ModelError) as found:
                problem = found
                del self.remotes[label]
        if problem is not None and not ways:
            raise problem
        return FastestDtype(name, ways, self.remotes)

    def judge(self, target: Target) -> Judging:
        """See Programs."""
        return _RemoteJudge(self._stock())

    def stock_passes(self, rows: tuple[int, ...]) -> dict[int, float] | None:
        """See Programs."""
        found: dict[int, float] = self._stock().call("measure", rows)
        return found

    def _stock(self) -> Remote:
        if _JUDGE not in self.remotes:
            self.remotes[_JUDGE] = Remote(_JUDGE, partial(_Stock, self.model))
        return self.remotes[_JUDGE]

    def idle_shares(self) -> dict[str, float]:
        """See Programs."""
        shares = {name: remote.call(IDLE_SHARE) for name, remote in self.remotes.items()}
        here = [remote.waiting for remote in self.remotes.values()]
        spent, seconds = sum(one.spent for one in here), sum(one.seconds for one in here)
        return {**shares, "hasten": spent / seconds if seconds else 0.0}

    def close(self) -> None:
        """End all processes."""
        for remote in self.remotes.values():
            remote.close()
        self.remotes.clear()


class FastestDtype:
    """A baseline in the dtype that it is fastest in, which its first start finds out.

    Args:
        ways: dtype -> the baseline in it, in a process of its own.
        running: of all processes, by label; those that are not fastest are ended and taken out.
    """

    _TRIALS = 2
    _TRIAL_TOKENS = 8

    def __init__(self, name: str, ways: dict[str, Remote], running: dict[str, Remote]) -> None:
        self.name = name
        self.tried: dict[str, float] = {}
        """dtype -> tokens a second, where there was a choice"""
        self._ways = ways
        self._running = running

    @property
    def dtype(self) -> str:
        return next(iter(self._ways))

    def start(self, prompts: list[list[int]], params: SamplingParams) -> None:
        """See Method."""
        for way in self._ways.values():
            way.call("start", prompts, params)
        if len(self._ways) > 1:
            self._choose(prompts, params)

    def answer(self, prompts: list[list[int]], params: SamplingParams) -> Answer:
        """See Method."""
        found: Answer = self._ways[self.dtype].call("answer", prompts, params)
        return found

    def _choose(self, prompts: list[list[int]], params: SamplingParams) -> None:
        params = replace(params, max_new_tokens=min(self._TRIAL_TOKENS, params.max_new_tokens))
        for _ in range(self._TRIALS):
            for dtype, way in self._ways.items():
                answer: Answer = way.call("answer", prompts, params)
                speed = answer.num_tokens / answer.seconds
                self.tried[dtype] = max(speed, self.tried.get(dtype, 0.0))
        best = max(self.tried, key=lambda dtype: self.tried[dtype])
        for dtype in [dtype for dtype in self._ways if dtype != best]:
            self._ways.pop(dtype).close()
            del self._running[f"{self.name} in {dtype}"]


class _RemoteJudge:
    """See Judging."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def judge(self, prompt_ids: list[int], written: list[int], count: int = 1) -> Judgement:
        found: Judgement = self._remote.call("judge", prompt_ids, written, count)
        return found

    def check(self, prompt_ids: list[int], text: list[int], params: SamplingParams, seed: int) -> Check:
        found: Check = self._remote.call("check", prompt_ids, text, params, seed)
        return found


class _Stock:
    """The judge, and what passes take with transformers' own layers."""

    def __init__(self, model: Checkpoint) -> None:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._model, _ = model.load()
        judge = judge_of(
            self._model, lambda dtype: replace(model, dtype=str(dtype).removeprefix("torch.")).load()[0]
        )
        self.judge, self.check = judge.judge, judge.check

    def measure(self, rows: tuple[int, ...]) -> dict[int, float]:
        return CausalLM(self._model).measure_cost(rows=rows)


def _make_baseline(name: str, model: Checkpoint, draft: Checkpoint | None) -> Method:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    needs_draft = BASELINES[name].needs_draft and draft is not None
    return BASELINES[name].make(name, given(model.load(), draft.load() if needs_draft and draft else None))


def given(stock: tuple[Any, Any], stock_draft: tuple[Any, Any] | None) -> Given:
    """What baselines are made of; the end-of-text tokens are those of the model's generation settings."""
    found = stock[0].generation_config.eos_token_id
    stop = frozenset(found if isinstance(found, list) else [] if found is None else [found])
    return Given(stock, stock_draft, stop)


def _those_that_can(
    names: AbstractSequence[str], make: Callable[[str], Method]
) -> tuple[list[Method], dict[str, str]]:
    made: list[Method] = []
    skipped: dict[str, str] = {}
    for name in names:
        try:
            made.append(make(name))
        except (MissingExtra, ModelError) as problem:
            skipped[name] = str(problem)
    return made, skipped


def programs_for(model: Checkpoint, draft: Checkpoint | None = None, *, apart: bool = False) -> Programs:
    """Those of a model by name; ``apart``: in processes of their own. Nothing is loaded yet."""
    if is_gguf(model.name):
        return WithoutTransformers()
    if apart:
        return InProcesses(model, draft)
    return InThisProcess(model.load, None if draft is None else draft.load)
