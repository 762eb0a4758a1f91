"""Diffusion strategies on the same prompts and canvases, against the reference of one token a forward.

Every prompt is written by every method in turn, so that a machine that slows down slows all of them. The
reference's text is what agreement is measured against; list tasks know what is right besides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence as AbstractSequence
from dataclasses import dataclass, field
from typing import Any

from hasten.bench.prompts import load_prompt_set, spread
from hasten.chat import chat_prompt
from hasten.core import SamplingParams
from hasten.diffusion.base import Strategy
from hasten.diffusion.defaults import reference_of
from hasten.diffusion.engine import DiffusionModel, DiffusionOutput
from hasten.diffusion.list_tasks import MAX_SIZE, MIN_SIZE, TASKS, Question, is_correct, sample_questions
from hasten.errors import ConfigError

LISTS = "lists"
"""prompts that stand for list tasks: "lists", or "lists:copy" for one of them"""
REFERENCE = "static"
ALL_METHODS = (
    "exact",
    "auto",
    "static:2",
    "static:4",
    "static:order=margin",
    "static:order=entropy",
    "static:order=random",
    "static+freedave:8",
    "static+freedave:8/dual",
    "static+eos",
    "static+prophet",
    "static+eot",
    "threshold:0.9",
    "threshold:0.7",
    "threshold:0.9+eos",
    "threshold:0.9+eot",
    "threshold:0.9+prophet",
    "threshold:0.9+freedave",
    "factor",
    "entropy-bound",
    "entropy",
    "localleap",
    "hierarchy",
    "klass",
    "ccd",
    "ccd-ds",
    "maskgit",
    "dream",
    "credit",
    "learn2pd",
    "joint",
    "adablock",
    "threshold:0.7+remask",
    "threshold:0.9+whole",
    "threshold:0.9/prefix",
    "threshold:0.9/dual",
    "threshold:0.9/dkv",
    "threshold:0.9/freecache",
    "threshold:0.9/vicinity",
    "threshold:0.9/recap",
    "static:order=random/dkv-greedy",
    "factor/dual",
    "threshold:0.9+eos/dual",
    "threshold:0.9+eos/vicinity",
    "threshold:0.9+prophet/dual",
)
"""what "all" stands for; what a model or a missing helper cannot do is left out"""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class CanvasPrompt:
    """One prompt, and what it asks where that is known."""

    prompt_set: str
    prompt: Any
    question: Question | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CanvasBenchConfig:
    """What to run. Raises ConfigError for what cannot be."""

    methods: tuple[str, ...]
    canvas_sizes: tuple[int, ...] = (32,)
    limit: int | None = None
    temperature: float = 0.0
    seed: int = 0
    repeat: int = 1
    reference: str = REFERENCE

    def __post_init__(self) -> None:
        if not self.canvas_sizes or min(self.canvas_sizes) < 1:
            raise ConfigError(f"canvas={self.canvas_sizes} cannot work; give sizes of at least 1")
        for name, value in (("repeat", self.repeat), ("limit", self.limit)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} cannot work; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Result:
    """One prompt on one canvas, written once by one method."""

    asked: CanvasPrompt
    canvas_size: int
    method: str
    output: DiffusionOutput
    seconds: float


def read_asked(
    sources: AbstractSequence[str], model: DiffusionModel, limit: int | None
) -> list[CanvasPrompt]:
    """The prompts of list tasks, files and bundled names. Raises ConfigError and PromptError."""
    asked: list[CanvasPrompt] = []
    for source in sources:
        name, _, task = source.partition(":")
        if name == LISTS:
            asked += _list_questions([task] if task else list(TASKS), limit or 10)
            continue
        prompt_set = load_prompt_set(source, model.denoiser.vocab_size)
        for one in spread(prompt_set.conversations, limit):
            prompt: Any = list(one.token_ids)
            if one.turns:
                user = [{"role": "user", "content": one.turns[0]}]
                prompt = chat_prompt(model.tokenizer, user) if one.is_chat else one.turns[0]
            asked.append(CanvasPrompt(prompt_set.name, prompt))
    return asked


def _list_questions(tasks: list[str], num_questions: int) -> list[CanvasPrompt]:
    return [
        CanvasPrompt(task, question.prompt, question)
        for task in tasks
        for question in sample_questions(task, num_questions, seed=0, min_size=MIN_SIZE, max_size=MAX_SIZE)
    ]


@dataclass(slots=True)
class CanvasBenchmark:
    """Runs and keeps the results, also those of an interrupted run."""

    model: DiffusionModel
    config: CanvasBenchConfig
    results: list[Result] = field(default_factory=list)
    _strategies: dict[str, Strategy] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """The reference first."""
        return list(dict.fromkeys([self.config.reference, *self.config.methods]))

    def run(self, asked: list[CanvasPrompt], progress: Progress = lambda name, done, total: None) -> None:
        """All methods on all prompts. Raises ConfigError before the first forward pass."""
        for method in self.methods:
            self._strategies[method] = self._check(method, asked)
        for size in self.config.canvas_sizes:
            self._write(asked[0], size, self.config.reference)  # warm-up
            total = len(asked) * self.config.repeat
            for index in range(total):
                place = index % len(asked)
                for method in self.methods:
                    self.results.append(self._write(asked[place], size, method, place))
                progress(f"canvas {size}", index + 1, total)

    def _check(self, method: str, asked: list[CanvasPrompt]) -> Strategy:
        prompts = [one.prompt for one in asked]
        found = [
            self.model.check(prompts, self._params(size), strategy=method)
            for size in self.config.canvas_sizes
        ]
        return found[0][0]

    def promises_the_reference(self, method: str) -> bool:
        """Whether a method is exact, and its reference is the benchmark's."""
        strategy, reference = self._strategies[method], self._strategies[self.config.reference]
        return strategy.guarantee == "exact" and reference_of(strategy) == reference_of(reference)

    def _params(self, size: int, place: int = 0) -> SamplingParams:
        """Each prompt has a seed of its own, the same for all methods."""
        config = self.config
        return SamplingParams(max_new_tokens=size, temperature=config.temperature, seed=config.seed + place)

    def _write(self, asked: CanvasPrompt, size: int, method: str, place: int = 0) -> Result:
        start = time.perf_counter()
        [output] = self.model.generate_all([asked.prompt], self._params(size, place), strategy=method)
        return Result(asked, size, method, output, time.perf_counter() - start)


