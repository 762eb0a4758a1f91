"""Groups tokens that a grammar cannot tell apart.

What a token does in a text is how it goes through the grammar's terminals: from a state inside one, over the
terminals that end in it, to a state inside the last. Two tokens that do the same in every way can stand for
each other anywhere, so one of them answers for both. Tokens that fit into no text at all drop out.
"""

from __future__ import annotations

from collections.abc import Mapping

from hasten.constraints.bytes_dfa import DEAD
from hasten.constraints.context_free import ContextFreeGrammar

MAX_WAYS = 400
"""Ways through the terminals that are followed for one token; beyond, it is a kind of its own."""

Place = tuple[str, int]
Way = tuple[Place, tuple[str, ...], Place]
"""Where it begins, the terminals that it ends, where it stops."""


def token_kinds(grammar: ContextFreeGrammar, tokens: Mapping[int, bytes]) -> dict[bytes, list[int]]:
    """Per kind of token its shortest text and all its token ids; ``grammar`` is trimmed."""
    reader = _Reader(grammar)
    kinds: dict[object, tuple[bytes, list[int]]] = {}
    for token_id, text in sorted(tokens.items(), key=lambda pair: (len(pair[1]), pair[1], pair[0])):
        ways = reader.ways(text)
        if not text or ways == frozenset():
            continue
        key: object = text if ways is None else ways
        kinds.setdefault(key, (text, []))[1].append(token_id)
    return dict(kinds.values())


class _Reader:
    """Reads texts byte by byte from every state of every terminal; beginnings are remembered."""

    def __init__(self, grammar: ContextFreeGrammar) -> None:
        self._terminals = grammar.terminals
        # Terminals that are empty in a text are left out here: neighbours are those across them as well.
        self._following = grammar.neighbours()
        places = [(name, state) for name, dfa in grammar.terminals.items() for state in range(dfa.num_states)]
        self._known: dict[bytes, frozenset[Way] | None] = {
            b"": frozenset((place, (), place) for place in places)
        }

    def ways(self, text: bytes) -> frozenset[Way] | None:
        """None where there are too many to follow."""
        if text not in self._known:
            before = self.ways(text[:-1])
            if before is not None and len(text) > 1:
                before = before.union(*map(self._ended, before))
            self._known[text] = None if before is None else self._read(before, text[-1])
        return self._known[text]

    def _read(self, before: frozenset[Way], byte: int) -> frozenset[Way] | None:
        found = set()
        for begin, ended, (name, state) in before:
            target = int(self._terminals[name].next_states[state, byte])
            if target != DEAD:
                found.add((begin, ended, (name, target)))
        return frozenset(found) if len(found) <= MAX_WAYS else None

    def _ended(self, way: Way) -> list[Way]:
        """The ways on which the terminal ends here and another begins."""
        begin, ended, (name, state) = way
        if not self._terminals[name].is_final[state]:
            return []
        return [
            (begin, (*ended, name), (following, self._terminals[following].start))
            for following in self._following[name]
        ]
