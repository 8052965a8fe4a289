"""What the integers of an activation mean, and the arithmetic that floats become them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qmath.kernels.affine import quantize, quantize_as_tflite
from qmath.kernels.builds import Build

__all__ = ["QuantParams"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class QuantParams:
    """The integers of a quantized activation: unsigned, as TensorFlow counts them.

    Attributes
    ----------
    scale : float
        A float32's value; the real value of integer `q` is ``(q - zero_point) * scale``.
    zero_point, low, high : int
        The integer of real zero, and the lowest and highest integer in use.
    num_bits : int
        Width, 2 to 16.
    min, max : float
        The stored range that the rest is derived from.
    op : {"vars", "args", "tflite"}
        The TensorFlow op that quantizes floats with these parameters, or TFLite's ``QUANTIZE``.
    is_unsigned : bool
        Whether a TFLite file holds them so; else they are less by half of their number there.
    is_from_float : bool
        Whether an operation of a TFLite file makes them of floats.
    build : str
        Whose kernels do.
    """

    scale: float
    zero_point: int
    low: int
    high: int
    num_bits: int
    min: float
    max: float
    op: Literal["vars", "args", "tflite"] = "vars"
    is_unsigned: bool = False
    is_from_float: bool = False
    build: Build = "tf"

    def quantize(self, x: Array, name: str) -> NDArray[np.int32]:
        """Return the integers of floats, relative to the zero point, by the arithmetic of `op`."""
        if self.op == "tflite":
            return quantize_as_tflite(x, self.scale, self.limits, name)
        q = quantize(
            x, self.min, self.max, self.num_bits,
            narrow_range=self.low == 1, op=self.op, signed=False, name=name, build=self.build,
        )  # fmt: skip
        return np.asarray(q.values.astype(np.int32) - q.zero_point)

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest integer relative to the zero point."""
        return self.low - self.zero_point, self.high - self.zero_point

    def dequantize(self, integers: Array) -> NDArray[np.float32]:
        """Return the real values of unsigned integers: TensorFlow's fake-quantized ones."""
        relative = (integers.astype(np.int32) - self.zero_point).astype(np.float32)
        return np.asarray(relative * np.float32(self.scale))
