"""The more tokens at once, the surer each must be: Fast-dLLM's factor decoding (arXiv 2505.22618).

With ``f`` up to 1, what is written together is the likeliest joint choice wherever the predicted
probabilities are right: n tokens, each with more than n / (n + 1), leave less for any other combination.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.core import System
from hasten.diffusion.base import Selector
from hasten.diffusion.canvas import Mask
from hasten.diffusion.selectors.threshold import is_sure
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="fast-dllm-factor",
    title="Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
    arxiv="2505.22618",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.factor",
    summary="as many tokens as are sure enough for their number (factor)",
)


@dataclass(frozen=True)
class Factor(Selector):
    """Commits the n surest candidates, for the largest n of which each has at least 1 - f / (n + 1)."""

    name: ClassVar[str] = "factor"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    f: float = 1.0

    def __post_init__(self) -> None:
        if not self.f > 0:
            raise ConfigError(f"factor:{self.f} cannot work; give a number above 0, such as 1")

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        prediction = step.open
        ranked = np.argsort(-prediction.confidence, kind="stable")
        number = int(within_factor(prediction.confidence[ranked], self.f).sum())
        return Selection.of(prediction, np.sort(ranked[: max(1, number)]))


def within_factor(confidence: NDArray[np.float64], f: float) -> Mask:
    """For confidences from high to low: whether as many as up to there may be written together."""
    return is_sure(confidence, 1 - f / (np.arange(len(confidence)) + 2))
