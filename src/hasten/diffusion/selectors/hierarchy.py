"""The surest token of every gap, so that gaps are halved again and again: dInfer (arXiv 2510.08666)."""

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
    name="dinfer-hierarchy",
    title="dInfer: An Efficient Inference Framework for Diffusion Language Models",
    arxiv="2510.08666",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.hierarchy",
    summary="sure tokens, and the surest of every gap between written ones (hierarchy)",
)


@dataclass(frozen=True)
class Hierarchy(Selector):
    """Commits candidates of at least ``tau``, and the surest of each run of open positions above ``low``."""

    name: ClassVar[str] = "hierarchy"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    tau: float = 0.9
    low: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.tau:
            raise ConfigError(
                f"hierarchy:tau={self.tau},low={self.low} cannot work; low lies between 0 and tau"
            )

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        prediction = step.open
        confidence = prediction.confidence
        chosen = is_sure(confidence, self.tau)
        gaps = np.split(np.arange(len(confidence)), np.flatnonzero(np.diff(prediction.positions) > 1) + 1)
        best = np.array([gap[confidence[gap].argmax()] for gap in gaps])
        chosen[best[confidence[best] > self.low]] = True
        chosen[confidence.argmax()] = True
        return Selection.of(prediction, chosen)
