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

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

SMALLEST_NORMAL = np.float32(np.finfo(np.float32).tiny)
LARGEST_SUBNORMAL = np.nextafter(SMALLEST_NORMAL, np.float32(0))

# A result counts as tiny after rounding to 24 bits with an unbounded exponent, as x86 decides.
_TINY_BELOW = 2.0**-126 * (1 - 2.0**-25)


def as_float32(value: ArrayLike, name: str) -> Float32Array:
    """Return `value` as float32, cast as TensorFlow casts a NumPy array; refuse non-reals."""
    try:
        array = np.asarray(value)
    except QmathError:  # of a lazy tensor, whose file says what is wrong
        raise
    except (TypeError, ValueError) as error:
        raise QmathError(f"{name} must be an array of real numbers: {error}") from None
    if array.dtype == np.float32:
        return array
    if array.dtype.kind not in "fiub":
        raise QmathError(f"{name} must hold real numbers, got dtype {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def flush(x: Float32Array) -> Float32Array:
    """Return `x` with subnormals replaced by zeros of their sign."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


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
    with np.errstate(over="ignore"):
        return np.where(np.abs(x) < _TINY_BELOW, np.copysign(0.0, x), x).astype(np.float32)


def minimum(a: Float32Array, b: Float32Array) -> Float32Array:
    """Eigen's ``(b < a) ? b : a``: a NaN in `a` stays, a NaN in `b` is ignored."""
    return np.where(b < a, b, a)


def maximum(a: Float32Array, b: Float32Array) -> Float32Array:
    """Eigen's ``(a < b) ? b : a``: a NaN in `a` stays, a NaN in `b` is ignored."""
    return np.where(a < b, b, a)
