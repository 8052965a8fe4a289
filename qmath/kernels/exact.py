"""Exact rational arithmetic: what the integers of a range are before any float rounds.

With ``D = max - min``, ``L = quant_max - quant_min`` and the zero point ``Z``, an element ``x``
has the integer ``floor(x * L / D + 1/2) + Z``, clipped to ``quant_min … quant_max``. TensorFlow's
float32 arithmetic gives the same integer, except where ``x * L / D`` is a *near-tie*: so close to
a half-integer that rounding errors may decide.

Notes
-----
How close, in integer steps. Let ``u = 2**-24`` be float32's relative rounding error, ``S = D / L``
the exact step, ``a = x / S``, and ``m = Z - quant_min``, so that ``-m <= a <= L - m`` after the
clip. Each rounding multiplies by ``1 + e`` with ``|e| <= u``.

- Scale: ``fl(fl(max - min) / L) = S (1 + 2u)``, two roundings. Inverse: ``(1 + 2u) / S``.
- Nudged minimum: ``fl(-m * scale) = -m S (1 + 3u)``, one more.
- ``t = fl(fl(x - nudged_min) / scale)`` divides the scale's error out of the nudged minimum:
  ``t = (a (1 + 2u) + m (1 + u)) (1 + 2u)``. With the inverse instead, the product of scale and
  inverse keeps two roundings: ``t = (a (1 + 2u) + m (1 + 3u)) (1 + 2u)``. The sum ``a + m`` is at
  most ``L``, so the worse of the two is off by ``2u |a| + 3u m + 2u L``, at most ``5u L``.
- Subtracting ``quant_zero = m`` leaves at most ``L`` in magnitude: ``u L`` more. Adding 1/2:
  ``u (L + 1/2)`` more. ``floor`` is exact.

Together ``7u L + u / 2``; products of two errors are below ``15 u**2 * L``, which the step from
``L`` to ``2**num_bits`` covers (it is worth ``7u`` or more, and ``u L < 2**-8``). So the tolerance
is ``7 * 2**(num_bits - 24)`` steps. TensorFlow also replaces subnormal operands and results by
zero: ``x`` and ``x - nudged_min`` can lose ``2**-126`` each, ``2**-125 / scale`` steps, which is
added and matters for scales near the smallest float32 only.

The zero point is ``quant_min - min / S`` rounded half away from zero and clipped to
``quant_min … quant_max``: ``fl(min / scale)`` is off by ``3u L`` at most, the subtraction by
``u (L + 1)``, so ``4 * 2**(num_bits - 24)`` covers it.

The other builds of `qmath.kernels.builds` count from the nudged minimum. XLA's scale has three
roundings, as ``1 / L`` is rounded, too, its inverse four, its nudged minimum four: without a fused
operation ``t = (a + m (1 + 4u)) (1 + u) (1 + 4u) (1 + u)`` is off by ``6u L + 4u m``, at most
``10u L``, and adding 1/2 by ``u (L + 1/2)`` more: 11 in place of 7, and 5 in place of 4 for the
zero point. TensorFlow before 2.6 needs less of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.kernels._arrays import as_array
from qmath.kernels._environment import in_default_environment
from qmath.kernels._float32 import as_float32
from qmath.kernels.builds import Build, arithmetic_of

__all__ = [
    "RelativeIntegers",
    "ZeroPoints",
    "near_tie_indices",
    "near_ties",
    "relative_integers",
    "zero_points",
]

_HALF = Fraction(1, 2)
_SMALLEST_NORMAL = 2.0**-126
# x * L is exact in float64 (24 + 16 bits); max - min and the quotient round once each, so a
# clipped quotient, at most 2**16, is off by less than 2**16 * 2.1 * 2**-53 < 2**-35.
_FILTER = 2.0**-35
_CHUNK = 1 << 18  # elements: a few MiB of float64 at a time
_BLOCK = 1 << 15  # elements that stay in the cache


class RelativeIntegers(NamedTuple):
    """Exact integers minus the zero point, and where float32 rounding may decide otherwise."""

    integers: NDArray[np.int32]
    near_tie: NDArray[np.bool_]


class ZeroPoints(NamedTuple):
    """Exact zero points, counted from 0, and where float32 rounding may decide otherwise."""

    zero_point: NDArray[np.int32]
    near_tie: NDArray[np.bool_]


def limits(num_bits: int, narrow_range: bool) -> tuple[int, int]:
    """Return the lowest and the highest integer, counted from 0."""
    return (1 if narrow_range else 0), (1 << num_bits) - 1


@in_default_environment
def relative_integers(
    values: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int,
    *,
    narrow_range: bool,
    zero_point: ArrayLike,
    build: Build = "tf",
) -> RelativeIntegers:
    """Return the exact integers of float32 `values`, minus the zero point.

    Parameters
    ----------
    values : array-like of float32
        Finite or infinite, not NaN.
    min, max : array-like of float32
        The range before nudging, shape ``()``, or ``(C,)`` along the last axis of `values`.
    num_bits, narrow_range
        As for `qmath.quantize`.
    zero_point : array-like of int
        Counted from 0, of the shape of `min`.
    build : str
        Whose rounding errors may decide.

    Returns
    -------
    RelativeIntegers
        Arrays of the shape of `values`. A range of 0 to 0 gives 0, no ties.

    Examples
    --------
    >>> relative_integers([-9.0, 0.1, 0.25], -1.0, 0.875, 4, narrow_range=False, zero_point=8)[0]
    array([-8,  1,  2], dtype=int32)
    """
    x = as_float32(values, "values")
    low, high = _flushed(min, "min"), _flushed(max, "max")
    first, last = limits(num_bits, narrow_range)
    count = last - first
    below = np.reshape(as_array(zero_point, "zero_point").astype(np.float64) - first, -1)
    span = np.reshape(high - low, -1)
    tolerance = _tolerance(num_bits, count, span, build)
    alive = span > 0
    rows = x.reshape(-1, low.size)
    integers = np.empty(rows.shape, np.int32)
    near = np.empty(rows.shape, np.bool_)
    height = -(-_CHUNK // low.size)
    for start in range(0, len(rows), height):
        chunk = slice(start, start + height)
        steps = rows[chunk].astype(np.float64) * count / span
        steps = np.where(alive, np.clip(steps, -below, count - below), 0.0)
        base = np.floor(steps)
        part = steps - base
        integers[chunk] = base + (part >= 0.5)
        distance = np.abs(part - 0.5)
        near[chunk] = (distance <= tolerance) & alive
        for row, column in np.argwhere((np.abs(distance - tolerance) <= _FILTER) & alive):
            exact = Fraction(float(rows[start + row, column])) * count
            exact /= Fraction(float(high.flat[column])) - Fraction(float(low.flat[column]))
            near[start + row, column] = abs(exact % 1 - _HALF) <= Fraction(float(tolerance[column]))
    return RelativeIntegers(integers.reshape(x.shape), near.reshape(x.shape))


def near_ties(
    values: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int,
    *,
    narrow_range: bool,
    zero_point: ArrayLike,
    build: Build = "tf",
) -> NDArray[np.bool_]:
    """Return where `values` are near-ties; parameters as for `relative_integers`.

    Examples
    --------
    >>> near_ties([0.0625, 0.07], -1.0, 0.875, 4, narrow_range=False, zero_point=8)
    array([ True, False])
    """
    x = as_float32(values, "values")
    near = np.zeros(x.size, np.bool_)
    found = near_tie_indices(
        x, min, max, num_bits, narrow_range=narrow_range, zero_point=zero_point, build=build
    )
    near[found] = True
    return near.reshape(x.shape)


@in_default_environment
def near_tie_indices(
    values: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int,
    *,
    narrow_range: bool,
    zero_point: ArrayLike,
    build: Build = "tf",
) -> NDArray[np.int64]:
    """Return the flat indices of the near-ties; parameters as for `relative_integers`.

    Notes
    -----
    Few elements are, and float32 shows the candidates: ``a = x * L / D`` in float32 is off by
    ``2 * 2**-24 * abs(a)``, less than ``2**(num_bits - 22)`` steps where `x` is not clipped, and a
    clipped one is not a tie. Only values that close to a half-integer are decided exactly.

    Examples
    --------
    >>> near_tie_indices([0.07, 0.0625], -1.0, 0.875, 4, narrow_range=False, zero_point=8)
    array([1])
    """
    x = as_float32(values, "values")
    low, high, zero = as_array(min, "min"), as_array(max, "max"), as_array(zero_point, "zero_point")
    span = np.reshape(_flushed(high, "max") - _flushed(low, "min"), -1)
    first, last = limits(num_bits, narrow_range)
    inverse = np.where(span > 0, (last - first) / span, 0).astype(np.float32)
    tolerance = _tolerance(num_bits, last - first, span[span > 0], build)
    if not np.isfinite(inverse).all() or (tolerance > 0.25).any():
        near = relative_integers(
            x, min, max, num_bits, narrow_range=narrow_range, zero_point=zero_point, build=build
        ).near_tie
        return np.flatnonzero(near)
    nearest = np.float32(0.5 - tolerance.max(initial=0) - 2.0 ** (num_bits - 22))
    rows = x.reshape(-1, low.size)
    candidates = np.concatenate([np.empty(0, np.int64), *_near(rows, inverse, nearest)])
    if not candidates.size:
        return candidates
    row, column = np.divmod(candidates, low.size)
    # Each with the range of its channel, as a channel of its own.
    a, b, z = (part.reshape(-1)[column] for part in (low, high, zero))
    found = relative_integers(
        rows[row, column], a, b, num_bits, narrow_range=narrow_range, zero_point=z, build=build
    ).near_tie
    return candidates[found]


def _near(
    rows: NDArray[np.float32], inverse: NDArray[np.float32], nearest: np.float32
) -> Iterator[NDArray[np.int64]]:
    """Yield the flat indices of the elements at least `nearest` steps from an integer."""
    if inverse.size == 1:  # NumPy is faster along one axis
        rows, inverse = rows.reshape(-1), inverse.reshape(())
    height = min(-(-_BLOCK // inverse.size), max(len(rows), 1))
    steps, part = np.empty((2, height, *inverse.shape), np.float32)
    is_near = np.empty(steps.shape, np.bool_)
    for start in range(0, len(rows), height):
        lines = rows[start : start + height]
        steps, part, is_near = steps[: len(lines)], part[: len(lines)], is_near[: len(lines)]
        np.multiply(lines, inverse, out=steps)
        np.rint(steps, out=part)
        np.subtract(steps, part, out=steps)
        np.abs(steps, out=steps)
        np.greater_equal(steps, nearest, out=is_near)
        yield is_near.reshape(-1).nonzero()[0] + start * inverse.size


def _tolerance(
    num_bits: int, count: int, span: NDArray[np.float64], build: str
) -> NDArray[np.float64]:
    """Return how near a half-integer a near-tie is at most, in integer steps: see the module."""
    errors = arithmetic_of(build).rounding_errors[0]
    return np.asarray(errors * 2.0 ** (num_bits - 24) + 2 * _SMALLEST_NORMAL * count / span)


@in_default_environment
def zero_points(
    min: ArrayLike, max: ArrayLike, num_bits: int, *, narrow_range: bool, build: Build = "tf"
) -> ZeroPoints:
    """Return the exact zero points of ranges, ties rounded half away from zero.

    Parameters
    ----------
    min, max : array-like of float32
        Finite, ``min <= max``, shape ``()`` or ``(C,)``. Of a range of 0 to 0
        any integer is the zero point: the middle one is returned.
    num_bits, narrow_range, build
        As for `relative_integers`.

    Examples
    --------
    >>> zero_points([-1.0, -6.0], [3.0, 6.0], 8, narrow_range=False)
    ZeroPoints(zero_point=array([ 64, 128], dtype=int32), near_tie=array([False,  True]))
    """
    low, high = _flushed(min, "min"), _flushed(max, "max")
    first, last = limits(num_bits, narrow_range)
    tolerance = arithmetic_of(build).rounding_errors[1] * Fraction(2) ** (num_bits - 24)
    zero, near = np.empty(low.shape, np.int32), np.empty(low.shape, np.bool_)
    for index, (a, b) in enumerate(zip(low.flat, high.flat, strict=True)):
        if a == b:
            zero.flat[index], near.flat[index] = 1 << (num_bits - 1), False
            continue
        span = Fraction(float(b)) - Fraction(float(a))
        exact = first - Fraction(float(a)) * (last - first) / span
        clipped = sorted((Fraction(first), exact, Fraction(last)))[1]
        zero.flat[index] = (clipped + _HALF) // 1
        near.flat[index] = abs(clipped % 1 - _HALF) <= tolerance
    return ZeroPoints(zero, near)


def _flushed(end: ArrayLike, name: str) -> NDArray[Any]:
    """Return a range end as float64, subnormals as 0: TensorFlow's kernels see no others."""
    wide = np.asarray(as_float32(end, name), np.float64)
    return np.where(np.abs(wide) < _SMALLEST_NORMAL, 0.0, wide)
