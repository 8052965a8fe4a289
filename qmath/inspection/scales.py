"""How far scales are from powers of two, by which hardware multiplies with a shift."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from qmath.model import Float32Array

if TYPE_CHECKING:
    from qmath.inspection.report import Row

__all__ = ["from_power_of_two", "notes"]


def from_power_of_two(scale: Float32Array) -> tuple[float, ...]:
    """Return how far each scale is from the nearest power of two, as a share of that.

    Nearest is meant as a ratio, so that it is at most 42 % more, or 29 % less. A scale of 0, as of
    a channel of zeros, counts as a power of two: nothing is multiplied.

    Examples
    --------
    >>> from_power_of_two(np.float32([0.25, 0.75, 5]))
    (0.0, -0.25, 0.25)
    """
    values = np.ravel(scale).astype(np.float64)
    values = np.where(values == 0, 1, values)
    return tuple((values / 2.0 ** np.rint(np.log2(values)) - 1).tolist())


def notes(rows: Iterable[Row]) -> Iterator[str]:
    """Yield what there is to say of the scales of all tensors together, for hardware."""
    far = {row.tensor: max(map(abs, row.from_power_of_two))
           for row in rows if row.from_power_of_two}  # fmt: skip
    if not far:
        return
    exact = sum(not distance for distance in far.values())
    text = f"scales: {exact} of {len(far)} tensors have powers of two alone"
    if exact < len(far):
        worst = max(far, key=lambda name: far[name])
        text += f"; the farthest from one, by {far[worst]:.0%}, is a scale of {worst}"
    yield f"{text}; only between powers of two is requantizing a shift"
