"""Traversal verification (arXiv 2505.12398): a drafted tree is judged from its leaves to its root.

A node is visited with the weight it has from its path, the root with 1. Its children are visited first, in
the order they were drawn in, each with the weight min(1, a p(x) / q(x)) of its token. If none of them is
kept, the node is kept with the weight that is left. A child that is not kept leaves its parent the law
norm(max(0, a p - q)) and, with s the sum of that maximum, the weight s / (s + 1 - a). The token after the
node that is kept is drawn from the law left there. On a single path this is ``block``.

Each child is weighed with the law recorded for it, so siblings may be drawn with or without replacement or
chosen, in any mixture. What a drafter owes: every draw has its recorded law given all that was drawn before
it anywhere in the tree, and none is used again in a later round, as rejected paths were looked at too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hasten.core import Acceptance, LogitRows, Sequence, System
from hasten.laws import Law, acceptance_of, draft_law, draw, left_over
from hasten.tree import DraftTree
from hasten.verify.ahead import Place, Round

SYSTEM = System(
    name="traversal-verification",
    title="Traversal Verification for Speculative Tree Decoding",
    arxiv="2505.12398",
    kind="verification rule",
    guarantee="distribution",
    module="hasten.verify.traversal",
    summary="judges a sampled tree from its leaves to its root (verify traversal)",
)


def traversal(tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
    """A path whose tokens have the law of plain sampling; greedy, the path of plain decoding.

    Args:
        logits: [nodes + 1, vocab], root first.

    Raises ConfigError for a sampler that does not tell its laws, ModelError for a NaN at a node it visits.
    """
    this_round = Round("traversal", tree, logits, sequence)
    visit = _find_kept(_Visit(this_round.root, 1.0), this_round.generator)
    return this_round.keep(visit.place, draw(visit.rest(), this_round.generator))


def _find_kept(root: _Visit, generator: np.random.Generator) -> _Visit:
    stack = [root]
    while True:
        visit = stack[-1]
        if visit.weight > 0 and visit.children:
            stack.append(visit.next_child())
        elif generator.random() < visit.weight:
            return visit
        else:
            stack.pop()  # never the root: its weight stays 1


@dataclass(slots=True)
class _Visit:
    """A node whose children are being tried. If none is kept, it is kept with probability ``weight``."""

    place: Place
    weight: float
    children: list[int] = field(init=False)
    """not yet tried, the next one last"""
    _rest: Law | None = None

    def __post_init__(self) -> None:
        self.children = self.place.tree.drawn_below(self.place.node)[::-1]

    def rest(self) -> Law:
        """The law [vocab] that is left for the token after this node."""
        return self.place.law if self._rest is None else self._rest

    def next_child(self) -> _Visit:
        """The visit of a child; this node is left as it is if that is not kept."""
        child, law = self.children.pop(), self.rest()
        token_id = int(self.place.tree.token_ids[child])
        drafted = draft_law(self.place.tree, child, len(law))
        weight = acceptance_of(self.weight * float(law[token_id]), float(drafted[token_id]))
        self._rest, self.weight = left_over(law, self.weight, drafted)
        return _Visit(self.place.below(child), weight)
