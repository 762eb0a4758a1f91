"""What is looked for in rows of logits: the best few tokens, their probabilities, the token that noise draws.

Logits are looked at in groups of 192 tokens, either while a pass computes them, so that they never leave the
near cache, or in rows that lie there whole. Groups are the same in both, and what is summed is summed in one
order, so a row gives the same whatever lies beside it and however many threads share the groups.

Ties go to the smaller token id, as in torch.argmax.
"""

# ruff: noqa: PLR0917
from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.floats import exp, float_of_bits
from hasten.noise import BLOCK, fill_bits, gumbel

GROUP = 3 * BLOCK
"""Tokens that are looked at together."""

NO_NOISE = -1
_F = np.float32
_MAGNITUDE, _INFINITY = np.int32(0x7FFFFFFF), np.int32(0x7F800000)

_compiled = numba.njit(nogil=True, error_model="numpy")
# Sums may be reordered for vectors: all rows go through the same code. ``exp`` must not be in them, as it
# rounds by the order of its operations.
_sums = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})


class Search(NamedTuple):
    """What is looked for in each of some rows."""

    size: int
    """how many of the best tokens; at least 1"""
    weighs: bool
    """whether their probabilities are asked for"""
    vocab_size: int
    noises: NDArray[np.int64]
    """[rows]: which of the keys a row's noise has, or NO_NOISE"""
    temperatures: NDArray[np.float32]
    """[rows], for rows with noise"""
    keys: NDArray[np.uint32]
    """[keys, 5]: NoiseKey.words"""


class Found(NamedTuple):
    """What was found by each of some threads, and after ``merge``, by the first one, of all tokens.

    A row that holds NaN has NaN for all its values.
    """

    values: NDArray[np.float32]
    """[threads, rows, size]: the best logits, best first"""
    token_ids: NDArray[np.int64]
    """[threads, rows, size]"""
    counts: NDArray[np.int64]
    """[threads, rows]: how many of them there are"""
    probs: NDArray[np.float32]
    """[rows, size], of the softmax of the logits"""
    noisy_values: NDArray[np.float32]
    """[threads, rows]: the largest logit / temperature + noise"""
    noisy_ids: NDArray[np.int64]
    """[threads, rows]: its token"""
    is_spoilt: NDArray[np.bool_]
    """[threads, rows]: whether there was a NaN"""
    maxima: NDArray[np.float32]
    """[rows, groups]: the largest logit of each group"""
    sums: NDArray[np.float32]
    """[rows, groups]: of e**(logit - maximum)"""
    weights: NDArray[np.float32]
    """[threads, GROUP]: e**(logit - maximum) of a group"""
    bits: NDArray[np.uint32]
    """[threads, keys, GROUP]: the noise of a group"""
    luckiest: NDArray[np.float32]
    """[threads, keys]: the largest noise of it"""


def nothing_found(search: Search, num_threads: int = 1) -> Found:
    """What to start with."""
    num_rows, groups = len(search.noises), num_groups(search.vocab_size)
    lists = (num_threads, num_rows, search.size)
    weighed = (num_rows, groups if search.weighs else 0)
    return Found(
        values=np.full(lists, np.nan, np.float32),
        token_ids=np.zeros(lists, np.int64),
        counts=np.zeros(lists[:2], np.int64),
        probs=np.full(lists[1:], np.nan, np.float32),
        noisy_values=np.full(lists[:2], -np.inf, np.float32),
        noisy_ids=np.zeros(lists[:2], np.int64),
        is_spoilt=np.zeros(lists[:2], np.bool_),
        maxima=np.empty(weighed, np.float32),
        sums=np.empty(weighed, np.float32),
        weights=np.empty((num_threads, GROUP), np.float32),
        bits=np.empty((num_threads, len(search.keys), GROUP), np.uint32),
        luckiest=np.empty((num_threads, len(search.keys)), np.float32),
    )


