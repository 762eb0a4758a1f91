"""Burst sampling (sigma-GPT, arXiv 2404.09562): a block drafted at once, kept as far as it hangs together.

The prediction of the canvas drafts a token for every open position of the block, each as if alone. One more
forward pass of an any-order model tells what each should have been given those before it in a random order;
from the first one on, drafts are kept with probability min(1, p/q), and the first that is not is drawn again.
So two passes write two tokens or more: an order's first draft is always kept, p and q being one law there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core import Guarantee, System
from hasten.diffusion.base import Inquiry, Selector, Strategy
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Ids, Prediction, Query
from hasten.diffusion.drawing import Drawing
from hasten.diffusion.rejection import weighed
from hasten.diffusion.selectors.static import ORDER_STREAM, Static
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError
from hasten.sampling import keyed_generator

SYSTEM = System(
    name="sigma-gpt",
    title="σ-GPTs: A New Approach to Autoregressive Models",
    arxiv="2404.09562",
    kind="diffusion selector",
    guarantee="distribution",
    module="hasten.diffusion.selectors.burst",
    summary="an any-order model drafts a block at once and keeps what its chain confirms (policy burst)",
)

STREAM = 4
"""of the random numbers that weigh a position's draft"""


@dataclass(frozen=True)
class Burst(Selector):
    """Commits the longest beginning that any of ``orders`` random orders of the block keeps, and one more.

    With one order every token has the law of its place in the chain, given the tokens before it: the law of
    the reference that reveals positions in the same order, as far as the model tells the same of a token in
    the chain and of one that is given (see the model). With several, orders that agree with the drafts are
    preferred, and with them the tokens they keep: the law is another. ``seed`` gives the orders.
    """

    name: ClassVar[str] = "burst"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    orders: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.orders < 1:
            raise ConfigError(f"burst:{self.orders} cannot work; at least one order is tried")

    @property
    def guarantee(self) -> Guarantee:
        return "distribution" if self.orders == 1 else "approximate"

    @property
    def reference(self) -> Selector:
        return Static(order="random", seed=self.seed)

    def start(self, canvas: Canvas) -> Ids:
        """[orders, length]: the rank of every position in each order; the first is that of the reference."""
        permutations = [
            keyed_generator(self.seed, 0, number, stream=ORDER_STREAM).permutation(len(canvas))
            for number in range(self.orders)
        ]
        return np.stack(permutations)

    def inquire(self, step: DenoisingStep, state: Ids) -> Inquiry:
        drafted = step.open
        if len(drafted.positions) == 1:
            return Selection.of(drafted, slice(None))
        chains = [drafted.positions[np.argsort(ranks[drafted.positions])] for ranks in state]
        token_ids = step.canvas.token_ids.copy()
        token_ids[drafted.positions] = drafted.token_ids
        answers = yield [
            Query(sequence=step.sequence, token_ids=token_ids, wanted=drafted.positions, chain=chain)
            for chain in chains
        ]
        kept = [_kept(drafted, answer, step.draw) for answer in answers]
        return max(kept, key=lambda selection: len(selection.positions))

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.attention != "any-order":
            return (
                "it asks for chains, which only any-order models answer; choose "
                "'static:order=random+speculative'"
            )
        if strategy.speculator is not None:
            return f"it checks its own drafts; leave {strategy.speculator.name!r} out"
        if strategy.transforms or strategy.constraint is not None:
            return "a chain is weighed as the model tells it; leave transforms and constraint out"
        if strategy.revisers:
            return "tokens are not taken back in a chain; leave the reviser out"
        if strategy.cache.keeps_rows:
            return f"chains read no stored rows; choose the cache 'none' instead of {strategy.cache.name!r}"
        return None


def _kept(drafted: Prediction, chain: Prediction, draw: Drawing) -> Selection:
    """The drafts that an order keeps, and the token written instead of the first that it does not.

    drafted: ascending; chain: in its order.
    """
    rows = drafted.rows_of(chain.positions)
    tokens = drafted.token_ids[rows].tolist()
    own = draw.law(drafted.logits).cpu().numpy()[rows]
    laws = draw.law(chain.logits).cpu().numpy()
    written: list[int] = []
    for position, token_id, drafted_law, law in zip(chain.positions.tolist(), tokens, own, laws, strict=True):
        written.append(weighed(token_id, drafted_law, law, draw.generator(position, STREAM)))
        if written[-1] != token_id:
            break
    count = len(written)
    order = np.argsort(chain.positions[:count])
    return Selection(chain.positions[:count][order], np.array(written, dtype=np.int64)[order])
