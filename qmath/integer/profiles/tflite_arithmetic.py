"""TFLite's and XNNPACK's fixed-point arithmetic, one function for each of theirs.

The names are those of gemmlowp, TFLite and XNNPACK. Integers are int64 arrays here, but nothing
leaves the 32 bits of the originals, provided that the arguments fit; whoever calls proves that.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Rounding",
    "average",
    "mean_multiplier",
    "multiply_by_quantized_multiplier",
    "multiply_by_quantized_multiplier_half_up",
    "multiply_by_reduced_multiplier",
    "quantize_multiplier",
    "round_half_away",
    "rounding_divide_by_pot",
    "saturating_rounding_doubling_high_mul",
    "total_in_float",
    "xnnpack_add_multipliers",
    "xnnpack_fp32_requantize",
    "xnnpack_mean",
]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]
Rounding = Literal["double", "single"]


def round_half_away(x: ArrayLike) -> Array:
    """Round to the nearest integer, ties away from zero, as C's ``round``."""
    x = np.asarray(x)
    # Not floor(|x| + 0.5): below a tie that sum rounds up to the next integer.
    nearest = np.rint(x)
    tie = np.abs(x - np.trunc(x)) == 0.5
    return np.asarray(np.where(tie, np.trunc(x) + np.copysign(1.0, x), nearest))


def quantize_multiplier(real: ArrayLike) -> tuple[Int64Array, Int64Array]:
    """Return a 31-bit multiplier and a shift, TFLite's ``QuantizeMultiplier``.

    Parameters
    ----------
    real : array-like of float64
        Not negative.

    Returns
    -------
    multiplier : ndarray of int64
        0, or ``2**30`` to ``2**31 - 1``.
    shift : ndarray of int64
        To the left where positive: ``real`` is about ``multiplier * 2.0**(shift - 31)``.
    """
    mantissa, exponent = np.frexp(np.asarray(real, np.float64))
    multiplier = round_half_away(np.ldexp(mantissa, 31)).astype(np.int64)
    shift = exponent.astype(np.int64)
    carry = multiplier == 1 << 31
    multiplier, shift = np.where(carry, 1 << 30, multiplier), shift + carry
    tiny = shift < -31
    return np.where(tiny, 0, multiplier), np.where(tiny, 0, shift)


def saturating_rounding_doubling_high_mul(a: Int64Array, b: Int64Array) -> Int64Array:
    """Return the high 32 bits of ``2 * a * b``, rounded: gemmlowp's function of this name.

    The original nudges by the product's sign and divides towards zero, which is the same as to
    round half up. It saturates for two factors of ``-2**31`` only; a multiplier is never that.
    """
    return np.asarray((a * b + (1 << 30)) >> 31)


def rounding_divide_by_pot(x: Int64Array, exponent: Int64Array | int) -> Int64Array:
    """Return ``x / 2**exponent``, ties away from zero: gemmlowp's ``RoundingDivideByPOT``."""
    half = (np.int64(1) << np.asarray(exponent, np.int64)) >> 1
    return np.asarray((x + np.maximum(half - (x < 0), 0)) >> exponent)


def multiply_by_quantized_multiplier(
    x: Int64Array, multiplier: Int64Array, shift: Int64Array, rounding: Rounding = "double"
) -> Int64Array:
    """Return ``x * multiplier * 2**(shift - 31)``: TFLite's ``MultiplyByQuantizedMultiplier``.

    Parameters
    ----------
    x : ndarray of int64
        Below ``2**31`` in magnitude, also after a left shift.
    multiplier, shift : ndarray of int64
        From `quantize_multiplier`.
    rounding : {"double", "single"}
        Twice, first to 31 bits and then away from zero; or once, half up, as a TFLite built with
        ``TFLITE_SINGLE_ROUNDING`` does.
    """
    if rounding == "single":
        return np.asarray((x * multiplier + (np.int64(1) << (30 - shift))) >> (31 - shift))
    high = saturating_rounding_doubling_high_mul(x << np.maximum(shift, 0), multiplier)
    return rounding_divide_by_pot(high, np.maximum(-shift, 0))


