"""Every token that is sure enough, and at least the surest: Fast-dLLM (arXiv 2505.22618)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.diffusion.base import Selection, Selector, Step


@dataclass(frozen=True)
class Threshold(Selector):
    """Commits candidates whose probability is at least ``tau``."""

    name: ClassVar[str] = "threshold"
    tau: float = 0.9

    def select(self, step: Step, state: Any) -> Selection:
        prediction = step.open
        chosen = prediction.confidence >= self.tau
        chosen[prediction.confidence.argmax()] = True
        return Selection.of(prediction, chosen)
