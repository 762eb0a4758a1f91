"""hasten's own tree: best first by what the draft's probabilities have been worth, at the price of a pass.

Level by level. Every node has a value, the chance that it and its ancestors are accepted: for each rank of
siblings and each range of the draft's probability, it is counted how often such a child was the accepted one.
Before a level is read, the gain is estimated that the nodes below it would bring to the best tree of the
budget; the tree is finished when that is less than the tokens that could be written in the time of the pass.
The best nodes of all are proposed. Where a pass is dear or the draft is poor, trees are short and wide; where
the draft is good, they are long.

Sampled tokens cannot be left out for what they are. There, tokens are drawn one by one, without replacement,
where the *next* one is worth most, before it is known (the slots of DySpec, arXiv 2410.11744, valued by
rank), as long as that is no less than the unlikeliest node of the best static tree (Sequoia, 2402.12374), so
that the budget lasts for the levels that pay; what is left of it goes to the best slots in the end.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hasten.core import Acceptance
from hasten.drafters.trees.eagle import best_nodes
from hasten.drafters.trees.growing import Growing
from hasten.drafters.trees.rank_acceptance import RankAcceptance
from hasten.drafters.trees.sequoia import MAX_NODES, StaticTrees
from hasten.errors import ConfigError
from hasten.tree import ROOT, DraftTree

_NUM_RANKS, _NUM_BINS = 3, 16
_PRIOR_WEIGHT = 4.0  # what is assumed counts as so many observations
_MEMORY = 512.0  # a cell that saw more halves its counts, so that it follows the text
_REBUILD_EVERY = 64  # rounds
_PROFILE_SHARE = 0.02  # of the newest node in what is usual


class Adaptive:
    """Trees that follow the draft's certainty, its record and its price.

    Args:
        width: at most so many children a node.
        depth: at most so many levels.

    Raises ConfigError for a value that cannot work.
    """

    def __init__(self, width: int = 8, depth: int = 24) -> None:
        for name, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise ConfigError(f"{name}={value} cannot work; it must be at least 1")
        self._width = width
        self._depth = depth
        self._chosen = _Worth()
        self._sampled = _Worth()
        self._usual = RankAcceptance(width).probs()  # of chosen children, by rank
        self._ranks = RankAcceptance(width)  # of sampled ones
        self._static: StaticTrees | None = None
        self._num_rounds = 0

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        if tree.generator is None:
            return self._grow_chosen(tree)
        return self._grow_sampled(tree)

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        if tree.draft_probs is None:
            self._chosen.learn(tree, acceptance, None)
            return
        self._sampled.learn(tree, acceptance, self._ranks.probs())
        self._ranks.learn(tree, acceptance)
        self._num_rounds += 1

    def _grow_chosen(self, tree: Growing) -> Iterator[list[int]]:
        budget, values = tree.room, {ROOT: 1.0}
        best: list[int] = []
        level = [ROOT]
        for left in reversed(range(min(self._depth, tree.max_depth) if budget else 0)):
            floor = values[best[-1]] if len(best) == budget else 0.0
            start = len(tree)
            for parent in level:
                self._add_children(tree, parent, values, floor)
            best = best_nodes(values, [*best, *range(start, len(tree))], budget)
            floor = values[best[-1]] if len(best) == budget else 0.0
            level = [node for node in best if node >= start and values[node] * self._usual[0] > floor]
            if not left or not level:
                break
            above = np.array([values[node] for node in level])
            below = np.outer(above, self._usual).ravel()
            kept = np.array([values[node] for node in best])
            if _sum_of_best(np.concatenate((kept, below)), budget) - kept.sum() <= tree.token_price:
                break
            yield level
        tree.keep(best)

    def _add_children(self, tree: Growing, parent: int, values: dict[int, float], floor: float) -> None:
        """Those that are worth more than the floor, and what is usual for later."""
        usual = np.zeros(self._width)
        for rank, candidate in enumerate(tree.siblings(parent).take(self._width)):
            usual[rank] = self._chosen.of(rank, candidate.prob, candidate.prob)
            value = values[parent] * float(usual[rank])
            if value > floor:
                values[tree.add(parent, candidate)] = value
        self._usual += _PROFILE_SHARE * (usual - self._usual)

    def _grow_sampled(self, tree: Growing) -> Iterator[list[int]]:
        depth = min(self._depth, tree.max_depth)
        if not depth:
            return
        floor = self._floor(tree, depth)
        slots = _Slots(tree, self._sampled, self._ranks.probs())
        level = [ROOT]
        while True:
            slots.open(level)
            added = slots.draw(floor)
            level = [node for node in added if slots.best_below(node) >= floor and tree.depth(node) < depth]
            if not level or not tree.room or slots.gain(level) <= tree.token_price:
                break
            yield level
        slots.draw(0.0)

    def _floor(self, tree: Growing, depth: int) -> float:
        is_due = self._num_rounds >= _REBUILD_EVERY
        if self._static is None or is_due or min(tree.room, MAX_NODES) > self._static.budget:
            self._static = StaticTrees(self._ranks.probs(), tree.room, self._depth)
            self._num_rounds = 0
        return self._static.smallest(tree.room, self._static.depth_for(tree.room, depth, tree.token_price))


class _Worth:
    """How often a child was the accepted one, where its parent was: by rank and the draft's probability.

    Where little was seen, it is what was assumed, times how that has compared at the rank so far.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((_NUM_RANKS, _NUM_BINS, 2))  # accepted, seen
        self._totals = np.zeros((_NUM_RANKS, 2))  # accepted, assumed

    def of(self, rank: int, prob: float, assumed: float) -> float:
        """The chance of a child."""
        rank = min(rank, _NUM_RANKS - 1)
        accepted, seen = self._counts[rank, _bin(prob)].tolist()
        num_accepted, num_assumed = self._totals[rank].tolist()
        expected = assumed * (num_accepted + _PRIOR_WEIGHT) / (num_assumed + _PRIOR_WEIGHT)
        found: float = (accepted + _PRIOR_WEIGHT * min(expected, 1.0)) / (seen + _PRIOR_WEIGHT)
        return found

    def learn(self, tree: DraftTree, acceptance: Acceptance, assumed: NDArray[np.float64] | None) -> None:
        """``assumed`` [ranks] is what children were taken for; None: the draft's probabilities."""
        for node, token_id in zip([ROOT, *acceptance.path], acceptance.token_ids, strict=False):
            above = 1.0 if node == ROOT else float(tree.scores[node])
            for rank, child in enumerate(dict.fromkeys(tree.drawn_below(node))):
                prob = float(tree.scores[child]) / max(above, 1e-30)
                row, is_accepted = min(rank, _NUM_RANKS - 1), tree.token_ids[child] == token_id
                cell = self._counts[row, _bin(prob)]
                cell += (is_accepted, 1)
                self._totals[row] += (is_accepted, prob if assumed is None else assumed[row])
                for counts, most in ((cell, cell[1]), (self._totals[row], self._totals[row, 1])):
                    if most > _MEMORY:
                        np.divide(counts, 2, out=counts)


