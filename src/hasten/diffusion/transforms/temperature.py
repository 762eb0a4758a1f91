"""A temperature of the predictions, the same in every pass or falling, as DiffusionGemma's samplers have it.

It comes before everything that is decided: confidence and entropy are of the warmed logits. The temperature
that tokens are drawn with comes on top; where that is 0 it changes what is sure enough, not which token is
best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.diffusion.base import Transform
from hasten.diffusion.canvas import Prediction
from hasten.diffusion.steps import DenoisingStep
from hasten.errors import ConfigError


@dataclass(frozen=True)
class Temperature(Transform):
    """Divides logits by a temperature that falls from ``high`` to ``low`` in ``steps`` passes of a block.

    Pass n of a block, from 0, has ``low + (high - low) * (steps - n) / steps``; later ones have ``low``.
    The defaults are DiffusionGemma's.
    """

    name: ClassVar[str] = "temperature"
    high: float = 0.8
    low: float = 0.4
    steps: int = 48

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < float("inf"):
            raise ConfigError(
                f"temperature: high={self.high}, low={self.low} cannot work; it must be 0 < low <= high"
            )
        if self.steps < 1:
            raise ConfigError(f"temperature: steps={self.steps} cannot work; at least one pass")

    def at(self, forward_in_block: int) -> float:
        """The temperature of one pass."""
        remaining = max(0, self.steps - forward_in_block)
        return self.low + (self.high - self.low) * remaining / self.steps

    def apply(self, step: DenoisingStep, extras: list[Prediction], state: Any) -> Prediction:
        return step.prediction.with_logits(step.prediction.logits / self.at(step.forward_in_block))
