"""The profile `tflm`: what TFLite's kernels for microcontrollers compute, and CMSIS-NN's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.profiles.tflite import Tflite
from qmath.integer.profiles.tflite_arithmetic import quantize_multiplier, round_half_away
from qmath.integer.profiles.tflite_kernels import Kernel

__all__ = ["Tflm"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]


class Tflm(Tflite):
    """TFLite for microcontrollers, and CMSIS-NN: as TFLite's reference kernels, with exceptions.

    Dense layers are rounded from 31-bit multipliers as all others are, where TFLite rounds once,
    from float64. A product's scale is a quotient of float64, TFLite's one of float32. A ReLU6 by
    itself clamps the stored integers and hands them on, whatever the scale of its output is.

    Parameters
    ----------
    rounding, stored, converts
        As for `Tflite`. CMSIS-NN's ``CMSIS_NN_USE_SINGLE_ROUNDING`` is ``rounding="single"``.
    """

    name = "tflm"

    def _weighted(self, kernel: Kernel, x: Int64Array) -> Array:
        return self._reduced(kernel, x) if kernel.is_wide else self._scaled(kernel, x)

    def _product(self, kernel: Kernel, x: Int64Array) -> Array:
        first, second = (np.float64(q.scale) for q in kernel.inputs)
        multiplier, shift = quantize_multiplier(first * second / np.float64(kernel.output.scale))
        return self._multiplied(x, multiplier, shift)

    def _activated(self, kernel: Kernel, x: Int64Array) -> Array:
        if kernel.op != "RELU6":
            return super()._activated(kernel, x)
        source = kernel.inputs[0]
        six = round_half_away(np.float32(6) / source.scale)
        return np.clip(x, 0, six) + (source.zero_point - kernel.output.zero_point)

    def _limits(self, kernel: Kernel) -> tuple[int, int]:
        if kernel.op != "RELU6":
            return kernel.limits
        source, zero_point = kernel.inputs[0], kernel.output.zero_point
        return source.low - zero_point, source.high - zero_point

    def _total(self, kernel: Kernel, x: Int64Array) -> Array:
        return self._scaled(kernel, x)
