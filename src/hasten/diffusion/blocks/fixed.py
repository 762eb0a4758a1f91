"""Blocks of one size, from left to right, as in LLaDA (arXiv 2502.09992)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hasten.core import Guarantee
from hasten.diffusion.base import BlockPolicy, Strategy
from hasten.diffusion.canvas import Block, Canvas, DenoiserSpec
from hasten.errors import ConfigError

DEFAULT_SIZE = 32


@dataclass(frozen=True)
class FixedBlocks(BlockPolicy):
    """Blocks of ``size`` positions, counted from the first that was not given.

    Without a size, the largest up to 32 that divides the canvas. ``aligned`` counts from position 0, as
    block-causal denoisers do, and lets the first and last block be shorter. Raises ConfigError for a size
    that does not divide the open end of a canvas.
    """

    name: ClassVar[str] = "blocks"
    guarantee: ClassVar[Guarantee] = "exact"
    size: int | None = None
    aligned: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ConfigError(f"blocks:{self.size} cannot work; a block has at least one position")

    def window(self, canvas: Canvas) -> Block:
        if self.aligned:
            size = self.size or DEFAULT_SIZE
            start = canvas.first_open // size * size
            return Block(start, min(len(canvas), start + size))
        origin = canvas.prompt_length
        size = self._size(len(canvas) - origin, ends_open=not canvas.is_given[origin:].any())
        start = origin + (canvas.first_open - origin) // size * size
        return Block(start, min(len(canvas), start + size))

    def _size(self, length: int, *, ends_open: bool) -> int:
        if self.size is None:
            return max(size for size in range(1, DEFAULT_SIZE + 1) if length % size == 0)
        if ends_open and length % self.size:
            below, above = length - length % self.size, length + -length % self.size
            near = " or ".join(str(one) for one in (below, above) if one)
            raise ConfigError(
                f"blocks:{self.size} does not divide a canvas of {length} new tokens; take {near} tokens, or "
                "'blocks' to let it choose"
            )
        return self.size

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.attention == "block-causal" and not (self.aligned and self.size == spec.block_size):
            return (
                f"this denoiser's blocks have {spec.block_size} positions, counted from position 0; choose "
                f"'blocks:size={spec.block_size},aligned=1'"
            )
        longest = spec.block_size or DEFAULT_SIZE
        if spec.attention == "encoder-decoder" and (self.size or DEFAULT_SIZE) > longest:
            return (
                f"this denoiser writes {spec.block_size} positions at a time; choose "
                f"'blocks:{spec.block_size}'"
            )
        return None