def multiply_by_quantized_multiplier_half_up(
    x: Int64Array, multiplier: Int64Array, shift: Int64Array
) -> Int64Array:
    """Return ``x * multiplier * 2**(shift - 31)``, rounded to 31 bits and then half up.

    What vector units make of it, whose rounding shift to the right has ties go up: ruy's kernels,
    and the others of LiteRT that are written for them. Parameters are as above.
    """
    high = saturating_rounding_doubling_high_mul(x << np.maximum(shift, 0), multiplier)
    right = np.maximum(-shift, 0)
    return np.asarray((high + ((np.int64(1) << right) >> 1)) >> right)


def multiply_by_reduced_multiplier(
    x: Int64Array, multiplier: Int64Array, shift: Int64Array
) -> Int64Array:
    """Return ``x * multiplier * 2**(shift - 31)`` with a multiplier of 15 bits, rounded half up.

    What ``MultiplyByQuantizedMultiplier`` makes of an accumulator of 64 bits.
    """
    reduced = np.where(multiplier < 0x7FFF0000, (multiplier + (1 << 15)) >> 16, 0x7FFF)
    right = 15 - shift
    return np.asarray((x * reduced + (np.int64(1) << (right - 1))) >> right)


def mean_multiplier(
    multiplier: Int64Array, shift: Int64Array, count: int
) -> tuple[Int64Array, Int64Array]:
    """Return a multiplier and shift with ``1 / count`` folded in, as the ``MEAN`` kernel does."""
    room = np.minimum(np.minimum(count.bit_length() - 1, 32), 31 + shift)
    return np.asarray((multiplier << room) // count), np.asarray(shift - room)


def average(total: Int64Array, count: Int64Array) -> Int64Array:
    """Return ``total / count``, ties away from zero, as the ``AVERAGE_POOL_2D`` kernel does."""
    return np.asarray(np.sign(total) * ((np.abs(total) + count // 2) // count))


def total_in_float(
    total: Int64Array, count: int, ratio: np.float32, zero_points: tuple[int, int]
) -> Array:
    """Return the sum of `count` signed integers with another scale, as ``SUM`` does in float32.

    Parameters are those of `xnnpack_mean`.
    """
    bias = np.float32(-zero_points[0]) * ratio * np.float32(count)
    return round_half_away(total.astype(np.float32) * ratio + bias) + zero_points[1]


def xnnpack_fp32_requantize(x: Int64Array, scale: NDArray[np.float32]) -> Array:
    """Return ``x * scale`` in float32, rounded half to even: XNNPACK's ``fp32`` requantization."""
    return np.asarray(np.rint(x.astype(np.float32) * scale))


def xnnpack_add_multipliers(a: np.float32, b: np.float32) -> tuple[int, int, int]:
    """Return two multipliers of at most 21 bits and a right shift for ``a * x + b * y``.

    As XNNPACK's ``xnn_init_qs8_add_minmax`` does, which takes scales from ``2**-10`` to ``2**8``.
    """
    _, exponent = np.frexp(max(a, b))
    shift = 21 - int(exponent)
    first, second = (int(np.rint(np.ldexp(np.float64(scale), shift))) for scale in (a, b))
    return first, second, shift


def xnnpack_mean(
    total: Int64Array, count: int, ratio: np.float32, zero_points: tuple[int, int]
) -> Array:
    """Return the mean of `count` signed integers with another scale, as XNNPACK's ``mean``.

    In float32, the output's zero point included, and ties away from zero: unlike XNNPACK's other
    operations, because an unvectorized conversion ends it.

    Parameters
    ----------
    total : ndarray of int64
        Sums of the stored integers.
    count : int
    ratio : float32
        Of the input's scale and the output's.
    zero_points : tuple of int
        Of input and output.
    """
    scale = ratio * (np.float32(1) / np.float32(count))
    offset = np.float32(zero_points[1]) - np.float32(zero_points[0] * count) * scale
    return round_half_away(total.astype(np.float32) * scale + offset)
