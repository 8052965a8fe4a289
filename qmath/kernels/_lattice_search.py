"""Every lattice that gives a set of float32 values bit for bit.

A lattice of the form ``k * scale`` or ``k / scale`` is known by one integer, that of the largest
magnitude: it fixes the scale up to rounding, and so all other integers. `Row` tries each integer
that the width allows.

Notes
-----
Let ``w = fl(k s)`` and the largest magnitude ``W = fl(K s)``, both with a relative rounding error
of at most ``u = 2**-24``. Then ``|w K / W - k| <= 2 u k (1 + 2 u)``: with integers below
``2**16`` less than 2**-7, so `k` is the integer nearest to ``w K / W``, and a `K` for which that
distance is greater is out. (Products below 2**-125 are not rounded at all: they are multiples of
2**-149, as every float32 is.)

For the rest, ``fl(k s) == w`` says that ``k s`` is between the midpoints `m` of `w` and its
neighbours; a midpoint itself rounds to the neighbour with the even significand. The scales of a
`K` are the float32 numbers in the intersection of the intervals ``m / k``, computed in float64.
That decides nothing wrongly: ``k s`` has at most 40 bits and `m` 25, so if they differ, then by
2**-41 relative to either, but the quotient is off by 2**-53 only. Midpoints that are excluded
move inward by 2**-50, which is between the two. In the form ``k / s``, ``m s`` has 49 bits, and
``k == m s`` is impossible: `k` has 16 bits, and `m` 25 that end in 1. (That needs normal numbers,
so magnitudes below 2**-100 are not tried in that form.) All that is found is then compared bit by
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from qmath.kernels._float32 import Float32Array, Float64Array

PRODUCT = "(integers - zero_point) * scale"
QUOTIENT = "(integers - zero_point) / scale"
SHIFTED_QUOTIENT = "2 * (integers / scale) - 1"
SHIFTED_PRODUCT = "2 * (integers * scale) - 1"
SHIFTED = (SHIFTED_QUOTIENT, SHIFTED_PRODUCT)

# Each in float32, one rounding an operation; integers are relative to the zero point.
EVALUATE: dict[str, Callable[[Float32Array, Float32Array], Float32Array]] = {
    PRODUCT: lambda k, scale: k * scale,
    QUOTIENT: lambda k, scale: k / scale,
    SHIFTED_QUOTIENT: lambda k, scale: np.float32(2) * (k / scale) - np.float32(1),
    SHIFTED_PRODUCT: lambda k, scale: np.float32(2) * (k * scale) - np.float32(1),
}

_TOLERANCE = 2.0**-23 * (1 + 2.0**-10)  # 2 u, see the notes, and some for float64's own rounding
_EXCLUDED = 2.0**-50
_SMALLEST_QUOTIENT = 2.0**-100
_CELLS = 1 << 16  # of a table of lattices and values
_FEW = 8  # values that nearly always suffice to see that there is no lattice


class Width(NamedTuple):
    """The integers that are stored, and which of them is real zero (``None``: any of them)."""

    lowest: int
    highest: int
    zero_point: int | None

    @property
    def room(self) -> tuple[int, int, int]:
        """How far integers relative to zero reach below and above it, and both together."""
        span = self.highest - self.lowest
        if self.zero_point is None:
            return span, span, span
        return self.zero_point - self.lowest, self.highest - self.zero_point, span


class Lattices(NamedTuple):
    """The lattices of one form, the coarsest first.

    Attributes
    ----------
    largest : ndarray of float64
        The integer of the largest magnitude; in the shifted forms, the integer of 1.
    scale, scale_max : ndarray of float32
        The first and the last float32 that give the same values with the same integers; all
        between them do.
    """

    largest: Float64Array
    scale: Float32Array
    scale_max: Float32Array


class Row:
    """The values that share a scale.

    Parameters
    ----------
    values : ndarray of float32
        Finite, one-dimensional.
    magnitudes : ndarray of float32
        The distinct magnitudes of `values`, sorted, without 0.
    width : Width
        Where the integers have to fit.
    """

    def __init__(self, values: Float32Array, magnitudes: Float32Array, width: Width) -> None:
        self.values, self.width = values, width
        self.magnitudes = magnitudes.astype(np.float64)
        self.top = float(self.magnitudes[-1]) if magnitudes.size else 0.0
        self.low = min(float(values.min()), 0.0) if values.size else 0.0
        self.high = max(float(values.max()), 0.0) if values.size else 0.0

    def lattices(self, form: str) -> Lattices:
        """Return the lattices of a form."""
        if form in SHIFTED:
            return self._shifted_quotient if form == SHIFTED_QUOTIENT else self._shifted_product
        return self._product if form == PRODUCT else self._quotient

    @cached_property
    def _product(self) -> Lattices:
        return _with_scales(PRODUCT, self._candidates, self.magnitudes)

    @cached_property
    def _quotient(self) -> Lattices:
        if self.magnitudes.size and self.magnitudes[0] < _SMALLEST_QUOTIENT:
            return _with_scales(QUOTIENT, self._candidates[:0], self.magnitudes)
        return _with_scales(QUOTIENT, self._candidates, self.magnitudes)

    @cached_property
    def _shifted_quotient(self) -> Lattices:
        return self._shifted(SHIFTED_QUOTIENT)

    @cached_property
    def _shifted_product(self) -> Lattices:
        return self._shifted(SHIFTED_PRODUCT)

    @cached_property
    def distinct(self) -> Float32Array:
        """The distinct values, sorted."""
        return np.unique(self.values)

    @cached_property
    def _candidates(self) -> Float64Array:
        """The integers of the largest magnitude by which all values are near integers."""
        magnitudes = self.magnitudes
        if not magnitudes.size:
            return np.zeros(1)
        largest = self._allowed(magnitudes.size)  # as many magnitudes have as many integers
        start = 0
        while start < magnitudes.size and largest.size:
            part = magnitudes[start : start + max(1, _CELLS // largest.size)]
            exact = np.multiply.outer(largest, part / self.top)
            nearest = np.rint(exact)
            close = np.abs(exact - nearest) <= nearest * _TOLERANCE
            largest = largest[close.all(axis=1)]
            start += part.size
        return largest

    def _allowed(self, start: int) -> Float64Array:
        """Return the integers from `start` on that the largest magnitude may have."""
        room_below, room_above, span = self.width.room
        largest = np.arange(start, span + 1, dtype=np.float64)
        below = np.rint(largest * (-self.low / self.top))
        above = np.rint(largest * (self.high / self.top))
        fits = (below <= room_below) & (above <= room_above) & (below + above <= span)
        return largest[fits]

    def ends(self, largest: float) -> tuple[int, int]:
        """Return the least and the greatest integer, real zero's 0 included."""
        if not self.top:
            return 0, 0
        return round(largest * self.low / self.top), round(largest * self.high / self.top)

    def _shifted(self, form: str) -> Lattices:
        """Return the lattices of -1 … 1 in which 1 has the integer `largest` and -1 has 0."""
        counts = np.arange(1, self.width.room[2] + 1, dtype=np.float32)
        if self.top > 1:
            counts = counts[:0]
        for few in (True, False):
            # Sorted only if there is something to find.
            values = self.values[:_FEW] if few or not counts.size else self.distinct
            for part in _parts(values.size, counts.size):
                k = np.rint(np.multiply.outer(counts / 2.0, values[part].astype(np.float64) + 1))
                scale = _shifted_scale(form, counts)[:, np.newaxis]
                real = EVALUATE[form](k.astype(np.float32), scale)
                counts = counts[(real == values[part]).all(axis=1)]
        scale = _shifted_scale(form, counts)
        return Lattices(counts.astype(np.float64), scale, scale)

    def largest_error(self) -> float:
        """Return by how many units in the last place the closest product misses a value.

        The closest by some of the values, of those that give the largest one.
        """
        if self.lattices(PRODUCT).largest.size:
            return 0.0
        magnitudes = self.magnitudes
        reached = np.zeros_like(magnitudes)
        largest = self._allowed(1)
        if largest.size:
            some = magnitudes[np.linspace(0, magnitudes.size - 1, _FEW // 2).astype(int)]
            exact = np.multiply.outer(some / self.top, largest)
            error = (np.abs(exact - np.rint(exact)) / exact).max(axis=0)
            step = np.float32(self.top / largest[error.argmin()])
            steps = np.rint(magnitudes / self.top * largest[error.argmin()]).astype(np.float32)
            reached = EVALUATE[PRODUCT](steps, step).astype(np.float64)
        return float((np.abs(reached - magnitudes) / _ulp(magnitudes)).max())


def _shifted_scale(form: str, counts: Float32Array) -> Float32Array:
    return counts if form == SHIFTED_QUOTIENT else np.float32(1) / counts


def _parts(size: int, rows: int) -> Iterator[slice]:
    """Yield slices of `size` columns that with `rows` rows make tables of bounded size."""
    step = max(1, _CELLS // max(1, rows))
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def _with_scales(form: str, largest: Float64Array, magnitudes: Float64Array) -> Lattices:
    """Return those lattices that have a float32 scale, with their scales."""
    if not magnitudes.size:  # zeros, which any scale gives: dead
        scale = np.full(largest.size, form == QUOTIENT, np.float32)
        return Lattices(largest, scale, scale)
    low, high = np.zeros(largest.size), np.full(largest.size, np.inf)
    ratios = magnitudes / magnitudes[-1]
    lower, upper = _rounding_interval(magnitudes)
    for part in _parts(magnitudes.size, largest.size):
        k = np.rint(np.multiply.outer(largest, ratios[part]))
        if form == PRODUCT:
            ends = lower[part] / k, upper[part] / k
        else:
            ends = k / upper[part], k / lower[part]
        np.maximum(low, ends[0].max(axis=1), out=low)
        np.minimum(high, ends[1].min(axis=1), out=high)
    first, last = low.astype(np.float32), high.astype(np.float32)
    first = np.where(first < low, np.nextafter(first, np.float32(np.inf)), first)
    last = np.where(last > high, np.nextafter(last, np.float32(0)), last)
    keep = (first <= last) & np.isfinite(last)
    found = Lattices(largest[keep], first[keep], last[keep])
    equal = np.ones(found.largest.size, bool)
    for part in _parts(magnitudes.size, found.largest.size):
        k = np.rint(np.multiply.outer(found.largest, ratios[part])).astype(np.float32)
        for scale in (found.scale, found.scale_max):
            equal &= (EVALUATE[form](k, scale[:, np.newaxis]) == magnitudes[part]).all(axis=1)
    return Lattices(found.largest[equal], found.scale[equal], found.scale_max[equal])


def _rounding_interval(magnitudes: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return the least and the greatest number that rounds to each magnitude, see the notes."""
    narrow = magnitudes.astype(np.float32)
    below = np.nextafter(narrow, np.float32(0)).astype(np.float64)
    above = magnitudes + _ulp(magnitudes)
    excluded = (narrow.view(np.uint32) & 1) * _EXCLUDED
    lower, upper = (magnitudes + below) / 2, (magnitudes + above) / 2
    return lower * (1 + excluded), upper * (1 - excluded)


def _ulp(magnitudes: Float64Array) -> Float64Array:
    """Return the distance to the next float32, also of the largest one."""
    _, exponent = np.frexp(magnitudes)
    return np.asarray(np.ldexp(1.0, np.maximum(exponent - 24, -149)))
