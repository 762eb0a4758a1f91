"""A fixed number of tokens a forward pass, the surest first: LLaDA's own decoding (arXiv 2502.09992).

With one token a forward it is the reference that everything else is measured against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.canvas import Block, Canvas, Ids, Prediction
from hasten.core import Guarantee
from hasten.diffusion.base import Selection, Selector, Step
from hasten.errors import ConfigError
from hasten.sampling import keyed_generator

ORDERS = ("confidence", "margin", "entropy", "random", "left-to-right")


@dataclass(frozen=True)
class Static(Selector):
    """``tokens`` positions a forward pass, in the order of ``order``.

    "random" is one permutation of the canvas from ``seed``, so that the order is known in advance.
    """

    name: ClassVar[str] = "static"
    tokens: int = 1
    order: str = "confidence"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"static:{self.tokens} cannot work; at least one token a forward is written")
        if self.order not in ORDERS:
            raise ConfigError(f"order={self.order!r} is unknown; choose {', '.join(ORDERS)}")

    @property
    def guarantee(self) -> Guarantee:
        return "exact" if self.tokens == 1 else "approximate"

    @property
    def order_is_known(self) -> bool:
        return self.order in {"random", "left-to-right"}

    @property
    def reference(self) -> Selector:
        return replace(self, tokens=1)

    def start(self, canvas: Canvas) -> Ids:
        """The rank of every position in an order that is known in advance."""
        ranks = np.arange(len(canvas))
        return (
            keyed_generator(self.seed, 0, 0, stream=2).permutation(ranks) if self.order == "random" else ranks
        )

    def select(self, step: Step, state: Ids) -> Selection:
        prediction = step.open
        ranking = self._ranking(prediction, state)
        return Selection.of(prediction, np.sort(ranking[: self.tokens]))

    def _ranking(self, prediction: Prediction, ranks: Ids) -> NDArray[np.int64]:
        """Rows of the prediction, first to be written first; ties go to the left."""
        if self.order_is_known:
            return np.argsort(ranks[prediction.positions])
        if self.order == "entropy":
            return np.argsort(prediction.entropy, kind="stable")
        scores = prediction.margin if self.order == "margin" else prediction.confidence
        return np.argsort(-scores, kind="stable")

    def upcoming(self, canvas: Canvas, block: Block, state: Ids) -> Ids:
        waiting = canvas.open_in(block)
        return np.sort(waiting[np.argsort(state[waiting])][: self.tokens])
