"""Trees by widths: how many candidates follow each node of a level, and the widths that suit a budget.

The papers that fix widths tune them by hand for one budget. Where none are given, here they follow from the
budget, from what a pass of the draft costs, and from how often each rank of siblings was accepted in earlier
rounds (so sampled drafts keep their law). Knows no model and no rule.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.core import Acceptance
from hasten.drafters.trees.growing import Growing
from hasten.drafters.trees.rank_acceptance import RankAcceptance
from hasten.errors import ConfigError
from hasten.tree import ROOT, DraftTree

_MAX_WIDTH = 8
_MAX_DEPTH = 32
_STEPS = 20  # chances are rounded to so many, so that few widths are ever searched for


def grow_by_widths(tree: Growing, widths: Sequence[int]) -> Iterator[list[int]]:
    """``widths[level]`` candidates below every node of a level, below the likeliest where room is short."""
    level = [ROOT]
    for width in widths:
        level = yield from tree.drawn(dict.fromkeys(tree.best_first(level), width))


def checked_widths(widths: Sequence[int] | None, name: str) -> tuple[int, ...] | None:
    """Raises ConfigError for widths no tree has."""
    if widths is not None and (not widths or min(widths) < 1):
        raise ConfigError(f"{name}={tuple(widths)} cannot work; it must name widths of at least 1")
    return None if widths is None else tuple(widths)


def checked_count(count: int | None, name: str) -> int | None:
    """Raises ConfigError for a number below 1."""
    if count is not None and count < 1:
        raise ConfigError(f"{name}={count} cannot work; it must be at least 1")
    return count


class Widths:
    """Finds widths; learns how often the first candidates of a node hold the target's token."""

    def __init__(self) -> None:
        self._ranks = RankAcceptance(_MAX_WIDTH)

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        self._ranks.learn(tree, acceptance)

    def for_levels(self, tree: Growing) -> tuple[int, ...]:
        """The widths that gain the most tokens, less the price of a pass for each level but the first."""
        found = best_trees(self._chances(), tree.room, min(tree.room, tree.max_depth, _MAX_DEPTH))
        return max(found, key=lambda one: one[0] - tree.token_price * max(0, len(one[1]) - 1))[1]

    def for_beams(self, tree: Growing, width: int | None, depth: int | None) -> tuple[int, int]:
        """(width, depth) of a tree whose levels all have one width; what is given stays.

        The beams are taken to part at the root, as most do.
        """
        chances = self._chances()
        deepest = depth or max(1, min(tree.room, tree.max_depth, _MAX_DEPTH))
        pairs = [
            (width or min(_MAX_WIDTH, max(1, tree.room // each)), each)
            for each in range(depth or 1, deepest + 1)
        ]

        def gain(pair: tuple[int, int]) -> float:
            first = chances[min(pair[0], _MAX_WIDTH) - 1]
            levels = min(pair[1], -(-tree.room // pair[0]))  # no more fit
            gained = first * sum(chances[0] ** level for level in range(levels))
            return gained - tree.token_price * (levels - 1)

        return max(pairs, key=gain)

    def _chances(self) -> tuple[float, ...]:
        """That the first 1, 2, ... candidates of a node hold the target's token."""
        chances = np.cumsum(self._ranks.probs())
        return tuple((np.round(chances * _STEPS) / _STEPS).tolist())


@functools.lru_cache(maxsize=256)
def best_trees(
    chances: tuple[float, ...], room: int, deepest: int
) -> tuple[tuple[float, tuple[int, ...]], ...]:
    """(accepted tokens to expect, widths) of the best tree of at most 0, 1, ... levels and so many nodes.

    chances: that the first 1, 2, ... candidates of a node hold the target's token, if the node does.
    """
    rooms = np.arange(room + 1)
    gains = np.zeros((deepest + 1, room + 1))
    choices = np.zeros((deepest + 1, room + 1), np.int64)
    for depth in range(1, deepest + 1):
        for width in range(1, min(room, len(chances)) + 1):
            below = rooms // width - 1  # nodes for each of the level's
            found = np.where(below >= 0, chances[width - 1] * (1 + gains[depth - 1, below]), 0.0)
            is_better = found > gains[depth]
            gains[depth, is_better], choices[depth, is_better] = found[is_better], width
    return tuple((float(gains[depth, room]), _widths(choices, depth)) for depth in range(deepest + 1))


def _widths(choices: NDArray[np.int64], depth: int) -> tuple[int, ...]:
    room, widths = choices.shape[1] - 1, []
    while width := int(choices[depth, room]):
        widths.append(width)
        room, depth = room // width - 1, depth - 1
    return tuple(widths)
