"""ParallelBench (arXiv 2510.04767): what writing several tokens at once costs in right answers.

List tasks of one size, every family of selectors at several degrees of parallelism, and beside them what an
ideal denoiser could do where chance alone decides.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from hasten.bench.canvases import CanvasBenchConfig, CanvasBenchmark, CanvasPrompt, Progress
from hasten.diffusion.engine import DiffusionModel
from hasten.diffusion.list_tasks import (
    MAX_SIZE,
    TASKS,
    is_correct,
    replace_random_success,
    sample_questions,
    shuffle_success,
)
from hasten.errors import ConfigError

TOKENS = (1, 2, 3, 4, 6, 8, 12)
FAMILIES: dict[str, tuple[str, ...]] = {
    "confidence": tuple(f"static:{n}" for n in TOKENS),
    "margin": tuple(f"static:tokens={n},order=margin" for n in TOKENS),
    "entropy": tuple(f"static:tokens={n},order=entropy" for n in TOKENS),
    "random": tuple(f"static:tokens={n},order=random" for n in TOKENS),
    "threshold": tuple(f"threshold:{tau}" for tau in (0.99, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)),
    "factor": tuple(f"factor:{f}" for f in (0.25, 0.5, 1, 2, 4)),
    "entropy-bound": tuple(f"entropy-bound:{gamma}" for gamma in (0.01, 0.1, 0.3, 1, 3)),
}
"""family -> its strategies, least parallel first"""
LIMITS = {"shuffle": shuffle_success, "replace_random": replace_random_success}
"""task -> the chance of a right answer for (size, tokens a forward), ideal denoiser, random order, sampled"""
ROOM = 2
"""positions beside the list's own: an inserted item and the end of the text"""


@dataclass(frozen=True, slots=True)
class Point:
    """One strategy on one task, "mean" for all of them."""

    family: str
    method: str
    task: str
    tokens_per_forward: float
    accuracy: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in self.__slots__}


def parallel_points(
    model: DiffusionModel,
    families: tuple[str, ...] = tuple(FAMILIES),
    *,
    tasks: tuple[str, ...] = tuple(TASKS),
    size: int = 10,
    num_questions: int = 20,
    temperature: float = 0.0,
    progress: Progress = lambda name, done, total: None,
) -> list[Point]:
    """Accuracy and tokens a forward of every strategy on every task.

    Raises ConfigError for an unknown family or task and for a size that lists do not have.
    """
    if unknown := [name for name in families if name not in FAMILIES]:
        raise ConfigError(f"family {unknown[0]!r} is unknown; choose {', '.join(FAMILIES)}")
    if not 2 <= size <= MAX_SIZE:
        raise ConfigError(f"size={size} cannot work for a list; it must be 2 to {MAX_SIZE}")
    asked = [
        CanvasPrompt(task, question.prompt, question)
        for task in tasks
        for question in sample_questions(task, num_questions, 0, size, size)
    ]
    methods = {method: family for family in families for method in FAMILIES[family]}
    config = CanvasBenchConfig(methods=tuple(methods), canvas_sizes=(size + ROOM,), temperature=temperature)
    benchmark = CanvasBenchmark(model, config)
    benchmark.run(asked, progress)
    return [
        point for method, family in methods.items() for point in _points(benchmark, family, method, tasks)
    ]


def _points(benchmark: CanvasBenchmark, family: str, method: str, tasks: tuple[str, ...]) -> list[Point]:
    points = []
    for task in tasks:
        results = [one for one in benchmark.results if (one.method, one.asked.prompt_set) == (method, task)]
        stats = [one.output.stats for one in results]
        speed = sum(one.num_tokens for one in stats) / sum(one.num_forwards for one in stats)
        right = statistics.fmean(
            one.asked.question is not None and is_correct(one.asked.question, one.output.text)
            for one in results
        )
        points.append(Point(family, method, task, round(speed, 4), round(right, 4)))
    speed = statistics.harmonic_mean([point.tokens_per_forward for point in points])
    right = statistics.fmean(point.accuracy for point in points)
    return [*points, Point(family, method, "mean", round(speed, 4), round(right, 4))]


def closed_form(task: str, size: int) -> list[tuple[int, float]]:
    """(tokens a forward, chance of a right answer) of an ideal denoiser, where it is known."""
    return [(tokens, LIMITS[task](size, tokens)) for tokens in range(1, size + 1)]
