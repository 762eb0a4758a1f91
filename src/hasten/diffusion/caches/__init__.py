"""Cache policies: which rows a forward pass computes, and which it reads as they were."""

from __future__ import annotations

from hasten.core import System
from hasten.diffusion.base import CachePolicy
from hasten.diffusion.caches.blocks import SYSTEM as BLOCKS_SYSTEM, BlockCache
from hasten.diffusion.caches.dkv import SYSTEM as DKV_SYSTEM, DelayedCache
from hasten.diffusion.caches.dkv_greedy import SYSTEM as DKV_GREEDY_SYSTEM, GreedyCache
from hasten.diffusion.caches.dual import SYSTEM as DUAL_SYSTEM, Dual
from hasten.diffusion.caches.freecache import SYSTEM as FREECACHE_SYSTEM, FreeCache
from hasten.diffusion.caches.measured import Measured
from hasten.diffusion.caches.none import NoCache
from hasten.diffusion.caches.prefix import SYSTEM as PREFIX_SYSTEM, FrozenPrefix
from hasten.diffusion.caches.recap import SYSTEM as RECAP_SYSTEM, Recap
from hasten.diffusion.caches.vicinity import SYSTEM as VICINITY_SYSTEM, Vicinity

__all__ = [
    "CACHES",
    "SYSTEMS",
    "BlockCache",
    "DelayedCache",
    "Dual",
    "FreeCache",
    "FrozenPrefix",
    "GreedyCache",
    "Measured",
    "NoCache",
    "Recap",
    "Vicinity",
]

CACHES: dict[str, type[CachePolicy]] = {
    one.name: one
    for one in (
        NoCache,
        BlockCache,
        FrozenPrefix,
        Dual,
        DelayedCache,
        GreedyCache,
        FreeCache,
        Vicinity,
        Recap,
        Measured,
    )
}

SYSTEMS: tuple[System, ...] = (
    BLOCKS_SYSTEM,
    PREFIX_SYSTEM,
    DUAL_SYSTEM,
    DKV_SYSTEM,
    DKV_GREEDY_SYSTEM,
    FREECACHE_SYSTEM,
    VICINITY_SYSTEM,
    RECAP_SYSTEM,
)
"""The published methods that choose which rows are computed."""
