"""Block policies: which range of positions is written next."""

from __future__ import annotations

from hasten.core import System
from hasten.diffusion.base import BlockPolicy
from hasten.diffusion.blocks import adablock
from hasten.diffusion.blocks.adablock import AdaBlock
from hasten.diffusion.blocks.fixed import FixedBlocks
from hasten.diffusion.blocks.whole import Whole

__all__ = ["BLOCKS", "SYSTEMS", "AdaBlock", "FixedBlocks", "Whole"]

BLOCKS: dict[str, type[BlockPolicy]] = {one.name: one for one in (Whole, FixedBlocks, AdaBlock)}
SYSTEMS: tuple[System, ...] = (adablock.SYSTEM,)
