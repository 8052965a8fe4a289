"""What each accumulator would become by a mistake: which purposes an element serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.bounds import channel_intervals
from qmath.integer.profiles.exact import clamps
from qmath.integer.profiles.fixed import FixedPoint
from qmath.integer.program import Requantize

__all__ = ["DROPPED", "NEAR", "Rounding", "Side", "rounding_of"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]
Masks = dict[str, NDArray[np.bool_]]

NEAR = 2.0**-12  # of a step: what is nearer to a tie than this is near
DROPPED = 2  # bits that an accumulator is too narrow
_PRODUCT = 31  # bits that a double rounding rounds away first


@dataclass(frozen=True, eq=False)
class Side:
    """Constants of one side of an activation, broadcast to where they are used."""

    multipliers: tuple[Int64Array, ...]
    addend: Int64Array
    shift: Int64Array

    def total(self, sums: Sequence[Array]) -> Int64Array:
        """Return the sum of products and addend, before the shift."""
        products = (a * m for a, m in zip(sums, self.multipliers, strict=True))
        return np.asarray(sum(products, start=self.addend))


@dataclass(frozen=True, eq=False)
class Rounding:
    """How a step's accumulators are rounded, as the profile ``integer`` does, or with a mistake.

    Attributes
    ----------
    sides : tuple of Side
        Of a leaky ReLU two, the second for negative results.
    low, high : ndarray of int64
        The clamps, relative to the zero point.
    ends : tuple of (ndarray, ndarray)
        For each term, the proved least and greatest accumulator.
    bits : tuple of int
        For each term, the proved width of all channels' accumulators.
    multiplier_bits : int
    """

    sides: tuple[Side, ...]
    low: Int64Array
    high: Int64Array
    ends: tuple[tuple[Int64Array, Int64Array], ...]
    bits: tuple[int, ...]
    multiplier_bits: int
    below: Array = field(default_factory=lambda: np.array(NEAR))
    above: Array = field(default_factory=lambda: np.array(NEAR))

    @property
    def is_uniform(self) -> bool:
        """Whether each channel has the same constants everywhere."""
        sides = (x for s in self.sides for x in (*s.multipliers, s.addend, s.shift))
        return all(x.ndim <= 1 for x in (*sides, self.low, self.high))

    def of_channels(self, channels: Any, shape: tuple[int, ...]) -> Rounding:
        """Return the constants of some flat elements of an output of this shape."""

        def pick(x: Array) -> Int64Array:
            return np.asarray(np.broadcast_to(x, shape).reshape(-1)[channels])

        def side(s: Side) -> Side:
            return Side(tuple(map(pick, s.multipliers)), pick(s.addend), pick(s.shift))

        return Rounding(
            tuple(map(side, self.sides)), pick(self.low), pick(self.high),
            tuple((pick(low), pick(high)) for low, high in self.ends),
            self.bits, self.multiplier_bits, pick(self.below), pick(self.above),
        )  # fmt: skip

    def result(self, sums: Sequence[Array], dropped: int = 0) -> Int64Array:
        """Return integers relative to the zero point; the multipliers' lowest bits may be lost."""
        positive, *negative = (_without_low_bits(side, dropped) for side in self.sides)
        total = positive.total(sums)
        y = total >> positive.shift
        for side in negative:
            is_negative = total < _half(positive.shift)
            y = np.where(is_negative, side.total(sums) >> side.shift, y)
        return self.clamp(y)

    def total(self, sums: Sequence[Array]) -> tuple[Int64Array, Int64Array]:
        """Return the sum before the shift, and the shift, of the side that counts."""
        total, shift = self.sides[0].total(sums), self.sides[0].shift
        for side in self.sides[1:]:
            is_negative = total < _half(shift)
            total = np.where(is_negative, side.total(sums), total)
            shift = np.where(is_negative, side.shift, shift)
        return total, shift

    def distances(self, sums: Sequence[Array]) -> tuple[Array, Array]:
        """Return in steps how far results lie below a tie and above, infinite where none shows."""
        total, shift = self.total(sums)
        y = total >> shift
        result, rest = self.clamp(y), np.ldexp((total - (y << shift)).astype(np.float64), -shift)
        below = np.where(self.clamp(y + 1) != result, 1.0 - rest, np.inf)
        return below, np.where(self.clamp(y - 1) != result, rest, np.inf)

    def clamp(self, y: Int64Array) -> Int64Array:
        """Return `y` within the clamps."""
        return np.minimum(np.maximum(y, self.low), self.high)

    def masks(self, sums: Sequence[Int64Array]) -> Masks:
        """Return for each purpose which elements serve it."""
        found: Masks = {}
        pairs = list(zip(sums, self.ends, strict=True))
        found["greatest accumulator"] = _all(a == high for a, (_, high) in pairs)
        found["least accumulator"] = _all(a == low for a, (low, _) in pairs)
        total, shift = self.total(sums)
        y = total >> shift
        found["upper clamp"], found["past the upper clamp"] = y == self.high, y == self.high + 1
        found["lower clamp"], found["past the lower clamp"] = y == self.low, y == self.low - 1
        result = self.clamp(y)
        below, above = self.distances(sums)
        found["below a tie"], found["above a tie"] = below <= self.below, above <= self.above
        lower, above = self.clamp(y - 1) != result, total - (y << shift)
        found["half to even"] = lower & (above == 0) & (y % 2 != 0)
        found["half away from zero"] = lower & (above == 0) & (y <= 0)
        twice = _rounded_twice(total - _half(shift), shift)
        found["double rounding"] = self.clamp(twice) != result
        found["no rounding"] = self.clamp((total - _half(shift)) >> shift) != result
        for width in (16, 12):
            dropped = self.multiplier_bits - width
            name = f"{width}-bit multiplier"
            if dropped > 0:
                found[name] = self.result(sums, dropped) != result
        narrow = [_wrapped(a, b - DROPPED) for a, b in zip(sums, self.bits, strict=True)]
        found["narrow accumulator"] = self.result(narrow) != result
        return found


