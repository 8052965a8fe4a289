"""The arithmetic of `qmath.kernels.quantize_v2`: how each mode counts a range in steps.

One operation of float32 is one rounding, with subnormals counting as zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qmath.kernels._float32 import Float32Array, Float64Array, maximum, minimum, rounded

Integers = Callable[..., Float64Array]
Floats = tuple[tuple[Float32Array, ...], Callable[..., Float32Array]]

_LARGEST = np.float32(np.finfo(np.float32).max)
ABOVE_INT32 = 2.0**31
_MOST_INT32 = np.float32(2.0**31 - 2.0**7)  # the greatest float32 that is an int32


class Steps(NamedTuple):
    """How a range is counted: constants of shape ``()`` or ``(C,)``, and what to do with them.

    The first of the constants is the scale, in steps for 1.
    """

    constants: tuple[Float32Array, ...]
    low: Float32Array
    high: Float32Array
    integers: Integers


def plus(a: Float32Array, b: Float32Array) -> Float32Array:
    return rounded(a.astype(np.float64) + b)


def minus(a: Float32Array, b: Float32Array) -> Float32Array:
    return rounded(a.astype(np.float64) - b)


def times(a: Float32Array, b: Float32Array) -> Float32Array:
    return rounded(a.astype(np.float64) * b)


def over(a: Float32Array, b: Float32Array) -> Float32Array:
    return rounded(a.astype(np.float64) / b)


def _half_away(x: Float32Array) -> Float64Array:
    """Round as C's ``round``; a float64 holds the sum exactly."""
    wide = x.astype(np.float64)
    return np.copysign(np.floor(np.abs(wide) + 0.5), wide)


def _constant(value: float, like: Float32Array) -> Float32Array:
    return np.full(like.shape, value, np.float32)


def min_combined(info: np.iinfo[Any], low: Float32Array, high: Float32Array) -> Steps:
    """Mirror ``QuantizeTensor`` of MIN_COMBINED: the quotient is one of doubles."""
    width = minus(high, low)
    scale = rounded(float(info.max - info.min) / width.astype(np.float64))
    half = np.float32((info.max - info.min + 1) / 2)

    def integers(x: Float32Array, *parts: Float32Array) -> Float64Array:
        scale, low, high = parts
        steps = times(minus(maximum(minimum(x, high), low), low), scale)
        if info.min:
            return _half_away(minus(steps, half))
        return np.trunc(plus(steps, np.float32(0.5)).astype(np.float64))

    return Steps((scale, low, high), low, high, integers)


def min_first(info: np.iinfo[Any], low: Float32Array, high: Float32Array) -> Steps:
    """Mirror ``FloatToQuantizedStruct``: both ends are rounded to steps, then subtracted."""
    width = minus(high, low).astype(np.float64)
    scale = np.where(high == low, np.float32(0), rounded((2.0**info.bits - 1) / width))
    offset = rounded(_half_away(times(low, scale)) - float(info.min))
    lowest, highest = np.float32(info.min), minimum(np.float32(info.max), _MOST_INT32)

    def integers(x: Float32Array, *parts: Float32Array) -> Float64Array:
        scale, offset = parts
        steps = rounded(_half_away(times(x, scale)) - offset)
        return minimum(maximum(steps, lowest), highest).astype(np.float64)

    return Steps((scale, offset), low, high, integers)


def scaled(
    info: np.iinfo[Any], low: Float32Array, high: Float32Array, narrow: bool, to_even: bool
) -> Steps:
    """Mirror the mode SCALED: the side that needs the smaller scale decides."""
    lowest, highest = _constant(info.min + narrow, low), _constant(info.max, low)
    scale = minimum(
        np.where(lowest * low > 0, over(lowest, low), _LARGEST),
        np.where(highest * high > 0, over(highest, high), _LARGEST),
    )
    low, high = over(lowest, scale), over(highest, scale)

    def integers(x: Float32Array, *parts: Float32Array) -> Float64Array:
        scale, low, high = parts
        steps = times(maximum(minimum(x, high), low), scale)
        return np.rint(steps.astype(np.float64)) if to_even else _half_away(steps)

    return Steps((scale, low, high), low, high, integers)


def scaled_by_onednn(info: np.iinfo[Any], low: Float32Array, high: Float32Array) -> Steps:
    """Mirror ``MklQuantizeV2Op`` of SCALED: all integers serve the greater end, without 0.5."""
    most = maximum(np.abs(low), np.abs(high))
    scale = over(_constant((2**info.bits - 1) / (2 if info.min else 1), low), most)

    def integers(x: Float32Array, *parts: Float32Array) -> Float64Array:
        return np.clip(np.rint(times(x, parts[0]).astype(np.float64)), info.min, info.max)

    return Steps((scale,), -most if info.min else np.zeros_like(most), most, integers)


def min_first_by_onednn(info: np.iinfo[Any], low: Float32Array, high: Float32Array) -> Steps:
    """Mirror ``MklQuantizeV2Op`` of MIN_FIRST: two products, one sum, one rounding to even."""
    scale = over(_constant(info.max, low), minus(high, low))
    shift = times(-low, scale)

    def integers(x: Float32Array, *parts: Float32Array) -> Float64Array:
        scale, shift = parts
        steps = plus(times(x, scale), shift).astype(np.float64)
        return np.clip(np.rint(steps), info.min, info.max)

    return Steps((scale, shift), low, high, integers)


STEPS_OF_ONEDNN = {"SCALED": scaled_by_onednn, "MIN_FIRST": min_first_by_onednn}


def from_min_combined(info: np.iinfo[Any], low: Float32Array, high: Float32Array) -> Floats:
    """Mirror ``DequantizeTensor`` of MIN_COMBINED."""
    width = np.float32(float(info.max - info.min))
    half = np.float32((info.max - info.min + 1) / 2 if info.min else 0)

    def floats(q: Float32Array, *parts: Float32Array) -> Float32Array:
        scale, low = parts
        return plus(times(plus(q, half), scale), low)

    return (over(minus(high, low), width), low), floats


def from_min_first(info: np.iinfo[Any], low: Float32Array, high: Float32Array) -> Floats:
    """Mirror ``QuantizedToFloatStruct``."""
    scale = rounded(minus(high, low).astype(np.float64) / (2.0**info.bits - 1))
    at_steps = rounded(_half_away(over(low, scale)) * scale)
    least = np.where(high == low, low, at_steps)
    offset = minus(least, times(np.float32(info.min), scale))

    def floats(q: Float32Array, *parts: Float32Array) -> Float32Array:
        scale, offset = parts
        return plus(offset, times(q, scale))

    return (scale, offset), floats


def from_scaled(
    info: np.iinfo[Any], low: Float32Array, high: Float32Array, narrow: bool, by_onednn: bool
) -> Floats:
    """Mirror the mode SCALED; oneDNN's unsigned integers can be narrow too."""
    lowest = info.min + narrow
    scale = over(high, np.float32(info.max))
    if info.min or (by_onednn and lowest):
        scale = maximum(over(low, np.float32(lowest)), scale)
    wraps = info.bits == 32 and scale.size == 1

    def floats(q: Float32Array, *parts: Float32Array) -> Float32Array:
        if wraps:  # TensorFlow casts through int, which a float of 2**31 is not
            q = np.where(q < np.float32(ABOVE_INT32), q, np.float32(-ABOVE_INT32))
        return times(q, parts[0])

    return (scale,), floats
