"""The profile `integer`, which is what hardware does: multiply, add, shift in int64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.bounds import (
    CARRIER,
    accumulator_bits,
    channel_intervals,
    interval,
    multiplier_room,
)
from qmath.integer.profiles.exact import clamped
from qmath.integer.program import Program, Requantize
from qmath.kernels._arrays import as_index
from qmath.kernels._environment import in_default_environment

__all__ = ["FixedPoint", "Integer", "checked_multiplier_bits", "constants"]

Array = NDArray[Any]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """The constants of one requantization: ``(sum(a * m) + addend + half) >> shift``.

    Attributes
    ----------
    multipliers : tuple of ndarray of int64
        One for each term of the accumulator, of shape ``()``, ``(C,)`` or the output's; their
        magnitudes are below ``2**multiplier_bits``, the sign apart.
    addend : ndarray of int64
        Bias and batch normalization, added after the multiplication; the rounding's half is in it.
    shift : ndarray of int64
        Right shift, 1 or more.
    accumulator_bits : tuple of ndarray of int
        Two's complement width that each term's accumulators need, proved from the weights, of
        shape ``(C,)``, or ``()`` where channels cannot be told apart.
    error : float
        Bound of the result's error before rounding, in integer steps.
    """

    multipliers: tuple[Int64Array, ...]
    addend: Int64Array
    shift: Int64Array
    accumulator_bits: tuple[NDArray[Any], ...]
    error: float

    @property
    def shift_only(self) -> tuple[Int64Array, Int64Array] | None:
        """Bias and shift of ``(a + bias) >> shift``, which is the same; ``None`` if there is none.

        There is one if the multiplier of the only term is a power of two in every channel, no
        larger than ``2**shift``.
        """
        m, *others = self.multipliers
        exponent = np.frexp(m.astype(np.float64))[1].astype(np.int64) - 1
        if others or (m <= 0).any() or (m & (m - 1)).any() or (exponent > self.shift).any():
            return None
        return np.asarray(self.addend >> exponent), np.asarray(self.shift - exponent)


class Integer:
    """Multiply, add, shift in int64.

    Parameters
    ----------
    multiplier_bits : int
        Width of the multipliers, 8 to 31.
    """

    name = "integer"

    def __init__(self, multiplier_bits: int = 31) -> None:
        self.multiplier_bits = checked_multiplier_bits(multiplier_bits)
        self._constants: WeakKeyDictionary[Requantize, tuple[FixedPoint, ...]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Integer(multiplier_bits={self.multiplier_bits})"

    def requantize(
        self, step: Requantize, sums: Sequence[Array], intervals: Sequence[tuple[int, int]]
    ) -> Array:
        """Return the integers relative to the output's zero point, as float32."""
        positive, *negative = self.constants(step, intervals)
        total = _multiply_add(positive, sums)
        y = total >> positive.shift
        for leak in negative:
            is_negative = total < _half(positive.shift)  # which the addend holds
            y = np.where(is_negative, _multiply_add(leak, sums) >> leak.shift, y)
        return clamped(y, step)

    @in_default_environment
    def constants(
        self, step: Requantize, intervals: Sequence[tuple[int, int]]
    ) -> tuple[FixedPoint, ...]:
        """Return the constants of a step, and after them those of a leaky ReLU's negative side."""
        if step not in self._constants:
            activation = step.value.activation
            slopes = (
                [1.0] if activation is None or not activation.leaks else [1.0, activation.slope]
            )
            self._constants[step] = tuple(self._fixed_point(step, intervals, s) for s in slopes)
        return self._constants[step]

    def _fixed_point(
        self, step: Requantize, intervals: Sequence[tuple[int, int]], slope: float | Float64Array
    ) -> FixedPoint:
        value = step.value
        scales = [term.scale * (slope / step.params.scale) for term in value.terms]
        offset = value.offset * (slope / step.params.scale)
        room = multiplier_room(len(scales))
        # Of each output channel: the largest shift at which nothing can overflow.
        shift = np.minimum(room - _exponent(offset), CARRIER)
        for scale, ends in zip(scales, intervals, strict=True):
            width = min(self.multiplier_bits, room - int(accumulator_bits(*ends)))
            fits = width - _exponent(scale)
            fits = fits - (
                np.abs(_rounded(scale, fits)) >> width
            )  # one less if rounded up to 2**width
            shift = np.minimum(shift, fits)
        if (shift < 1).any():
            raise QmathError(
                f"{step.name}: in steps, its bias reaches {np.abs(offset).max():.3g} and its "
                f"multipliers {max(np.abs(scale).max() for scale in scales):.3g}: no bits are left "
                "for rounding; is its range untrained, or a bias broken?"
            )
        largest = [max(-low, high) for low, high in intervals]
        return FixedPoint(
            multipliers=tuple(_rounded(scale, shift) for scale in scales),
            addend=_rounded(offset, shift) + _half(shift),
            shift=shift,
            accumulator_bits=tuple(
                accumulator_bits(*channel_intervals(term)) for term in value.terms
            ),
            error=float((0.5 * (1 + sum(largest)) * np.ldexp(1.0, -shift)).max()),
        )


def checked_multiplier_bits(value: object) -> int:
    """Return a width of multipliers as an int.

    Raises
    ------
    QmathError
        It is no whole number of 8 to 31.
    """
    bits = as_index(value)
    if bits is None:
        raise QmathError(f"multiplier_bits must be a whole number, 8 to 31, got {value!r}")
    if not 8 <= bits <= 31:
        raise QmathError(f"multiplier_bits must be 8 to 31, got {bits}")
    return bits


def constants(program: Program, multiplier_bits: int = 31) -> dict[str, tuple[FixedPoint, ...]]:
    """Return what hardware needs for each requantization of a program.

    Parameters
    ----------
    program : Program
    multiplier_bits : int
        Width of the multipliers, 8 to 31.

    Returns
    -------
    dict of str to tuple of FixedPoint
        By tensor: the constants of ``(sum(a * multiplier) + addend) >> shift``, and after them,
        for a leaky ReLU, those of its negative side.

    Examples
    --------
    >>> from qmath.integer.api import program_of
    >>> fixed = constants(program_of("reference/samples/default8.h5"))["conv1/post_activation"][0]
    >>> int(fixed.accumulator_bits[0].max()), fixed.multipliers[0].shape, fixed.error < 1e-4
    (19, (16,), True)
    """
    profile = Integer(multiplier_bits)
    return {
        step.name: profile.constants(step, [interval(term) for term in step.value.terms])
        for step in program.steps
        if isinstance(step, Requantize)
    }


def _half(shift: Int64Array) -> Int64Array:
    return np.asarray(np.int64(1) << (shift - 1))


def _multiply_add(fixed: FixedPoint, sums: Sequence[Array]) -> Int64Array:
    total: Int64Array | None = None
    for multiplier, a in zip(fixed.multipliers, sums, strict=True):
        product = a.astype(np.int64)
        product *= multiplier
        total = product if total is None else np.add(total, product, out=total)
    assert total is not None
    total += fixed.addend
    return np.asarray(total)


def _exponent(x: Array) -> NDArray[np.int64]:
    """Return ``e`` with ``abs(x) < 2**e``; very small for zero."""
    mantissa, exponent = np.frexp(x)
    return np.where(mantissa == 0, -1024, exponent).astype(np.int64)


def _rounded(x: Array, shift: Int64Array) -> Int64Array:
    return np.rint(np.ldexp(x, shift)).astype(np.int64)
