"""Floats with the range that quantizes them, and what every quantizer makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.kernels import fake_quant
from qmath.kernels._float32 import flush
from qmath.kernels.affine import quantize
from qmath.kernels.quantized_tensor import QuantizedTensor
from qmath.testing.arithmetic import ROUNDINGS
from qmath.testing.floats import Range, to_tie

__all__ = ["FUNCTIONS", "Tensor"]

Array = NDArray[Any]
FUNCTIONS = ("vars", "args", "per_channel")


@dataclass(frozen=True, eq=False)
class Tensor:
    """A float tensor and the settings that quantize it.

    Attributes
    ----------
    inputs : ndarray of float32
    min, max : ndarray of float32
        Of shape ``()``, or ``(C,)`` for the last axis of `inputs`.
    num_bits : int
    narrow_range : bool
    function : {"vars", "args", "per_channel"}
        Whose arithmetic counts; ``"per_channel"`` where there is a range for each channel.
    signed : bool
        Whether integers count from ``-2**(n-1)``.
    """

    inputs: NDArray[np.float32]
    min: NDArray[np.float32]
    max: NDArray[np.float32]
    num_bits: int
    narrow_range: bool = False
    function: str = "vars"
    signed: bool = True

    @property
    def quantized(self) -> QuantizedTensor:
        """The integers, with scale and zero point, as `qmath.quantize` returns them."""
        return self.quantized_by(self.function)

    def quantized_by(self, function: str) -> QuantizedTensor:
        """Return what the arithmetic of another function makes of the tensor."""
        op: Any = "vars" if function == "vars" else "args"
        return quantize(
            self.inputs, self.min, self.max, self.num_bits, narrow_range=self.narrow_range,
            per_axis=bool(self.min.ndim), op=op, signed=self.signed,
        )  # fmt: skip

    @property
    def fake_quantized(self) -> NDArray[np.float32]:
        """TensorFlow's fake-quantized floats."""
        return self.fake_quantized_by(self.function)

    def fake_quantized_by(self, function: str) -> NDArray[np.float32]:
        """Return what TensorFlow's op of another function makes of the tensor."""
        rest: dict[str, Any] = {"num_bits": self.num_bits, "narrow_range": self.narrow_range}
        if function == "vars":
            return fake_quant.fake_quant_with_min_max_vars(self.inputs, self.min, self.max, **rest)
        if function == "args":
            low, high = float(self.min), float(self.max)
            return fake_quant.fake_quant_with_min_max_args(self.inputs, low, high, **rest)
        flat = self.inputs if self.min.ndim else self.inputs.reshape(-1, 1)
        ends = np.atleast_1d(self.min), np.atleast_1d(self.max)
        found = fake_quant.fake_quant_with_min_max_vars_per_channel(flat, *ends, **rest)
        return found.reshape(self.inputs.shape)

    def range_of(self, channel: int = 0) -> Range:
        """Return the range of a channel."""
        low, high = (float(np.ravel(end)[channel]) for end in (self.min, self.max))
        return Range(low, high, self.num_bits, self.narrow_range, self.function)

    def to_tie(self, index: Sequence[int]) -> float | None:
        """Return the exact distance of an element from its rounding tie, in integer steps."""
        channel = index[-1] if self.min.ndim else 0
        return to_tie(float(self.inputs[tuple(index)]), self.range_of(channel))

    def other_integers(self) -> Iterator[tuple[str, Array]]:
        """Yield by name what other quantizers make of the tensor."""
        for function in self._other_functions():
            yield f"function {function}", self.quantized_by(function).values
        for name, rounding in ROUNDINGS.items():
            yield f"round(x / scale) by {name}", self._naive(rounding)

    def other_floats(self) -> Iterator[tuple[str, Array]]:
        """Yield by name what other ops of TensorFlow make of the tensor."""
        for function in self._other_functions():
            yield f"function {function}", self.fake_quantized_by(function)

    def _other_functions(self) -> list[str]:
        if self.min.ndim:
            return []
        in_order = flush(self.min) < flush(self.max)  # which the op args asks for
        return [
            function for function in FUNCTIONS
            if function != self.function and (function != "args" or in_order)
        ]  # fmt: skip

    def _naive(self, rounding: Callable[[Array], Array]) -> Array:
        """Quantize by dividing by the exact step in float64, and rounding."""
        ranges = [self.range_of(channel) for channel in range(self.min.size)]
        steps = np.reshape([float(each.step or 1) for each in ranges], self.min.shape)
        ends = np.reshape([each.ends for each in ranges], (*self.min.shape, 2))
        first = int(self.narrow_range) - (int(self.signed) << (self.num_bits - 1))
        low, high = ends[..., 0], ends[..., 1]
        relative = np.clip(self.inputs.astype(np.float64) / steps, low, high)
        return np.asarray(rounding(relative) + (first - low))
