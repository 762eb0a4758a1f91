"""What both halves of a layer do: norm and pack rows, multiply by a matrix, add to the residual stream.

As everywhere in the pass, each thread does its share.
"""

# ruff: noqa: PLR0917
from __future__ import annotations

import numba
import numpy as np

from hasten.models.forwards.compiled.arguments import NONE
from hasten.models.forwards.compiled.linear import multiply, share
from hasten.models.forwards.compiled.machine import barrier, stay_apart
from hasten.models.forwards.compiled.products import LANES, PANEL
from hasten.models.forwards.compiled.rows import norm, pack, packed_start

# Compiling takes seconds for each level of calls; these have one caller.
inline = numba.njit(nogil=True, error_model="numpy", inline="always")


@numba.njit(nogil=True, error_model="numpy")
def pack_norm(thread, model, weight, scratch, row, x, place, count, size):
    """The norm of a row of the residual stream, packed as row ``place`` of ``x``."""
    stay_apart()
    own, at = scratch.own_row[thread], row * size
    start, distance = packed_start(x, place, count, size)
    if weight == NONE:
        pack(scratch.residual, at, size, x, start, distance)
        return
    eps = np.float32(model.eps)
    norm(model.norm_kind, scratch.residual, at, size, model.vectors, weight, eps, own, 0)
    pack(own, 0, size, x, start, distance)


@numba.njit(nogil=True, error_model="numpy")
def multiply_share(thread, num_threads, matrix, together, model, x, count, size, wide):
    """This thread's columns of a matrix with its bias, into ``wide``; returns which tiles they are.

    So many tiles ``together`` belong to the same thread.
    """
    stay_apart()
    num_tiles, bias = matrix[1], matrix[2]
    first, last = share(num_tiles // together, PANEL, thread, num_threads)
    first, last = first * together, last * together
    width = num_tiles * LANES
    multiply(x, count, size, model.weights, matrix[0], LANES * size, first, last, wide, width)
    if bias != NONE:
        biases = model.vectors[bias + first * LANES : bias + last * LANES]
        for row in range(count):
            values = wide[row * width + first * LANES : row * width + last * LANES]
            for place in range(len(biases)):
                values[place] += biases[place]
    return first, last


@numba.njit(nogil=True, error_model="numpy")
def add_half(thread, num_threads, phase, matrix, after, first, last, model, call, scratch):
    """Add what a half of a layer computed to the residual stream."""
    stay_apart()
    size, scale = model.hidden_size, np.float32(model.residual_scale)
    width = matrix[1] * LANES
    if after == NONE:  # each thread its own columns
        first, last = first * LANES, min(last * LANES, size)
        for row in range(len(call.token_ids)):
            stream = scratch.residual[row * size + first : row * size + last]
            values = scratch.wide[row * width + first : row * width + last]
            for place in range(len(stream)):
                stream[place] += scale * values[place]
        return phase
    phase = barrier(scratch.arrivals, num_threads, phase)
    first, last = share(len(call.token_ids), 1, thread, num_threads)
    own, eps = scratch.own_row[thread], np.float32(model.eps)
    for row in range(first, last):
        norm(model.norm_kind, scratch.wide, row * width, size, model.vectors, after, eps, own, 0)
        stream = scratch.residual[row * size : (row + 1) * size]
        for place in range(size):
            stream[place] += scale * own[place]
    return phase


@numba.njit(nogil=True, error_model="numpy")
def packed_offset(x, place, distance):
    """From a row's first value to its value number ``place``, the first one of a unit."""
    return place * x.itemsize // 4 * distance