def rounding_of(
    step: Requantize, constants: Sequence[FixedPoint], multiplier_bits: int
) -> Rounding:
    """Return how a step rounds; `constants` are those of the profile ``integer``."""
    low, high = (limit.astype(np.int64) for limit in clamps(step))
    return Rounding(
        tuple(Side(fixed.multipliers, fixed.addend, fixed.shift) for fixed in constants),
        low,
        high,
        tuple(channel_intervals(term) for term in step.value.terms),
        tuple(int(bits.max()) for bits in constants[0].accumulator_bits),
        multiplier_bits,
    )


def _half(shift: Int64Array) -> Int64Array:
    return np.asarray(np.int64(1) << (shift - 1))


def _all(conditions: Iterator[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    result = next(conditions)
    for condition in conditions:
        result = result & condition
    return np.asarray(result)


def _without_low_bits(side: Side, dropped: int) -> Side:
    if not dropped:
        return side
    cut = (np.sign(m) * (np.abs(m) >> dropped << dropped) for m in side.multipliers)
    return Side(tuple(cut), side.addend, side.shift)


def _rounded_twice(total: Int64Array, shift: Int64Array) -> Int64Array:
    """Round half up first by 31 bits, or where that is all or more, but for the last six."""
    first = np.where(shift > _PRODUCT, _PRODUCT, np.maximum(shift - 6, 0))
    half = (np.int64(1) << first) >> 1
    second = shift - first
    return np.asarray(((total + half >> first) + _half(second)) >> second)


def _wrapped(a: Int64Array, bits: int) -> Int64Array:
    """Return accumulators in two's complement of fewer bits."""
    half = np.int64(1) << max(bits - 1, 0)
    return np.asarray((a + half) % (2 * half) - half)
