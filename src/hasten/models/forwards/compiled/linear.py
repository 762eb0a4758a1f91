"""A matrix times packed rows: blocks of rows times panels of tiles."""

# ruff: noqa: PLR0917
from __future__ import annotations

import numba

from hasten.models.forwards.compiled.machine import stay_apart
from hasten.models.forwards.compiled.products import (
    HAS_AVX512,
    LANES,
    MAX_ROWS,
    PANEL,
    block_product,
    tile_product,
)
from hasten.models.forwards.compiled.rows import block_rows

multiply_panel = block_product(PANEL, "packed")
"""One block of packed rows times PANEL tiles."""
multiply_tile = multiply_panel if PANEL == 1 else block_product(1, "packed")
"""One block of packed rows times one tile."""

_STREAMS = PANEL if HAS_AVX512 else 4
"""Tiles that a row alone reads side by side: the CPU itself fetches ahead in several places at once, more
than instructions that ask for it can have on their way (31 ms instead of 48 for 443 MB)."""
_multiply_row = tile_product(1, _STREAMS, "packed")


@numba.njit(nogil=True, error_model="numpy")
def multiply(x, num_rows, size, w, w_at, w_tile, tile, last_tile, out, stride):
    """out[row, 16 tile + lane] for tiles ``tile`` to ``last_tile``, which lie ``w_tile`` apart in ``w``.

    ``size`` is the inner dimension.
    A panel of weights is read from memory once and stays in the near cache for the other blocks.
    """
    stay_apart()
    units = size * w.itemsize // 4
    w_unit = LANES * 4 // w.itemsize
    if num_rows == 1 and last_tile - tile >= _STREAMS > PANEL:
        for start in range(tile, last_tile, _STREAMS):
            tile = min(start, last_tile - _STREAMS)  # the last ones may be computed twice
            place = w_at + tile * w_tile
            _multiply_row(x, 0, 0, w, place, w_tile, w_unit, units, out, tile * LANES, 0, 0, 0)
        return
    num_blocks = (num_rows + MAX_ROWS - 1) // MAX_ROWS
    fetchers = min(num_blocks, w_unit)
    pace = (w_unit + fetchers - 1) // fetchers
    while tile < last_tile:
        is_wide = tile + PANEL <= last_tile
        place = w_at + tile * w_tile
        for block in range(num_blocks):
            rows, start = block_rows(block, num_rows), block * MAX_ROWS
            target = start * stride + tile * LANES
            ahead = PANEL * w_tile + block % fetchers * units * pace
            x_and_w = (x, start * size, 0, w, place, w_tile, w_unit, units)
            if is_wide:
                multiply_panel(rows, *x_and_w, out, target, stride, ahead, pace)
            else:
                multiply_tile(rows, *x_and_w, out, target, stride, ahead, pace)
        tile += PANEL if is_wide else 1


@numba.njit(nogil=True, error_model="numpy")
def share(count, multiple, thread, num_threads):
    """(first, last) of a thread's part of ``count`` things, cut at multiples where that leaves enough."""
    if count < multiple * num_threads:
        return count * thread // num_threads, count * (thread + 1) // num_threads
    parts = count // multiple
    first = parts * thread // num_threads * multiple
    last = parts * (thread + 1) // num_threads * multiple
    return first, count if thread + 1 == num_threads else last
