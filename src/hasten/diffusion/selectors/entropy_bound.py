"""As many tokens as can hardly depend on each other: the EB-sampler (arXiv 2505.24857).

The joint law of some positions differs from the product of their own laws by at most the sum of their
entropies without the largest (nats of mutual information). DiffusionGemma accepts tokens by the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.core import System
from hasten.diffusion.base import Selector
from hasten.diffusion.canvas import Mask
from hasten.diffusion.selectors.static import Static
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="eb-sampler",
    title="Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking",
    arxiv="2505.24857",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.entropy_bound",
    summary="as many tokens as a bound on their mutual information allows (entropy-bound)",
)


@dataclass(frozen=True)
class EntropyBound(Selector):
    """Commits the surest positions whose entropies without the largest sum to at most ``gamma`` nats."""

    name: ClassVar[str] = "entropy-bound"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ConfigError(f"entropy-bound:{self.gamma} cannot work; give nats, at least 0")

    @property
    def reference(self) -> Selector:
        return Static(order="entropy")

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        prediction = step.open
        ranked = np.argsort(prediction.entropy, kind="stable")
        number = int(within_entropy(prediction.entropy[ranked], self.gamma).sum())
        return Selection.of(prediction, np.sort(ranked[:number]))


def within_entropy(entropy: NDArray[np.float64], gamma: float) -> Mask:
    """Whether as many positions as up to each may be written together; true of the first."""
    return np.asarray(np.cumsum(entropy) - np.maximum.accumulate(entropy) <= gamma)
