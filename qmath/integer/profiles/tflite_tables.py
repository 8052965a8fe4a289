"""TFLite's functions of single integers, and its softmax, as its kernels compute them.

Most have a table: the function in float32 of each integer. Others are in fixed point: a hard swish
of 16 bits, a softmax of gemmlowp's exponentials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.profiles import tflite_wide
from qmath.integer.profiles.tflite_arithmetic import (
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    round_half_away,
    rounding_divide_by_pot,
    saturating_rounding_doubling_high_mul,
)
from qmath.integer.program import QuantParams, TableStep

__all__ = ["softmax", "table"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]

_INT16 = 1 << 15
_DIFFERENCE_BITS, _SUM_BITS = 5, 12  # before the binary point, of a softmax's arguments and its sum


def table(step: TableStep, source: QuantParams) -> NDArray[np.int32]:
    """Return the integers that an operation makes of each of its input's, relative to zero.

    Parameters
    ----------
    step : TableStep
        Of a file's operation.
    source : QuantParams
        Of what it reads.
    """
    kernels = _WIDE_KERNELS if source.num_bits > 8 else _KERNELS
    made = kernels.get(step.kernel, _looked_up)(step, source)
    return np.asarray(np.clip(made, *step.params.limits), np.int32)


def _looked_up(step: TableStep, _: QuantParams) -> Array:
    """Return the function's results in float32, times the reciprocal of the scale."""
    inverse = np.float32(1) / np.float32(step.params.scale)
    with np.errstate(over="ignore"):
        steps = np.clip(step.results * inverse, np.float32(-(1 << 20)), np.float32(1 << 20))
    return round_half_away(steps)


def _square_root(step: TableStep, _: QuantParams) -> Array:
    return np.asarray(np.trunc(step.results / np.float32(step.params.scale)))


def _relative(source: QuantParams) -> Int64Array:
    return np.arange(source.high + 1, dtype=np.int64) - source.zero_point


def _ratio(step: TableStep, source: QuantParams) -> tuple[Int64Array, Int64Array]:
    """Return the multiplier and shift of a change of scale, which is divided in float32."""
    return quantize_multiplier(np.float64(np.float32(source.scale) / np.float32(step.params.scale)))


def _gelu(step: TableStep, source: QuantParams) -> Array:
    """Return a GELU in float32, by the complement of the error function."""
    reals = _relative(source).astype(np.float32) * np.float32(source.scale)
    arguments = reals * np.float32(-math.sqrt(0.5))
    complement = np.array([math.erfc(x) for x in arguments.tolist()], np.float32)
    return _looked_up(replace(step, results=np.float32(0.5) * reals * complement), source)


def _absolute(step: TableStep, source: QuantParams) -> Array:
    x = np.abs(_relative(source))
    if np.float32(source.scale) == np.float32(step.params.scale):
        return x
    return multiply_by_quantized_multiplier(x, *_ratio(step, source))


def _bounded(step: TableStep, source: QuantParams) -> Array:
    """Return the integers on the other scale, bounded by what the function's ends are there."""
    made = multiply_by_quantized_multiplier(_relative(source), *_ratio(step, source))
    with np.errstate(over="ignore"):
        ends = step.results[[0, -1]] / np.float32(step.params.scale)
    return np.clip(made, *round_half_away(np.clip(ends, -(1 << 20), 1 << 20)))


def _hard_swish(step: TableStep, source: QuantParams) -> Array:
    """Mirror ``HardSwish``: products of 16 bits, the last one rounded towards zero."""
    fine = np.float32(source.scale) * np.float32(1 / 128)
    slope, slope_shift = _of_16_bits(fine / np.float32(step.params.scale))
    gate, gate_shift = _of_16_bits(fine / np.float32(3 / 32768))
    x = _relative(source) << 7
    on_output = (x * slope + (1 << 14)) >> 15
    g = x
    if gate_shift > 0:
        g = _saturated(g << (gate_shift - 1))
    g = (g * gate + (1 << 14)) >> 15
    if gate_shift > 0:
        g = _saturated(g << 1)
    elif gate_shift < 0:
        g = rounding_divide_by_pot(g, -gate_shift)
    product = ((g + _INT16) >> 1) * on_output
    whole = np.sign(product) * (np.abs(product) >> 15)
    return rounding_divide_by_pot(whole, max(-slope_shift, 0))


def _of_16_bits(real: np.float32) -> tuple[int, int]:
    multiplier, shift = quantize_multiplier(np.float64(real))
    return min((int(multiplier) + (1 << 15)) >> 16, _INT16 - 1), int(shift)


