"""dInfer's vicinity refresh (arXiv 2510.08666): the block and what is near it; the rest once a block.

The first forward passes of a text compute every row, because everything still changes; so does the first
pass of each block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core import System
from hasten.diffusion.base import CachePolicy
from hasten.diffusion.caches.stored import StoredRows
from hasten.diffusion.canvas import Canvas
from hasten.diffusion.steps import Plan, Turn
from hasten.errors import ConfigError

SYSTEM = System(
    name="vicinity-cache",
    title="dInfer: An Efficient Inference Framework for Diffusion Language Models",
    arxiv="2510.08666",
    kind="diffusion cache",
    guarantee="approximate",
    module="hasten.diffusion.caches.vicinity",
    summary="computes the block and the positions near it (cache vicinity)",
)


@dataclass(frozen=True)
class Vicinity(CachePolicy):
    """``radius`` positions on both sides of a block are computed with it, after ``warm_up`` whole passes."""

    name: ClassVar[str] = "vicinity"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    radius: int = 16
    warm_up: int = 4

    def __post_init__(self) -> None:
        if self.radius < 0 or self.warm_up < 0:
            raise ConfigError(
                f"{self.name}:radius={self.radius},warm_up={self.warm_up} cannot work; both are 0 or more"
            )

    @property
    def is_constant_in_block(self) -> bool:
        return self.warm_up <= 1

    def start(self, canvas: Canvas) -> StoredRows:
        return StoredRows.of(canvas)

    def plan(self, turn: Turn, state: StoredRows) -> Plan:
        canvas, block = turn.canvas, turn.block
        if turn.forward_in_block == 0 or state.num_passes < self.warm_up:
            return state.stores(canvas)
        places = np.arange(len(canvas))
        is_near = (places >= block.start - self.radius) & (places < block.end + self.radius)
        return state.stores(canvas, is_near | state.changed(canvas))
