"""Tokens that the text no longer supports are taken back: Discrete Diffusion VLA (arXiv 2508.20072).

A denoiser predicts a written position while it sees the token there, so it mostly agrees with it; with the
transform "unseen" it is asked without that token, as in WINO (arXiv 2507.18578).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.core import System
from hasten.diffusion.base import Reviser, Strategy, Wants
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Ids, Prediction
from hasten.diffusion.steps import DenoisingStep, Revision, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="secondary-remasking",
    title="Discrete Diffusion VLA: Bringing Discrete Diffusion to Action Decoding in Vision-Language-Action "
    "Policies",
    arxiv="2508.20072",
    kind="diffusion reviser",
    guarantee="approximate",
    module="hasten.diffusion.revisers.remask",
    summary="opens written positions again whose token has lost the model's confidence (remask)",
)


@dataclass
class _Memory:
    confidence: NDArray[np.float64]
    """[length]: of each token when it was written"""
    num_reopened: NDArray[np.int64]
    """[length]"""


@dataclass(frozen=True)
class Remask(Reviser):
    """Opens a token of the block again that is now less likely than ``tau``, or by ``drop`` less than it was.

    A position is opened again at most ``budget`` times, so that every canvas comes to an end.
    ``checks_end`` predicts a block once more when it is full, to judge what was written last.
    """

    name: ClassVar[str] = "remask"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    wants: ClassVar[Wants] = "block"
    published_with: ClassVar[str | None] = "threshold"
    tau: float = 0.3
    drop: float = 0.5
    budget: int = 1
    checks_end: bool = False

    def __post_init__(self) -> None:
        if self.budget < 0:
            raise ConfigError(f"remask: budget={self.budget} cannot work; it must be 0 or more")

    def start(self, canvas: Canvas) -> _Memory:
        return _Memory(np.zeros(len(canvas)), np.zeros(len(canvas), dtype=np.int64))

    def revise(self, step: DenoisingStep, selection: Selection, state: _Memory) -> Revision:
        chosen = step.prediction.at(selection.positions).with_tokens(selection.token_ids)
        state.confidence[selection.positions] = chosen.confidence
        written = written_before(step, selection)
        fell = state.confidence[written.positions] - written.confidence
        lost = (written.confidence < self.tau) | (fell > self.drop)
        reopened = written.positions[lost & (state.num_reopened[written.positions] < self.budget)]
        state.num_reopened[reopened] += 1
        is_full = not len(step.canvas.open_in(step.block))
        return Revision(reopened, looks_again=self.checks_end and is_full and len(selection.positions) > 0)

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.noise == "uniform":
            return "open positions would hold noise, not a mask; choose 'renoise' or 'editable'"
        return None


def written_before(step: DenoisingStep, selection: Selection) -> Prediction:
    """What is now predicted at the tokens of the block that were there before this pass, with these tokens.

    Only positions that the pass computed; given ones are left out.
    """
    canvas, (start, end), seen = step.canvas, step.block, step.prediction.positions
    is_judged = (start <= seen) & (seen < end) & ~canvas.is_open[seen] & ~canvas.is_given[seen]
    positions: Ids = np.setdiff1d(seen[is_judged], selection.positions, assume_unique=True)
    return step.prediction.at(positions).with_tokens(canvas.token_ids[positions])
