"""The intersection of a grammar with a canvas: which texts of the grammar the canvas can still become.

The canvas is an automaton over bytes: its points are the boundaries between positions and, inside a position,
what has been read of a token. That some symbol spans two points is one bit; rows of bits are filled from the
last point to the first (what spans exist), then from the first to the last (which ones a whole text uses).
This is the construction of Bar-Hillel, Perles and Shamir, as arXiv 2508.10111 uses it for gaps of any length;
here positions are counted, so the answer is exact for the length.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.constraints.context_free import BinaryRules

OPEN, DEAD = -2, -1
"""What may stand at a position: any kind of token, or none; else one kind's number."""
WORD = 64


@dataclass(frozen=True, eq=False)
class KindTrie:
    """The texts of the kinds of tokens by their beginnings; node 0 is the boundary before a position."""

    num_nodes: int
    """the boundary, and every proper beginning of a text"""
    edge_starts: NDArray[np.int64]
    """int64 [nodes + 1]: the edges of each node"""
    edge_bytes: NDArray[np.int64]
    edge_nodes: NDArray[np.int64]
    """int64 [edges]: where one leads; num_nodes for the boundary after the position"""
    edges_of: NDArray[np.bool_]
    """bool [kinds, edges]"""
    last_edges: NDArray[np.int64]
    """int64 [kinds]: the edge to the boundary"""
    last_nodes: NDArray[np.int64]
    """int64 [kinds]: the node where that edge begins"""

    @classmethod
    def of(cls, texts: list[bytes]) -> KindTrie:
        inner = sorted({text[:size] for text in texts for size in range(len(text))} | {b""})
        number = {beginning: index for index, beginning in enumerate(inner)}
        steps = {(text[:size], text[size], False) for text in inner for size in range(len(text))}
        steps |= {(text[:-1], text[-1], True) for text in texts}
        edges = sorted(steps, key=lambda step: (number[step[0]], step[1], step[2]))
        place = {step: index for index, step in enumerate(edges)}
        edges_of = np.zeros((len(texts), len(edges)), np.bool_)
        for kind, text in enumerate(texts):
            taken = [(text[:size], text[size], size == len(text) - 1) for size in range(len(text))]
            edges_of[kind, [place[step] for step in taken]] = True
        nodes = np.array([number[step[0]] for step in edges], np.int64)
        targets = [len(inner) if step[2] else number[step[0] + bytes([step[1]])] for step in edges]
        last_edges = np.array([place[text[:-1], text[-1], True] for text in texts], np.int64)
        return cls(
            len(inner),
            np.searchsorted(nodes, np.arange(len(inner) + 1)).astype(np.int64),
            np.array([step[1] for step in edges], np.int64),
            np.array(targets, np.int64),
            edges_of,
            last_edges,
            nodes[last_edges],
        )


