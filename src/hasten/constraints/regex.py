"""Regular expressions as automata over bytes; the language is that of ``re.fullmatch``.

Python's own parser reads the pattern. What is not regular (backreferences, lookaround) is refused.
"""

from __future__ import annotations

import re
from functools import cache
from re import _constants as codes, _parser as parser
from typing import Any

from hasten.constraints.bytes_dfa import LAST_CODE_POINT, ByteDfa, ByteNfa, Ranges
from hasten.errors import ConfigError

MAX_REPEAT = 2000
"""Largest count in {m,n}: each repetition is states of its own."""
_CATEGORIES = {
    codes.CATEGORY_DIGIT: r"\d",
    codes.CATEGORY_NOT_DIGIT: r"\D",
    codes.CATEGORY_SPACE: r"\s",
    codes.CATEGORY_NOT_SPACE: r"\S",
    codes.CATEGORY_WORD: r"\w",
    codes.CATEGORY_NOT_WORD: r"\W",
}
_BEGINS = (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING)
_ENDS = (codes.AT_END, codes.AT_END_STRING)
_READABLE = re.IGNORECASE | re.DOTALL | re.ASCII
_REFUSED = {
    codes.ASSERT: "lookaround",
    codes.ASSERT_NOT: "lookaround",
    codes.GROUPREF: "backreferences",
    codes.GROUPREF_EXISTS: "conditional groups",
    codes.ATOMIC_GROUP: "atomic groups",
    codes.POSSESSIVE_REPEAT: "possessive repetition",
    codes.AT: "anchors other than ^ at the beginning and $ at the end",
}


def compile_regex(pattern: str, flags: int = 0) -> ByteDfa:
    """The automaton of all texts that match ``pattern`` as a whole.

    Args:
        pattern: in Python's syntax.
        flags: of ``re``; inline flags such as (?i) work too.

    Raises:
        ConfigError: the pattern is malformed, not regular, or too large.
    """
    try:
        tree = parser.parse(pattern, flags)
    except (re.error, OverflowError, RecursionError) as problem:
        raise ConfigError(f"pattern {pattern!r} is not a regular expression: {problem}") from problem
    builder = _Builder(pattern)
    start, end = builder.nfa.state(), builder.nfa.state()
    builder.sequence(list(tree), start, end, tree.state.flags, (True, True))
    return builder.nfa.determinized(start, end)


Edges = tuple[bool, bool]
"""Whether a part stands at the very beginning, and at the very end, of the pattern."""


class _Builder:
    """Adds the parts of a parsed pattern to an automaton, each between two given states."""

    def __init__(self, pattern: str) -> None:
        self.nfa = ByteNfa()
        self._pattern = pattern

    def sequence(self, items: list[Any], start: int, end: int, flags: int, edges: Edges) -> None:
        """One part after the other."""
        while items and edges[0] and _is_anchor(items[0], _BEGINS):
            items = items[1:]
        while items and edges[1] and _is_anchor(items[-1], _ENDS):
            items = items[:-1]
        for index, item in enumerate(items):
            is_last = index == len(items) - 1
            target = end if is_last else self.nfa.state()
            self._item(item, start, target, flags, (edges[0] and index == 0, edges[1] and is_last))
            start = target
        if not items:
            self.nfa.jumps[start].append(end)

    def _item(self, item: tuple[Any, Any], start: int, end: int, flags: int, edges: Edges) -> None:
        code, argument = item
        if code in {codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN}:
            self.nfa.add_characters(start, end, _characters(code, argument, flags))
        elif code is codes.BRANCH:
            for branch in argument[1]:
                # States of its own: a loop inside one branch must not enter another.
                first, last = self.nfa.state(), self.nfa.state()
                self.nfa.jumps[start].append(first)
                self.nfa.jumps[last].append(end)
                self.sequence(list(branch), first, last, flags, edges)
        elif code is codes.SUBPATTERN:
            _, added, removed, inner = argument
            self.sequence(list(inner), start, end, (flags | added) & ~removed, edges)
        elif code in {codes.MAX_REPEAT, codes.MIN_REPEAT}:
            self._repeat(argument, start, end, flags)
        else:
            what = _REFUSED.get(code, str(code).lower())
            raise ConfigError(
                f"pattern {self._pattern!r} uses {what}, which cannot be a constraint; rewrite it"
            )

    def _repeat(self, argument: Any, start: int, end: int, flags: int) -> None:
        low, high, inner = argument
        is_bounded = high != codes.MAXREPEAT
        if (high if is_bounded else low) > MAX_REPEAT:
            raise ConfigError(
                f"pattern {self._pattern!r} repeats more than {MAX_REPEAT} times; repeat without a limit"
            )
        items = list(inner)
        for _ in range(low):
            target = self.nfa.state()
            self.sequence(items, start, target, flags, (False, False))
            start = target
        if is_bounded:
            self.nfa.jumps[start].append(end)
            for _ in range(high - low):
                target = self.nfa.state()
                self.sequence(items, start, target, flags, (False, False))
                self.nfa.jumps[target].append(end)
                start = target
            return
        loop, after = self.nfa.state(), self.nfa.state()
        self.nfa.jumps[start].append(loop)
        self.sequence(items, loop, after, flags, (False, False))
        self.nfa.jumps[after].append(loop)
        self.nfa.jumps[loop].append(end)


def _is_anchor(item: tuple[Any, Any], places: tuple[Any, ...]) -> bool:
    return item[0] is codes.AT and item[1] in places


def _characters(code: Any, argument: Any, flags: int) -> Ranges:
    """The code points that a part for one character takes."""
    if code is codes.ANY:
        return ((0, LAST_CODE_POINT),) if flags & re.DOTALL else ((0, 9), (11, LAST_CODE_POINT))
    entries = argument if code is codes.IN else [(codes.LITERAL, argument)]
    is_negated = code is codes.NOT_LITERAL
    inside = []
    for kind, value in entries:
        if kind is codes.NEGATE:
            is_negated = True
        elif kind is codes.CATEGORY:
            inside.append(_CATEGORIES[value])
        else:
            low, high = (value, value) if kind is codes.LITERAL else value
            inside.append(f"\\U{low:08x}-\\U{high:08x}")
    return _matched(f"[{'^' * is_negated}{''.join(inside)}]", flags & _READABLE & ~re.DOTALL)


@cache
def _matched(characters: str, flags: int) -> Ranges:
    """What ``re`` itself says a class matches, so that categories and cases are the same here."""
    return tuple(
        (found.start(), found.end() - 1)
        for found in re.compile(f"{characters}+", flags).finditer(_every_character())
    )


@cache
def _every_character() -> str:
    return "".join(map(chr, range(LAST_CODE_POINT + 1)))
