"""Prompts on their way into a running batch: read in a session of their own, a chunk at a time."""

from __future__ import annotations

import time
from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, TopCandidates
from hasten.models.forwards.forward import PREFILL_CHUNK
from hasten.models.sessions.prefix_cache import PrefixCache
from hasten.models.sessions.session import RowCache
from hasten.models.target import Target
from hasten.policies import telling_positions
from hasten.text.drafting import Method

Entry = tuple[Sequence, Method]
"""A text and how it is drafted."""


class Reading:
    """Texts whose prompts are being read side by side."""

    def __init__(self, model: Target, entries: list[Entry], prefixes: PrefixCache | None = None) -> None:
        self.entries = entries
        self.milliseconds = 0.0
        """that reading took"""
        self.candidates: list[TopCandidates | None] = []
        """those that drafters asked for, one a text, when all is read"""
        self.session = model.open([sequence for sequence, _ in entries])
        self._model = model
        self._known: list[RowCache | None] = [None] * len(entries)
        if prefixes is not None:
            self._known = [prefixes.find(sequence.token_ids[:-1]) for sequence, _ in entries]
        num_known = [0 if known is None else len(known.positions) for known in self._known]
        for (sequence, _), count in zip(entries, num_known, strict=True):
            sequence.stats.num_known_tokens = count
        self._num_left = sum(len(sequence.token_ids) - 1 for sequence, _ in entries) - sum(num_known)
        self._steps = self._read()

    def advance(self, max_tokens: int | None) -> tuple[int, bool]:
        """Read at least so many tokens, or all: how many those were, and whether all is read."""
        start, num_read, is_done = time.perf_counter(), 0, False
        # What is read is not done before the session has said so, which takes no time.
        while not is_done and (max_tokens is None or num_read < max_tokens or self._num_left <= 0):
            count = next(self._steps, None)
            is_done = count is None
            num_read += count or 0
            self._num_left -= count or 0
        self._model.synchronize()
        self.milliseconds += 1000 * (time.perf_counter() - start)
        return num_read, is_done

    def close(self) -> None:
        """Give it up."""
        self._steps.close()
        self.session.close()

    def _read(self) -> Generator[int, None, None]:
        prompts = [sequence.token_ids for sequence, _ in self.entries]
        top_k = max(method.drafter.top_k for _, method in self.entries)
        positions = _wanted(self.entries) if top_k else None
        self.candidates = yield from self.session.reading(prompts, top_k, positions, self._known)


def _wanted(entries: list[Entry]) -> list[NDArray[np.int64]] | None:
    """Of which positions of each prompt its drafter is to see candidates; None: of all of them."""
    positions: list[NDArray[np.int64] | None] = [None] * len(entries)
    for method in dict.fromkeys(method for _, method in entries):
        mine = [row for row, (_, its) in enumerate(entries) if its == method]
        num_tokens = sum(len(entries[row][0].token_ids) for row in mine)
        count = method.policy.num_prompt_rows(num_tokens) if method.drafter.top_k else 0
        for row in mine:
            if count is not None:
                prompt = entries[row][0].token_ids
                positions[row] = telling_positions(prompt, count // len(mine), PREFILL_CHUNK)
    if all(own is None for own in positions):
        return None
    return [
        np.arange(len(sequence.token_ids) - 1) if own is None else own
        for own, (sequence, _) in zip(positions, entries, strict=True)
    ]
