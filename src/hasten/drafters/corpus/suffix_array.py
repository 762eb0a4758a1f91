"""Sorts the suffixes of a text of token ids by their first tokens, for texts of tens of millions of tokens.

A bucket per first token, then multikey quicksort (Bentley and Sedgewick 1997) two tokens at a time to a
bounded depth, so that repetition cannot make it slow; buckets are sorted side by side. Knows arrays only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import pairwise

import numba
import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Keys = NDArray[np.int64]
Progress = Callable[[int, int], None]
"""(done, total)"""

DEPTH = 33
"""Suffixes are ordered by so many tokens, the bucket's and 16 pairs; by position where these are equal."""
SEPARATOR = -1
"""Stands between documents, where no token id can."""

_INSERTION_SIZE = 12
_NUM_TASKS = 256


@numba.njit(cache=True, nogil=True)
def _key(tokens: Tokens, position: int) -> int:
    """Two tokens as one number, in their order."""
    return int(((np.int64(tokens[position]) + 1) << 32) | (np.int64(tokens[position + 1]) + 1))


@numba.njit(cache=True, nogil=True)
def _is_before(tokens: Tokens, left: int, right: int, depth: int) -> bool:
    for at in range(depth, DEPTH):
        if tokens[left + at] != tokens[right + at]:
            return bool(tokens[left + at] < tokens[right + at])
    return left < right


@numba.njit(cache=True, nogil=True)
def _insertion_sort(tokens: Tokens, suffixes: Tokens, start: int, end: int, depth: int) -> None:
    for place in range(start + 1, end):
        suffix = suffixes[place]
        hole = place
        while hole > start and _is_before(tokens, suffix, suffixes[hole - 1], depth):
            suffixes[hole] = suffixes[hole - 1]
            hole -= 1
        suffixes[hole] = suffix


@numba.njit(cache=True, nogil=True)
def _median(first: int, second: int, third: int) -> int:
    return max(min(first, second), min(max(first, second), third))


@numba.njit(cache=True, nogil=True)
def _pivot(keys: Keys, start: int, end: int) -> int:
    """The median of three medians, from scattered places: regular ones are lopsided on sorted runs."""
    samples = np.empty(9, np.int64)
    place = np.uint64(end - start)
    for at in range(9):
        place = place * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        samples[at] = keys[start + np.int64(place >> np.uint64(33)) % (end - start)]
    first = _median(samples[0], samples[1], samples[2])
    second = _median(samples[3], samples[4], samples[5])
    return _median(first, second, _median(samples[6], samples[7], samples[8]))


@numba.njit(cache=True, nogil=True)
def _partition(suffixes: Tokens, keys: Keys, start: int, end: int, pivot: int) -> tuple[int, int]:
    """Smaller keys first, then equal ones, then greater ones: where the equal ones start and end."""
    lower, upper, at = start, end, start
    while at < upper:
        key = keys[at]
        if key < pivot:
            keys[at], keys[lower] = keys[lower], key
            suffixes[at], suffixes[lower] = suffixes[lower], suffixes[at]
            lower += 1
            at += 1
        elif key > pivot:
            upper -= 1
            keys[at], keys[upper] = keys[upper], key
            suffixes[at], suffixes[upper] = suffixes[upper], suffixes[at]
        else:
            at += 1
    return lower, upper


@numba.njit(cache=True, nogil=True)
def _sort_bucket(tokens: Tokens, suffixes: Tokens) -> None:
    """Sort suffixes that share their first token."""
    keys = np.empty(len(suffixes), np.int64)
    ranges = [(0, len(suffixes), 1, True)]
    while len(ranges) > 0:
        start, end, depth, is_new = ranges.pop()
        if end - start <= _INSERTION_SIZE:
            _insertion_sort(tokens, suffixes, start, end, depth)
            continue
        if is_new:  # all share their first ``depth`` tokens
            for place in range(start, end):
                keys[place] = _key(tokens, suffixes[place] + depth) if depth < DEPTH else suffixes[place]
        lower, upper = _partition(suffixes, keys, start, end, _pivot(keys, start, end))
        ranges.append((start, lower, depth, False))
        ranges.append((upper, end, depth, False))
        ranges.append((lower, upper, depth + 2, True))


@numba.njit(cache=True, nogil=True)
def _sort_buckets(tokens: Tokens, suffixes: Tokens, starts: Keys, first: int, last: int) -> None:
    for token in range(first, last):
        if starts[token + 1] - starts[token] > 1:
            _sort_bucket(tokens, suffixes[starts[token] : starts[token + 1]])


@numba.njit(cache=True, nogil=True)
def _fill_buckets(tokens: Tokens, num_ids: int) -> tuple[Tokens, Keys]:
    starts = np.zeros(num_ids + 1, np.int64)
    for token in tokens:
        if token >= 0:
            starts[token + 1] += 1
    starts = np.cumsum(starts)
    free = starts.copy()
    suffixes = np.empty(starts[-1], np.int32)
    for position in range(len(tokens)):
        token = tokens[position]
        if token >= 0:
            suffixes[free[token]] = position
            free[token] += 1
    return suffixes, starts


def sort_suffixes(tokens: Tokens, on_progress: Progress | None = None) -> tuple[Tokens, Keys]:
    """The suffixes in order, and where those that begin with each token start.

    tokens: int32 [n], 0 or more and below 2**31 - 1, or SEPARATOR; the last DEPTH are separators, so that no
    comparison runs out of the text. No suffix starts with a separator.

    Returns int32 [suffixes], positions in ``tokens``, and int64 [largest token + 2].
    """
    suffixes, starts = _fill_buckets(tokens, int(tokens.max(initial=SEPARATOR)) + 1)
    size = max(1, len(suffixes) // _NUM_TASKS)
    bounds = [0]
    # A task has at least one bucket, and small buckets go together.
    while bounds[-1] < len(starts) - 1:
        following = int(np.searchsorted(starts, starts[bounds[-1]] + size))
        bounds.append(min(max(following, bounds[-1] + 1), len(starts) - 1))
    tasks = sorted(pairwise(bounds), key=lambda task: starts[task[0]] - starts[task[1]])
    done = 0
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        running = {pool.submit(_sort_buckets, tokens, suffixes, starts, *task): task for task in tasks}
        for task in as_completed(running):
            task.result()
            first, last = running[task]
            done += int(starts[last] - starts[first])
            if on_progress:
                on_progress(done, len(suffixes))
    finally:
        pool.shutdown(cancel_futures=True)
    return suffixes, starts
