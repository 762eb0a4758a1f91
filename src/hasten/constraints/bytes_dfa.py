"""Automata over bytes: made deterministic, trimmed, and compared.

Edges carry ranges of bytes; code points become their UTF-8 byte sequences. Knows neither regular expressions
nor tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ConfigError

DEAD = -1
MAX_STATES = 20_000
"""Of an automaton over bytes; larger ones would make every step of decoding slow."""
MAX_READ = 1_000_000
"""States looked at while an automaton is made deterministic: repetitions that overlap cost the square."""
LAST_CODE_POINT = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_ENCODED_ALIKE = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, LAST_CODE_POINT))

Ranges = tuple[tuple[int, int], ...]
"""Code points, both ends included, rising and apart."""


@dataclass(frozen=True, eq=False)
class ByteDfa:
    """Every state is reached from the start, and leads to a final one unless the language is empty."""

    next_states: NDArray[np.int32]
    """int32 [states, 256]; DEAD where a byte is not taken"""
    is_final: NDArray[np.bool_]
    start: int

    @property
    def num_states(self) -> int:
        return len(self.is_final)

    def accepts(self, text: bytes) -> bool:
        """Whether the whole text is in the language."""
        state = self.start
        for byte in text:
            state = int(self.next_states[state, byte])
            if state == DEAD:
                return False
        return bool(self.is_final[state])

    def is_within(self, other: ByteDfa) -> bool:
        """Whether every text of this language is one of the other's."""
        pairs = {(self.start, other.start)}
        waiting = list(pairs)
        while waiting:
            mine, theirs = waiting.pop()
            if theirs == DEAD or (self.is_final[mine] and not other.is_final[theirs]):
                return False
            for byte in np.flatnonzero(self.next_states[mine] >= 0):
                pair = int(self.next_states[mine, byte]), int(other.next_states[theirs, byte])
                if pair not in pairs:
                    pairs.add(pair)
                    waiting.append(pair)
        return True


@dataclass(slots=True)
class ByteNfa:
    """Grows state by state."""

    edges: list[list[tuple[int, int, int]]] = field(default_factory=list)
    """per state (first byte, last byte, next state)"""
    jumps: list[list[int]] = field(default_factory=list)
    """per state those reached without reading"""

    def state(self) -> int:
        """A new one. Raises ConfigError where there are too many."""
        if len(self.edges) >= 4 * MAX_STATES:
            raise _too_many(4 * MAX_STATES)
        self.edges.append([])
        self.jumps.append([])
        return len(self.edges) - 1

    def add_characters(self, start: int, end: int, ranges: Ranges) -> None:
        """One character out of these, from ``start`` to ``end``."""
        known: dict[tuple[object, ...], int] = {}
        for first, last, target in self._tails(list(_byte_ranges(ranges)), end, known):
            self.edges[start].append((first, last, target))

    def _tails(
        self, sequences: list[Ranges], end: int, known: dict[tuple[object, ...], int]
    ) -> Iterator[tuple[int, int, int]]:
        """Edges for the first bytes of these sequences; equal rests lead to one state."""
        by_first: dict[tuple[int, int], list[Ranges]] = {}
        for sequence in sequences:
            by_first.setdefault(sequence[0], []).append(sequence[1:])
        for (first, last), rests in by_first.items():
            key = tuple(rests)
            if not rests[0]:
                known[key] = end
            elif key not in known:
                known[key] = middle = self.state()
                self.edges[middle] = list(self._tails(rests, end, known))
            yield first, last, known[key]

    def determinized(self, start: int, end: int) -> ByteDfa:
        """Raises ConfigError above MAX_STATES."""
        cuts = sorted(
            {0, 256, *(cut for row in self.edges for first, last, _ in row for cut in (first, last + 1))}
        )
        group_of = {cut: index for index, cut in enumerate(cuts)}
        begin = self._closed([start])
        numbers, waiting, rows, num_read = {begin: 0}, deque([begin]), [], 0
        while waiting:
            reached: dict[int, set[int]] = {}
            states = waiting.popleft()
            num_read += len(states)
            for state in states:
                for first, last, target in self.edges[state]:
                    for group in range(group_of[first], group_of[last + 1]):
                        reached.setdefault(group, set()).add(target)
            row = np.full(len(cuts) - 1, DEAD, np.int32)
            for group, targets in reached.items():
                following = self._closed(targets)
                if following not in numbers:
                    numbers[following] = len(numbers)
                    waiting.append(following)
                row[group] = numbers[following]
            rows.append(row)
            if len(numbers) > MAX_STATES or num_read > MAX_READ:
                raise _too_many(MAX_STATES)
        table = np.repeat(np.array(rows), np.diff(cuts), axis=1)
        is_final = np.array([end in one for one in numbers])
        return _minimal(table, is_final)

    def _closed(self, states: Iterable[int]) -> frozenset[int]:
        """With all that is reached without reading."""
        found = set(states)
        waiting = list(found)
        while waiting:
            for target in self.jumps[waiting.pop()]:
                if target not in found:
                    found.add(target)
                    waiting.append(target)
        return frozenset(found)


