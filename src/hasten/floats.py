"""Float32 arithmetic for compiled loops that are to become vectors: bits of a float, e**x."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _typed_intrinsic

_intrinsic: Any = _typed_intrinsic  # numba describes the function, not what is made of it
_F = np.float32
_LOG2_E, _MAGIC = _F(1.4426950408889634), _F(12582912.0)  # adding the second rounds to a whole number
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
_LEAST, _MOST = _F(-87.0), _F(89.0)


@_intrinsic
def float_of_bits(typing: Any, bits: Any) -> Any:
    """The float32 with these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@_intrinsic
def bits_of_float(typing: Any, value: Any) -> Any:
    """The bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@numba.njit(nogil=True, error_model="numpy", inline="always")
def exp(x):
    """e**x to about 2e-7, 0 below -87, infinite above 88.3; no branches, so loops over it become vectors."""
    bounded = min(max(x, _LEAST), _MOST)
    power = (bounded * _LOG2_E + _MAGIC) - _MAGIC
    rest = bounded - power * _LN2_HIGH - power * _LN2_LOW
    value = _F(1.3981999507e-3) + rest * _F(1.9875691500e-4)
    value = _F(8.3334519073e-3) + rest * value
    value = _F(4.1665795894e-2) + rest * value
    value = _F(1.6666665459e-1) + rest * value
    value = _F(5.0000001201e-1) + rest * value
    value = _F(1.0) + rest + rest * rest * value
    scale = float_of_bits(numba.uint32((numba.int32(power) + numba.int32(127)) << numba.int32(23)))
    return value * scale if x > _LEAST else _F(0.0)
