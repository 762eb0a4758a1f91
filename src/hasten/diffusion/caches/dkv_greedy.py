"""dKV-Cache-Greedy (arXiv 2505.15781): only what was just written, what will be, and their neighbours.

It has to know which positions are written next before they are predicted, so it needs a selector whose
order is known in advance. A neighbour is an open position at most ``window`` away from one that was written
since the last pass or will be written after this one. All rows are computed now and then, and where a full
block is looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core import System
from hasten.diffusion.base import Strategy
from hasten.diffusion.caches.dkv import DelayedCache
from hasten.diffusion.caches.stored import StoredRows
from hasten.diffusion.canvas import DenoiserSpec, Mask
from hasten.diffusion.steps import Plan, Turn
from hasten.errors import ConfigError

SYSTEM = System(
    name="dkv-greedy",
    title="dKV-Cache: The Cache for Diffusion Language Models",
    arxiv="2505.15781",
    kind="diffusion cache",
    guarantee="approximate",
    module="hasten.diffusion.caches.dkv_greedy",
    summary="computes what was just written, what will be, and their neighbours (cache dkv-greedy)",
)


@dataclass(frozen=True)
class GreedyCache(DelayedCache):
    """``interval`` as in DelayedCache; ``window``: positions on both sides that are computed as well."""

    name: ClassVar[str] = "dkv-greedy"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    interval: int = 2
    window: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 0:
            raise ConfigError(f"{self.name}:window={self.window} cannot work; it is 0 positions or more")

    def plan(self, turn: Turn, state: StoredRows) -> Plan:
        canvas = turn.canvas
        if turn.forward_in_block % self.interval == 0 or not len(canvas.open_in(turn.block)):
            return state.stores(canvas)
        assert turn.upcoming is not None
        centres = state.changed(canvas)
        centres[turn.upcoming] = True
        return state.stores(canvas, centres | (self._near(centres) & canvas.is_open))

    def _near(self, centres: Mask) -> Mask:
        """bool [length]: at most ``window`` away from one of the centres."""
        reach = np.convolve(centres, np.ones(2 * self.window + 1), mode="full")
        near: Mask = reach[self.window : self.window + len(centres)] > 0.5
        return near

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if not strategy.selector.order_is_known:
            return (
                f"selector {strategy.selector.name!r} does not know in advance what it will write; choose "
                "'static:order=random' or 'static:order=left-to-right', or the cache 'dkv'"
            )
        return None
