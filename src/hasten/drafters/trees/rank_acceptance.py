"""How often the child of each rank is the accepted one (Sequoia's vector, arXiv 2402.12374), learnt online.

A child's rank is its place in the order that siblings are drawn and tried in. What is counted is how often a
child was accepted, given that its parent was and its elder siblings were not: so a rank is judged only where
a tree had a child of it. Counts fade, and a rank that is drafted no more comes back to what was assumed at
first, so that it is tried again. The vector need not fall with the rank.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.core import Acceptance
from hasten.tree import ROOT, DraftTree

_FIRST, _RATIO = 0.6, 0.6  # of the geometric series that is assumed at first
_PRIOR_WEIGHT = 8.0  # observations
_MEMORY = 512.0  # rounds


class RankAcceptance:
    """Chances by rank.

    Args:
        width: how many ranks are told apart; later children are not counted.
    """

    def __init__(self, width: int) -> None:
        self._assumed = _FIRST * _RATIO ** np.arange(width)
        self._accepted = np.zeros(width)
        self._tried = np.zeros(width)

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        """``acceptance`` holds the path in this very tree, and the tokens written from its root on."""
        fade = 1 - 1 / _MEMORY
        self._accepted *= fade
        self._tried *= fade
        for node, token_id in zip([ROOT, *acceptance.path], acceptance.token_ids, strict=False):
            for rank, child in enumerate(tree.drawn_below(node)[: len(self._tried)]):
                self._tried[rank] += 1
                if tree.token_ids[child] == token_id:
                    self._accepted[rank] += 1
                    break

    def hazards(self) -> NDArray[np.float64]:
        """[width]: the chance of each rank where its parent was accepted and its elder siblings were not."""
        found: NDArray[np.float64] = (self._accepted + _PRIOR_WEIGHT * self._assumed) / (
            self._tried + _PRIOR_WEIGHT
        )
        return found

    def probs(self) -> NDArray[np.float64]:
        """[width]: the chance of each rank where its parent was accepted; their sum is below 1."""
        hazards = self.hazards()
        found: NDArray[np.float64] = hazards * np.cumprod([1.0, *(1 - hazards[:-1])])
        return found