class _Slots:
    """Places of a tree where the next token may be drawn, each valued before the token is known.

    Args:
        ranks: [width], the chance of a child by rank.
    """

    def __init__(self, tree: Growing, worth: _Worth, ranks: NDArray[np.float64]) -> None:
        self._tree = tree
        self._worth = worth
        self._ranks = ranks
        self._hazards = ranks / (1 - np.cumsum([0.0, *ranks[:-1]]))
        self._values = {ROOT: 1.0}
        self._slots: list[tuple[float, int, int, float]] = []
        """(minus the value, node, rank, chance that no elder sibling is accepted), a heap"""

    def open(self, nodes: list[int]) -> None:
        """Tokens may be drawn below these nodes, which were read."""
        for node in nodes:
            heapq.heappush(self._slots, (-self.best_below(node), node, 0, 1.0))

    def best_below(self, node: int) -> float:
        """What the first child of a node is worth."""
        return self._values[node] * float(self._ranks[0])

    def draw(self, floor: float) -> list[int]:
        """The nodes of all tokens that are worth no less than the floor, best first."""
        found = []
        while self._slots and self._tree.room and -self._slots[0][0] >= floor:
            _, parent, rank, left = heapq.heappop(self._slots)
            for candidate in self._tree.siblings(parent).take(1, distinct=True):
                node = self._tree.add(parent, candidate)
                chance = self._worth.of(rank, candidate.prob, float(self._ranks[rank]))
                self._values[node] = self._values[parent] * chance
                found.append(node)
                value = self._values[parent] * (left - chance)
                if rank + 1 < len(self._ranks) and value > 0:
                    next_value = value * float(self._hazards[rank + 1])
                    heapq.heappush(self._slots, (-next_value, parent, rank + 1, left - chance))
        return found

    def gain(self, level: list[int]) -> float:
        """What reading these nodes would add to the best use of the room."""
        room = self._tree.room
        series = [-value * self._ranks[rank:] / self._ranks[rank] for value, _, rank, _ in self._slots]
        known = np.concatenate([np.zeros(1), *series])
        below = np.outer([self._values[node] for node in level], self._ranks).ravel()
        return _sum_of_best(np.concatenate((known, below)), room) - _sum_of_best(known, room)


def _bin(prob: float) -> int:
    """Half powers of two: 1, 0.71, 0.5, 0.35, ..."""
    return min(_NUM_BINS - 1, max(0, round(-2.0 * math.log2(max(prob, 1e-6)))))


def _sum_of_best(values: NDArray[np.float64], count: int) -> float:
    return float(np.sort(values)[-count:].sum()) if count else 0.0
