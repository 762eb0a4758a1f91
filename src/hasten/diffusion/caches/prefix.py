"""Fast-dLLM's prefix cache (arXiv 2505.22618): what stands before the block is computed once a block.

The first forward pass of a block computes every row; the others compute the block and what comes after it.
Under full attention the text before the block would notice the tokens that are written: it is approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core import Guarantee, System
from hasten.diffusion.base import CachePolicy, Strategy
from hasten.diffusion.caches.stored import StoredRows
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Mask
from hasten.diffusion.steps import Plan, Turn
from hasten.errors import ConfigError

SYSTEM = System(
    name="prefix-cache",
    title="Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
    arxiv="2505.22618",
    kind="diffusion cache",
    guarantee="approximate",
    module="hasten.diffusion.caches.prefix",
    summary="keeps the rows before the block while it is written (cache prefix)",
)


@dataclass(frozen=True)
class FrozenPrefix(CachePolicy):
    """``refresh``: every row is computed in each so many forward passes of a block; 0: in the first only."""

    name: ClassVar[str] = "prefix"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    refresh: int = 0

    def __post_init__(self) -> None:
        if self.refresh < 0:
            raise ConfigError(f"{self.name}:{self.refresh} cannot work; refresh is 0 or more forward passes")

    @property
    def guarantee(self) -> Guarantee:
        return "exact" if self.refresh == 1 else "approximate"

    @property
    def is_constant_in_block(self) -> bool:
        return self.refresh <= 1

    def start(self, canvas: Canvas) -> StoredRows:
        return StoredRows.of(canvas)

    def plan(self, turn: Turn, state: StoredRows) -> Plan:
        is_first = turn.forward_in_block == 0
        if is_first or (self.refresh and turn.forward_in_block % self.refresh == 0):
            return state.stores(turn.canvas)
        return state.stores(turn.canvas, self._active(turn) | state.changed(turn.canvas))

    @staticmethod
    def _active(turn: Turn) -> Mask:
        """bool [length]: what every pass computes."""
        active: Mask = np.arange(len(turn.canvas)) >= turn.block.start
        return active

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.attention == "block-causal":
            return "this denoiser's finished blocks do not change; choose 'blocks', which keeps them for good"
        return None
