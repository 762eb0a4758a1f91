"""Texts that a denoiser writes to be learnt from, and every step of how they came about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hasten.core import SamplingParams
from hasten.diffusion.base import Strategy
from hasten.diffusion.canvas import Canvas, Denoiser
from hasten.diffusion.drawing import Drawing, noise_source
from hasten.diffusion.loop import Writing, denoise
from hasten.diffusion.trace import Record

GREEDY = SamplingParams()
_CANVASES_AT_ONCE = 32


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One text."""

    start: Canvas
    end: Canvas
    records: list[Record]
    """one a step"""


def write_canvases(
    denoiser: Denoiser,
    canvases: Sequence[Canvas],
    strategies: Sequence[Strategy],
    *,
    params: SamplingParams = GREEDY,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> list[Trajectory]:
    """Writes each canvas by its strategy; the canvases themselves stay as they are.

    ``report`` is told how many are done. Raises ConfigError for a strategy that does not suit.
    """
    for canvas, strategy in zip(canvases, strategies, strict=True):
        strategy.check(denoiser.spec)
        strategy.check_canvas(canvas)
    made: list[Trajectory] = []
    jobs = list(enumerate(zip(canvases, strategies, strict=True)))
    for first in range(0, len(jobs), _CANVASES_AT_ONCE):
        batch = jobs[first : first + _CANVASES_AT_ONCE]
        writings = [
            Writing(
                canvas.fork(),
                strategy,
                Drawing(params, seed, number),
                noise_source(denoiser.spec, denoiser.vocab_size, seed, number),
                sequence,
            )
            for sequence, (number, (canvas, strategy)) in enumerate(batch)
        ]
        records: list[list[Record]] = [[] for _ in writings]
        for step in denoise(denoiser, writings):
            for record in step:
                records[record.sequence].append(record)
        made += [
            Trajectory(canvas, writing.canvas, steps)
            for (_, (canvas, _)), writing, steps in zip(batch, writings, records, strict=True)
        ]
        report(len(made))
    return made
