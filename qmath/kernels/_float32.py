"""TensorFlow's float32 world: subnormals count as zero, Eigen orders comparisons.

TensorFlow's CPU kernels run with flush-to-zero and denormals-are-zero set. NumPy does not, so
where a subnormal can matter the arithmetic is done in float64 and rounded once by `rounded`:
a float64 holds the sum, product or quotient of two float32 well enough that rounding it to
float32 gives what the float32 operation gives (53 >= 2 * 24 + 2 bits).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.kernels._arrays import as_array
from qmath.kernels._environment import flushes_subnormals

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

_FLOAT32 = np.dtype(np.float32)  # which compares faster than np.float32

# By its bits: arithmetic that returns a subnormal depends on the environment.
SMALLEST_NORMAL = np.float32(2.0**-126)
_LARGEST = 2.0**128 - 2.0**104
LARGEST_SUBNORMAL = np.uint32(0x007FFFFF).view(np.float32)

# A result counts as tiny after rounding to 24 bits with an unbounded exponent, as x86 decides.
_TINY_BELOW = 2.0**-126 * (1 - 2.0**-25)


def as_float32(value: ArrayLike, name: str) -> Float32Array:
    """Return `value` as float32, cast as TensorFlow casts a NumPy array; refuse non-reals."""
    if type(value) is np.ndarray and value.dtype == _FLOAT32:
        return value
    if type(value) is float and -_LARGEST <= value <= _LARGEST:  # of which NumPy has nothing to say
        return np.array(value, np.float32)
    if type(value) is np.float32:
        return np.asarray(value)
    try:
        array = as_array(value, name)
    except QmathError:  # of a lazy tensor, whose file says what is wrong
        raise
    except (TypeError, ValueError) as error:
        raise QmathError(f"{name} must be an array of real numbers: {error}") from None
    if array.dtype == _FLOAT32:
        return array
    if array.dtype.kind not in "fiub":
        raise QmathError(f"{name} must hold real numbers, got dtype {array.dtype}")
    with np.errstate(all="ignore"):
        return array.astype(np.float32)


def flush(x: Float32Array) -> Float32Array:
    """Return `x` with subnormals replaced by zeros of their sign."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def extremes(x: Float32Array, axis: tuple[int, ...] | None) -> tuple[Float32Array, Float32Array]:
    """Return the least and the greatest element, NaN if there is one; of none, +inf and -inf."""
    infinity = np.float32(np.inf)
    with np.errstate(all="ignore"):
        low = np.asarray(np.min(x, axis=axis, initial=infinity))
        high = np.asarray(np.max(x, axis=axis, initial=-infinity))
    tiny = (np.abs(low) < SMALLEST_NORMAL) | (np.abs(high) < SMALLEST_NORMAL)
    if tiny.any() and flushes_subnormals():  # their order, and so the sign of 0, would be lost
        keys = _in_order(np.ascontiguousarray(x).reshape(x.shape).view(np.int32))
        ends = (_in_order(keys.min(axis=axis)), _in_order(keys.max(axis=axis)))
        low, high = (
            np.where(np.abs(end) < SMALLEST_NORMAL, bits.view(np.float32), end)
            for end, bits in zip((low, high), ends, strict=True)
        )
    return low, high


def _in_order(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the bits of floats as integers of the same order, and these as those."""
    return np.asarray(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)), np.int32)


class Bounds(NamedTuple):
    """Bounds for plain float32 comparisons that treat subnormals as zero, as the kernels do."""

    lower: Float32Array
    upper: Float32Array


def bounds_of(min: Float32Array, max: Float32Array) -> Bounds:
    """Return the bounds of a range whose own ends are not subnormal."""
    lower = np.where(min == 0, -LARGEST_SUBNORMAL, min)
    return Bounds(lower, np.where(max == 0, LARGEST_SUBNORMAL, max))


def rounded(x: Float64Array) -> Float32Array:
    """Round the float64 result of one operation to float32, flushing what is tiny."""
    x = np.asarray(x)
    with np.errstate(all="ignore"):
        return np.where(np.abs(x) < _TINY_BELOW, np.copysign(0.0, x), x).astype(np.float32)


def minimum(a: Float32Array, b: Float32Array) -> Float32Array:
    """Eigen's ``(b < a) ? b : a``: a NaN in `a` stays, a NaN in `b` is ignored."""
    return np.where(b < a, b, a)


def maximum(a: Float32Array, b: Float32Array) -> Float32Array:
    """Eigen's ``(a < b) ? b : a``: a NaN in `a` stays, a NaN in `b` is ignored."""
    return np.where(a < b, b, a)