def canvas_records(benchmark: CanvasBenchmark) -> list[dict[str, Any]]:
    """JSON-ready: one record a canvas size, prompt set and method; "all" holds every prompt set."""
    sets = list(dict.fromkeys(result.asked.prompt_set for result in benchmark.results))
    records = []
    for size in benchmark.config.canvas_sizes:
        for name in [*sets, *(["all"] if len(sets) > 1 else [])]:
            chosen = [
                one
                for one in benchmark.results
                if one.canvas_size == size and name in {"all", one.asked.prompt_set}
            ]
            if chosen:
                records += _round(chosen, size, name, benchmark)
    return records


def _round(chosen: list[Result], size: int, name: str, benchmark: CanvasBenchmark) -> list[dict[str, Any]]:
    texts = {
        id(one.asked): one.output.token_ids for one in chosen if one.method == benchmark.config.reference
    }
    records: list[dict[str, Any]] = []
    for method in benchmark.methods:
        results = [one for one in chosen if one.method == method]
        if results:
            record = {"canvas": size, "prompt_set": name, **_record(method, results, texts)}
            others = round((1 - record["same_text"]) * len(results))
            record["broken_promises"] = others if benchmark.promises_the_reference(method) else 0
            records.append(record)
    for record in records:
        record["speedup"] = round(records[0]["seconds"] / record["seconds"], 4)
    return records


def _record(method: str, results: list[Result], references: dict[int, list[int]]) -> dict[str, Any]:
    answers = [is_correct(one.asked.question, one.output.text) for one in results if one.asked.question]
    same = [one.output.token_ids == references[id(one.asked)] for one in results]
    outputs = [one.output for one in results]
    return {
        "method": method,
        "strategy": outputs[0].strategy,
        "guarantee": outputs[0].guarantee,
        "texts": len(results),
        "accuracy": round(statistics.fmean(answers), 4) if answers else None,
        "same_text": round(statistics.fmean(same), 4),
        "same_tokens": round(
            statistics.fmean(_agreement(one.output.token_ids, references[id(one.asked)]) for one in results),
            4,
        ),
        "forwards": round(statistics.fmean(one.stats.num_forwards for one in outputs), 3),
        "rows": round(statistics.fmean(one.stats.num_rows for one in outputs), 1),
        "tokens_per_forward": round(
            sum(one.stats.num_tokens for one in outputs) / sum(one.stats.num_forwards for one in outputs), 3
        ),
        "seconds": round(_typical_seconds(results), 5),
        "forward_share": round(
            sum(one.stats.forward_ms for one in outputs)
            / max(1e-9, sum(one.stats.total_ms for one in outputs)),
            4,
        ),
    }


def _typical_seconds(results: list[Result]) -> float:
    """Mean over the prompts of the median over the repetitions."""
    runs: dict[int, list[float]] = {}
    for one in results:
        runs.setdefault(id(one.asked), []).append(one.seconds)
    return statistics.fmean(statistics.median(some) for some in runs.values())


def _agreement(written: list[int], reference: list[int]) -> float:
    """Share of positions that hold the same token, of the longer text."""
    same = sum(a == b for a, b in zip(written, reference, strict=False))
    return same / max(len(written), len(reference), 1)


def expand_methods(
    methods: tuple[str, ...],
    model: DiffusionModel,
    canvas_sizes: tuple[int, ...],
    say: Callable[[str], None],
) -> tuple[str, ...]:
    """The names with "all" spelt out; what cannot run here is said and left out of "all"."""
    if "all" not in methods:
        return methods
    kept = []
    for name in ALL_METHODS:
        try:
            for size in canvas_sizes:
                model.check([[0]], SamplingParams(max_new_tokens=size), strategy=name)
        except ConfigError as problem:
            say(f"left out: {problem}")
        else:
            kept.append(name)
    return tuple(dict.fromkeys([*(name for name in methods if name != "all"), *kept]))
