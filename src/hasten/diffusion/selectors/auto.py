"""As many tokens as two bounds both allow: that of "factor" and that of "entropy-bound".

The first keeps the joint choice the likeliest, the second keeps what is lost by choosing independently small;
each is blind where the other sees. Nothing needs to be tuned to the model or the length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.diffusion.base import Selector
from hasten.diffusion.selectors.entropy_bound import within_entropy
from hasten.diffusion.selectors.factor import within_factor
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError


@dataclass(frozen=True)
class Auto(Selector):
    """Commits the surest candidates: as many as Factor with ``f`` and EntropyBound allow."""

    name: ClassVar[str] = "auto"
    f: float = 1.0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not (self.f > 0 and self.gamma >= 0):
            raise ConfigError(
                f"auto:f={self.f},gamma={self.gamma} cannot work; f is above 0, gamma at least 0"
            )

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        prediction = step.open
        ranked = np.argsort(-prediction.confidence, kind="stable")
        allowed = within_factor(prediction.confidence[ranked], self.f)
        allowed &= within_entropy(prediction.entropy[ranked], self.gamma)
        return Selection.of(prediction, np.sort(ranked[: max(1, int(allowed.sum()))]))
