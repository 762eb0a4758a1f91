"""Near a sure token less sure ones are trusted too: LocalLeap (arXiv 2510.07081)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core import System
from hasten.diffusion.base import Selector
from hasten.diffusion.selectors.threshold import is_sure
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="localleap",
    title="Accelerating Diffusion LLM Inference via Local Determinism Propagation",
    arxiv="2510.07081",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.local_leap",
    summary="sure tokens, and less sure ones in their neighbourhood (localleap)",
)


@dataclass(frozen=True)
class LocalLeap(Selector):
    """Commits candidates of at least ``tau``, and of ``relaxed`` up to ``radius`` positions from those."""

    name: ClassVar[str] = "localleap"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    tau: float = 0.9
    relaxed: float = 0.75
    radius: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.relaxed <= self.tau:
            raise ConfigError(
                f"localleap:tau={self.tau},relaxed={self.relaxed} cannot work; the relaxed threshold lies "
                "between 0 and tau"
            )
        if self.radius < 0:
            raise ConfigError(f"radius={self.radius} cannot work; it counts positions, at least 0")

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        prediction = step.open
        sure = is_sure(prediction.confidence, self.tau)
        distances = np.abs(prediction.positions[:, None] - prediction.positions[sure])
        is_near = (distances <= self.radius).any(axis=1)
        chosen = sure | (is_near & is_sure(prediction.confidence, self.relaxed))
        chosen[prediction.confidence.argmax()] = True
        return Selection.of(prediction, chosen)
