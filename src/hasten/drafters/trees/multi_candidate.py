"""Multi-candidate drafting (MCSD, arXiv 2401.06706): every node of a level has the same number of candidates.

``k_config`` names that number level by level; the authors' (4, 2, 2) is a tree of 28 nodes. Whether siblings
are drawn with or without replacement is the rule's wish. A token that is drawn again is one node, and its own
candidates are drawn once: what they drew below its copies is never reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hasten.core import Acceptance, System
from hasten.drafters.trees.growing import Growing
from hasten.drafters.trees.widths import Widths, checked_widths, grow_by_widths
from hasten.tree import DraftTree

SYSTEM = System(
    name="multi-candidate",
    title="Multi-Candidate Speculative Decoding",
    arxiv="2401.06706",
    kind="draft tree",
    guarantee="exact",
    module="hasten.drafters.trees.multi_candidate",
    summary="a full tree: so many candidates after every node of a level",
)


class MultiCandidate:
    """Full trees.

    Args:
        k_config: candidates of each node, level by level; None: what suits the budget.

    Raises ConfigError for widths no tree has.
    """

    def __init__(self, k_config: Sequence[int] | None = None) -> None:
        self._k_config = checked_widths(k_config, "k_config")
        self._widths = Widths()

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        return grow_by_widths(tree, self._k_config or self._widths.for_levels(tree))

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        self._widths.learn(tree, acceptance)
