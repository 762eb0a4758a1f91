"""Which positions of a prompt are worth their candidates.

A drafter that keeps what followed each token learns from the prompt too, but the head over every position of
it costs more than the prompt itself where vocabularies are large. So only as many positions are looked at as
a small share of the prompt's own time pays for, and those whose tokens come up most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEARNING_SHARE = 0.015
"""Of the time a prompt takes, what learning from its rows may cost."""


@dataclass(frozen=True, slots=True)
class PromptPrices:
    """Milliseconds of caching prompts, and of finding candidates meanwhile."""

    token_ms: float
    """of a prompt token without its candidates"""
    first_ms: float
    """more where any candidates are found in a pass: the head is run another way than for one row"""
    position_ms: float
    """more for each"""

    def num_positions(self, num_tokens: int) -> int:
        """How many positions of prompts of so many tokens, together, may have candidates."""
        left = LEARNING_SHARE * num_tokens * self.token_ms - self.first_ms
        if left <= 0:
            return 0
        return num_tokens if self.position_ms * num_tokens <= left else int(left / self.position_ms)


def telling_positions(token_ids: Sequence[int], count: int, chunk: int) -> NDArray[np.int64]:
    """At most ``count`` rising positions below len - 1, in one chunk of the prompt, so that one pass pays.

    One a token, its last place, for the tokens that come up most; of equals, the later one.
    """
    size = len(token_ids) - 1
    start = max(0, size - 1) // chunk * chunk
    if size - start < min(chunk // 2, count):
        start = max(0, start - chunk)  # the last chunk holds too little
    stop = min(start + chunk, size)
    if stop - start <= count:
        return np.arange(start, stop)
    how_often = Counter(token_ids)
    last = {token: start + place for place, token in enumerate(token_ids[start:stop])}
    best = sorted(last.values(), key=lambda place: (-how_often[token_ids[place]], -place))
    return np.array(sorted(best[:count]), np.int64)
