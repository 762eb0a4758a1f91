"""ReCAP (arXiv 2505.19089): whole passes take turns with local ones, which read the context as it was.

A local pass computes what is still open in the block and what changed since the last whole pass, and stores
nothing. Made for images, whose tokens are all one block; here the targets are those of the block. A full
block that is looked at again is looked at as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core import Guarantee, System
from hasten.diffusion.base import CachePolicy
from hasten.diffusion.caches.stored import StoredRows
from hasten.diffusion.canvas import Canvas
from hasten.diffusion.steps import Plan, Turn
from hasten.errors import ConfigError

SYSTEM = System(
    name="recap",
    title="Plug-and-Play Context Feature Reuse for Efficient Masked Generation",
    arxiv="2505.19089",
    kind="diffusion cache",
    guarantee="approximate",
    module="hasten.diffusion.caches.recap",
    summary="whole forward passes take turns with local ones (cache recap)",
)


@dataclass(frozen=True)
class Recap(CachePolicy):
    """``local``: local passes after each whole one."""

    name: ClassVar[str] = "recap"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    local: int = 1

    def __post_init__(self) -> None:
        if self.local < 0:
            raise ConfigError(
                f"{self.name}:{self.local} cannot work; 0 or more local passes follow a whole one"
            )

    @property
    def guarantee(self) -> Guarantee:
        return "exact" if self.local == 0 else "approximate"

    @property
    def is_constant_in_block(self) -> bool:
        return self.local == 0

    def start(self, canvas: Canvas) -> StoredRows:
        return StoredRows.of(canvas)

    def plan(self, turn: Turn, state: StoredRows) -> Plan:
        canvas = turn.canvas
        targets = canvas.open_in(turn.block)
        if turn.forward_in_block % (self.local + 1) == 0 or not len(targets):
            return state.stores(canvas)
        computed = state.changed(canvas)
        computed[targets] = True
        return Plan(np.flatnonzero(computed))