def num_groups(vocab_size: int) -> int:
    return -(-vocab_size // GROUP)


@_compiled
def look_at(group, logits, at, stride, thread, search, found):
    """Look for everything in one group of every row's tokens; a thread's groups come in ascending order.

    The logits of the group begin at ``at``, those of the next row ``stride`` further.
    """
    first = group * GROUP
    size, count = search.size, min(GROUP, search.vocab_size - first)
    values, token_ids, counts = found.values[thread], found.token_ids[thread], found.counts[thread]
    is_spoilt, weights = found.is_spoilt[thread], found.weights[thread, :count]
    noises, temperatures, maxima, sums = search.noises, search.temperatures, found.maxima, found.sums
    bits, luckiest = found.bits[thread], found.luckiest[thread]
    noisy_values, noisy_ids = found.noisy_values[thread], found.noisy_ids[thread]
    for key in range(len(bits)):
        luckiest[key] = _shake(search.keys[key], first, bits[key])
    for row in range(len(noises)):
        place = at + row * stride
        of_row = logits[place : place + count]
        largest = _largest(of_row)
        if np.isnan(largest):
            is_spoilt[row] = True
            continue
        if search.weighs:
            maxima[row, group], sums[row, group] = largest, _weigh(of_row, largest, weights)
        if counts[row] < size or largest > values[row, size - 1]:
            counts[row] = _insert_all(of_row, first, values[row], token_ids[row], counts[row])
        key = noises[row]
        if key != NO_NOISE and largest / temperatures[row] + luckiest[key] > noisy_values[row]:
            drawn = _draw(of_row, temperatures[row], bits[key], luckiest[key], noisy_values[row])
            if drawn[0] >= 0:
                noisy_ids[row], noisy_values[row] = first + drawn[0], drawn[1]


@_compiled
def _shake(words, first, bits):
    """Make the noise of a group; returns the largest: where that cannot make a token win, none can."""
    fill_bits(words, first, bits)
    most = np.uint32(0)
    for place in range(len(bits)):
        most = max(most, bits[place])
    return gumbel(most)


@_compiled
def _largest(logits):
    """NaN if there is one. In integers of the same order as the floats, whose largest is found in vectors."""
    words, largest, size = logits.view(np.int32), np.int32(-(2**31)), np.int32(0)
    for place in range(len(words)):
        word = words[place]
        size = max(size, word & _MAGNITUDE)
        largest = max(largest, word ^ ((word >> np.int32(31)) & _MAGNITUDE))
    if size > _INFINITY:
        return _F(np.nan)
    return float_of_bits(np.uint32(largest ^ ((largest >> np.int32(31)) & _MAGNITUDE)))


@_compiled
def _weigh(logits, largest, weights):
    """The sum of e**(logit - largest)."""
    for place in range(len(logits)):
        weights[place] = exp(logits[place] - largest)
    return _sum(weights)


@_sums
def _sum(values):
    total = _F(0.0)
    for place in range(len(values)):
        total += values[place]
    return total


@_compiled
def _insert_all(logits, first, values, token_ids, count):
    for place in range(len(logits)):
        count = _insert(logits[place], first + place, values, token_ids, count)
    return count


@_compiled
def _insert(value, token_id, values, token_ids, count):
    """Put a token into a list, best first, where it is good enough; returns how many the list has."""
    size = len(values)
    if count == size and not value > values[size - 1]:
        return count
    count = min(count + 1, size)
    place = count - 1
    while place > 0 and value > values[place - 1]:
        values[place], token_ids[place] = values[place - 1], token_ids[place - 1]
        place -= 1
    values[place], token_ids[place] = value, token_id
    return count


@_compiled
def _draw(logits, temperature, bits, luckiest, best):
    """The place of the largest logit / temperature + noise above ``best``, or -1, and it."""
    winner = -1
    for place in range(len(logits)):
        value = logits[place] / temperature
        if value + luckiest > best:
            value += gumbel(bits[place])
            if value > best:
                best, winner = value, place
    return winner, best


@_compiled
def merge(row, search, found):
    """Bring what all threads found of a row together, in the first one's place; they had ascending groups."""
    values, token_ids, count = found.values[0, row], found.token_ids[0, row], found.counts[0, row]
    is_spoilt = found.is_spoilt[0, row]
    for thread in range(1, len(found.counts)):
        is_spoilt = is_spoilt or found.is_spoilt[thread, row]
        for place in range(found.counts[thread, row]):
            value, token_id = found.values[thread, row, place], found.token_ids[thread, row, place]
            count = _insert(value, token_id, values, token_ids, count)
        if found.noisy_values[thread, row] > found.noisy_values[0, row]:
            found.noisy_values[0, row] = found.noisy_values[thread, row]
            found.noisy_ids[0, row] = found.noisy_ids[thread, row]
    if is_spoilt:
        found.is_spoilt[0, row] = True
        found.noisy_values[0, row] = _F(np.nan)
        for place in range(search.size):
            values[place], token_ids[place] = _F(np.nan), place
        return
    if search.weighs:
        maxima, sums = found.maxima[row], found.sums[row]
        for group in range(len(sums)):
            sums[group] *= exp(maxima[group] - values[0])
        total = _sum(sums)
        for place in range(search.size):
            found.probs[row, place] = exp(values[place] - values[0]) / total


@numba.njit(nogil=True, error_model="numpy", cache=True)
def look_through(logits, search, found):
    """Look for everything in rows of logits [rows, vocab] that lie there whole."""
    size = search.vocab_size
    for group in range((size + GROUP - 1) // GROUP):
        look_at(group, logits.reshape(-1), group * GROUP, size, 0, search, found)
    for row in range(len(search.noises)):
        merge(row, search, found)
