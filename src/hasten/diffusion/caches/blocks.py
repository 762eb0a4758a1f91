"""The exact cache of block-causal denoisers (BD3-LM, arXiv 2503.09573): finished blocks never change again.

A block sees itself and what is before it. So its rows are kept once it is finished, and a pass computes the
present block alone; the first pass of a block also the one that was finished before it, whose rows were
computed last while some of it was open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from hasten.core import Guarantee, System
from hasten.diffusion.base import CachePolicy, Strategy
from hasten.diffusion.caches.stored import StoredRows
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.steps import Plan, Turn

SYSTEM = System(
    name="block-cache",
    title="Block Diffusion: Interpolating Between Autoregressive and Diffusion Language Models",
    arxiv="2503.09573",
    kind="diffusion cache",
    guarantee="exact",
    module="hasten.diffusion.caches.blocks",
    summary="keeps the rows of finished blocks, exactly, for block-causal denoisers (cache blocks)",
)


@dataclass(slots=True)
class FinishedBlocks(StoredRows):
    """What is stored, and where the blocks began that were written."""

    starts: set[int] = field(default_factory=lambda: {0})


@dataclass(frozen=True)
class BlockCache(CachePolicy):
    """Where a token of an earlier block was changed, its block and all after it are computed again."""

    name: ClassVar[str] = "blocks"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    guarantee: ClassVar[Guarantee] = "exact"

    @property
    def is_constant_in_block(self) -> bool:
        return True

    def start(self, canvas: Canvas) -> FinishedBlocks:
        return FinishedBlocks.of(canvas)

    def plan(self, turn: Turn, state: FinishedBlocks) -> Plan:
        canvas, block = turn.canvas, turn.block
        changed = np.flatnonzero(state.changed(canvas)[: block.start])
        start = block.start
        if len(changed):
            start = max(one for one in state.starts if one <= changed[0])
        state.starts.add(block.start)
        places = np.arange(len(canvas))
        plan = state.stores(canvas, (places >= start) & (places < block.end))
        state.forget(block.end)
        return plan

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.attention != "block-causal":
            return "under full attention finished blocks do change; choose 'prefix' or 'dual'"
        return None
