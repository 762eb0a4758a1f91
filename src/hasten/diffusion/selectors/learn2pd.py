"""Learn2PD (arXiv 2509.25188): a small trained filter says which candidates are final.

Beside those that the filter accepts, the surest candidate is written, as the reference would. The filter
belongs to one denoiser and one size of block. A block that ends before its size, because the canvas was cut
or ends there, counts as going on with positions that are written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.core import System
from hasten.diffusion.base import Helpers, Selector, Strategy, Wants
from hasten.diffusion.blocks.fixed import FixedBlocks
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.confidence_filter import ConfidenceFilter
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="learn2pd",
    title="Learning to Parallel: Accelerating Diffusion Large Language Models via Learnable Parallel "
    "Decoding",
    arxiv="2509.25188",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.learn2pd",
    summary="writes what a trained filter holds for final (policy learn2pd, hasten train filter)",
)


@dataclass(frozen=True)
class Learn2PD(Selector):
    """Commits what the filter finds final with a chance above ``accept``, and the surest candidate.

    Raises ConfigError for a chance that is none.
    """

    name: ClassVar[str] = "learn2pd"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    wants: ClassVar[Wants] = "block"
    accept: float = 0.96
    filter: ConfidenceFilter = field(kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.accept <= 1:
            raise ConfigError(f"learn2pd:{self.accept} cannot work; it is a chance, from 0 to 1")

    @classmethod
    def make(cls, helpers: Helpers, **values: Any) -> Learn2PD:
        if helpers.filter is None:
            raise ConfigError(
                "learn2pd needs a filter that was trained for the model: give --filter FILE, made with "
                "`hasten train filter`"
            )
        given = helpers.filter
        return cls(**values, filter=given if isinstance(given, ConfidenceFilter) else given())

    @property
    def block_size(self) -> int:
        return self.filter.block_size

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        prediction = step.open
        chances = self.filter.chances(block_confidences(step, self.block_size))
        chosen = chances[prediction.positions - step.block.start] > self.accept
        chosen[prediction.confidence.argmax()] = True
        return Selection.of(prediction, chosen)

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        blocks, size = strategy.blocks, self.block_size
        if not isinstance(blocks, FixedBlocks) or blocks.size != size:
            return f"its filter was trained for blocks of {size} positions; choose 'blocks:{size}'"
        if not strategy.cache.is_constant_in_block:
            return (
                f"its filter reads every position of a block, but cache {strategy.cache.name!r} computes "
                "only some; choose none, prefix, dual or blocks"
            )
        return None


def block_confidences(step: DenoisingStep, block_size: int) -> NDArray[np.float64]:
    """float64 [block_size]: of all positions of the block, 1 where it is shorter."""
    confidences = np.ones(block_size)
    positions = np.arange(step.block.start, step.block.end)
    confidences[: len(positions)] = step.prediction.at(positions).confidence
    return confidences
