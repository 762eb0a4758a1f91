"""A matrix times packed rows: blocks of rows times panels of tiles."""

# ruff: noqa: PLR0917
from __future__ import annotations

import numba

from hasten.models.compiled.machine import stay_apart
from hasten.models.compiled.products import LANES, MAX_ROWS, PANEL, block_product
from hasten.models.compiled.rows import block_rows

multiply_panel = block_product(PANEL, "packed")
"""One block of packed rows times PANEL tiles."""
multiply_tile = block_product(1, "packed")
"""One block of packed rows times one tile."""


@numba.njit(nogil=True, error_model="numpy")
def multiply(x, num_rows, size, w, w_at, w_tile, tile, last_tile, out, stride):
    """out[row, 16 tile + lane] for tiles ``tile`` to ``last_tile``, which lie ``w_tile`` apart in ``w``.

    ``size`` is the inner dimension.
    A panel of weights is read from memory once and stays in the near cache for the other blocks.
    """
    stay_apart()
    units = size * w.itemsize // 4
    w_unit = LANES * 4 // w.itemsize
    num_blocks = (num_rows + MAX_ROWS - 1) // MAX_ROWS
    while tile < last_tile:
        is_wide = tile + PANEL <= last_tile
        place = w_at + tile * w_tile
        for block in range(num_blocks):
            rows, start = block_rows(block, num_rows), block * MAX_ROWS
            target = start * stride + tile * LANES
            if is_wide:
                multiply_panel(rows, x, start * size, 0, w, place, w_tile, w_unit, units, out, target, stride)
            else:
                multiply_tile(rows, x, start * size, 0, w, place, w_tile, w_unit, units, out, target, stride)
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
