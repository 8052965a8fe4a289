"""TensorFlow's float32 world: subnormals count as zero, Eigen orders comparisons and sums.

TensorFlow's CPU kernels run with flush-to-zero and denormals-are-zero set. NumPy does not, so
where a subnormal can matter the arithmetic is done in float64 and rounded once by `rounded`:
a float64 holds the sum, product or quotient of two float32 well enough that rounding it to
float32 gives what the float32 operation gives (53 >= 2 * 24 + 2 bits).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

SMALLEST_NORMAL = np.float32(np.finfo(np.float32).tiny)
LARGEST_SUBNORMAL = np.nextafter(SMALLEST_NORMAL, np.float32(0))

# A result counts as tiny after rounding to 24 bits with an unbounded exponent, as x86 decides.
_TINY_BELOW = 2.0**-126 * (1 - 2.0**-25)
# Sums of multiples of FLT_MIN are zero or normal: from here on, every float32 is one.
_SUMS_ARE_NORMAL_FROM = np.float32(2.0**-102)

_LANES = 8  # float32 in an AVX register
_UNROLL = 4  # accumulators in Eigen's inner loop
_LEAF = 1024 * _LANES  # Eigen's tree reduction stops splitting here


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


def has_small(x: Float32Array) -> bool:
    """Whether a sum of elements of `x` can meet a subnormal."""
    magnitude = np.abs(x)
    return bool(((magnitude < _SUMS_ARE_NORMAL_FROM) & (magnitude > 0)).any())


def tree_sum(leaf: Callable[[int, int], Float32Array], first: int, count: int) -> Float32Array:
    """Add up leaf sums in the order of Eigen's tree reduction.

    Mirrors ``InnerMostDimReducer`` with tree reduction (Eigen, ``TensorReduction.h``) as one
    thread runs it: halves, split on a register boundary, down to 8192 elements.

    Parameters
    ----------
    leaf : callable
        ``leaf(first, count)`` returns the sum of that run, see `leaf_sum`.
    first, count : int
        The run to add up.
    """
    if count <= _LEAF:
        return leaf(first, count)
    half = first + (count + 1) // 2
    split = -(-half // _LANES) * _LANES
    left = tree_sum(leaf, first, split - first)
    right = tree_sum(leaf, split, first + count - split)
    with np.errstate(invalid="ignore"):
        return rounded(left.astype(np.float64) + right)


def leaf_sum(x: Float32Array) -> Float32Array:
    """Sum a ``(n, C)`` array over its rows in the order of Eigen's vectorised reduction.

    Four accumulators of eight lanes, then the lanes pairwise, then the scalar tail, as compiled
    for AVX. All columns are summed at once; a column's sum does not depend on the others.
    """
    rows, channels = x.shape
    add_rows = _add_rows_flushing if has_small(x) else _add_rows
    packed = rows // _LANES * _LANES
    unrolled = rows // (_UNROLL * _LANES) * (_UNROLL * _LANES)
    lanes = np.zeros((_LANES, channels), np.float32)
    if unrolled:
        wide = add_rows(x[:unrolled].reshape(-1, _UNROLL, _LANES, channels))
        lanes = add_rows(wide)
    lanes = add_rows(
        np.concatenate([lanes[None], x[unrolled:packed].reshape(-1, _LANES, channels)])
    )
    pairs = add_rows(np.stack([lanes[:4], lanes[4:]]))
    quarters = add_rows(np.stack([pairs[:2], pairs[2:]]))
    return add_rows(np.stack([add_rows(x[packed:]), add_rows(quarters)]))


def _add_rows(x: NDArray[Any]) -> NDArray[Any]:
    """Add along the first axis, in order, starting from +0 as Eigen's accumulators do."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.add.reduce(x, axis=0, initial=np.float32(0)))


def _add_rows_flushing(x: NDArray[Any]) -> NDArray[Any]:
    """`_add_rows` with every operand and every partial sum flushed."""
    total = np.zeros(x.shape[1:], np.float32)
    with np.errstate(invalid="ignore"):
        for row in flush(x):
            total = rounded(total.astype(np.float64) + row)
    return total
