"""The profile `exact`, which is the definition: round once, from float64.

Also what every profile needs: its interface, the real result before it is rounded, and its clamps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qmath.integer.program import Program, Requantize

__all__ = ["Exact", "Planner", "Profile", "clamped", "clamps", "unrounded"]

Array = NDArray[Any]
Float64Array = NDArray[np.float64]


class Profile(Protocol):
    """How an accumulator is rounded."""

    name: str

    def requantize(
        self, step: Requantize, sums: Sequence[Array], intervals: Sequence[tuple[int, int]]
    ) -> Array:
        """Return the integers relative to the output's zero point, as float32."""


@runtime_checkable
class Planner(Protocol):
    """A profile whose runtime has other steps than training."""

    def planned(self, program: Program) -> Program:
        """Return a program as the runtime has it; the names and parameters are those of before."""


class Exact:
    """Round once, from float64: the definition."""

    name = "exact"

    def requantize(
        self, step: Requantize, sums: Sequence[Array], _intervals: Sequence[tuple[int, int]]
    ) -> Array:
        """Return the integers relative to the output's zero point, as float32."""
        y = unrounded(step, sums)
        np.add(y, 0.5, out=y)
        np.floor(y, out=y)
        return clamped(y, step)


def unrounded(step: Requantize, sums: Sequence[Array]) -> Float64Array:
    """Return the real result in integer steps of the output, relative to its zero point."""
    total: Float64Array | None = None
    for term, a in zip(step.value.terms, sums, strict=True):
        product = np.multiply(a, term.scale / step.params.scale, dtype=np.float64)
        total = product if total is None else np.add(total, product, out=total)
    assert total is not None
    total += step.value.offset / step.params.scale
    activation = step.value.activation
    if activation is not None and activation.leaks:
        np.multiply(total, activation.slope, out=total, where=total < 0)
    return total


def clamped(y: Array, step: Requantize) -> NDArray[np.float32]:
    """Return `y` within the step's limits, as float32: in it, what is cut off may be rounded."""
    low, high = clamps(step)
    result = y.astype(np.float32)
    np.maximum(result, low, out=result)
    return np.minimum(result, high, out=result)


def clamps(step: Requantize) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the lowest and highest result of a step, relative to the zero point.

    Clamping after rounding equals clamping before: rounding is monotone.
    """
    low, high = (np.float64(limit) for limit in step.params.limits)
    activation = step.value.activation
    if activation is None:
        return np.asarray(low, np.float32), np.asarray(high, np.float32)
    lowest = np.where(activation.slope, low, max(low, 0.0))
    limit = np.floor(np.asarray(activation.limit) / step.params.scale + 0.5)
    return lowest.astype(np.float32), np.minimum(high, limit).astype(np.float32)
