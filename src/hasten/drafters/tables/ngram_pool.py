"""What followed a token before, three tokens long, by how often and how lately: TokenSwift's table.

Source: TokenSwift (arXiv 2502.18890). Knows one text and counts exactly: the best continuations of a token
are those with the highest (count, last seen), also where several counts are equal. Learning a token and
asking for the best cost the same however much is known, because a count only ever rises: what is not among
the best of its token cannot get there without being counted itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import nlargest

from hasten.errors import ConfigError

CONTINUATION = 3
"""Tokens of a continuation."""

Continuation = tuple[int, ...]
Rank = tuple[int, int]
"""How often, and when last."""


@dataclass(slots=True)
class _Entry:
    """What is known of one token."""

    ranks: dict[Continuation, Rank] = field(default_factory=dict)
    best: list[Continuation] = field(default_factory=list)  # no order
    total: int = 0


class NgramPool:
    """Continuations by the token they follow.

    Args:
        num_best: how many continuations of a token can be asked for.
        window: only text older than this many tokens is learnt, because a repetition penalty over them makes
            their repetition unlikely; 0 learns all.
        max_ngrams: n-grams that are remembered; beyond it the rarer half is forgotten.

    Raises ConfigError for a value that cannot work.
    """

    def __init__(self, *, num_best: int = 20, window: int = 0, max_ngrams: int = 100_000) -> None:
        for name, value, least in (
            ("num_best", num_best, 1),
            ("window", window, 0),
            ("max_ngrams", max_ngrams, 2),
        ):
            if value < least:
                raise ConfigError(f"{name}={value} cannot work; it must be at least {least}")
        self._num_best = num_best
        self._window = window
        self._max_ngrams = max_ngrams
        self._entries: dict[int, _Entry] = {}
        self._num_ngrams = 0
        self._next = 0  # position of the first token whose continuation is not learnt yet

    def __len__(self) -> int:
        return self._num_ngrams

    def learn(self, token_ids: list[int]) -> None:
        """Learn what is new in a text that only grows."""
        end = len(token_ids) - self._window - CONTINUATION
        for position in range(self._next, end):
            continuation = tuple(token_ids[position + 1 : position + 1 + CONTINUATION])
            self._count(token_ids[position], continuation, position)
        self._next = max(self._next, end)

    def _count(self, token_id: int, continuation: Continuation, position: int) -> None:
        entry = self._entries.setdefault(token_id, _Entry())
        ranks, best = entry.ranks, entry.best
        if continuation not in ranks:
            if self._num_ngrams >= self._max_ngrams:
                self._forget_half()
                entry = self._entries.setdefault(token_id, _Entry())
                ranks, best = entry.ranks, entry.best
            self._num_ngrams += 1
        ranks[continuation] = (ranks.get(continuation, (0, 0))[0] + 1, position)
        entry.total += 1
        if continuation in best:
            return
        best.append(continuation)
        if len(best) > self._num_best:
            best.remove(min(best, key=ranks.__getitem__))

    def _forget_half(self) -> None:
        ranks = sorted(rank for entry in self._entries.values() for rank in entry.ranks.values())
        floor = ranks[len(ranks) // 2]
        kept: dict[int, _Entry] = {}
        for token_id, entry in self._entries.items():
            known = {continuation: rank for continuation, rank in entry.ranks.items() if rank >= floor}
            if known:
                best = nlargest(self._num_best, known, key=known.__getitem__)
                kept[token_id] = _Entry(known, best, sum(count for count, _ in known.values()))
        self._entries = kept
        self._num_ngrams = sum(len(entry.ranks) for entry in kept.values())

    def best(self, token_ids: list[int], count: int | None = None) -> list[tuple[int, Continuation, float]]:
        """The best continuations of any of these tokens, best first: (token, continuation, share of token).

        At most ``count``, ``num_best`` by default, which is also the most there are of one token.
        """
        found = [
            (entry.ranks[continuation], token_id, continuation, entry.total)
            for token_id in dict.fromkeys(token_ids)
            if (entry := self._entries.get(token_id)) is not None
            for continuation in entry.best
        ]
        chosen = nlargest(self._num_best if count is None else count, found)
        return [
            (token_id, continuation, rank[0] / (total + 1)) for rank, token_id, continuation, total in chosen
        ]

    def counts(self, token_id: int) -> dict[Continuation, int]:
        """How often each continuation of a token was seen."""
        entry = self._entries.get(token_id, _Entry())
        return {continuation: rank[0] for continuation, rank in entry.ranks.items()}
