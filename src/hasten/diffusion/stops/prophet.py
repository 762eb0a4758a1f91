"""All at once as soon as the best guesses stand out: Prophet (arXiv 2508.19982).

A model often knows the rest long before the last pass. While the best logit beats the second by much on
average, everything that is open is written at once; the more of the passes are spent, the less it takes.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import ClassVar

from hasten.core import System
from hasten.diffusion.base import StopPolicy, Strategy, Wants
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.steps import DenoisingStep, Finish

SYSTEM = System(
    name="prophet",
    title="Diffusion Language Models Know the Answer Before Decoding",
    arxiv="2508.19982",
    kind="diffusion stop",
    guarantee="approximate",
    module="hasten.diffusion.stops.prophet",
    summary="writes everything at once when the best guesses beat the second best by enough",
)

STAGES = (0.33, 0.67)
"""parts of the passes after which less is asked for"""


@dataclass(frozen=True)
class Prophet(StopPolicy):
    """Fills when the mean gap between best and second logit reaches ``early``, ``middle`` or ``late``.

    Which one counts depends on the passes so far as a part of those that one token a pass would take. The
    authors average over the place of the answer, which a caller names; here it is every open position that
    was predicted.
    """

    name: ClassVar[str] = "prophet"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    wants: ClassVar[Wants] = "canvas"
    published_with: ClassVar[str | None] = "static"
    early: float = 7.5
    middle: float = 5.0
    late: float = 2.5

    def start(self, canvas: Canvas) -> int:
        """The passes that one token a pass would take."""
        return canvas.num_open

    def before_commit(self, step: DenoisingStep, state: int) -> Finish | None:
        gaps = step.everywhere.gap
        if not len(gaps):
            return None
        stage = bisect.bisect_right(STAGES, step.forward / state)
        return Finish(fills=True) if gaps.mean() >= (self.early, self.middle, self.late)[stage] else None

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.block_size is not None:
            return "this denoiser predicts no later block before it comes; choose 'threshold'"
        return None
