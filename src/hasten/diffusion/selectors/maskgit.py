"""Few tokens at first, many at last, and not always the surest: MaskGIT (arXiv 2202.04200).

After t of T forward passes a share cos(pi t / 2 T) of the block is open. The order is that of the
log-probabilities plus Gumbel noise, which fades until the last pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core import System
from hasten.diffusion.base import Selector
from hasten.diffusion.selectors.static import num_to_write
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError
from hasten.sampling import keyed_generator

SYSTEM = System(
    name="maskgit",
    title="MaskGIT: Masked Generative Image Transformer",
    arxiv="2202.04200",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.maskgit",
    summary="a cosine schedule of how much is open, in a partly random order (maskgit)",
)

CHOICE_STREAM = 3
"""of the keyed generator, see ``drawing.NOISE_STREAM``"""


@dataclass(frozen=True)
class MaskGit(Selector):
    """A block in at most ``steps`` forward passes; ``temperature`` scales the noise, drawn from ``seed``."""

    name: ClassVar[str] = "maskgit"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    steps: int = 8
    temperature: float = 4.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"maskgit:{self.steps} cannot work; a block takes at least one forward pass")
        if not self.temperature >= 0:
            raise ConfigError(f"temperature={self.temperature} cannot work; it must be at least 0")

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        prediction = step.open
        progress = min(1.0, (step.forward_in_block + 1) / self.steps)
        remaining = math.floor(math.cos(math.pi / 2 * progress) * num_to_write(step.canvas, step.block))
        number = max(1, step.num_open - remaining)
        generator = keyed_generator(self.seed, 0, step.forward_in_block, stream=CHOICE_STREAM)
        noise = generator.gumbel(size=len(step.canvas))[prediction.positions]
        with np.errstate(divide="ignore"):
            scores = np.log(prediction.confidence) + self.temperature * (1 - progress) * noise
        return Selection.of(prediction, np.sort(np.argsort(-scores, kind="stable")[:number]))
