"""Fast-dLLM's dual cache (arXiv 2505.22618): only the block is computed, what is around it once a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core import System
from hasten.diffusion.caches.prefix import FrozenPrefix
from hasten.diffusion.canvas import Mask
from hasten.diffusion.steps import Turn

SYSTEM = System(
    name="dual-cache",
    title="Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
    arxiv="2505.22618",
    kind="diffusion cache",
    guarantee="approximate",
    module="hasten.diffusion.caches.dual",
    summary="keeps the rows before and after the block while it is written (cache dual)",
)


@dataclass(frozen=True)
class Dual(FrozenPrefix):
    """See FrozenPrefix; the rows after the block are kept as well."""

    name: ClassVar[str] = "dual"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)

    @staticmethod
    def _active(turn: Turn) -> Mask:
        places = np.arange(len(turn.canvas))
        active: Mask = (places >= turn.block.start) & (places < turn.block.end)
        return active
