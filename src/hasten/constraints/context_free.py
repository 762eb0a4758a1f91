"""Context-free grammars over bytes, brought into rules of at most two symbols.

A grammar's terminals are automata over bytes; each becomes right-linear rules of its own, so that afterwards
a leaf is a set of bytes. Texts are read without a lexer: any way to cut a text into terminals counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hasten.constraints.bytes_dfa import ByteDfa
from hasten.errors import ConfigError


@dataclass(frozen=True, eq=False)
class ContextFreeGrammar:
    """Raises ConfigError for a symbol without rules, and for a language without texts."""

    start: str
    rules: Mapping[str, Sequence[Sequence[str]]]
    """per nonterminal its expansions"""
    terminals: Mapping[str, ByteDfa]

    def __post_init__(self) -> None:
        known = {*self.rules, *self.terminals}
        used = {
            self.start,
            *(name for expansions in self.rules.values() for one in expansions for name in one),
        }
        if missing := sorted(used - known):
            raise ConfigError(f"grammar symbol {missing[0]!r} has no rule; define it, or correct its name")
        if self.start not in self._productive():
            raise ConfigError(f"the grammar's rule {self.start!r} has no finite text; give it an end")

    def trimmed(self) -> ContextFreeGrammar:
        """Only the rules that some text uses."""
        productive = self._productive()
        useful = {
            name: [one for one in expansions if productive.issuperset(one)]
            for name, expansions in self.rules.items()
            if name in productive
        }
        reached, waiting = {self.start}, [self.start]
        while waiting:
            for expansion in useful.get(waiting.pop(), ()):
                waiting += set(expansion) - reached
                reached.update(expansion)
        return ContextFreeGrammar(
            self.start,
            {name: expansions for name, expansions in useful.items() if name in reached},
            {name: dfa for name, dfa in self.terminals.items() if name in reached},
        )

    def _productive(self) -> set[str]:
        found = {name for name, dfa in self.terminals.items() if dfa.is_final.any()}
        return _closure(found, self.rules)

    def neighbours(self) -> dict[str, set[str]]:
        """Per terminal those that may come next in some text; for trimmed grammars."""
        nullable = _closure(
            {name for name, dfa in self.terminals.items() if dfa.is_final[dfa.start]}, self.rules
        )
        firsts = self._ends(nullable, is_last=False)
        lasts = self._ends(nullable, is_last=True)
        following: dict[str, set[str]] = {name: set() for name in self.terminals}
        for expansions in self.rules.values():
            for one in expansions:
                for index, left in enumerate(one):
                    for right in one[index + 1 :]:
                        for terminal in lasts[left]:
                            following[terminal] |= firsts[right]
                        if right not in nullable:
                            break
        return following

    def _ends(self, nullable: set[str], is_last: bool) -> dict[str, set[str]]:
        """Per symbol the terminals that its texts may begin, or end, with."""
        found: dict[str, set[str]] = {name: set() for name in self.rules}
        found |= {name: {name} for name in self.terminals}
        is_growing = True
        while is_growing:
            is_growing = False
            for name, expansions in self.rules.items():
                before = len(found[name])
                for one in expansions:
                    for symbol in reversed(one) if is_last else one:
                        found[name] |= found[symbol]
                        if symbol not in nullable:
                            break
                is_growing |= len(found[name]) > before
        return found


def _closure(found: set[str], rules: Mapping[str, Sequence[Sequence[str]]]) -> set[str]:
    """With every nonterminal that has an expansion of found symbols only."""
    found = set(found)
    is_growing = True
    while is_growing:
        more = {
            name for name, expansions in rules.items() if any(found.issuperset(one) for one in expansions)
        }
        is_growing = not found.issuperset(more)
        found |= more
    return found


@dataclass(frozen=True, eq=False)
class BinaryRules:
    """Symbols are numbers; the first ones are leaves. Rules: A -> B C, A -> B, A -> nothing."""

    leaves: NDArray[np.bool_]
    """bool [leaves, 256]: the bytes of each"""
    pairs: NDArray[np.int64]
    """int64 [rules, 3]: A, B, C"""
    units: NDArray[np.int64]
    """int64 [rules, 2]: A, B"""
    empties: NDArray[np.int64]
    """int64 [rules]: A"""
    start: int
    num_symbols: int


@dataclass(slots=True)
class _Numbering:
    """Gives symbols their numbers, leaves first once all are known."""

    leaves: dict[bytes, int] = field(default_factory=dict)
    others: dict[object, int] = field(default_factory=dict)

    def leaf(self, members: NDArray[np.bool_]) -> int:
        """The number of a set of bytes, counted down from -1 until the others are known."""
        return -1 - self.leaves.setdefault(members.tobytes(), len(self.leaves))

    def other(self, key: object) -> int:
        return self.others.setdefault(key, len(self.others))


def binary_rules(grammar: ContextFreeGrammar) -> BinaryRules:
    """The same language in short rules; ``grammar`` is trimmed."""
    names = _Numbering()
    rules: list[tuple[int, ...]] = []
    for name, expansions in grammar.rules.items():
        for expansion in expansions:
            # The ends of long expansions are shared by all rules that have them.
            left = names.other(name)
            rest = tuple(expansion)
            while len(rest) > 2:
                tail = names.other(rest[1:])
                rules.append((left, names.other(rest[0]), tail))
                left, rest = tail, rest[1:]
            rules.append((left, *map(names.other, rest)))
    for name, dfa in grammar.terminals.items():
        rules += _right_linear(name, dfa, names)
    num_leaves = len(names.leaves)
    shifted = sorted({tuple(-1 - one if one < 0 else one + num_leaves for one in rule) for rule in rules})
    leaves = [np.frombuffer(members, np.bool_) for members in names.leaves]
    return BinaryRules(
        np.array(leaves, np.bool_).reshape(num_leaves, 256),
        _of_length(3, shifted),
        _of_length(2, shifted),
        _of_length(1, shifted).reshape(-1),
        names.other(grammar.start) + num_leaves,
        num_leaves + len(names.others),
    )


def _right_linear(name: str, dfa: ByteDfa, names: _Numbering) -> Iterable[tuple[int, ...]]:
    """A -> byte A' for each edge of a terminal's automaton, and A -> byte where it may end after that."""
    continues = [bool((row >= 0).any()) for row in dfa.next_states]
    is_final = dfa.is_final.tolist()
    symbols = [names.other(name if state == dfa.start else (name, state)) for state in range(dfa.num_states)]
    for state in range(dfa.num_states):
        row = dfa.next_states[state]
        for target in np.unique(row[row >= 0]).tolist():
            leaf = names.leaf(np.equal(row, target))
            if is_final[target]:
                yield symbols[state], leaf
            if continues[target]:
                yield symbols[state], leaf, symbols[target]
    if is_final[dfa.start]:
        yield (symbols[dfa.start],)


def _of_length(length: int, rules: list[tuple[int, ...]]) -> NDArray[np.int64]:
    return np.array([one for one in rules if len(one) == length], np.int64).reshape(-1, length)
