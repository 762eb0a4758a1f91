"""Every position whose entropy is low, and at least the lowest: how dParallel decodes (arXiv 2509.26488)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.core import System
from hasten.diffusion.base import Selector
from hasten.diffusion.selectors.static import Static
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="dparallel-entropy",
    title="dParallel: Learnable Parallel Decoding for dLLMs",
    arxiv="2509.26488",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.entropy",
    summary="every position whose entropy is low enough (entropy)",
)


@dataclass(frozen=True)
class Entropy(Selector):
    """Commits positions whose entropy is at most ``bound`` nats."""

    name: ClassVar[str] = "entropy"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    bound: float = 0.5

    def __post_init__(self) -> None:
        if not self.bound >= 0:
            raise ConfigError(f"entropy:{self.bound} cannot work; give nats, at least 0")

    @property
    def reference(self) -> Selector:
        return Static(order="entropy")

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        prediction = step.open
        chosen = prediction.entropy <= self.bound
        chosen[prediction.entropy.argmin()] = True
        return Selection.of(prediction, chosen)
