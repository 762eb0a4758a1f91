"""dKV-Cache-Decode (arXiv 2505.15781): a token's row is kept from the second pass after it was written.

Keys and values change most in the pass after their token appears, so a row is computed once more with its
token and then reused. What is open is always computed. All rows are computed now and then, in the first two
forward passes of a block, and where a full block is looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hasten.core import Guarantee, System
from hasten.diffusion.base import CachePolicy
from hasten.diffusion.caches.stored import StoredRows
from hasten.diffusion.canvas import Canvas
from hasten.diffusion.steps import Plan, Turn
from hasten.errors import ConfigError

SYSTEM = System(
    name="dkv-decode",
    title="dKV-Cache: The Cache for Diffusion Language Models",
    arxiv="2505.15781",
    kind="diffusion cache",
    guarantee="approximate",
    module="hasten.diffusion.caches.dkv",
    summary="keeps the rows of written tokens, one pass delayed (cache dkv)",
)

_WARM_UP = 2


@dataclass(frozen=True)
class DelayedCache(CachePolicy):
    """``interval``: every row is computed in each so many forward passes of a block."""

    name: ClassVar[str] = "dkv"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    interval: int = 8

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ConfigError(f"{self.name}:{self.interval} cannot work; the interval is 1 pass or more")

    @property
    def guarantee(self) -> Guarantee:
        return "exact" if self.interval == 1 else "approximate"

    @property
    def is_constant_in_block(self) -> bool:
        return self.interval == 1

    def start(self, canvas: Canvas) -> StoredRows:
        return StoredRows.of(canvas)

    def plan(self, turn: Turn, state: StoredRows) -> Plan:
        canvas = turn.canvas
        number = turn.forward_in_block
        if number < _WARM_UP or number % self.interval == 0 or not len(canvas.open_in(turn.block)):
            return state.stores(canvas)
        return state.stores(canvas, canvas.is_open | state.changed(canvas))
