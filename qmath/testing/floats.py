"""Floats that decide: rounding ties of a range, its ends, subnormals and extremes.

A tie has two places. The exact one is halfway between two real steps. The one that counts is
where TensorFlow's float32 arithmetic goes over to the next integer, which may be many floats away.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.kernels._float32 import flush
from qmath.kernels.affine import quantize, scale_and_zero_point
from qmath.kernels.exact import limits

__all__ = [
    "EXTREMES",
    "Range",
    "case_ranges",
    "deciding_floats",
    "exact_steps",
    "neighbours",
    "thresholds",
    "to_tie",
]

Float32Array = NDArray[np.float32]
_HALF = Fraction(1, 2)
_TINY = 2.0**-126
# Zeros, subnormals, the smallest normal numbers, and the largest.
EXTREMES: Float32Array = np.array(
    [0.0, -0.0, 1e-45, -1e-45, _TINY - 1e-45, 1e-45 - _TINY, _TINY, -_TINY,
     3.4028235e38, -3.4028235e38, np.inf, -np.inf], np.float32
)  # fmt: skip
# Usual ranges, dyadic ones, whose ties are exact, some that miss zero, narrow and wide ones.
_RANGES = (
    (-1.0, 1.0), (-6.0, 6.0), (0.0, 6.0), (0.0, 1.0), (-1.0, 0.9921875), (-8.0, 7.9375),
    (0.0, 255.0), (-0.1, 0.3), (-1.3, 2.7), (1.0, 2.0), (-3.0, -2.5), (-0.001, 1000.0),
    (-(2.0**-108), 2.0**-107), (0.0, 2.0**120), (-(2.0**125), 2.0**125),
)  # fmt: skip


class Range(NamedTuple):
    """A range as a quantizer stores it, a width, and whose arithmetic counts.

    `function` is the op that fake-quantizes: ``"vars"`` divides by the scale, ``"args"`` and
    ``"per_channel"`` multiply by its inverse.
    """

    min: float
    max: float
    num_bits: int
    narrow_range: bool = False
    function: str = "vars"

    def relative(self, x: ArrayLike) -> NDArray[np.int32]:
        """Return the integers of floats, relative to the zero point."""
        op: Any = "vars" if self.function == "vars" else "args"
        q = quantize(x, self.min, self.max, self.num_bits, narrow_range=self.narrow_range, op=op)
        return np.asarray(q.values.astype(np.int32) - q.zero_point)

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest integer, relative to the zero point."""
        _, zero_point = scale_and_zero_point(
            self.min, self.max, self.num_bits, narrow_range=self.narrow_range, signed=False
        )
        low, high = limits(self.num_bits, self.narrow_range)
        return low - int(zero_point), high - int(zero_point)

    @property
    def step(self) -> Fraction:
        """The exact width of an integer step."""
        low, high = (
            Fraction(float(flush(np.asarray(end, np.float32)))) for end in (self.min, self.max)
        )
        first, last = limits(self.num_bits, self.narrow_range)
        return (high - low) / (last - first)


def neighbours(x: ArrayLike, ulps: ArrayLike) -> Float32Array:
    """Return the floats that lie `ulps` floats above or below, none beyond the largest finite one.

    Examples
    --------
    >>> neighbours([1.0, 0.0], [-1, -1])
    array([ 9.9999994e-01, -1.4012985e-45], dtype=float32)
    """
    return _from_order(_order(np.asarray(x, np.float32)) + np.asarray(ulps, np.int64))


def thresholds(integers: ArrayLike, range: Range) -> Float32Array:
    """Return the least float32 whose integer is above each of `integers`.

    Parameters
    ----------
    integers : array-like of int
        Relative to the zero point, from the lowest to the highest but one.
    range : Range
        One that determines integers.

    Examples
    --------
    >>> thresholds([0, 1], Range(-1.0, 0.875, 4))
    array([0.06249994, 0.18749994], dtype=float32)
    """
    r = np.asarray(integers, np.int64)
    step = float(range.step)
    # Twice the distance from a tie that `qmath.kernels.exact` proves, in steps.
    reach = min(2.0 ** (range.num_bits - 20) + 4 * _TINY / step, 0.75)
    ends = (np.atleast_1d((r + (0.5 + sign * reach)) * step) for sign in (-1, 1))
    low, high = (_order(np.float32(end)) for end in ends)
    wanted, open = np.atleast_1d(r), np.arange(r.size)
    while open.size:  # by bisection: the integer of `low` is at most r, that of `high` above it
        middle = (low[open] + high[open]) >> 1
        above = range.relative(_from_order(middle)) > wanted[open]
        high[open[above]], low[open[~above]] = middle[above], middle[~above]
        open = open[high[open] - low[open] > 1]
    return _from_order(high).reshape(r.shape)


