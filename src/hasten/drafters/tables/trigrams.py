"""The trigram table of ADED (arXiv 2407.12021): the successors seen after two tokens, and their worth.

An open-addressing hash in plain arrays whose slots are the rows themselves, bounded by replacing the row not
written for the longest time. Knows how to learn and to look up; the search over it is elsewhere.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.errors import StoreError

Tokens = NDArray[np.int64]
Probs = NDArray[np.float32]
Heads = NDArray[np.int64]
"""int64 [rows, 2]: two tokens packed into one key, and when the row was last written"""
Successors = NDArray[np.int32]
"""int32 [rows, 12], EMPTY where there is none"""
Values = NDArray[np.float32]
"""float32 [rows, 12, 2]: how much the text raised a successor, and the target's probability of it"""

KEY, LAST_USED = range(2)
BUMPED, PROB = range(2)
EMPTY = -1
NUM_SUCCESSORS = 12
NUM_CANDIDATES = 8
"""Most probable tokens learnt of one position."""
PROBE_WINDOW = 16
BUMP = 0.04
MAX_VALUE = 3.0
MOST_UPDATES = 2**62
"""Times of use are counted from 0; what a store claims beyond this cannot be."""


@numba.njit(cache=True)
def mixed(number: np.uint64) -> np.uint64:
    """SplitMix64's scramble: the table's hash and the source of random numbers."""
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


@numba.njit(cache=True)
def _find_row(heads: Heads, before: int, token: int) -> tuple[int, int]:
    """The key of two tokens, and their row, or else the one to take for them.

    That is a free one or, in a full window, the one not written for the longest time: LRU, but within the
    window only. Rows are never freed, so a free one ends the search.
    """
    key = (np.int64(before) << 32) | np.int64(token)
    home = np.int64(mixed(np.uint64(key)) % np.uint64(len(heads)))
    oldest = home
    for offset in range(PROBE_WINDOW):
        row = (home + offset) % len(heads)
        if heads[row, KEY] == key or heads[row, KEY] == EMPTY:
            return int(key), int(row)
        if heads[row, LAST_USED] < heads[oldest, LAST_USED]:
            oldest = row
    return int(key), int(oldest)


@numba.njit(cache=True)
def row_of(heads: Heads, before: int, token: int) -> int:
    """The row of two tokens, or EMPTY."""
    key, row = _find_row(heads, before, token)
    return row if heads[row, KEY] == key else EMPTY


@numba.njit(cache=True)
def _claim_row(
    heads: Heads, successors: Successors, values: Values, before: int, token: int, clock: int
) -> int:
    key, row = _find_row(heads, before, token)
    if heads[row, KEY] != key:
        heads[row, KEY] = key
        for place in range(NUM_SUCCESSORS):
            successors[row, place] = EMPTY
            values[row, place, BUMPED] = 0.0
            values[row, place, PROB] = 0.0
    heads[row, LAST_USED] = clock
    return row


@numba.njit(cache=True)
def value_of(values: Values, row: int, place: int) -> float:
    """What a successor is worth: how much the text raised it plus the target's probability."""
    return min(MAX_VALUE, float(values[row, place, BUMPED]) + float(values[row, place, PROB]))


@numba.njit(cache=True)
def row_sum_of(values: Values, row: int) -> float:
    total = 0.0
    for place in range(NUM_SUCCESSORS):
        total += value_of(values, row, place)
    return total


@numba.njit(cache=True)
def _place_of(successors: Successors, values: Values, row: int, token: int) -> int:
    """Where a successor is, or else made room for: an empty place, or the one worth least."""
    least = int(np.int64(0))
    for place in range(NUM_SUCCESSORS):
        if successors[row, place] == token:
            return place
        if value_of(values, row, place) < value_of(values, row, least):
            least = place
    successors[row, least] = token
    values[row, least, BUMPED] = 0.0
    values[row, least, PROB] = 0.0
    return int(least)


@numba.njit(cache=True)
def adapt(heads: Heads, successors: Successors, values: Values, tokens: Tokens, clock: int) -> None:
    for end in range(2, len(tokens)):
        row = _claim_row(heads, successors, values, tokens[end - 2], tokens[end - 1], clock)
        place = _place_of(successors, values, row, tokens[end])
        values[row, place, BUMPED] = min(MAX_VALUE, values[row, place, BUMPED] + BUMP)


@numba.njit(cache=True)
def feed(
    heads: Heads,
    successors: Successors,
    values: Values,
    before: Tokens,
    tokens: Tokens,
    candidate_ids: Tokens,
    candidate_probs: Probs,
    clock: int,
) -> None:
    """Replace the probabilities of each position's row; of equal positions the first wins."""
    for position in range(len(tokens) - 1, -1, -1):
        row = _claim_row(heads, successors, values, before[position], tokens[position], clock)
        for place in range(NUM_SUCCESSORS):
            values[row, place, PROB] = 0.0
        for rank in range(min(NUM_CANDIDATES, candidate_ids.shape[1])):
            if candidate_probs[position, rank] > 0:
                place = _place_of(successors, values, row, candidate_ids[position, rank])
                values[row, place, PROB] = min(candidate_probs[position, rank], 1.0)
        for place in range(NUM_SUCCESSORS):
            if value_of(values, row, place) == 0:
                successors[row, place] = EMPTY


def check_table(heads: Heads, successors: Successors, values: Values, vocab_size: int) -> None:
    """Raises StoreError for contents no learning could have left."""
    if (heads < EMPTY).any() or (successors < EMPTY).any():
        raise StoreError("trigram heads and successors must be -1 or more")
    if (successors >= vocab_size).any():
        raise StoreError(f"trigram successors must lie between -1 and {vocab_size - 1}")
    if (heads[:, LAST_USED] >= MOST_UPDATES).any():
        raise StoreError(f"the trigrams' times of use must lie below {MOST_UPDATES}")
    most = np.array([MAX_VALUE, 1.0], np.float32)
    if not ((values >= 0) & (values <= most)).all():
        raise StoreError(f"trigram values must lie between 0 and {MAX_VALUE}, their probabilities 0 and 1")
    if values[successors == EMPTY].any():
        raise StoreError("trigram values must be 0 where there is no successor")
    in_order = np.sort(successors, axis=1)
    if ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] != EMPTY)).any():
        raise StoreError("trigram successors holds a token twice in one row")
