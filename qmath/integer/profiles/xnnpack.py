"""The profile `xnnpack`: what TFLite's default delegate on a CPU makes of TFLite's integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.profiles import tflite_arithmetic as arithmetic
from qmath.integer.profiles.litert import optimized
from qmath.integer.profiles.tflite import Tflite
from qmath.integer.profiles.tflite_kernels import Kernel, TfliteStored

__all__ = ["Xnnpack"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]


class Xnnpack(Tflite):
    """XNNPACK, TFLite's default delegate on a CPU: int32 bias, float32 scales, ties to even.

    Convolutions (transposed ones too) and dense layers multiply in float32, sums have multipliers
    of 21 bits, rescalings and leaky ReLUs of 8, a mean rounds ties away from zero. What
    XNNPACK leaves to TFLite (pools, ReLUs by themselves, ratios of scales out of its range) is
    computed as `Tflite` does.

    Parameters
    ----------
    stored, converts
        As for `Tflite`.
    int4 : {"tensorflow", "litert"}, optional
        If weights of 4 bits or fewer are INT4 in the file, whose XNNPACK runs it: TensorFlow 2.21's
        or LiteRT 2.3's. Both leave convolutions of such weights to the kernels that `Litert`
        mirrors, and dense layers of an odd number of inputs; TensorFlow's also dense layers with
        one scale. (It refuses a file with a dense layer of one output, which it takes for one with
        a scale for each.)
    packed : mapping of str to int, optional
        By weight tensor, the bits of those that a file packs, 4 or 2; all others are INT8 then.
        Dense layers of INT2 are XNNPACK's if they have a scale for each output, and inputs that
        fill whole bytes. Without `int4`, the file is run by LiteRT.
    """

    name = "xnnpack"

    def __init__(
        self,
        stored: Mapping[str, Mapping[str, TfliteStored]] | None = None,
        converts: bool = True,
        int4: Literal["tensorflow", "litert"] | None = None,
        packed: Mapping[str, int] | None = None,
    ) -> None:
        if int4 is not None and not (isinstance(int4, str) and int4 in ("tensorflow", "litert")):
            raise QmathError(f"int4 must be 'tensorflow' or 'litert', got {int4!r}")
        super().__init__("double", stored, converts)
        self._reference = Tflite()
        self._packed = _checked(packed)
        self.int4 = int4 or ("litert" if self._packed else None)

    def _compute(self, kernel: Kernel, values: Sequence[Array]) -> Array:
        if kernel.is_wide:  # no kernel of its own
            return self._reference._compute(kernel, values)
        return super()._compute(kernel, values)

    def _weighted(self, kernel: Kernel, x: Int64Array) -> Array:
        assert kernel.weight_scale is not None
        if kernel.is_dynamic:
            return optimized(kernel, x)
        if not self._takes(kernel, kernel.weight_scale):
            return optimized(kernel, x)
        scale = kernel.inputs[0].scale * kernel.weight_scale / kernel.output.scale
        return arithmetic.xnnpack_fp32_requantize(x, scale)

    def _takes(self, kernel: Kernel, scale: Array) -> bool:
        """Whether XNNPACK computes an operation, with weights as wide as they are in the file."""
        if self._packed is None:
            bits = 4 if self.int4 and kernel.weight_bits <= 4 else 8
        else:
            bits = self._packed.get(kernel.weights, 8)
        if bits > 4:
            return True
        if kernel.op != "FULLY_CONNECTED" or kernel.depth % (8 // bits):
            return False
        return scale.size > 1 or (bits == 4 and self.int4 == "litert")

    def _add(self, kernel: Kernel, a: Int64Array, b: Int64Array) -> Array:
        first, second = (q.scale / kernel.output.scale for q in kernel.inputs)
        if not all(2.0**-10 <= scale < 2.0**8 for scale in (first, second)):
            return super()._add(kernel, a, b)
        m, n, shift = arithmetic.xnnpack_add_multipliers(first, second)
        if kernel.op == "SUB":
            n = -n
        return (a * m + b * n + (1 << (shift - 1))) >> shift

    def _product(self, kernel: Kernel, x: Int64Array) -> Array:
        first, second = kernel.inputs
        scale = first.scale * second.scale / kernel.output.scale
        if not 2.0**-16 <= scale < 2.0**8:
            return super()._product(kernel, x)
        return arithmetic.xnnpack_fp32_requantize(x, scale)

    def _quantize(self, kernel: Kernel, x: Int64Array) -> Array:
        ratio = kernel.inputs[0].scale / kernel.output.scale
        if not 2.0**-8 <= ratio <= 2.0**7:
            return super()._quantize(kernel, x)
        return (x * int(np.rint(256 * ratio)) + 128) >> 8

    def _mean(self, kernel: Kernel, x: Int64Array) -> Array:
        assert kernel.count is not None
        (source,), output, count = kernel.inputs, kernel.output, int(kernel.count)
        zero_points = source.zero_point, output.zero_point
        total = x + source.zero_point * count
        mean = arithmetic.xnnpack_mean(total, count, source.scale / output.scale, zero_points)
        return mean - output.zero_point

    def _total(self, kernel: Kernel, x: Int64Array) -> Array:
        """Round as LiteRT's XNNPACK does, ties to even; TensorFlow 2.21's has them otherwise."""
        output = kernel.output
        ratio = np.float32(kernel.inputs[0].scale / output.scale)
        made = np.rint(x.astype(np.float32) * ratio + np.float32(output.zero_point))
        return np.asarray(made - output.zero_point)

    def _interpolated(self, kernel: Kernel, x: Int64Array) -> Array:
        assert kernel.count is not None
        return (x + kernel.count // 2) // kernel.count  # halves up

    def _leaky(self, kernel: Kernel, x: Int64Array) -> Array:
        positive = kernel.inputs[0].scale / kernel.output.scale
        negative = positive * np.float32(kernel.slope)
        if not all(2.0**-8 <= ratio <= 2.0**7 for ratio in (positive, negative)):
            return super()._leaky(kernel, x)
        multiplier = np.where(x >= 0, *(int(np.rint(256 * r)) for r in (positive, negative)))
        return (x * multiplier + 128) >> 8


def _checked(packed: object) -> Mapping[str, int] | None:
    """Return the bits of packed weights, if it is what says so."""
    if packed is None:
        return None
    expected = "packed must be {TENSOR: bits}, with bits of 2, 4 or 8"
    if not isinstance(packed, Mapping):
        raise QmathError(f"{expected}, got {packed!r}")
    for name, bits in packed.items():
        is_whole = isinstance(bits, (int, np.integer))
        if not isinstance(name, str) or not is_whole or bits not in (2, 4, 8):
            raise QmathError(f"{expected}; it has {bits!r} for {name!r}")
    return packed
