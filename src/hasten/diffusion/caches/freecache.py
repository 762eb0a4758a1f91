"""FlashDLM's FreeCache (arXiv 2505.21467): what is finished is computed once more, and then never again.

The rows of a finished block are computed with all its tokens in the first pass of the next block and frozen
from then on, like those of the prompt after the very first pass; every pass computes the block and what
comes after it. That all rows are computed now and then is optional here; the paper's cache, as its abstract
describes it, never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core import System
from hasten.diffusion.base import CachePolicy, Strategy
from hasten.diffusion.caches.stored import StoredRows
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.steps import Plan, Turn
from hasten.errors import ConfigError

SYSTEM = System(
    name="freecache",
    title="FlashDLM: Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided "
    "Diffusion",
    arxiv="2505.21467",
    kind="diffusion cache",
    guarantee="approximate",
    module="hasten.diffusion.caches.freecache",
    summary="freezes the rows of the prompt and of finished blocks (cache freecache)",
)


@dataclass(slots=True)
class Frozen(StoredRows):
    """What is stored, and how much of it is frozen."""

    end: int = 0
    """positions before it are of finished blocks, and stored with all their tokens"""
    num_blocks: int = 0


@dataclass(frozen=True)
class FreeCache(CachePolicy):
    """``refresh``: every row is computed at the start of each so many blocks; 0: of the first only."""

    name: ClassVar[str] = "freecache"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    refresh: int = 0

    def __post_init__(self) -> None:
        if self.refresh < 0:
            raise ConfigError(f"{self.name}:{self.refresh} cannot work; refresh is 0 or more blocks")

    @property
    def is_constant_in_block(self) -> bool:
        return True

    def start(self, canvas: Canvas) -> Frozen:
        return Frozen.of(canvas)

    def plan(self, turn: Turn, state: Frozen) -> Plan:
        start, is_refresh = turn.block.start, False
        if turn.forward_in_block == 0:
            is_refresh = state.num_blocks % self.refresh == 0 if self.refresh else state.num_blocks == 0
            state.num_blocks += 1
            start = min(start, state.end)
            state.end = turn.block.start
        if is_refresh:
            return state.stores(turn.canvas)
        active = np.arange(len(turn.canvas)) >= start
        return state.stores(turn.canvas, active | state.changed(turn.canvas))

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.attention == "block-causal":
            return (
                "this denoiser's finished blocks do not change; choose 'blocks', which freezes them exactly"
            )
        return None
