"""Sequoia (arXiv 2402.12374): the static tree that gains most, by how often each sibling rank is accepted.

If the child of rank b is accepted with probability P[b] wherever its parent was, a tree is worth the sum over
its nodes of the product of P along the path. The best tree of every size and depth follows by dynamic
programming over (nodes, levels, first rank). P is measured while writing; the depth is the one where another
level stops being worth the time of a pass of the draft. The shape depends on earlier rounds alone, so sampled
drafts keep their law.

What differs from the paper: its P is measured before, on sample texts, and its size is chosen by a table of
pass times; here the size is the budget that the policy gives.
"""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import Acceptance, System
from hasten.drafters.trees.growing import Growing
from hasten.drafters.trees.rank_acceptance import RankAcceptance
from hasten.errors import ConfigError
from hasten.tree import ROOT, DraftTree

SYSTEM = System(
    name="sequoia",
    title="Sequoia: Scalable, Robust, and Hardware-aware Speculative Decoding",
    arxiv="2402.12374",
    kind="draft tree",
    guarantee="exact",
    module="hasten.drafters.trees.sequoia",
    summary="a static tree, optimal for how often each sibling rank is accepted, measured while writing",
)

MAX_NODES = 128
_REBUILD_EVERY = 64  # rounds


class Sequoia:
    """Static trees that follow what is accepted.

    Args:
        width: at most so many children a node.
        depth: at most so many levels.

    Raises ConfigError for a value that cannot work.
    """

    def __init__(self, width: int = 8, depth: int = 24) -> None:
        for name, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise ConfigError(f"{name}={value} cannot work; it must be at least 1")
        self._depth = depth
        self._ranks = RankAcceptance(width)
        self._trees: StaticTrees | None = None
        self._num_rounds = 0

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        trees = self._best_trees(tree.room)
        depth = trees.depth_for(tree.room, min(tree.max_depth, self._depth), tree.token_price)
        nodes: list[int | None] = [ROOT]
        for counts in trees.levels(tree.room, depth):
            planned = list(zip(nodes, counts, strict=True))
            wanted = [node for node, count in planned if count and node is not None and node != ROOT]
            if wanted:
                yield list(dict.fromkeys(wanted))
            nodes = []
            for node, count in planned:
                added = tree.extend(node, count) if count and node is not None else []
                nodes += [*added, *[None] * (count - len(added))]  # a law may hold fewer tokens than planned

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        self._ranks.learn(tree, acceptance)
        self._num_rounds += 1

    def _best_trees(self, budget: int) -> StaticTrees:
        is_due = self._num_rounds >= _REBUILD_EVERY
        if self._trees is None or is_due or min(budget, MAX_NODES) > self._trees.budget:
            self._trees = StaticTrees(self._ranks.probs(), budget, self._depth)
            self._num_rounds = 0
        return self._trees


class StaticTrees:
    """The best trees of every size up to a budget and every depth.

    Args:
        probs: float64 [ranks], the chance that the child of a rank is accepted where its parent was.
        budget: nodes; MAX_NODES at most.
        depth: levels.
    """

    def __init__(self, probs: NDArray[np.float64], budget: int, depth: int) -> None:
        self.budget = min(budget, MAX_NODES)
        self._probs = probs
        self._values, self._sizes = _solve(probs, self.budget, depth)

    def value(self, budget: int, depth: int) -> float:
        """Accepted tokens to expect of the best tree; the token after them is not counted."""
        return float(self._values[depth, 0, min(budget, self.budget)])

    def depth_for(self, budget: int, max_depth: int, token_price: float) -> int:
        """The depth that is worth most when every level after the first costs the price of a pass."""
        deepest = min(max_depth, len(self._values) - 1)
        if deepest < 1:
            return 0
        values = self._values[1 : deepest + 1, 0, min(budget, self.budget)]
        return 1 + int(np.argmax(values - token_price * np.arange(deepest)))

    def levels(self, budget: int, depth: int) -> list[list[int]]:
        """For every level, root first, how many children each of its nodes has."""
        levels: list[list[int]] = []
        rooms = [min(budget, self.budget)]  # below each node of the level
        for left in range(depth, 0, -1):
            shares = [self._shares(room, left) for room in rooms]
            if not any(shares):
                break
            levels.append([len(each) for each in shares])
            rooms = [size - 1 for each in shares for size in each]
        return levels

    def smallest(self, budget: int, depth: int) -> float:
        """How likely the unlikeliest node of the best tree is accepted; 0 for a tree without nodes."""
        lowest, row = 0.0, [1.0]
        for counts in self.levels(budget, depth):
            row = [
                above * float(self._probs[rank])
                for above, count in zip(row, counts, strict=True)
                for rank in range(count)
            ]
            lowest = min([lowest or 1.0, *row])
        return lowest

    def _shares(self, room: int, left: int) -> list[int]:
        """How many nodes each child and all below it get."""
        shares: list[int] = []
        while len(shares) < len(self._probs) and (size := int(self._sizes[left, len(shares), room])):
            shares.append(size)
            room -= size
        return shares


@numba.njit(cache=True)
def _solve(probs, budget, depth):  # type: ignore[no-untyped-def]
    """[levels, rank, nodes]: what a node's children of a rank and above are worth, and the first one's nodes.

    The node was accepted, and there are at most so many levels and nodes below it.
    """
    width = len(probs)
    values = np.zeros((depth + 1, width + 1, budget + 1))
    sizes = np.zeros((depth + 1, width + 1, budget + 1), np.int64)
    for left in range(1, depth + 1):
        for rank in range(width - 1, -1, -1):
            for room in range(1, budget + 1):
                for size in range(1, room + 1):
                    own = probs[rank] * (1.0 + values[left - 1, 0, size - 1])
                    value = own + values[left, rank + 1, room - size]
                    if value > values[left, rank, room]:
                        values[left, rank, room] = value
                        sizes[left, rank, room] = size
    return values, sizes
