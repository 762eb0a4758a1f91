"""SpecTr's drafts (arXiv 2310.15141): k sequences drawn independently of each other, merged where they agree.

Below a node that m of the sequences go through, m tokens are drawn, one for each. A token that is drawn twice
is one node, which stands twice in ``DraftTree.draws``, as the k-sequential rule wants it. Where a rule does
not want independent draws, the m tokens differ, and the sequences part at the root.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from hasten.core import Acceptance, System
from hasten.drafters.trees.growing import Growing
from hasten.drafters.trees.widths import Widths, checked_count
from hasten.tree import ROOT, DraftTree

SYSTEM = System(
    name="spectr-drafts",
    title="SpecTr: Fast Speculative Decoding via Optimal Transport",
    arxiv="2310.15141",
    kind="draft tree",
    guarantee="exact",
    module="hasten.drafters.trees.spectr",
    summary="several sequences drawn independently, merged into a tree (with verify k-sequential)",
)


class SpecTr:
    """Sequences side by side.

    Args:
        num_sequences: k in the paper; None: what suits the budget.
        length: of each, in tokens; None: what suits the budget.

    Raises ConfigError for a number below 1.
    """

    def __init__(self, num_sequences: int | None = None, length: int | None = None) -> None:
        self._num_sequences = checked_count(num_sequences, "num_sequences")
        self._length = checked_count(length, "length")
        self._widths = Widths()

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        num_sequences, length = self._widths.for_beams(tree, self._num_sequences, self._length)
        ends = [ROOT] * num_sequences
        for _ in range(length):
            ends = yield from tree.drawn(Counter(ends))

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        self._widths.learn(tree, acceptance)
