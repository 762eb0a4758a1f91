"""An end of text that is foreseen ends the canvas: end-of-text prediction of Learn2PD (arXiv 2509.25188).

What follows it would only be padding, so the canvas is cut behind it and every later forward pass is
shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core import System
from hasten.diffusion.base import Helpers, StopPolicy, Strategy
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.steps import DenoisingStep, Finish

SYSTEM = System(
    name="end-of-text-prediction",
    title="Learning to Parallel: Accelerating Diffusion Large Language Models via Learnable Parallel "
    "Decoding",
    arxiv="2509.25188",
    kind="diffusion stop",
    guarantee="approximate",
    module="hasten.diffusion.stops.eot",
    summary="cuts the canvas behind an end of text that is foreseen (eot)",
)


@dataclass(frozen=True)
class EndOfText(StopPolicy):
    """Cuts behind the first open position of the block whose candidate is an end of text, sure to ``tau``.

    With ``likeliest``, where none is that sure, behind the one with the highest probability among those
    whose candidate is an end of text, however low that is: the authors' code does this, and may cut a text
    short. The end of text itself is still to be written, and may come out as another token.
    """

    name: ClassVar[str] = "eot"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    cuts_the_end: ClassVar[bool] = True
    tau: float = 0.9
    likeliest: bool = False
    eos_ids: tuple[int, ...] = ()

    @classmethod
    def make(cls, helpers: Helpers, **values: Any) -> EndOfText:
        return cls(eos_ids=() if helpers.spec is None else helpers.spec.eos_ids, **values)

    def before_commit(self, step: DenoisingStep, state: Any) -> Finish | None:
        prediction = step.open
        rows = np.flatnonzero(np.isin(prediction.token_ids, self.eos_ids))
        sure = rows[prediction.confidence[rows] >= self.tau]
        if len(sure):
            return Finish(length=int(prediction.positions[sure[0]]) + 1)
        if self.likeliest and len(rows):
            best = rows[prediction.confidence[rows].argmax()]
            return Finish(length=int(prediction.positions[best]) + 1)
        return None

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        return refuses_to_cut(strategy, self.eos_ids)


def refuses_to_cut(strategy: Strategy, eos_ids: tuple[int, ...]) -> str | None:
    """Why a canvas cannot be cut at an end of text that is not written yet."""
    if not eos_ids:
        return "this denoiser names no end-of-text token; add eos_ids to its spec"
    if strategy.constraint is not None:
        return "a constraint counts on the length of the canvas; leave it out, 'eos' stops at a written end"
    return None
