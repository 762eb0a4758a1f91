"""A matrix times packed rows: blocks of rows times panels of tiles."""

# ruff: noqa: PLR0917
from __future__ import annotations

import numba

from hasten.models.compiled.machine import stay_apart
from hasten.models.compiled.products import LANES, MAX_ROWS, PANEL, tile_product
from hasten.models.compiled.rows import block_rows

_WIDE = [tile_product(rows, PANEL, "packed") for rows in (1, 2, 4, 8)]
_NARROW = [tile_product(rows, 1, "packed") for rows in (1, 2, 4, 8)]
_WIDE_1, _WIDE_2, _WIDE_4, _WIDE_8 = _WIDE
_NARROW_1, _NARROW_2, _NARROW_4, _NARROW_8 = _NARROW


@numba.njit(nogil=True, error_model="numpy")
def multiply_panel(rows, x, x_at, w, w_at, w_tile, w_unit, units, out, out_at, stride):
    """One block of rows times PANEL tiles."""
    if rows == 1:
        _WIDE_1(x, x_at, 0, w, w_at, w_tile, w_unit, units, out, out_at, stride)
    elif rows == 2:
        _WIDE_2(x, x_at, 0, w, w_at, w_tile, w_unit, units, out, out_at, stride)
    elif rows == 4:
        _WIDE_4(x, x_at, 0, w, w_at, w_tile, w_unit, units, out, out_at, stride)
    else:
        _WIDE_8(x, x_at, 0, w, w_at, w_tile, w_unit, units, out, out_at, stride)


@numba.njit(nogil=True, error_model="numpy")
def multiply_tile(rows, x, x_at, w, w_at, w_tile, w_unit, units, out, out_at, stride):
    """One block of rows times one tile."""
    if rows == 1:
        _NARROW_1(x, x_at, 0, w, w_at, w_tile, w_unit, units, out, out_at, stride)
    elif rows == 2:
        _NARROW_2(x, x_at, 0, w, w_at, w_tile, w_unit, units, out, out_at, stride)
    elif rows == 4:
        _NARROW_4(x, x_at, 0, w, w_at, w_tile, w_unit, units, out, out_at, stride)
    else:
        _NARROW_8(x, x_at, 0, w, w_at, w_tile, w_unit, units, out, out_at, stride)


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
                multiply_panel(rows, x, start * size, w, place, w_tile, w_unit, units, out, target, stride)
            else:
                multiply_tile(rows, x, start * size, w, place, w_tile, w_unit, units, out, target, stride)
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
