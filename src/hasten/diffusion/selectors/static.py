"""A fixed number of tokens a forward pass, the surest first: LLaDA's own decoding (arXiv 2502.09992).

With one token a forward it is the reference that everything else is measured against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.core import Guarantee, System
from hasten.diffusion.base import Selector
from hasten.diffusion.canvas import Block, Canvas, Ids, Prediction
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError
from hasten.sampling import keyed_generator

SYSTEM = System(
    name="llada",
    title="Large Language Diffusion Models",
    arxiv="2502.09992",
    kind="diffusion selector",
    guarantee="exact",
    module="hasten.diffusion.selectors.static",
    summary="one token a forward pass, or an even share of the block, the surest first (static)",
)

ORDERS = ("confidence", "margin", "entropy", "random", "left-to-right")
ORDER_STREAM = 2
"""of the keyed generator, see ``drawing.NOISE_STREAM``"""


@dataclass(frozen=True)
class Static(Selector):
    """``tokens`` positions a forward pass, in the order of ``order``.

    "random" is one permutation of the canvas from ``seed``, so that the order is known in advance. With
    ``steps`` a block is written in that many forward passes instead; the first ones write one more where
    the block is not divided evenly.
    """

    name: ClassVar[str] = "static"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    tokens: int = 1
    order: str = "confidence"
    seed: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"static:{self.tokens} cannot work; at least one token a forward is written")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps={self.steps} cannot work; a block takes at least one forward pass")
        if self.steps is not None and self.tokens != 1:
            raise ConfigError(
                f"tokens={self.tokens} and steps={self.steps} contradict each other; give one of them"
            )
        check_order(self.order)

    @property
    def guarantee(self) -> Guarantee:
        return "exact" if self.tokens == 1 and self.steps is None else "approximate"

    @property
    def order_is_known(self) -> bool:
        return self.order in {"random", "left-to-right"}

    @property
    def reference(self) -> Selector:
        return replace(self, tokens=1, steps=None)

    def start(self, canvas: Canvas) -> Ids:
        return ranks(canvas, self.order, self.seed)

    def select(self, step: DenoisingStep, state: Ids) -> Selection:
        ranked = ranking(step.open, self.order, state)
        return Selection.of(step.open, np.sort(ranked[: self._budget(step.canvas, step.block)]))

    def upcoming(self, canvas: Canvas, block: Block, state: Ids) -> Ids:
        waiting = canvas.open_in(block)
        return np.sort(waiting[np.argsort(state[waiting])][: self._budget(canvas, block)])

    def _budget(self, canvas: Canvas, block: Block) -> int:
        """Told from what is written already, so that forward passes need not be counted."""
        if self.steps is None:
            return self.tokens
        total = num_to_write(canvas, block)
        share, larger = divmod(total, self.steps)
        written = total - len(canvas.open_in(block))
        return share + 1 if written < larger * (share + 1) else max(1, share)


def num_to_write(canvas: Canvas, block: Block) -> int:
    """The positions of a block that are not given, written ones included."""
    return int((~canvas.is_given[block.start : block.end]).sum())


def check_order(order: str) -> None:
    """Raises ConfigError for an order that does not exist."""
    if order not in ORDERS:
        raise ConfigError(f"order={order!r} is unknown; choose {', '.join(ORDERS)}")


def ranks(canvas: Canvas, order: str, seed: int) -> Ids:
    """int64 [length]: the rank of every position in an order that is known in advance."""
    places = np.arange(len(canvas))
    return (
        keyed_generator(seed, 0, 0, stream=ORDER_STREAM).permutation(places) if order == "random" else places
    )


def ranking(prediction: Prediction, order: str, ranks: Ids) -> NDArray[np.int64]:
    """Rows of the prediction, first to be written first; ties go to the left."""
    if order in {"random", "left-to-right"}:
        return np.argsort(ranks[prediction.positions])
    if order == "entropy":
        return np.argsort(prediction.entropy, kind="stable")
    scores = prediction.margin if order == "margin" else prediction.confidence
    return np.argsort(-scores, kind="stable")
