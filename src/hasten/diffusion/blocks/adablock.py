"""Blocks that end where a sentence or line is about to end: AdaBlock-dLLM (arXiv 2509.26432).

A first prediction of the positions ahead tells where the model expects a delimiter. If it is sure enough of
one, the block ends there, so that no block cuts a thought in two; else it has the usual size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core import System
from hasten.diffusion.base import BlockPolicy, Helpers, Strategy
from hasten.diffusion.canvas import Block, Canvas, DenoiserSpec
from hasten.diffusion.steps import DenoisingStep
from hasten.errors import ConfigError

SYSTEM = System(
    name="adablock",
    title="AdaBlock-dLLM: Semantic-Aware Diffusion LLM Inference via Adaptive Block Size",
    arxiv="2509.26432",
    kind="diffusion blocks",
    guarantee="approximate",
    module="hasten.diffusion.blocks.adablock",
    summary="blocks end where the model expects a delimiter, such as the end of a line",
)


@dataclass(frozen=True)
class AdaBlock(BlockPolicy):
    """Ends a block at the delimiter that the model is surest of, if that is at least ``tau``.

    It looks for one in the next ``reach`` of the canvas; without one a block has ``size`` positions. A text
    form takes the delimiters from ``Helpers``, because only a tokenizer knows them.
    """

    name: ClassVar[str] = "adablock"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    published_with: ClassVar[str | None] = "threshold"
    tau: float = 0.3
    size: int = 32
    reach: float = 0.25
    delimiter_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.delimiter_ids:
            raise ConfigError(
                "adablock cannot work without delimiters: give delimiter_ids=, the tokens that end a line; "
                "load a tokenizer for the text form"
            )
        if self.size < 1:
            raise ConfigError(f"adablock: size={self.size} cannot work; a block has at least one position")
        if not 0 < self.reach <= 1:
            raise ConfigError(f"adablock: reach={self.reach} cannot work; it is a part of the canvas, 0 to 1")

    @classmethod
    def make(cls, helpers: Helpers, **values: Any) -> AdaBlock:
        return cls(delimiter_ids=helpers.delimiter_ids, **values)

    def window(self, canvas: Canvas) -> Block:
        start = canvas.first_open
        return Block(start, min(len(canvas), start + max(self.size, self._reach(canvas))))

    def choose(self, window: Block, step: DenoisingStep) -> Block:
        usual = Block(window.start, min(window.end, window.start + self.size))
        prediction = step.open
        is_near = prediction.positions < window.start + self._reach(step.canvas)
        found = np.flatnonzero(is_near & np.isin(prediction.token_ids, self.delimiter_ids))
        if not len(found):
            return usual
        best = found[prediction.confidence[found].argmax()]
        if prediction.confidence[best] < self.tau:
            return usual
        return Block(window.start, int(prediction.positions[best]) + 1)

    def _reach(self, canvas: Canvas) -> int:
        return max(1, int(self.reach * (len(canvas) - canvas.prompt_length)))

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.attention == "block-causal":
            return (
                f"this denoiser's blocks have {spec.block_size} positions, counted from position 0; choose "
                f"'blocks:size={spec.block_size},aligned=1'"
            )
        if spec.attention == "encoder-decoder":
            return (
                f"this denoiser writes {spec.block_size} positions at a time; choose "
                f"'blocks:{spec.block_size}'"
            )
        return None