class Intersection:
    """Spans of one canvas, kept up to date with what stands at its positions."""

    def __init__(self, rules: BinaryRules, trie: KindTrie, length: int) -> None:
        self._rules, self._trie, self.length = rules, trie, length
        self.num_kinds = len(trie.last_nodes)
        num_points = length * trie.num_nodes + 1
        shape = (num_points, rules.num_symbols, -(-num_points // WORD))
        self._spans: NDArray[np.uint64] = np.zeros(shape, np.uint64)
        self._used: NDArray[np.uint64] = np.zeros(shape, np.uint64)
        self._symbols: NDArray[np.int64] = np.full(length, OPEN, np.int64)
        self._num_fresh = 0
        """points from the last one on whose spans are up to date, counted in positions"""

    def follow(self, symbols: NDArray[np.int64]) -> None:
        """Take over what stands at the positions: int64 [length], OPEN, DEAD or a kind."""
        changed = np.flatnonzero(symbols != self._symbols)
        if len(changed):
            self._num_fresh = min(self._num_fresh, self.length - 1 - int(changed[-1]))
        self._symbols = symbols.copy()
        stale = self.length - self._num_fresh
        if stale or not self._num_fresh:
            _fill_spans(self._spans, self._symbols, stale, *self._arrays())
            self._num_fresh = self.length

    def ends(self) -> NDArray[np.bool_]:
        """bool [length + 1]: after how many positions a whole text may be over."""
        points = np.arange(self.length + 1) * self._trie.num_nodes
        row = self._spans[0, self._rules.start]
        bits: NDArray[np.uint64] = row[points // WORD] >> (points % WORD).astype(np.uint64)
        return (bits & np.uint64(1)).astype(np.bool_)

    def kinds(self, ends: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool [length, kinds]: those of texts that are over after one of ``ends`` bool [length + 1]."""
        points = np.flatnonzero(ends & self.ends()) * self._trie.num_nodes
        self._used[:] = 0
        for point in points:
            self._used[0, self._rules.start, point // WORD] |= np.uint64(1) << np.uint64(point % WORD)
        _mark_used(self._used, self._spans, self._rules.units, self._rules.pairs)
        last_bytes = self._trie.edge_bytes[self._trie.last_edges]
        kinds: NDArray[np.bool_] = _used_kinds(
            self._used,
            self.length,
            self._trie.num_nodes,
            self._rules.leaves,
            last_bytes,
            self._trie.last_nodes,
        )
        return kinds

    def _arrays(self) -> Iterable[object]:
        trie, rules = self._trie, self._rules
        yield from (trie.edge_starts, trie.edge_bytes, trie.edge_nodes, trie.edges_of)
        yield from (rules.leaves, rules.units, rules.pairs, rules.empties)


@numba.njit(cache=True)
def _join(row, other, first):  # type: ignore[no-untyped-def]
    """Add the bits of ``other`` from word ``first`` on; whether any was new."""
    is_new = False
    for word in range(first, len(row)):
        if other[word] & ~row[word]:
            row[word] |= other[word]
            is_new = True
    return is_new


@numba.njit(cache=True)
def _fill_spans(  # type: ignore[no-untyped-def]
    spans, symbols, num_stale, edge_starts, edge_bytes, edge_nodes, edges_of, leaves, units, pairs, empties
) -> None:
    """Fill the rows of the points of the first ``num_stale`` positions, and that of the last point."""
    num_nodes = len(edge_starts) - 1
    last = len(symbols) * num_nodes
    spans[last] = 0
    _derive(spans, last, units, pairs, empties)
    for place in range(num_stale - 1, -1, -1):
        for node in range(num_nodes - 1, -1, -1):
            point = place * num_nodes + node
            spans[point] = 0
            for edge in range(edge_starts[node], edge_starts[node + 1]):
                if symbols[place] == OPEN or (symbols[place] >= 0 and edges_of[symbols[place], edge]):
                    target = place * num_nodes + edge_nodes[edge]
                    for leaf in range(len(leaves)):
                        if leaves[leaf, edge_bytes[edge]]:
                            spans[point, leaf, target // WORD] |= np.uint64(1) << np.uint64(target % WORD)
            _derive(spans, point, units, pairs, empties)


@numba.njit(cache=True)
def _derive(spans, point, units, pairs, empties) -> None:  # type: ignore[no-untyped-def]
    """Close the spans that begin at ``point`` under the rules; those that begin later are complete."""
    here = np.uint64(1) << np.uint64(point % WORD)
    first = point // WORD
    num_words = spans.shape[2]
    for index in range(len(empties)):
        spans[point, empties[index], first] |= here
    seen = np.zeros((len(pairs), num_words), np.uint64)
    is_growing = True
    while is_growing:
        is_growing = False
        for index in range(len(units)):
            is_growing |= _join(spans[point, units[index, 0]], spans[point, units[index, 1]], first)
        for index in range(len(pairs)):
            row, left, right = spans[point, pairs[index, 0]], spans[point, pairs[index, 1]], pairs[index, 2]
            if left[first] & here:
                is_growing |= _join(row, spans[point, right], first)
            for word in range(first, num_words):
                fresh = left[word] & ~seen[index, word]
                if word == first:
                    fresh &= ~here
                seen[index, word] |= fresh
                while fresh:
                    lowest = fresh & (~fresh + np.uint64(1))
                    fresh ^= lowest
                    middle = word * WORD + _place(lowest)
                    is_growing |= _join(row, spans[middle, right], middle // WORD)


@numba.njit(cache=True)
def _place(bit):  # type: ignore[no-untyped-def]
    """Which bit of a word it is."""
    found = 0
    for size in (32, 16, 8, 4, 2, 1):
        if bit >> np.uint64(size):
            bit >>= np.uint64(size)
            found += size
    return found


@numba.njit(cache=True)
def _mark_used(used, spans, units, pairs) -> None:  # type: ignore[no-untyped-def]
    """Spread from the whole texts in ``used`` to every span that they are made of."""
    num_points, num_words = spans.shape[0], spans.shape[2]
    both = np.zeros(num_words, np.uint64)
    seen = np.zeros((len(pairs), num_words), np.uint64)
    for point in range(num_points):
        if not used[point].any():
            continue
        first = point // WORD
        seen[:] = 0
        is_growing = True
        while is_growing:
            is_growing = False
            for index in range(len(units)):
                both[first:] = used[point, units[index, 0], first:] & spans[point, units[index, 1], first:]
                is_growing |= _join(used[point, units[index, 1]], both, first)
            for index in range(len(pairs)):
                whole = used[point, pairs[index, 0]] & ~seen[index]
                if not whole.any():
                    continue
                seen[index] |= whole
                left, right = pairs[index, 1], pairs[index, 2]
                for word in range(first, num_words):
                    rest = spans[point, left, word]
                    while rest:
                        lowest = rest & (~rest + np.uint64(1))
                        rest ^= lowest
                        middle = word * WORD + _place(lowest)
                        begin = middle // WORD
                        both[begin:] = whole[begin:] & spans[middle, right, begin:]
                        if both[begin:].any():
                            if not used[point, left, word] & lowest:
                                used[point, left, word] |= lowest
                                is_growing = True
                            is_new = _join(used[middle, right], both, begin)
                            is_growing |= is_new and middle == point


@numba.njit(cache=True)
def _used_kinds(used, length, num_nodes, leaves, last_bytes, last_nodes):  # type: ignore[no-untyped-def]
    """A kind is used where its last byte is: what was read before that byte is no other's beginning."""
    kinds = np.zeros((length, len(last_nodes)), np.bool_)
    for place in range(length):
        end = (place + 1) * num_nodes
        bit = np.uint64(1) << np.uint64(end % WORD)
        for kind in range(len(last_nodes)):
            for leaf in range(len(leaves)):
                if leaves[leaf, last_bytes[kind]] and (
                    used[place * num_nodes + last_nodes[kind], leaf, end // WORD] & bit
                ):
                    kinds[place, kind] = True
    return kinds
