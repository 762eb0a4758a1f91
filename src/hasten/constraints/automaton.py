"""Deterministic automata over token ids, with tokens grouped by what they do.

Two tokens that lead from every state to the same state are one class: a step then costs the classes, of which
a vocabulary of many thousands has a few dozen, and not the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ConfigError

DEAD = -1
"""Where a token leads that a state does not take; also the class of tokens that no state takes."""


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """States are 0 .. num_states - 1.

    Raises ConfigError for arrays that do not fit together.
    """

    next_states: NDArray[np.int32]
    """int32 [states, classes]; DEAD where the class is not taken"""
    class_of: NDArray[np.int32]
    """int32 [tokens]; DEAD for a token that no state takes"""
    is_final: NDArray[np.bool_]
    """bool [states]: where a text may end"""
    start: int

    def __post_init__(self) -> None:
        num_states, num_classes = self.next_states.shape
        if len(self.is_final) != num_states or not 0 <= self.start < num_states:
            raise ConfigError(
                f"an automaton of {num_states} states has {len(self.is_final)} marks for final ones "
                f"and starts in state {self.start}; they must agree"
            )
        if self.next_states.size and self.next_states.max() >= num_states:
            raise ConfigError(f"an automaton of {num_states} states leads to {self.next_states.max()}")
        if self.class_of.size and self.class_of.max() >= num_classes:
            raise ConfigError(f"an automaton of {num_classes} classes has a token of {self.class_of.max()}")

    @property
    def num_states(self) -> int:
        return len(self.is_final)

    @classmethod
    def of(
        cls, transitions: Mapping[int, Mapping[int, int]], start: int, finals: Iterable[int]
    ) -> TokenAutomaton:
        """From {state: {token id: next state}}, as other libraries give them; states may have any numbers.

        Raises ConfigError for negative token ids.
        """
        finals = set(finals)
        named = {start, *finals, *transitions}
        named.update(state for row in transitions.values() for state in row.values())
        number = {state: index for index, state in enumerate(sorted(named))}
        tokens = [token for row in transitions.values() for token in row]
        if min(tokens, default=0) < 0:
            raise ConfigError(f"token id {min(tokens)} cannot be in a vocabulary")
        grouping = Grouping(max(tokens, default=-1) + 1)
        rows = {}
        for state, row in transitions.items():
            taken = np.fromiter(row, np.int64, len(row))
            nexts = np.fromiter((number[one] for one in row.values()), np.int64, len(row))
            rows[number[state]] = taken, nexts
            grouping.refine(taken, nexts)
        class_of, num_classes = grouping.classes()
        table = np.full((len(number), num_classes), DEAD, np.int32)
        for index, (taken, nexts) in rows.items():
            table[index, class_of[taken]] = nexts
        is_final = np.zeros(len(number), np.bool_)
        is_final[[number[state] for state in finals]] = True
        return cls(table, class_of, is_final, number[start])


class Grouping:
    """Splits items into classes, state by state, until each class does the same in all of them."""

    def __init__(self, num_items: int) -> None:
        self._group: NDArray[np.int64] = np.zeros(num_items, np.int64)
        self._taken: NDArray[np.bool_] = np.zeros(num_items, np.bool_)
        self._num_groups = 1

    def refine(self, items: NDArray[np.int64], nexts: NDArray[np.int64]) -> None:
        """One state takes ``items``, each once, and they lead to ``nexts``; it takes no others."""
        if not len(items):
            return
        keys = self._group[items] * (int(nexts.max()) + 1) + nexts
        # Those that were taken leave their group for a new one; the rest stay in it.
        _, index = np.unique(keys, return_inverse=True)
        self._group[items] = self._num_groups + index
        self._taken[items] = True
        self._num_groups += int(index.max()) + 1

    def classes(self) -> tuple[NDArray[np.int32], int]:
        """The class of each item, DEAD for those never taken, and how many classes there are."""
        names, index = np.unique(self._group[self._taken], return_inverse=True)
        class_of = np.full(len(self._group), DEAD, np.int32)
        class_of[self._taken] = index
        return class_of, len(names)
