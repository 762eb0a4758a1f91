"""Dream's schedule: as many tokens a forward pass as its noise level falls by (arXiv 2508.15487).

The noise level falls evenly from 1 to ``eps`` in ``steps`` forward passes. Where that would write less than
one token, one is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core import System
from hasten.diffusion.base import Selector
from hasten.diffusion.canvas import Canvas, Ids
from hasten.diffusion.selectors.static import Static, check_order, ranking, ranks
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="dream",
    title="Dream 7B: Diffusion Large Language Models",
    arxiv="2508.15487",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.dream",
    summary="as many tokens a forward pass as an evenly falling noise level asks for (dream)",
)


@dataclass(frozen=True)
class Dream(Selector):
    """A block in at most ``steps`` forward passes, in the order of ``order``, see Static."""

    name: ClassVar[str] = "dream"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    steps: int = 512
    order: str = "entropy"
    eps: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"dream:{self.steps} cannot work; a block takes at least one forward pass")
        if not 0 <= self.eps < 1:
            raise ConfigError(f"eps={self.eps} cannot work; the last noise level is at least 0 and below 1")
        check_order(self.order)

    @property
    def reference(self) -> Selector:
        return Static(order=self.order, seed=self.seed)

    def start(self, canvas: Canvas) -> Ids:
        return ranks(canvas, self.order, self.seed)

    def select(self, step: DenoisingStep, state: Ids) -> Selection:
        number = max(1, int(step.num_open * self._share(step.forward_in_block)))
        return Selection.of(step.open, np.sort(ranking(step.open, self.order, state)[:number]))

    def _share(self, forward: int) -> float:
        """Of the open positions, what a forward pass writes; everything in the last."""
        if forward >= self.steps - 1:
            return 1.0
        fall = (1 - self.eps) / self.steps
        return fall / (1 - forward * fall)
