"""What numba has no words for: memory at an address, bits of a float, threads that wait for each other."""

# ruff: noqa: PLR0917
from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _typed_intrinsic, overload

from hasten import finding, floats, noise
from hasten.floats import bits_of_float, float_of_bits

intrinsic: Any = _typed_intrinsic  # numba describes the function, not what is made of it
_IS_X86 = "x86" in llvm.get_process_triple()


def sources_digest() -> int:
    """Changes with any file of the pass, so that code compiled from older ones is not used again."""
    elsewhere = (Path(str(module.__file__)) for module in (finding, floats, noise))
    files = [*sorted(Path(__file__).parent.glob("*.py")), *elsewhere]
    return zlib.crc32(b"".join(file.read_bytes() for file in files))


@intrinsic
def stay_apart(typing: Any) -> Any:
    """The function that says this is compiled once and called, instead of again inside every caller."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def as_pointer(typing: Any, address: Any) -> Any:
    """An address as a pointer, for numba.carray."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


def prefetch(builder: Any, place: Any) -> None:
    """Ask for the memory at a place, without waiting for it."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, number, number, number]), "llvm.prefetch.p0"
    )
    start = builder.bitcast(place, byte)
    builder.call(function, [start, number(0), number(2), number(1)])  # to be read, near, data


@intrinsic
def fetch(typing: Any, array: Any, place: Any) -> Any:
    """Ask for the memory around array[place], which may lie behind the end."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        prefetch(builder, builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def read(array, place):
    """A value as float32; uint16 stands for bfloat16."""
    raise TypeError("for compiled code only")


def write(array, place, value):
    """Store a float32, rounded to bfloat16 where the array is uint16, or uint32 (the bits of a float32)."""
    raise TypeError("for compiled code only")


@numba.njit(nogil=True, inline="always")
def bfloat16_bits(value):
    """The bits of a float32 rounded to bfloat16, in the upper half; the lower one is to be cut off."""
    bits = bits_of_float(numba.float32(value))
    return bits + numba.uint32(0x7FFF) + ((bits >> numba.uint32(16)) & numba.uint32(1))


@overload(read, inline="always")
def _read(array, place):
    if array.dtype == types.uint16:
        return lambda array, place: float_of_bits(numba.uint32(array[place]) << numba.uint32(16))
    return lambda array, place: array[place]


@overload(write, inline="always")
def _write(array, place, value):
    if array.dtype == types.uint16:

        def rounded(array, place, value):
            array[place] = numba.uint16(bfloat16_bits(value) >> numba.uint32(16))

        return rounded

    if array.dtype == types.uint32:

        def widened(array, place, value):
            array[place] = bfloat16_bits(value) & numba.uint32(0xFFFF0000)

        return widened

    def plain(array, place, value):
        array[place] = value

    return plain


@intrinsic
def _arrive(typing: Any, counter: Any) -> Any:
    """Add 1 to counter[0] for all threads to see."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.atomic_rmw("add", place, ir.IntType(64)(1), "seq_cst")
        return context.get_dummy_value()

    return types.void(counter), generate


@intrinsic
def _arrived(typing: Any, counter: Any) -> Any:
    """counter[0] as it is now."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        if _IS_X86:
            pause = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"
            )
            builder.call(pause, [])
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(counter), generate


@intrinsic
def _let_others_run(typing: Any) -> Any:
    """The thread that is waited for may be waiting for this processor."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if os.name == "posix":
            give_way = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, give_way, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


_PATIENCE = 4096
"""Looks, some 50 microseconds."""


@numba.njit(nogil=True, error_model="numpy")
def barrier(counter, num_threads, phase):
    """A barrier: wait until all threads have come to this phase; returns the next one.

    ``counter`` (arrivals) starts at 0, phases at 1, and neither ever goes back.

    Spinning at first: barriers are a few microseconds apart, and a thread that sleeps would wake too late.
    """
    if num_threads > 1:
        _arrive(counter)
        looks = 0
        while _arrived(counter) < phase * num_threads:
            looks += 1
            if looks % _PATIENCE == 0:
                _let_others_run()
    return phase + 1


_VECTOR = ir.VectorType(ir.IntType(32), 16)


@intrinsic
def transpose_16(typing: Any, source: Any, start: Any, stride: Any, target: Any, at: Any) -> Any:
    """target[at + 16 c + r] = source[start + stride r + c] for 16 rows and 16 columns of 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32).as_pointer()
        _, start, stride, _, at = arguments
        data = [
            builder.bitcast(context.make_array(signature.args[i])(context, builder, arguments[i]).data, word)
            for i in (0, 3)
        ]
        first = builder.gep(data[0], [start])
        rows = [
            builder.load(
                builder.bitcast(
                    builder.gep(first, [builder.mul(stride, ir.IntType(64)(row))]), _VECTOR.as_pointer()
                ),
                align=4,
            )
            for row in range(16)
        ]
        for _round in range(4):  # each round interleaves the first half of the rows with the second
            rows = [
                builder.shuffle_vector(
                    rows[row // 2], rows[row // 2 + 8], ir.Constant(_VECTOR, _ZIP[row % 2])
                )
                for row in range(16)
            ]
        for column, values in enumerate(rows):
            place = builder.gep(data[1], [builder.add(at, ir.IntType(64)(16 * column))])
            builder.store(values, builder.bitcast(place, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    integer = types.intp
    return types.void(source, integer, integer, target, integer), generate


_ZIP = [[half * 8 + lane // 2 + 16 * (lane % 2) for lane in range(16)] for half in (0, 1)]
