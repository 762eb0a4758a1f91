"""Attention of a few query rows over cached slots, each row with its own choice of visible slots.

Scores are products of packed queries with keys that are transposed on the way, 16 slots at a time; weighted
values are products of the weights with the values as they lie in the cache. Hidden slots weigh exactly 0 and
sums run in the order of the slots, so holes between them change no bit.
"""

# ruff: noqa: PLR0917
from __future__ import annotations

import numba
import numpy as np

from hasten.models.forwards.compiled.linear import multiply_panel, multiply_tile
from hasten.models.forwards.compiled.machine import fetch, read, stay_apart, transpose_16
from hasten.models.forwards.compiled.products import HAS_AVX512, LANES, MAX_ROWS, PANEL, block_product
from hasten.models.forwards.compiled.rows import block_rows

GROUP = 8 * MAX_ROWS
"""Queries that share one look at the keys."""

_LINE = 64
"""Bytes that memory gives at a time."""

_weigh = block_product(1, "rows")
"""Sums of 16 channels over the slots, each weighed by a row's softmax."""
_SIDE_BY_SIDE = min(PANEL, 2)
_weigh_side_by_side = _weigh if _SIDE_BY_SIDE == 1 else block_product(_SIDE_BY_SIDE, "rows")
"""The same for 32 channels, where there are as many vector registers."""


@numba.njit(nogil=True, error_model="numpy")
def _transpose(keys, start, stride, units, target, at):
    """16 keys as one tile: unit after unit, those of all keys side by side."""
    width = 4 // keys.itemsize  # values in a unit, which has 4 bytes
    if units % LANES == 0:
        for unit in range(0, units, LANES):
            transpose_16(keys, start // width + unit, stride // width, target, at // width + unit * LANES)
        return
    for slot in range(LANES):
        for unit in range(units):
            for value in range(width):
                place = at + (unit * LANES + slot) * width + value
                target[place] = keys[start + slot * stride + unit * width + value]


@numba.njit(nogil=True, error_model="numpy")
def score(queries, num_queries, keys, first_key, size, num_slots, tile, scores, stride):
    """scores[query, slot] of packed queries, for all slots up to the next multiple of 16."""
    stay_apart()
    units = size * keys.itemsize // 4
    w_unit = LANES * 4 // keys.itemsize
    w_tile = units * w_unit
    num_blocks = (num_queries + MAX_ROWS - 1) // MAX_ROWS
    for slot in range(0, num_slots, LANES * PANEL):
        num_tiles = min(PANEL, (num_slots - slot + LANES - 1) // LANES)
        if not HAS_AVX512:  # there it was not measured
            next_key = first_key + (slot + LANES * PANEL) * size
            for place in range(next_key, next_key + LANES * PANEL * size, _LINE // keys.itemsize):
                fetch(keys, place)
        for index in range(num_tiles):
            start = first_key + (slot + index * LANES) * size
            _transpose(keys, start, size, units, tile, index * w_tile)
        for block in range(num_blocks):
            rows, first = block_rows(block, num_queries), block * MAX_ROWS
            place = first * stride + slot
            x = (queries, first * size, 0)
            if num_tiles == PANEL:
                w = (tile, 0, w_tile, w_unit, units)
                multiply_panel(rows, *x, *w, scores, place, stride, 0, 0)
                continue
            for index in range(num_tiles):
                w = (tile, index * w_tile, w_tile, w_unit, units)
                multiply_tile(rows, *x, *w, scores, place + index * LANES, stride, 0, 0)


@numba.njit(nogil=True, error_model="numpy")
def weigh(rows, weights, at, stride, states, start, size, padded, num_slots, padding, out, ones):
    """out[row, channel]: the values of a block of rows, divided by the sum of the weights.

    ``padding`` holds the values of channels that do not fill a vector, ``padded`` of them a slot.
    """
    stay_apart()
    x, together = (weights, at, stride), _SIDE_BY_SIDE * LANES
    for channel in range(0, padded, LANES):
        place = start + channel
        if padded != size:
            _weigh(rows, *x, padding, channel, 0, padded, num_slots, out, channel, padded, 0, 0)
        elif channel % together == 0 and channel + together <= size:
            _weigh_side_by_side(rows, *x, states, place, LANES, size, num_slots, out, channel, padded, 0, 0)
        elif channel % together == 0:
            _weigh(rows, *x, states, place, 0, size, num_slots, out, channel, padded, 0, 0)
    sums = rows * padded
    _weigh(rows, *x, ones, 0, 0, 0, num_slots, out, sums, LANES, 0, 0)
    for row in range(rows):
        total = out[sums + row * LANES]
        values = out[row * padded : (row + 1) * padded]
        for channel in range(padded):
            values[channel] /= total


@numba.njit(nogil=True, error_model="numpy")
def pad_values(values, start, size, padded, num_slots, padding):
    """Copy values whose channels do not fill a vector; the lanes after them are 0."""
    stay_apart()
    for slot in range(num_slots):
        for channel in range(size):
            padding[slot * padded + channel] = read(values, start + slot * size + channel)
        for channel in range(size, padded):
            padding[slot * padded + channel] = np.float32(0.0)