def _too_many(num_states: int) -> ConfigError:
    return ConfigError(
        f"the pattern is too large, it needs about {num_states} states or more; "
        "lower its repetition counts, or repeat without a limit"
    )


def _minimal(table: NDArray[np.int32], is_final: NDArray[np.bool_]) -> ByteDfa:
    """Without states from which no text ends, and with states that accept the same merged; state 0 starts."""
    num_states = len(table)
    # A state of its own for texts that are lost makes every state take every byte.
    columns = np.unique(np.where(table >= 0, table, num_states), axis=1)
    columns = np.vstack([columns, np.full(columns.shape[1], num_states, columns.dtype)])
    block = _blocks(columns, np.append(is_final, False))
    lost = block[num_states]
    _, member = np.unique(block, return_index=True)
    merged = np.append(table, np.full((1, 256), DEAD, table.dtype), axis=0)[member]
    targets = np.where(merged >= 0, block[merged], lost)
    merged = np.where(targets == lost, DEAD, targets).astype(np.int32)
    return _reached(merged, np.append(is_final, False)[member], int(block[0]))


def _blocks(columns: NDArray[np.int32], is_final: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 [states]: states with one number accept the same texts (Hopcroft's partition refinement)."""
    sources = []
    for column in columns.T:
        order = np.argsort(column, kind="stable")
        sources.append(np.split(order, np.searchsorted(column[order], np.arange(1, len(column)))))
    blocks = [set(np.flatnonzero(is_final).tolist()), set(np.flatnonzero(~is_final).tolist())]
    block = (~is_final).astype(np.int64)
    waiting = {0, 1}
    while waiting:
        splitter = sorted(blocks[waiting.pop()])
        if not splitter:  # no state is final
            continue
        for by_target in sources:
            touched: dict[int, list[int]] = {}
            for state in np.concatenate([by_target[target] for target in splitter]).tolist():
                touched.setdefault(int(block[state]), []).append(state)
            for old, inside in touched.items():
                if len(inside) == len(blocks[old]):
                    continue
                new = len(blocks)
                blocks.append(set(inside))
                blocks[old] -= blocks[new]
                block[inside] = new
                waiting.add(new if old in waiting or len(inside) <= len(blocks[old]) else old)
    return np.unique(block, return_inverse=True)[1]


def _reached(table: NDArray[np.int32], is_final: NDArray[np.bool_], start: int) -> ByteDfa:
    """Only the states that are reached, in the order of their discovery."""
    order, place = [start], {start: 0}
    for state in order:
        for target in np.unique(table[state][table[state] >= 0]).tolist():
            if target not in place:
                place[target] = len(order)
                order.append(target)
    renamed = np.full(len(table) + 1, DEAD, np.int32)
    renamed[order] = np.arange(len(order))
    return ByteDfa(renamed[table[order]], is_final[order], 0)


def _byte_ranges(ranges: Ranges) -> Iterator[Ranges]:
    """The UTF-8 sequences of these code points, as products of byte ranges; surrogates have none."""
    for first, last in ranges:
        for low, high in ((first, min(last, _SURROGATES[0] - 1)), (max(first, _SURROGATES[1] + 1), last)):
            for shortest, longest in _ENCODED_ALIKE:
                if max(low, shortest) <= min(high, longest):
                    yield from _products(max(low, shortest), min(high, longest))


def _products(first: int, last: int) -> Iterator[Ranges]:
    """Split where the bytes after a leading one would not be the full range."""
    low, high = chr(first).encode(), chr(last).encode()
    for num_tail in range(len(low) - 1, 0, -1):
        mask = (1 << 6 * num_tail) - 1
        if first | mask != last | mask:
            if first & mask:
                yield from _products(first, first | mask)
                yield from _products((first | mask) + 1, last)
                return
            if last & mask != mask:
                yield from _products(first, (last & ~mask) - 1)
                yield from _products(last & ~mask, last)
                return
    yield tuple(zip(low, high, strict=True))
