"""A range with all that its kernels need, kept for the next call: small tensors feel the cost."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._float32 import Bounds, Float32Array, bounds_of
from qmath.kernels._nudge import Nudged, is_dead, is_ordinary, nudge
from qmath.kernels._steps import Steps

_MOST_KEPT = 256  # channels


class Range(NamedTuple):
    """A nudged range and where its arithmetic needs care: arrays of the range's shape.

    Attributes
    ----------
    odd : ndarray of bool
        Where plain float32 arithmetic might not give TensorFlow's bits, see `is_ordinary`.
    dead : ndarray of bool
        Where ``min == max == 0``, see `is_dead`.
    has_odd, has_dead, has_width : bool
        Whether any is odd or dead; whether the widths of all nudged ranges are finite.
    divide, multiply : Steps
        The steps by the scale, and by its inverse.
    bounds : Bounds
        What lies in the nudged range, for the gradients.
    """

    nudged: Nudged
    odd: NDArray[np.bool_]
    dead: NDArray[np.bool_]
    has_odd: bool
    has_dead: bool
    has_width: bool
    divide: Steps
    multiply: Steps
    bounds: Bounds


def range_of(min: Float32Array, max: Float32Array, num_bits: int, narrow_range: bool) -> Range:
    """Return the constants of a range, known already if it is one of the last few."""
    if min.size > _MOST_KEPT:
        return _range_of(min, max, num_bits, narrow_range)
    return _kept(min.tobytes(), max.tobytes(), min.shape, num_bits, narrow_range)


@lru_cache(maxsize=128)
def _kept(
    min: bytes, max: bytes, shape: tuple[int, ...], num_bits: int, narrow_range: bool
) -> Range:
    low, high = (np.frombuffer(end, np.float32).reshape(shape) for end in (min, max))
    kept = _range_of(low, high, num_bits, narrow_range)
    steps = (*kept.divide.constants, *kept.multiply.constants)
    for part in (*kept.nudged, kept.odd, kept.dead, *steps, *kept.bounds):
        part.setflags(write=False)
    return kept


def _range_of(min: Float32Array, max: Float32Array, num_bits: int, narrow_range: bool) -> Range:
    nudged = nudge(min, max, num_bits, narrow_range)
    odd, dead = np.asarray(~is_ordinary(nudged)), is_dead(min, max)
    with np.errstate(over="ignore", invalid="ignore"):
        has_width = bool(np.isfinite(nudged.max - nudged.min).all())
    steps = Steps(nudged, divide=True), Steps(nudged, divide=False)
    flags = bool(odd.any()), bool(dead.any()), has_width
    return Range(nudged, odd, dead, *flags, *steps, bounds_of(nudged.min, nudged.max))