def exact_steps(x: float, range: Range) -> Fraction:
    """Return a finite float in exact integer steps of a range, relative to the zero point."""
    return Fraction(float(x)) / range.step


def to_tie(x: float, range: Range) -> float | None:
    """Return the exact distance of a float from the nearest tie of a range, in integer steps.

    None where there is no tie: of NaN and infinities, and of ranges of no width.

    Examples
    --------
    >>> to_tie(0.0625, Range(-1.0, 0.875, 4)), to_tie(0.125, Range(-1.0, 0.875, 4))
    (0.0, 0.5)
    """
    if not np.isfinite([x, range.min, range.max]).all() or not range.step:
        return None
    return float(abs(exact_steps(x, range) % 1 - _HALF))


def deciding_floats(range: Range, count: int, rng: np.random.RandomState) -> Float32Array:
    """Return floats that tell one quantizer from another.

    Half of them lie on both sides of where float32 arithmetic goes over to the next integer, a
    fifth at most two floats from an exact tie; the others at the ends of the range, among
    subnormals and extremes, and anywhere in the range. None is NaN.

    Parameters
    ----------
    range : Range
        Of any ends: of one that determines no integers there are no ties.
    count : int
    rng : RandomState
        Whose stream is the same in every NumPy.

    Examples
    --------
    >>> deciding_floats(Range(-1.0, 0.875, 4), 2, np.random.RandomState(0))
    array([0.06250001, 0.06250001], dtype=float32)
    """
    kinds = rng.uniform(size=count)
    ulps = rng.randint(-2, 3, count)
    ends = np.array([range.min, range.max, 0.0], np.float32)
    found = np.where(
        kinds < 0.85, EXTREMES[rng.randint(len(EXTREMES), size=count)], _within(range, rng, count)
    )
    found = np.where(kinds < 0.8, neighbours(ends[rng.randint(3, size=count)], ulps), found)
    try:
        low, high = range.ends
        step = float(range.step)
        integers = rng.randint(low, max(high, low + 1), count)
    except QmathError:  # which the kernels take silently
        return np.asarray(found, np.float32)
    if not step:
        return np.asarray(found, np.float32)
    # A tie beyond either end is one for a kernel without clamps.
    beyond = np.float32((integers + np.sign(integers) * (high - low) // 2 + 0.5) * step)
    exact = neighbours(np.float32((integers + 0.5) * step), ulps)
    found = np.where(kinds < 0.72, neighbours(beyond, ulps), found)
    found = np.where(kinds < 0.7, exact, found)
    crossing = neighbours(thresholds(integers, range), -(ulps & 1))
    return np.asarray(np.where(kinds < 0.5, crossing, found), np.float32)


def case_ranges(
    count: int, rng: np.random.RandomState, num_bits: int | None, function: str
) -> list[Range]:
    """Return ranges of all kinds, each of which determines integers.

    Parameters
    ----------
    count : int
    rng : RandomState
    num_bits : int or None
        Default: every width in turn.
    function : str
        As in `Range`.
    """
    found = []
    for number in np.arange(count):
        if number % 2 == 0 and number // 2 < len(_RANGES):
            low, high = _RANGES[number // 2]
        else:
            ends = np.exp2(rng.uniform(-8, 5, 2))
            low, high = (-ends[0], ends[1]) if rng.randint(4) else (0.0, ends[1])
        bits = num_bits or 2 + int(number) % 15
        low, high = (float(np.float32(end)) for end in (low, high))
        found.append(Range(low, high, bits, bool(number // 3 % 2), function))
    return found


def _within(range: Range, rng: np.random.RandomState, count: int) -> Float32Array:
    """Return floats from all of a range, and a little beyond."""
    part = rng.uniform(-0.1, 1.1, count)
    with np.errstate(all="ignore"):  # an end may be infinite
        return np.asarray(np.float32(range.min * (1 - part) + range.max * part))


def _order(x: ArrayLike) -> NDArray[np.int64]:
    """Return each float's place among all floats, both zeros at 0."""
    bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
    return np.asarray(np.where(bits < 0, -(bits & 0x7FFFFFFF), bits))


def _from_order(order: NDArray[np.int64]) -> Float32Array:
    largest = 0x7F7FFFFF
    order = np.clip(order, -largest, largest)
    bits = np.abs(order).astype(np.int32).view(np.float32)
    return np.asarray(np.where(order < 0, -bits, bits), np.float32)
