"""Every token that is sure enough, and at least the surest: Fast-dLLM (arXiv 2505.22618)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.core import System
from hasten.diffusion.base import Selector
from hasten.diffusion.canvas import Mask
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="fast-dllm-threshold",
    title="Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
    arxiv="2505.22618",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.threshold",
    summary="every token whose probability is high enough (threshold)",
)

Floats = NDArray[np.float64]

ROUNDING = 1e-6
"""of probabilities in float32, so that a bound that is met exactly counts as met"""


@dataclass(frozen=True)
class Threshold(Selector):
    """Commits candidates whose probability is at least ``tau``.

    It does not ask how many tokens it lets pass at once, and many sure tokens may be wrong together.
    """

    name: ClassVar[str] = "threshold"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    tau: float = 0.9

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise ConfigError(
                f"threshold:{self.tau} cannot work; give a probability, or more for one a forward"
            )

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        prediction = step.open
        chosen = is_sure(prediction.confidence, self.tau)
        chosen[prediction.confidence.argmax()] = True
        return Selection.of(prediction, chosen)


def is_sure(confidence: Floats, bound: float | Floats) -> Mask:
    """Which confidences reach a bound, or one each."""
    return np.asarray(confidence >= bound - ROUNDING)
