"""A range with all that its kernels need, and the inner loop from floats to integers as float32.

Ranges are kept for the next call: small tensors feel the cost. Order and kind of every operation
are those of TensorFlow's kernels: ``FakeQuantWithMinMaxVars`` divides by the scale, ``…Args`` and
``…VarsPerChannel`` multiply by its inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._float32 import Bounds, Float32Array, bounds_of, flush, maximum, minimum, rounded
from qmath.kernels._nudge import Nudged, is_ordinary, is_zero_range, nudge

_HALF = np.float32(0.5)
MOST_KEPT = 256  # channels
_FEW = 1 << 12  # elements


class Steps:
    """The steps of an ordinary range in plain float32, written where they are wanted.

    TensorFlow computes ``floor((t - z) + 0.5)`` of ``t = (clamped - min) / scale`` and the integer
    ``z = quant_zero``. Here it is ``floor(t - (z - 0.5))``, one pass less and the same number:

    * Where ``t >= z``, and where ``z/2 <= t``, ``t - z`` is exact, so both round the same real
      number once.
    * Elsewhere both results are negative if ``z >= 2``, and an integer ``k < 0`` is reached by
      TensorFlow if ``t - z`` rounds to ``k - 0.5`` or more (adding a half is then exact), here if
      ``t - (z - 0.5)`` rounds to `k` or more. ``k`` and ``k - 0.5`` have the same exponent, and
      even significands (``|k| < 2**17``), so both happen from the same `t` on.
    * For ``z == 0``, ``t - z`` is `t`. Only ``z == 1`` needs both passes: just below ``t = 0.5``,
      ``t - 1`` rounds up to ``-0.5``.

    A minimum of 0 need not be subtracted: at most the sign of a zero differs, to which a half is
    added. And for ``z == 0`` the sum is at least 0.5, so that truncating it, as a conversion to
    integers does, is its floor.

    Attributes
    ----------
    constants : tuple of ndarray
        What a call takes for each block.
    truncates : bool
        Whether ``z`` is 0 everywhere.
    """

    def __init__(self, nudged: Nudged, divide: bool) -> None:
        zero = nudged.quant_zero
        self._divide = divide
        self._twice = bool((zero == 1).any())
        self._shifts = bool(nudged.min.any())
        self.truncates = not zero.any()
        factor = nudged.scale if divide else nudged.inverse
        threshold = zero if self._twice else np.asarray(zero - _HALF)
        self.constants = (nudged.min, nudged.max, factor, threshold)

    def __call__(
        self,
        x: Float32Array,
        constants: Sequence[Float32Array],
        out: Float32Array,
        *,
        floor: bool = True,
    ) -> None:
        """Write the steps of a block; ``floor=False`` leaves the last pass to the caller."""
        low, high, factor, threshold = constants
        if low.ndim or x.size < _FEW:
            np.minimum(x, high, out=out)
            np.maximum(out, low, out=out)
        else:  # one pass, but NumPy's clip is slow to start, and with arrays for bounds
            x.clip(low, high, out=out)
        if self._shifts:
            np.subtract(out, low, out=out)
        (np.divide if self._divide else np.multiply)(out, factor, out=out)
        np.subtract(out, threshold, out=out)
        if self._twice:
            np.add(out, _HALF, out=out)
        if floor:
            np.floor(out, out=out)


def exact_steps(x: Float32Array, nudged: Nudged, divide: bool) -> Float32Array:
    """Return the steps of any range: subnormals flushed, NaN bounds ignored."""
    clamped = maximum(minimum(flush(x), nudged.max), nudged.min)
    shifted = rounded(clamped.astype(np.float64) - nudged.min).astype(np.float64)
    t = rounded(shifted / nudged.scale if divide else shifted * nudged.inverse)
    relative = rounded(t.astype(np.float64) - nudged.quant_zero)
    return np.asarray(np.floor(rounded(relative.astype(np.float64) + 0.5)))


class Range(NamedTuple):
    """A nudged range and where its arithmetic needs care: arrays of the range's shape.

    Attributes
    ----------
    needs_flush : ndarray of bool
        Where plain float32 arithmetic might not give TensorFlow's bits, see `is_ordinary`.
    zero_range : ndarray of bool
        Where ``min == max == 0``, see `is_zero_range`.
    any_flush, any_zero_range, has_width : bool
        Whether any needs it, or is of 0 to 0; whether the widths of all nudged ranges are finite.
    divide, multiply : Steps
        The steps by the scale, and by its inverse.
    bounds : Bounds
        Bounds of the nudged range, for the gradients.
    """

    nudged: Nudged
    needs_flush: NDArray[np.bool_]
    zero_range: NDArray[np.bool_]
    any_flush: bool
    any_zero_range: bool
    has_width: bool
    divide: Steps
    multiply: Steps
    bounds: Bounds


def range_of(min: Float32Array, max: Float32Array, num_bits: int, narrow_range: bool) -> Range:
    """Return the constants of a range, known already if it is one of the last few."""
    if min.size > MOST_KEPT:
        return _range_of(min, max, num_bits, narrow_range)
    return _kept(min.tobytes(), max.tobytes(), min.shape, num_bits, narrow_range)


@lru_cache(maxsize=128)
def _kept(
    min: bytes, max: bytes, shape: tuple[int, ...], num_bits: int, narrow_range: bool
) -> Range:
    low, high = (np.frombuffer(end, np.float32).reshape(shape) for end in (min, max))
    kept = _range_of(low, high, num_bits, narrow_range)
    steps = (*kept.divide.constants, *kept.multiply.constants)
    for part in (*kept.nudged, kept.needs_flush, kept.zero_range, *steps, *kept.bounds):
        part.setflags(write=False)
    return kept


def _range_of(min: Float32Array, max: Float32Array, num_bits: int, narrow_range: bool) -> Range:
    nudged = nudge(min, max, num_bits, narrow_range)
    needs_flush, zero_range = np.asarray(~is_ordinary(nudged)), is_zero_range(min, max)
    with np.errstate(all="ignore"):
        has_width = bool(np.isfinite(nudged.max - nudged.min).all())
    steps = Steps(nudged, divide=True), Steps(nudged, divide=False)
    flags = bool(needs_flush.any()), bool(zero_range.any()), has_width
    return Range(nudged, needs_flush, zero_range, *flags, *steps, bounds_of(nudged.min, nudged.max))
