"""Chosen drafts (EAGLE, arXiv 2401.15077; tree of EAGLE-2, 2406.16858): each child counts as sure of itself.

A child that was chosen, not drawn, is a draw from the law that has all its mass on it. So it is accepted with
the target's probability of its token, and when it is rejected that token is struck out of the target's law.
At a node this accepts as often as drawing from the target and following the child, as ``follow`` does.

Laws that a tree records are ignored: whatever they say, and however the children came about, a rule that
looks at the tokens alone is right about them. What a drafter owes is only that it does not look at the random
numbers used here.
"""

from __future__ import annotations

from hasten.core import Acceptance, LogitRows, Sequence
from hasten.laws import STREAM, law_sampler
from hasten.tree import DraftTree
from hasten.verify.residual import try_children
from hasten.verify.walk import walk


def point_mass(tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
    """A path whose tokens have the law of plain sampling; greedy, the path of plain decoding.

    Args:
        logits: [nodes + 1, vocab], root first.

    Raises ConfigError for a sampler that does not tell its laws.
    """
    sampler = law_sampler(sequence, "point-mass")
    chosen = DraftTree(tree.token_ids, tree.parents)

    def choose(node: int, token_ids: list[int]) -> tuple[int, int | None]:
        law = sampler.law(logits[node + 1], token_ids)
        return try_children(chosen, node, law, sampler.generator(len(token_ids), STREAM))

    return walk(sequence, choose)
