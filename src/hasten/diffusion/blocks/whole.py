"""The whole canvas as one block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hasten.core import Guarantee
from hasten.diffusion.base import BlockPolicy, Strategy
from hasten.diffusion.canvas import Block, Canvas, DenoiserSpec


@dataclass(frozen=True)
class Whole(BlockPolicy):
    """Every open position may be written at any time."""

    name: ClassVar[str] = "whole"
    guarantee: ClassVar[Guarantee] = "exact"

    def window(self, canvas: Canvas) -> Block:
        return Block(canvas.first_open, len(canvas))

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.attention == "block-causal":
            return f"this denoiser sees no later block; choose 'blocks:{spec.block_size}'"
        if spec.attention == "encoder-decoder":
            return (
                f"this denoiser writes {spec.block_size} positions at a time; choose "
                f"'blocks:{spec.block_size}'"
            )
        return None
