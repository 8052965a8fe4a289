"""The profile `litert`: LiteRT's optimized kernels on a CPU, without a delegate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.profiles import tflite_arithmetic as arithmetic
from qmath.integer.profiles.tflite import Tflite
from qmath.integer.profiles.tflite_kernels import Kernel, TfliteStored

__all__ = ["Litert", "optimized"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]

# Channels taken at a time; the rest as in `Tflite`.
_LANES = {"DEPTHWISE_CONV_2D": 8, "MEAN": 16, "QUANTIZE": 16, "TRANSPOSE_CONV": 8}


def optimized(kernel: Kernel, x: Int64Array) -> Array:
    """Return what LiteRT's optimized kernels make of the sums of an operation with weights.

    Parameters
    ----------
    kernel : Kernel
        Of weights of any width, INT4 ones too.
    x : ndarray of int64
        Accumulators with their bias.
    """
    numbers = kernel.multipliers[0], kernel.shifts[0]
    if kernel.groups > 1:  # no optimized kernel takes these
        return arithmetic.multiply_by_quantized_multiplier(x, *numbers)
    rounded = arithmetic.multiply_by_quantized_multiplier_half_up(x, *numbers)
    if kernel.op not in _LANES:
        return rounded
    assert kernel.channel is not None
    lanes = _LANES[kernel.op]
    whole = (int(kernel.channel.max()) + 1) // lanes * lanes
    rest = arithmetic.multiply_by_quantized_multiplier(x, *numbers)
    return np.where(kernel.channel < whole, rounded, rest)


class Litert(Tflite):
    """LiteRT's optimized kernels, and TensorFlow's: 31 bits first, and then half up.

    So round convolutions, dense layers and changes of scale; depthwise and transposed convolutions
    in as many of their channels as make a multiple of 8, the last ones as in `Tflite`. INT4 weights
    change nothing. Convolutions of groups and whatever is not named here are as in `Tflite`. A mean
    that keeps its axes adds a zero point that is rounded by itself. A change of scale in a file
    rounds as `Tflite` in the last values of an example, up to 15: files take one example at a time.

    Parameters
    ----------
    stored, converts
        As for `Tflite`.
    """

    name = "litert"

    def __init__(
        self,
        stored: Mapping[str, Mapping[str, TfliteStored]] | None = None,
        converts: bool = True,
    ) -> None:
        super().__init__("double", stored, converts)
        self._reference = Tflite()

    def _compute(self, kernel: Kernel, values: Sequence[Array]) -> Array:
        if kernel.is_wide:  # no kernel of its own
            return self._reference._compute(kernel, values)
        return super()._compute(kernel, values)

    def _weighted(self, kernel: Kernel, x: Int64Array) -> Array:
        return optimized(kernel, x)

    def _quantize(self, kernel: Kernel, x: Int64Array) -> Array:
        numbers = kernel.multipliers[0], kernel.shifts[0]
        made = arithmetic.multiply_by_quantized_multiplier_half_up(x, *numbers)
        if kernel.is_of_file:  # which takes one example at a time
            rows, rest = made.reshape(len(x), -1), x.reshape(len(x), -1)
            whole = rest.shape[1] // _LANES["QUANTIZE"] * _LANES["QUANTIZE"]
            rows[:, whole:] = arithmetic.multiply_by_quantized_multiplier(rest[:, whole:], *numbers)
        return made

    def _add(self, kernel: Kernel, a: Int64Array, b: Int64Array) -> Array:
        left = [kernel.left_shift + shift for shift in kernel.shifts[:2]]
        if kernel.op != "ADD" or min(left) < 0 or kernel.output.is_unsigned:
            return super()._add(kernel, a, b)
        total = sum(  # one shift to the left, where the original shifts left and then right
            arithmetic.saturating_rounding_doubling_high_mul(x << left[i], kernel.multipliers[i])
            for i, x in enumerate((a, b))
        )
        return self._scaled(kernel, np.asarray(total), 2)

    def _mean(self, kernel: Kernel, x: Int64Array) -> Array:
        if not kernel.keeps_axes:
            return super()._mean(kernel, x)
        assert kernel.count is not None
        (source,), output, count = kernel.inputs, kernel.output, int(kernel.count)
        ratio = np.float32(source.zero_point) * source.scale / output.scale
        numbers = arithmetic.quantize_multiplier(
            np.float64(source.scale / (np.float32(count) * output.scale))
        )
        total = x + source.zero_point * count
        whole = x.shape[-1] // _LANES["MEAN"] * _LANES["MEAN"]
        means = [
            arithmetic.multiply_by_quantized_multiplier_half_up(total[..., :whole], *numbers),
            arithmetic.multiply_by_quantized_multiplier(total[..., whole:], *numbers),
        ]
        return np.concatenate(means, axis=-1) - int(arithmetic.round_half_away(ratio))