def _saturated(x: Int64Array) -> Int64Array:
    return np.clip(x, -_INT16, _INT16 - 1)


_KERNELS: Mapping[str, Callable[[TableStep, QuantParams], Array]] = {
    "ABS": _absolute,
    "GELU": _gelu,
    "HARD_SWISH": _hard_swish,
    "MAXIMUM": _bounded,
    "MINIMUM": _bounded,
    "RELU_N1_TO_1": _bounded,
    "SQRT": _square_root,
}
_WIDE_KERNELS = {**_KERNELS, "LOGISTIC": tflite_wide.logistic, "TANH": tflite_wide.tanh}


# ---- softmax


def softmax(x: Array, source: QuantParams, params: QuantParams) -> Array:
    """Return the integers of a softmax along the last axis, relative to the output's zero point.

    Mirrors ``Softmax`` of ``tensorflow/lite/kernels/internal/reference/softmax.h``, whose fixed
    point is gemmlowp's: exponentials by a polynomial and a product of powers, a sum with 12 bits
    before the point, its reciprocal by three steps of Newton's method.

    Parameters
    ----------
    x : ndarray
        Integers, relative to any point.
    source, params : QuantParams
        Of input and output.
    """
    if source.num_bits > 8:
        return tflite_wide.softmax(x, source, params)
    real = min(np.float64(source.scale) * 2.0 ** (31 - _DIFFERENCE_BITS), 2.0**31 - 1)
    multiplier, shift = quantize_multiplier(real)
    q = x.astype(np.int64)
    difference = q - q.max(-1, keepdims=True)
    radius = ((1 << _DIFFERENCE_BITS) - 1) * 2.0 ** (31 - _DIFFERENCE_BITS) / 2.0 ** int(shift)
    counts = difference >= -int(np.floor(radius))
    scaled = saturating_rounding_doubling_high_mul(
        np.where(counts, difference, 0) << shift, multiplier
    )
    exponentials = np.where(counts, _exponential(scaled), 0)
    total = rounding_divide_by_pot(exponentials, _SUM_BITS).sum(-1, keepdims=True)
    reciprocal, over = _reciprocal(total)
    exponent = over + 31 - params.num_bits
    made = rounding_divide_by_pot(
        saturating_rounding_doubling_high_mul(exponentials, reciprocal), exponent
    )
    # From the lowest integer on, whatever the zero point is.
    return np.clip(np.where(counts, made, 0), 0, params.high) - params.zero_point


def _exponential(x: Int64Array) -> Int64Array:
    """Return ``exp(x)`` with 31 bits after the point, of `x` of 26 and not above zero.

    Mirrors gemmlowp's ``exp_on_negative_values``.
    """
    high_mul = saturating_rounding_doubling_high_mul
    quarter = 1 << 24
    rest = (x & (quarter - 1)) - quarter
    # The exponential of -1/4 to 0, around -1/8.
    y = (rest << 5) + (1 << 28)
    square = high_mul(y, y)
    third = high_mul(square, y)
    fourth = high_mul(square, square)
    tail = rounding_divide_by_pot(fourth, 2)
    tail = high_mul(tail + third, np.int64(715827883)) + square
    tail = rounding_divide_by_pot(tail, 1)
    middle = np.int64(1895147668)
    result = middle + high_mul(y + tail, middle)
    remainder = rest - x
    for power, factor in enumerate(_POWERS, 24):
        is_in = (remainder >> power & 1).astype(bool)
        result = np.where(is_in, high_mul(result, np.int64(factor)), result)
    return np.where(x == 0, (1 << 31) - 1, result)


# exp(-2**k) for k from -2 to 4, with 31 bits after the point.
_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)


def _reciprocal(total: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return the reciprocal of a sum, with 31 bits after the point, and how far it was shifted.

    Mirrors TFLite's ``GetReciprocal`` and gemmlowp's ``one_over_one_plus_x_for_x_in_0_1``.
    """
    high_mul = saturating_rounding_doubling_high_mul
    above = np.floor(np.log2(total.astype(np.float64))).astype(np.int64)  # exact below 2**53
    over = _SUM_BITS - (31 - above)
    fraction = (total << (31 - above)) - (1 << 31)
    half = (fraction + (1 << 31)) >> 1
    y = np.int64(1515870810) + high_mul(half, np.int64(-1010580540))  # 48/17 - 32/17 of it
    for _ in range(3):
        error = (1 << 29) - high_mul(half, y)
        y = y + (high_mul(y, error) << 2)
    return np.clip(y << 1, -(1 << 31), (1 << 31) - 1), over
