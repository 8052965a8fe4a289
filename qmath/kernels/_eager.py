"""TensorFlow 2.6 and later, eager: the default build.

Order and kind of every operation are those of ``fake_quant_ops_functor.h``:
``FakeQuantWithMinMaxVars`` divides by the scale, ``…Args`` and ``…VarsPerChannel`` multiply by its
inverse. Steps are counted from real zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._float32 import Float32Array, flush, maximum, minimum, rounded
from qmath.kernels._gradients import backprop, backward
from qmath.kernels._nudge import Nudged, nudge
from qmath.kernels._range import Arithmetic, Op

_HALF = np.float32(0.5)
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
        constants: Sequence[NDArray[Any]],
        out: Float32Array,
        *,
        floor: bool = True,
        keeps_nan: bool = True,  # noqa: ARG002, as it always is
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

    def to_floats(
        self, steps: Float32Array, scale: Float32Array, _constants: Sequence[NDArray[Any]]
    ) -> None:
        """Turn steps into what they stand for, in place."""
        np.multiply(steps, scale, out=steps)

    def exactly(
        self,
        x: Float32Array,
        nudged: Nudged,
        *,
        keeps_nan: bool = True,  # noqa: ARG002
    ) -> Float32Array:
        """Return the steps of any range: subnormals flushed, NaN bounds ignored."""
        clamped = maximum(minimum(flush(x), nudged.max), nudged.min)
        shifted = rounded(clamped.astype(np.float64) - nudged.min).astype(np.float64)
        t = rounded(shifted / nudged.scale if self._divide else shifted * nudged.inverse)
        relative = rounded(t.astype(np.float64) - nudged.quant_zero)
        return np.asarray(np.floor(rounded(relative.astype(np.float64) + 0.5)))

    def exact_floats(self, x: Float32Array, nudged: Nudged) -> Float32Array:
        """Return what the steps of any range stand for."""
        return rounded(self.exactly(x, nudged).astype(np.float64) * nudged.scale)

    def shift(self, zero_point: Float32Array, _lowest: int) -> Float32Array:
        """Return what makes TensorFlow's count of the integers out of steps."""
        return zero_point


def _nudge(
    min: Float32Array, max: Float32Array, num_bits: int, narrow_range: bool, _op: Op
) -> Nudged:
    return nudge(min, max, num_bits, narrow_range)


TF = Arithmetic(
    name="tf",
    nudge=_nudge,
    steps=lambda nudged, op: Steps(nudged, divide=op == "vars"),
    backprop=backprop,
    backward=backward,
    keeps_zero_ranges=True,
    rounding_errors=(7, 4),
)
