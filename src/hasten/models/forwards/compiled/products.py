"""Products of few rows with a wide matrix on one CPU core, written in LLVM's vector language.

A pass over a draft tree multiplies 1 to 64 rows by every weight of the model. General matrix libraries give
away half of the memory's speed at that size. Here a block of rows and a few columns of 16 outputs stay in
vector registers while the weights stream by once, in the order in which they lie in memory.

Every output is summed over the inner dimension in one fixed order, whatever rows are computed beside it: the
same row has the same bits in a pass of one row and in a pass of hundreds.
"""

# ruff: noqa: PLR0917
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from hasten.models.forwards.compiled.machine import prefetch

LANES = 16
"""Outputs a vector holds: one tile of columns."""

_FEATURES = llvm.get_host_cpu_features()
HAS_BF16_DOT = bool(_FEATURES.get("avx512bf16", False))
"""Whether the CPU multiplies pairs of bfloat16 by itself."""
HAS_AVX512 = bool(_FEATURES.get("avx512f", False))
MAX_ROWS, PANEL = (8, 3) if HAS_AVX512 else (6, 1)
"""Rows of a block and tiles side by side: as many sums as there are vector registers, less a few."""

SHARES_FETCHING = not HAS_AVX512
"""Whether blocks of rows share the fetching of the next panel, so that each computes while memory is read.
Otherwise each asks for all of it: three tiles with places of their own do not leave enough registers."""

ROW_COUNTS = (1, 2, 4, MAX_ROWS)
"""Sizes of a block; a smaller rest is rounded up."""

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOAT = ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_I32, LANES)

Layout = Literal["packed", "rows"]
_Builder = Any
_Value = Any


