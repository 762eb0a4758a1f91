"""What holds where a caller names nothing: the reference, and blocks that suit a denoiser."""

from __future__ import annotations

from hasten.diffusion.base import Strategy
from hasten.diffusion.blocks.fixed import FixedBlocks
from hasten.diffusion.caches.none import NoCache
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.selectors.static import Static

REFERENCE = Strategy(blocks=FixedBlocks(), selector=Static(), cache=NoCache())
"""One token a forward pass, the surest one, and nothing cached: what everything else is measured against."""


def reference_of(strategy: Strategy) -> Strategy:
    """What a strategy is measured against: same blocks, order and what else belongs to the question."""
    return Strategy(
        blocks=strategy.blocks if strategy.blocks.guarantee == "exact" else REFERENCE.blocks,
        selector=strategy.selector.reference or REFERENCE.selector,
        cache=REFERENCE.cache,
        transforms=tuple(one for one in strategy.transforms if one.guarantee == "exact"),
        constraint=strategy.constraint,
    )


def default_blocks(spec: DenoiserSpec, size: int | None = None) -> FixedBlocks:
    """Those of a block-causal denoiser, those of a size, or the largest up to 32 that divide the canvas."""
    if spec.attention == "block-causal":
        return FixedBlocks(spec.block_size, aligned=True)
    return FixedBlocks(size or spec.block_size)
