"""What earlier texts cached, for texts that begin alike: a radix tree over token ids, in a bounded memory.

Source: RadixAttention (SGLang, arXiv 2312.07104). An edge holds some tokens and their keys and values, a path
from the root is a text. Keys carry their rotary position, and a text begins at position 0, so what one text
cached is what any other with the same beginning would have computed. Knows sessions' copies only: no model,
no batch.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

from hasten.models.sessions.session import RowCache, joined

MIN_TOKENS = 16
"""A shorter beginning is not worth its copies."""


class PrefixCache:
    """Beginnings of texts, the least recently used of which are forgotten.

    Args:
        max_bytes: of keys and values.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._root = _Edge([], None, None)
        self._time = 0

    def find(self, token_ids: list[int]) -> RowCache | None:
        """What is cached of the longest known beginning; None where it would be too short to be worth it."""
        path, count = self._walk(token_ids)
        if count < MIN_TOKENS:
            return None
        parts = [edge.cached for edge in path if edge.cached is not None]
        over = sum(len(part.positions) for part in parts) - count
        if over:
            parts[-1] = parts[-1].between(0, len(parts[-1].positions) - over)
        return joined(parts)

    def add(self, token_ids: list[int], cached: Callable[[int], RowCache]) -> None:
        """Keep what a text has cached.

        Args:
            cached: a copy of what is cached of the text from a position on; asked for what is not known yet.
        """
        path, count = self._walk(token_ids)
        if count == len(token_ids):
            return
        above = path[-1]
        if (over := sum(len(edge.token_ids) for edge in path) - count) > 0:
            above = above.split(len(above.token_ids) - over)
        part = cached(count)
        edge = _Edge(token_ids[count:], part, above)
        if edge.num_bytes > self.max_bytes:
            return
        edge.used = self._time
        above.below[token_ids[count]] = edge
        self.num_bytes += edge.num_bytes
        self._make_room()

    def clear(self) -> None:
        """Forget everything."""
        self._root, self.num_bytes = _Edge([], None, None), 0

    def _walk(self, token_ids: list[int]) -> tuple[list[_Edge], int]:
        """The edges of the longest known beginning, from the root, the last maybe in part; its length."""
        self._time += 1
        path, count = [self._root], 0
        while True:
            edge = path[-1].below.get(token_ids[count]) if count < len(token_ids) else None
            if edge is None:
                return path, count
            edge.used = self._time
            path.append(edge)
            same = edge.num_same(token_ids, count)
            count += same
            if same < len(edge.token_ids):
                return path, count

    def _make_room(self) -> None:
        """Leaves go first: what they continue is of use to more texts."""
        while self.num_bytes > self.max_bytes:
            leaf = min(self._root.leaves(), key=lambda edge: edge.used)
            assert leaf.above is not None
            del leaf.above.below[leaf.token_ids[0]]
            self.num_bytes -= leaf.num_bytes


class _Edge:
    """Some tokens and what is cached of them, below the edge that comes before; the root has none."""

    def __init__(self, token_ids: list[int], cached: RowCache | None, above: _Edge | None) -> None:
        self.token_ids, self.cached, self.above = token_ids, cached, above
        self.below: dict[int, _Edge] = {}
        self.used = 0
        """when it was last looked at"""

    @property
    def num_bytes(self) -> int:
        return self.cached.num_bytes() if self.cached is not None else 0

    def num_same(self, token_ids: list[int], start: int) -> int:
        """How many of its tokens a text has from ``start`` on."""
        pairs = zip(self.token_ids, token_ids[start : start + len(self.token_ids)], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def split(self, count: int) -> _Edge:
        """Its first tokens become an edge of their own, which is returned."""
        assert self.cached is not None
        assert self.above is not None
        first = _Edge(self.token_ids[:count], self.cached.between(0, count).copy(), self.above)
        first.used = self.used
        self.above.below[first.token_ids[0]] = first
        rest = self.cached.between(count, len(self.token_ids)).copy()
        self.token_ids, self.cached, self.above = self.token_ids[count:], rest, first
        first.below[self.token_ids[0]] = self
        return first

    def leaves(self) -> list[_Edge]:
        found, waiting = [], list(self.below.values())
        while waiting:
            edge = waiting.pop()
            waiting += edge.below.values()
            if not edge.below:
                found.append(edge)
        return found
