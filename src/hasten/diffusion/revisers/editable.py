"""Nothing is ever settled: unrolled denoising (SUNDAE, arXiv 2112.06749; UT5, arXiv 2311.08552).

The model has no mask token. It reads a whole text, noise at first, and predicts every position of it anew,
until the text predicts itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core import System
from hasten.diffusion.base import Reviser, Strategy
from hasten.diffusion.canvas import DenoiserSpec, Ids
from hasten.diffusion.steps import DenoisingStep, Revision, Selection
from hasten.diffusion.stops.fixed_point import refuses_masks

SYSTEMS = (
    System(
        name="sundae",
        title="DenoisingStep-unrolled Denoising Autoencoders for Text Generation",
        arxiv="2112.06749",
        kind="diffusion reviser",
        guarantee="approximate",
        module="hasten.diffusion.revisers.editable",
        summary="rewrites random parts of a text until it predicts itself (unroll+editable+fixed-point)",
    ),
    System(
        name="ut5",
        title="UT5: Pretraining Non autoregressive T5 with unrolled denoising",
        arxiv="2311.08552",
        kind="diffusion reviser",
        guarantee="approximate",
        module="hasten.diffusion.revisers.editable",
        summary="rewrites all of a text until it predicts itself (unroll:1+editable+fixed-point)",
    ),
)


@dataclass(frozen=True)
class Editable(Reviser):
    """Opens everything of the block again; each position goes on holding its token."""

    name: ClassVar[str] = "editable"
    systems: ClassVar[tuple[System, ...]] = SYSTEMS
    published_with: ClassVar[str | None] = "unroll"

    def revise(self, step: DenoisingStep, selection: Selection, state: Any) -> Revision:
        return Revision(kept=never_given(step))

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        return refuses_masks(spec)


def never_given(step: DenoisingStep) -> Ids:
    """The positions of the block that are not given, ascending."""
    start, end = step.block
    return np.flatnonzero(~step.canvas.is_given[start:end]) + start
