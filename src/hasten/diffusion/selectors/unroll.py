"""A random part of the text is written anew in each pass: unrolled denoising (SUNDAE, arXiv 2112.06749)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.diffusion.base import Selector, Strategy
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.diffusion.stops.fixed_point import refuses_masks
from hasten.errors import ConfigError
from hasten.sampling import keyed_generator


@dataclass(frozen=True)
class Unroll(Selector):
    """Writes each position of the block with probability ``part``, and at least one; 1 writes all.

    Which ones depends on ``seed``, the pass and the position alone.
    """

    name: ClassVar[str] = "unroll"
    part: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.part <= 1:
            raise ConfigError(f"unroll:{self.part} cannot work; it is a part of the positions, above 0 to 1")

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        prediction = step.open
        draws = keyed_generator(self.seed, 0, step.forward, stream=3).random(len(step.canvas))
        chosen = draws[prediction.positions] < self.part
        chosen[draws[prediction.positions].argmin()] = True
        return Selection.of(prediction, chosen)

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        return refuses_masks(spec)
