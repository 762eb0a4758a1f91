"""What was not accepted gets fresh noise: the canvas of DiffusionGemma.

Every pass predicts the whole block. Accepted tokens stay for the next pass to see, all others are drawn
evenly from the vocabulary again, and none is settled before a stop policy ends the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.diffusion.base import Reviser, Strategy
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.revisers.editable import never_given
from hasten.diffusion.steps import DenoisingStep, Revision, Selection
from hasten.diffusion.stops.fixed_point import refuses_masks


@dataclass(frozen=True)
class Renoise(Reviser):
    """Opens everything of the block again: what was just written keeps its token, the rest gets noise."""

    name: ClassVar[str] = "renoise"
    published_with: ClassVar[str | None] = "entropy-bound"

    def revise(self, step: DenoisingStep, selection: Selection, state: Any) -> Revision:
        rest = np.setdiff1d(never_given(step), selection.positions, assume_unique=True)
        return Revision(rest, kept=selection.positions)

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        return refuses_masks(spec)
