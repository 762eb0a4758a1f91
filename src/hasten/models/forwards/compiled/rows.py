"""What happens to a row of activations between two matrices: norm, rotation, activation, softmax.

Everything is computed in float32. Rows that are multiplied next are *packed*: the rows of a block lie side by
side, as products.py wants them.
"""

# ruff: noqa: PLR0917
from __future__ import annotations

import math

import numba
import numpy as np

from hasten.floats import exp
from hasten.models.forwards.compiled.machine import bfloat16_bits, stay_apart, write
from hasten.models.forwards.compiled.products import LANES, MAX_ROWS

RMS_NORM, LAYER_NORM = 0, 1
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu", "relu2")
SILU, GELU_TANH, GELU, RELU, _ = range(len(ACTIVATIONS))

_F = np.float32
HIDDEN = _F(-3e38)
"""The score of a slot that a row may not see; its weight is exactly 0."""

_inline = numba.njit(nogil=True, error_model="numpy", inline="always")
# Sums over a row may be reordered for vectors: every row goes through the same code, whatever lies beside it.
_sums = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})


@_inline
def tanh(x):
    bounded = min(max(x, _F(-15.0)), _F(15.0))
    value = _F(1.0) - _F(2.0) / (exp(_F(2.0) * bounded) + _F(1.0))
    return x if np.isnan(x) else value


@numba.njit(nogil=True, error_model="numpy")
def block_rows(block, num_rows):
    """Rows of a block with its padding: the last one is rounded up to a power of two or MAX_ROWS."""
    rest = num_rows - block * MAX_ROWS
    rows = 1
    while rows < rest and rows < MAX_ROWS:
        rows *= 2
    return min(rows, MAX_ROWS)


@numba.njit(nogil=True, error_model="numpy")
def packed_start(x, row, num_rows, size):
    """(place of the first value of a row of ``size`` values, distance of its units) in packed ``x``."""
    block = row // MAX_ROWS
    rows = block_rows(block, num_rows)
    width = 4 // x.itemsize  # values in a unit
    return block * MAX_ROWS * size + (row % MAX_ROWS) * width, rows * width


@numba.njit(nogil=True, error_model="numpy")
def pack(values, at, count, x, start, distance):
    """Write ``count`` values (even) into packed ``x``, from a place that packed_start gave."""
    stay_apart()
    row, target = values[at : at + count], x[start:]
    if x.itemsize == 2:
        pairs, apart = target[: len(target) // 2 * 2].view(np.uint32), distance // 2
        for pair in range(count // 2):
            low = bfloat16_bits(row[2 * pair]) >> numba.uint32(16)
            pairs[pair * apart] = (bfloat16_bits(row[2 * pair + 1]) & numba.uint32(0xFFFF0000)) | low
    else:
        apart = target[::distance]  # place * distance would be looked at, whether it is negative
        for place in range(count):
            write(apart, place, row[place])


@_sums
def norm(kind, values, at, size, vectors, weight, eps, out, out_at):
    """RMSNorm or LayerNorm of a row; ``vectors`` holds the weights, then the biases."""
    stay_apart()
    row, result = values[at : at + size], out[out_at : out_at + size]
    weights, biases = vectors[weight : weight + size], vectors[weight + size : weight + 2 * size]
    mean = _F(0.0)
    if kind == LAYER_NORM:
        for place in range(size):
            mean += row[place]
        mean /= _F(size)
    square = _F(0.0)
    for place in range(size):
        difference = row[place] - mean
        square += difference * difference
    factor = _F(1.0) / np.sqrt(square / _F(size) + eps)
    for place in range(size):
        result[place] = (row[place] - mean) * factor * weights[place] + biases[place]


@numba.njit(nogil=True, error_model="numpy")
def rotate(values, at, size, angles):
    """Rotary positions: ``size`` channels in two halves; ``angles`` holds their cosines, then the sines."""
    stay_apart()
    half = size // 2
    one, two = values[at : at + half], values[at + half : at + size]
    cosines, sines = angles[:half], angles[half:size]
    for place in range(half):
        first, second = one[place], two[place]
        one[place] = first * cosines[place] - second * sines[place]
        two[place] = second * cosines[place] + first * sines[place]


@numba.njit(nogil=True, error_model="numpy")
def activate(kind, values):
    """In place, a tile of 16 values; one loop a kind, so that each becomes a vector."""
    stay_apart()
    if kind == SILU:
        for lane in range(LANES):
            values[lane] /= _F(1.0) + exp(-values[lane])
    elif kind == GELU_TANH:
        for lane in range(LANES):
            x = values[lane]
            inner = _F(0.7978845608028654) * (x + _F(0.044715) * x * x * x)
            values[lane] = _F(0.5) * x * (_F(1.0) + tanh(inner))
    elif kind == GELU:
        for lane in range(LANES):
            x = values[lane]
            values[lane] = _F(0.5 * x * (1.0 + math.erf(x * 0.7071067811865476)))
    else:
        for lane in range(LANES):
            positive = max(values[lane], _F(0.0))
            values[lane] = positive if kind == RELU else positive * positive


@_sums
def _zero_or_nan(row, visible):
    """NaN if a visible score is: exp would make a number of it, and a broken model would seem sound."""
    total = _F(0.0)
    for place in range(len(row)):
        total += row[place] * _F(0.0) if visible[place] else _F(0.0)
    return total


@numba.njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz"})
def softmax_weights(scores, at, count, visible, softcap):
    """Turn a row of scores into e**(score - largest), 0 where hidden; the sum is the caller's."""
    stay_apart()
    row = scores[at : at + count]
    poison = _zero_or_nan(row, visible)
    if softcap > 0:
        for slot in range(count):
            row[slot] = softcap * tanh(row[slot] / softcap)
    largest = HIDDEN
    for slot in range(count):
        score = row[slot] if visible[slot] else HIDDEN
        row[slot] = score
        largest = max(largest, score)
    for slot in range(count):
        row[slot] = exp(row[slot] - largest) + poison
