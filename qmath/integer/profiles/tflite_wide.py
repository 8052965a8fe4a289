"""TFLite's functions of 16-bit integers: a sigmoid, a hyperbolic tangent, a softmax.

They interpolate between the entries of short tables, in fixed point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.profiles.tflite_arithmetic import (
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    round_half_away,
)
from qmath.integer.program import QuantParams, TableStep

__all__ = ["logistic", "softmax", "tanh"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]

_LOWEST = -10.0  # what a softmax's exponentials begin at


def _sigmoids() -> Int64Array:
    """Return sigmoids of multiples of 1/24 with 16 bits, moved so that lines between err less."""
    places = np.arange(513) / 48
    values = 65536 / (1 + np.exp(-places))
    on_line = (values[:-2:2] + values[2::2]) / 2
    moved = np.floor(values[:-2:2] - (on_line - values[1::2]) / 2 + 0.5)
    moved[-1] = 65535
    return moved.astype(np.int64)


def logistic(_: TableStep, source: QuantParams) -> Int64Array:
    """Return the sigmoids of all integers, as ``Logistic`` of ``integer_ops/logistic.h``."""
    x = _scaled(source, most_shift=0)
    result = np.where((np.abs(x) >> 9) >= 255, 0x7FFF << 10, _interpolated(np.abs(x), 9))
    signed = np.where(x >= 0, result + (1 << 9), (1 << 25) - result + (1 << 9) - 1)
    return np.asarray(signed >> 10)


def tanh(_: TableStep, source: QuantParams) -> Int64Array:
    """Return the hyperbolic tangents of all integers, as ``Tanh`` of ``integer_ops/tanh.h``."""
    x = _scaled(source, most_shift=1)
    result = np.where((np.abs(x) >> 8) >= 255, 0xFFFF << 8, _interpolated(np.abs(x), 8))
    half = 1 << 23
    signed = np.where(x >= 0, result - half + (1 << 7), half - result + (1 << 7) - 1)
    return np.asarray(signed >> 8)


def _scaled(source: QuantParams, most_shift: int) -> Int64Array:
    """Return all integers in steps of 1/12,288; exactly, if theirs are 1/4096 or just double."""
    x = np.arange(source.high + 1, dtype=np.int64) - source.zero_point
    mantissa, exponent = np.frexp(np.float64(source.scale) * 4096)
    if mantissa == 0.5 and 0 <= exponent - 1 <= most_shift:
        return x * (3 << int(exponent - 1))
    multiplier, shift = float(np.float32(source.scale)) * 4096.0 * 3.0, 0
    while multiplier <= 32767.0 / 2.0 and shift <= 30:
        multiplier, shift = multiplier * 2.0, shift + 1
    return (x * int(multiplier) + ((1 << shift) >> 1)) >> shift


def _interpolated(x: Int64Array, bits: int) -> Int64Array:
    """Return sigmoids between the table's, with as many bits more."""
    index = np.minimum(x >> bits, 254)
    below, above = _SIGMOIDS[index], _SIGMOIDS[index + 1]
    return np.asarray((below << bits) + (x & ((1 << bits) - 1)) * (above - below))


def softmax(x: Array, source: QuantParams, params: QuantParams) -> Int64Array:
    """Return a softmax along the last axis, as ``SoftmaxInt16`` of ``reference/softmax.h``."""
    q = x.astype(np.int64)
    numbers = quantize_multiplier(np.float64(source.scale) / (10.0 / 65535.0))
    scaled = multiply_by_quantized_multiplier(q - q.max(-1, keepdims=True), *numbers)
    exponentials = _looked_up(np.clip(scaled + 32767, -32768, 32767), _EXPONENTIALS)
    total = exponentials.sum(-1, keepdims=True)
    above = np.floor(np.log2(total.astype(np.float64))).astype(np.int64)
    headroom = 31 - above
    shifted = ((total << (headroom - 1)) + (1 << 13)) >> 14
    fraction = np.clip(shifted - (1 << 15) - (1 << 16), -32768, 32767)
    reciprocal = _looked_up(fraction, _RECIPROCALS)
    right = 31 - headroom
    result = (exponentials * reciprocal + (np.int64(1) << (right - 1))) >> right
    low = (1 << (params.num_bits - 1)) - params.zero_point
    return np.asarray(np.clip(result, 0, 32767) + low)


def _table(function: Callable[[Array], Array], low: float, high: float) -> Int64Array:
    """Return a function's values at 513 places, moved so that lines between them err less."""
    step = (high - low) / 512
    places = low + np.arange(513) * step
    values, middles = function(places) * 32768, function(places[:-1] + step / 2) * 32768
    starts = round_half_away(values)
    on_line = round_half_away((values[1:] + starts[:-1]) / 2)
    bias = round_half_away((on_line - round_half_away(middles)) / 2)
    starts[:-1] -= bias
    return np.clip(starts, -32768, 32767).astype(np.int64)


def _looked_up(x: Int64Array, table: Int64Array) -> Int64Array:
    index = 256 + (x >> 7)
    base = table[index]
    return np.asarray(base + (((table[index + 1] - base) * (x & 127) + 64) >> 7))


_SIGMOIDS = _sigmoids()
_EXPONENTIALS = _table(np.exp, _LOWEST, 0.0)
_RECIPROCALS = _table(lambda x: 1 / (1 + x), 0.0, 1.0)
