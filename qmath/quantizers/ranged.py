"""The three quantizers that learn their range: mirrors of TFMOT's ``quantizers.py``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qmath.errors import QmathError
from qmath.kernels._float32 import Float32Array, flush, rounded
from qmath.quantizers.base import (
    RangeQuantizer,
    State,
    maximum_of,
    minimum_of,
    one_per_channel,
    product,
    quotient,
)

# 1 - decay for TFMOT's decay of 0.999, as ``assign_moving_average`` casts it.
_UPDATE_RATE = np.float64(np.float32(1.0 - 0.999))


class LastValueQuantizer(RangeQuantizer):
    """The range of the last batch: TFMOT's quantizer for weights.

    Parameters
    ----------
    num_bits : int
        Width, 2 to 16; not checked before the first call, as in TFMOT.
    per_axis : bool
        One range for each index of the last axis. Training then takes ranks 1, 2 and 4 only: with
        others TFMOT fails (it names no axes for them), and so does this class, with a reason.
    symmetric : bool
        Extend the range to ``[-m, m]``, or, if not `narrow_range`, to
        ``[-m, m * (1 - 2**(1 - num_bits))]``.
    narrow_range : bool
        Leave the lowest integer unused.

    Notes
    -----
    A saved range is that of the kernel *before* the last optimizer step; inference clips to it.
    Mirrors ``quantizers.LastValueQuantizer`` and ``quant_ops.LastValueQuantize``.
    """

    _kind = "last value"

    def _state_shape(self, tensor_shape: Sequence[int | None] | None) -> tuple[int, ...]:
        if not self.per_axis or tensor_shape is None or tensor_shape[-1:] == (None,):
            return ()  # as TFMOT; a per-axis call then refuses the scalar state
        return one_per_channel(tensor_shape)

    def _update(self, x: Float32Array, weights: State) -> tuple[Float32Array, Float32Array]:
        return self._batch_range(x)


class MovingAverageQuantizer(RangeQuantizer):
    """The moving average of the batches' ranges, with decay 0.999: for activations.

    Parameters
    ----------
    num_bits, symmetric, narrow_range
        As for `LastValueQuantizer`.
    per_axis : bool
        Must be False: TFMOT's ``build`` ignores it and makes a scalar state, so that every call
        of a per-axis one fails there; here it fails with that explanation.

    Notes
    -----
    The state starts at -6 and 6 and needs thousands of steps to forget them. Mirrors
    ``quantizers.MovingAverageQuantizer``, ``quant_ops.MovingAvgQuantize`` and TensorFlow's
    ``assign_moving_average``.
    """

    _kind = "moving average"

    def _check_state(self, weights: State) -> None:
        super()._check_state(weights)
        if self.per_axis:
            raise QmathError(
                "MovingAverageQuantizer(per_axis=True) cannot run: TFMOT's build ignores per_axis "
                "and makes a scalar range, which its call then refuses; use per_axis=False"
            )

    def _update(self, x: Float32Array, weights: State) -> tuple[Float32Array, Float32Array]:
        low, high = self._batch_range(x)
        return _moved(weights["min_var"], low), _moved(weights["max_var"], high)


class AllValuesQuantizer(RangeQuantizer):
    """The range of all batches so far: TFMOT's quantizer for the model's input.

    Parameters
    ----------
    num_bits, symmetric, narrow_range
        As for `LastValueQuantizer`.
    per_axis : bool
        Kept in the config and otherwise ignored, as TFMOT does: there is one range.

    Notes
    -----
    The state starts at 0 and 0. A symmetric maximum is derived from the already extended minimum,
    as in ``quant_ops.AllValuesQuantize``, which this mirrors with
    ``quantizers.AllValuesQuantizer``.
    """

    _kind = "all values"
    _initial = 0.0

    @property
    def _quantizes_per_axis(self) -> bool:
        return False

    def _update(self, x: Float32Array, weights: State) -> tuple[Float32Array, Float32Array]:
        low, high = self._extremes(x)
        if self.symmetric:
            low = minimum_of(low, quotient(high, self._min_max_ratio))
            high = maximum_of(high, product(low, self._min_max_ratio))
        low, high = minimum_of(weights["min_var"], low), maximum_of(weights["max_var"], high)
        return minimum_of(low, np.float32(0)), maximum_of(high, np.float32(0))


def _moved(average: Float32Array, value: Float32Array) -> Float32Array:
    """``average - (average - value) * rate``, each operation rounded to float32."""
    with np.errstate(all="ignore"):
        old = flush(average).astype(np.float64)
        difference = rounded(old - flush(value)).astype(np.float64)
        return rounded(old - rounded(difference * _UPDATE_RATE).astype(np.float64))