class _BFloat(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BFLOATS = ir.VectorType(_BFloat(), 2 * LANES)


def packed_kind(weights: NDArray[Any]) -> np.dtype[Any]:
    """What packed rows consist of that are multiplied with these weights.

    uint16 stands for bfloat16. A CPU that multiplies float32 only would widen it again with every tile: there
    packed rows are uint32, the bits of float32 values that are already rounded.
    """
    if weights.dtype != np.uint16 or HAS_BF16_DOT:
        return weights.dtype
    return np.dtype(np.uint32)


def tile_product(rows: int, tiles: int, layout: Layout) -> Any:
    """An intrinsic, called as ``product`` below.

    out[r, 16 t + lane] = sum over units of x[r] * w[t, lane], from 0; all places and strides in elements.
    Meanwhile a panel fetches the next one, or its share of it (SHARES_FETCHING): with each unit ``pace``
    elements more, from ``ahead`` elements after the beginning of each tile on.

    Args:
        rows: of x. With the layout "packed" they are interleaved: unit after unit, the rows of each side by
            side; with "rows" they lie ``x_stride`` apart, in float32. See packed_kind.
        tiles: of w, ``w_tile`` apart, their units ``w_unit`` apart. A unit has 16 lanes. Where "packed" w is
            bfloat16, a unit is a pair of neighbours of the inner dimension.
    """

    @intrinsic
    def product(
        typing, x, x_at, x_stride, w, w_at, w_tile, w_unit, units, out, out_at, out_stride, ahead, pace
    ):
        i = types.intp
        signature = types.void(x, i, i, w, i, i, i, i, out, i, i, i, i)

        def generate(context, builder, signature, arguments):
            def pointer(place: int, element: Any) -> Any:
                array = context.make_array(signature.args[place])(context, builder, arguments[place])
                return builder.bitcast(array.data, element.as_pointer())

            builder.function.attributes.add("noinline")  # else each caller is optimised with it anew
            _, x_at, x_stride, _, w_at, w_tile, w_unit, units, _, out_at, out_stride, ahead, pace = arguments
            x_type, w_type = (
                _I16 if signature.args[place].dtype == types.uint16 else _FLOAT for place in (0, 3)
            )
            first_x = builder.gep(pointer(0, x_type), [x_at])
            first_w = builder.gep(pointer(3, w_type), [w_at])
            kernel = _kernel(x_type, w_type, layout)
            x_rows, x_unit = _x_places(builder, first_x, x_stride, rows, layout, kernel)
            looks_ahead = layout == "packed" and tiles == PANEL
            w_tiles = [builder.gep(first_w, [builder.mul(w_tile, _I64(tile))]) for tile in range(tiles)]

            def step(unit: _Value, sums: list[list[_Value]]) -> list[list[_Value]]:
                at = builder.mul(unit, w_unit)
                weights = [kernel.read(builder, builder.gep(start, [at])) for start in w_tiles]
                if looks_ahead:  # blocks compute with this panel while the next one is on its way
                    soon = builder.add(at, builder.mul(w_tile, _I64(tiles)))
                    if SHARES_FETCHING:
                        soon = builder.add(ahead, builder.mul(unit, pace))
                    for start in w_tiles:
                        prefetch(builder, builder.gep(start, [soon]))
                x_place = builder.mul(unit, _I64(x_unit))
                for part, of_part in enumerate(zip(*weights, strict=True)):
                    x_part = builder.add(x_place, _I64(part * rows))
                    places = [builder.gep(start, [x_part]) for start in x_rows]
                    sums = [
                        [kernel.multiply(builder, *one, place) for one in zip(of_row, of_part, strict=True)]
                        for of_row, place in zip(sums, places, strict=True)
                    ]
                return sums

            sums = _loop(builder, units, rows, tiles, step)
            target = builder.gep(pointer(8, _FLOAT), [out_at])
            for row, of_row in enumerate(sums):
                start = builder.gep(target, [builder.mul(out_stride, _I64(row))])
                for tile, total in enumerate(of_row):
                    place = builder.gep(start, [_I64(LANES * tile)])
                    builder.store(total, builder.bitcast(place, _FLOATS.as_pointer()), align=4)
            return context.get_dummy_value()

        return signature, generate

    return product


def block_product(tiles: int, layout: Layout) -> Any:
    """A compiled function ``(rows, x, ...)``: the tile_product of 1, 2, 4 or MAX_ROWS rows."""
    one, two, four, most = (tile_product(rows, tiles, layout) for rows in ROW_COUNTS)

    @numba.njit(nogil=True, error_model="numpy")
    def product(
        rows, x, x_at, x_stride, w, w_at, w_tile, w_unit, units, out, out_at, out_stride, ahead, pace
    ):
        if rows == 1:
            one(x, x_at, x_stride, w, w_at, w_tile, w_unit, units, out, out_at, out_stride, ahead, pace)
        elif rows == 2:
            two(x, x_at, x_stride, w, w_at, w_tile, w_unit, units, out, out_at, out_stride, ahead, pace)
        elif rows == 4:
            four(x, x_at, x_stride, w, w_at, w_tile, w_unit, units, out, out_at, out_stride, ahead, pace)
        else:
            most(x, x_at, x_stride, w, w_at, w_tile, w_unit, units, out, out_at, out_stride, ahead, pace)

    return product


class _Kernel(NamedTuple):
    """How the weights of a unit are read and multiplied."""

    read: Callable[[_Builder, _Value], list[_Value]]
    """its parts: vectors that are multiplied one after the other"""
    multiply: Callable[[_Builder, _Value, _Value, _Value], _Value]
    """a sum and the product of a part and a row's x"""
    x_width: int = 1
    """elements of a row's x that a part is multiplied with"""
    x_unit: int = 1
    """elements of a row's x in a unit"""


def _kernel(x_type: Any, w_type: Any, layout: Layout) -> _Kernel:
    if w_type is _FLOAT:
        return _Kernel(_read_floats, _multiply)
    if layout == "rows":
        return _Kernel(_read_halves, _multiply)
    if x_type is _FLOAT:
        return _Kernel(_read_both_halves, _multiply, 1, 2)
    return _Kernel(_read_pairs, _dot_pairs, 2, 2)


def _x_places(
    builder: _Builder, first: _Value, stride: _Value, rows: int, layout: Layout, kernel: _Kernel
) -> tuple[list[_Value], int]:
    """Where each row of x begins, and how many elements its units lie apart."""
    if layout == "rows":
        return [builder.gep(first, [builder.mul(stride, _I64(row))]) for row in range(rows)], 1
    return [builder.gep(first, [_I64(kernel.x_width * row)]) for row in range(rows)], kernel.x_unit * rows


def _loop(
    builder: _Builder,
    count: _Value,
    rows: int,
    tiles: int,
    step: Callable[[_Value, list[list[_Value]]], list[list[_Value]]],
) -> list[list[_Value]]:
    """``count`` steps (at least one) over sums that live in registers."""
    before, body = builder.block, builder.append_basic_block("units")
    after = builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    unit = builder.phi(_I64)
    sums = [[builder.phi(_FLOATS) for _ in range(tiles)] for _ in range(rows)]
    following = step(unit, [list(row) for row in sums])
    last = builder.block
    next_unit = builder.add(unit, _I64(1))
    unit.add_incoming(_I64(0), before)
    unit.add_incoming(next_unit, last)
    for of_row, new in zip(sums, following, strict=True):
        for total, value in zip(of_row, new, strict=True):
            total.add_incoming(ir.Constant(_FLOATS, [0.0] * LANES), before)
            total.add_incoming(value, last)
    builder.cbranch(builder.icmp_signed("<", next_unit, count), body, after)
    builder.position_at_end(after)
    return following


def _read_floats(builder: _Builder, place: _Value) -> list[_Value]:
    return [builder.load(builder.bitcast(place, _FLOATS.as_pointer()), align=4)]


def _read_pairs(builder: _Builder, place: _Value) -> list[_Value]:
    return [builder.load(builder.bitcast(place, _INTS.as_pointer()), align=4)]


def _read_both_halves(builder: _Builder, place: _Value) -> list[_Value]:
    [pairs] = _read_pairs(builder, place)
    upper = builder.and_(pairs, ir.Constant(_INTS, [-0x10000] * LANES))
    return [_high_half(builder, pairs), builder.bitcast(upper, _FLOATS)]


def _read_halves(builder: _Builder, place: _Value) -> list[_Value]:
    halves = builder.load(builder.bitcast(place, ir.VectorType(_I16, LANES).as_pointer()), align=2)
    return [_high_half(builder, builder.zext(halves, _INTS))]


def _high_half(builder: _Builder, low: _Value) -> _Value:
    """bfloat16 is the upper half of a float32."""
    return builder.bitcast(builder.shl(low, ir.Constant(_INTS, [16] * LANES)), _FLOATS)


def _multiply(builder: _Builder, total: _Value, weights: _Value, place: _Value) -> _Value:
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fma.v{LANES}f32"
    )
    return builder.call(fma, [_broadcast(builder, builder.load(place, align=4)), weights, total])


def _dot_pairs(builder: _Builder, total: _Value, weights: _Value, place: _Value) -> _Value:
    dot = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(_FLOATS, [_FLOATS, _BFLOATS, _BFLOATS]),
        "llvm.x86.avx512bf16.dpbf16ps.512",
    )
    pair = builder.load(builder.bitcast(place, _I32.as_pointer()), align=2)
    x = builder.bitcast(_broadcast(builder, pair), _BFLOATS)
    return builder.call(dot, [total, x, builder.bitcast(weights, _BFLOATS)])


def _broadcast(builder: _Builder, value: _Value) -> _Value:
    vector = ir.VectorType(value.type, LANES)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), ir.Constant(_INTS, [0] * LANES))
