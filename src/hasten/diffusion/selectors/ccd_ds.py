"""Tokens that were among the next best already, with the same choice: CCD-DS (arXiv 2512.02044).

It remembers the best positions that a forward pass left open. Those that are among the best of the next pass
too, with the same candidate, are written together; where there are none, the usual number of tokens is. The
averaging of predictions, which was published with it, is the transform "ccd".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.core import System
from hasten.diffusion.base import Selector
from hasten.diffusion.canvas import Canvas, Ids
from hasten.diffusion.selectors.static import Static, num_to_write
from hasten.diffusion.steps import NONE, DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="ccd-ds",
    title="Beyond Confidence: Adaptive and Coherent Decoding for Diffusion Language Models",
    arxiv="2512.02044",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.ccd_ds",
    summary="tokens that two forward passes in a row chose alike among their best (ccd-ds)",
)

LATE = 0.1
"""share of a block that is open when the buffer is small again"""


@dataclass(eq=False)
class _Buffer:
    """The best positions that the last forward pass left open."""

    size: int = 1
    positions: Ids = field(default_factory=lambda: NONE)
    token_ids: Ids = field(default_factory=lambda: NONE)


@dataclass(frozen=True)
class CcdDs(Selector):
    """``tokens`` a forward pass by entropy, or all on which the buffer agrees, if these are not fewer.

    The buffer grows by one position a forward pass after ``warm_up`` passes of the block, up to
    tokens * (1 + ``expand``), and is small again when a tenth of the block is left.
    """

    name: ClassVar[str] = "ccd-ds"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    tokens: int = 1
    expand: float = 4.0
    warm_up: int = 5

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"ccd-ds:{self.tokens} cannot work; at least one token a forward is written")
        if not (self.expand >= 0 and self.warm_up >= 0):
            raise ConfigError(
                f"ccd-ds:expand={self.expand},warm_up={self.warm_up} cannot work; neither is below 0"
            )

    @property
    def reference(self) -> Selector:
        return Static(order="entropy")

    def start(self, canvas: Canvas) -> _Buffer:
        return _Buffer()

    def select(self, step: DenoisingStep, state: _Buffer) -> Selection:
        if step.forward_in_block == 0:
            state.size, state.positions, state.token_ids = 1, NONE, NONE
        state.size = self._size(step, state.size)
        ranked = np.argsort(step.open.entropy, kind="stable")
        agreed = self._agreed(step, ranked[: state.size], state)
        is_warm = step.forward_in_block >= self.warm_up
        chosen = agreed if is_warm and len(agreed) >= self.tokens else ranked[: self.tokens]
        waiting = ranked[~np.isin(ranked, chosen)][: state.size]
        state.positions, state.token_ids = step.open.positions[waiting], step.open.token_ids[waiting]
        return Selection.of(step.open, np.sort(chosen))

    def _size(self, step: DenoisingStep, size: int) -> int:
        is_late = step.num_open <= LATE * num_to_write(step.canvas, step.block)
        if is_late or step.forward_in_block < self.warm_up:
            return 1
        return min(size + 1, self.tokens + int(self.tokens * self.expand))

    @staticmethod
    def _agreed(step: DenoisingStep, best: NDArray[np.int64], state: _Buffer) -> NDArray[np.int64]:
        """Those of the best rows whose position is in the buffer with the same token."""
        known = dict(zip(state.positions.tolist(), state.token_ids.tolist(), strict=True))
        found = (step.open.positions[best].tolist(), step.open.token_ids[best].tolist())
        agrees = [known.get(position) == token_id for position, token_id in zip(*found, strict=True)]
        kept: NDArray[np.int64] = best[np.array(agrees, dtype=bool)]
        return kept
