"""Exact fixed point: constants that float32 holds, and the type that holds every value.

Types are written as in AMD's HLS, ``ap_fixed<width, integer bits>``, which hls4ml reads.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import OutputError
from qmath.integer.profiles.fixed import FixedPoint

__all__ = ["MOST_BITS", "Scaling", "exact", "fixed_type", "fractions", "result", "scaling", "whole"]

Fractions = NDArray[np.object_]
MOST_BITS = 24  # of a multiplier: float32 holds no more


class Scaling:
    """A requantization as ``sum((a + bias) * multiplier) + rest``, whose floor is the result.

    Attributes
    ----------
    multipliers, biases : list of ndarray of Fraction
        One for each term, of shape ``()``, ``(C,)`` or the output's; a bias is a whole number.
    rest : ndarray of Fraction
        Smaller than the multiplier of a term, so that float32 holds it.
    """

    def __init__(self, multipliers: list[Fractions], biases: list[Fractions], rest: Fractions):
        self.multipliers, self.biases, self.rest = multipliers, biases, rest


def scaling(fixed: FixedPoint, zero_point: int) -> Scaling:
    """Return the constants of a requantization whose result counts from 0, as TensorFlow does.

    The addend of the integer model has more bits than float32: it is divided by the largest
    multiplier, and the quotient added to the accumulator before.
    """
    shape = np.broadcast_shapes(
        *(m.shape for m in fixed.multipliers), fixed.addend.shape, fixed.shift.shape
    )
    shift, addend, *multipliers = (
        np.broadcast_to(x, shape).ravel().tolist()
        for x in (fixed.shift, fixed.addend, *fixed.multipliers)
    )
    biases = [[0] * len(shift) for _ in multipliers]
    rest = []
    for i, (s, a) in enumerate(zip(shift, addend, strict=True)):
        total = a + (zero_point << s)
        largest = max(range(len(multipliers)), key=lambda n: abs(multipliers[n][i]))
        m = multipliers[largest][i]
        if m:
            biases[largest][i], total = divmod(total, m)
        else:  # a constant: its fraction does not count
            total = total >> s << s
        rest.append(Fraction(total, 1 << s))
    ones = [1 << s for s in shift]
    return Scaling(
        [_array(map(Fraction, m, ones), shape) for m in multipliers],
        [_array(map(Fraction, bias), shape) for bias in biases],
        _array(rest, shape),
    )


def _array(values: Any, shape: tuple[int, ...]) -> Fractions:
    """Return an array of numbers, of shape ``()`` where they are all equal."""
    given = list(values)
    if given and given.count(given[0]) == len(given):
        given, shape = given[:1], ()
    made = np.empty(math.prod(shape), object)
    made[:] = given
    return made.reshape(shape)


def exact(values: Fractions, name: str) -> NDArray[np.float32]:
    """Return numbers as float32, which has to hold them.

    Raises
    ------
    OutputError
        It does not.
    """
    found = values.astype(np.float64).astype(np.float32)
    if any(Fraction(float(x)) != y for x, y in zip(found.ravel(), values.ravel(), strict=True)):
        raise OutputError(
            f"{name}: its bias, counted in steps of the accumulator, needs more than the 24 bits "
            "of QONNX's float32, as with weights and activations of 16 bits, or with an untrained "
            "range; export to mem or c, which hold every width"
        )
    return found


def fixed_type(*values: Fractions) -> str:
    """Return the narrowest type that holds all numbers, and every whole multiple in between.

    Examples
    --------
    >>> fixed_type(_array([Fraction(-3), Fraction(5, 2)], (2,)))
    'ap_fixed<4,3>'
    >>> fixed_type(_array([Fraction(3, 1024)], ()))
    'ap_ufixed<2,-8>'
    """
    every = [value for array in values for value in np.asarray(array, object).ravel()]
    fraction = max(value.denominator for value in every).bit_length() - 1
    least, most = (int(end(every) * (1 << fraction)) for end in (min, max))
    bits = max(max(most, 0).bit_length(), (~least).bit_length() if least < 0 else 0) + (least < 0)
    width = max(bits, 1)
    return f"ap_{'' if least < 0 else 'u'}fixed<{width},{width - fraction}>"


def whole(number: int) -> Fractions:
    """Return a whole number as an array of fractions."""
    return fractions(number)


def fractions(values: Any) -> Fractions:
    """Return whole numbers, or fractions, as an array of fractions."""
    given = np.asarray(values, object)
    made = np.empty(given.size, object)
    made[:] = [v if isinstance(v, Fraction) else Fraction(int(v)) for v in given.ravel()]
    return made.reshape(given.shape)


def result(low: int, high: int) -> dict[str, str]:
    """Return the type of whole numbers of an interval, as that of a layer's result."""
    return {"result": fixed_type(whole(low), whole(high))}
