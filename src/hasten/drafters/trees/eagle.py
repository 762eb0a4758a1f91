"""EAGLE-2's dynamic tree (arXiv 2406.16858): the likeliest nodes of a wide beam search by the draft.

Level by level, the ``width`` likeliest nodes of the last level are read and get their ``width`` likeliest
tokens as children. What a node is worth is the draft's probability of its path. After the last level all
nodes are ranked again, and the best, as many as the budget holds, are proposed: a connected tree, because a
child is worth no more than its parent and comes after it among equals.

Sampled tokens cannot be left out for what they are: that would change the law of the text. There, the budget
is shared evenly among the levels and all that is drawn is proposed. Which nodes are read still goes by their
own probability, as a node that is not read was proposed all the same; the tokens of a level are drawn one by
one, without replacement, below the node where the most of the draft's law is left.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from hasten.core import Acceptance, System
from hasten.drafters.trees.growing import Growing
from hasten.errors import ConfigError
from hasten.tree import ROOT, DraftTree

SYSTEM = System(
    name="eagle-2",
    title="EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees",
    arxiv="2406.16858",
    kind="draft tree",
    guarantee="exact",
    module="hasten.drafters.trees.eagle",
    summary="a beam search by the draft, of which the likeliest nodes are proposed",
)


class Eagle:
    """Trees of a beam search. The defaults are those of the published code.

    Args:
        depth: passes after the first level, so that a tree has at most ``depth + 1`` levels.
        width: nodes that are read in a level, and children that each gets.

    Raises ConfigError for a value that cannot work.
    """

    def __init__(self, depth: int = 7, width: int = 10) -> None:
        if depth < 0:
            raise ConfigError(f"depth={depth} cannot work; it must be 0 or more")
        if width < 1:
            raise ConfigError(f"width={width} cannot work; it must be at least 1")
        self._depth = depth
        self._width = width

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        if tree.generator is None:
            return self._grow_chosen(tree)
        return self._grow_sampled(tree)

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        """The shape follows the draft's probabilities alone."""

    def _grow_chosen(self, tree: Growing) -> Iterator[list[int]]:
        budget = tree.room
        values = {ROOT: 1.0}
        level = [ROOT]
        for left in reversed(range(min(self._depth + 1, tree.max_depth) if budget else 0)):
            added = []
            for parent in level:
                for candidate in tree.siblings(parent).take(self._width):
                    node = tree.add(parent, candidate)
                    values[node] = tree.score(node)
                    added.append(node)
            level = best_nodes(values, added, self._width)
            if not left or not level:
                break
            yield level
        tree.keep(best_nodes(values, range(len(tree)), budget))

    def _grow_sampled(self, tree: Growing) -> Iterator[list[int]]:
        level = [ROOT]
        for left in reversed(range(min(self._depth + 1, tree.max_depth))):
            share = -(-tree.room // (left + 1))
            added = self._draw(tree, level, share)
            if not left or not added or not tree.room:
                return
            level = best_nodes({node: tree.score(node) for node in added}, added, self._width)
            yield level

    def _draw(self, tree: Growing, parents: list[int], count: int) -> list[int]:
        """The nodes of ``count`` tokens, each drawn where the most of the law is left."""
        slots = [(-tree.score(parent), place, self._width) for place, parent in enumerate(parents)]
        heapq.heapify(slots)
        added: list[int] = []
        while slots and len(added) < count:
            value, place, room = heapq.heappop(slots)
            for candidate in tree.siblings(parents[place]).take(1, distinct=True):
                added.append(tree.add(parents[place], candidate))
                left = value + tree.score(added[-1])
                if room > 1 and left < 0:
                    heapq.heappush(slots, (left, place, room - 1))
        return added


def best_nodes(values: dict[int, float], nodes: list[int] | range, count: int) -> list[int]:
    """The ``count`` most valued, the earlier ones among equals."""
    return sorted(nodes, key=lambda node: (-values[node], node))[:count]
