"""Two quantizers that TFMOT does not have and that people write: to describe their own with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.kernels._float32 import Float32Array, as_float32
from qmath.kernels.affine import check_flag, check_num_bits, smallest_dtype
from qmath.kernels.quantized_tensor import QuantizedTensor
from qmath.quantizers.base import Quantizer, State

_HALF = np.float32(0.5)
_ROUNDINGS: Mapping[str, Callable[[Float32Array], Float32Array]] = {
    "half_even": np.rint,
    "half_up": lambda x: np.floor(x + _HALF),
    "half_away": lambda x: np.trunc(x + np.copysign(_HALF, x)),
}


class FixedScaleQuantizer(Quantizer):
    """Integers of a scale that is a number, or a variable that training learnt, as LSQ's is.

    Parameters
    ----------
    scale : float or str
        The scale, or the name of a float tensor in the file that holds it: ``"d/kernel_scale"``,
        or ``"kernel_scale"`` of the same layer.
    zero_point : int
        The signed integer of real zero.
    num_bits : int
        Width, 2 to 16.
    rounding : {"half_even", "half_up", "half_away"}
        What becomes of ties: ``tf.round`` takes the even neighbour.
    narrow_range : bool
        Leave the lowest integer unused.

    Notes
    -----
    In float32, ``clip(round(x / scale) + zero_point, -2**(n - 1), 2**(n - 1) - 1)`` are the
    integers, of which the lowest is one higher if `narrow_range`, and
    ``(integer - zero_point) * scale`` is what the model computes with.

    Examples
    --------
    >>> import numpy as np
    >>> from qmath.quantizers import FixedScaleQuantizer
    >>> FixedScaleQuantizer(0.25, num_bits=3).quantize(np.float32([-2, 0.3, 0.625])).values
    array([-4,  1,  2], dtype=int8)
    """

    _kind = "fixed scale"
    _fields = ("scale", "zero_point", "num_bits", "rounding", "narrow_range")

    def __init__(
        self,
        scale: float | str,
        zero_point: int = 0,
        num_bits: int = 8,
        rounding: str = "half_even",
        narrow_range: bool = False,
    ) -> None:
        if rounding not in _ROUNDINGS:
            raise QmathError(f"rounding is one of {', '.join(_ROUNDINGS)}, not {rounding!r}")
        self.scale = scale
        self.zero_point = zero_point
        self.num_bits = check_num_bits(num_bits)
        self.rounding = rounding
        self.narrow_range = check_flag(narrow_range, "narrow_range")
        if type(zero_point) is not int or not self._limits[0] <= zero_point <= self._limits[1]:
            raise QmathError(f"zero_point is a signed integer of {num_bits} bits, not {zero_point}")

    def build(self, tensor_shape: Sequence[int | None] | None = None) -> State:
        """Return the state, which is empty."""
        return {}

    def __call__(
        self, inputs: ArrayLike, training: bool = False, weights: State | None = None
    ) -> Float32Array:
        """Fake-quantize `inputs`."""
        return self.quantize(inputs).dequantize()

    def quantize(
        self, inputs: ArrayLike, scale: ArrayLike | None = None, *, name: str | None = None
    ) -> QuantizedTensor:
        """Return the integers of values, with the scale that a file holds if it is given.

        One for each index of the last axis is a scale per channel.
        """
        prefix = f"{name}: " if name else ""
        x = as_float32(inputs, f"{prefix}inputs")
        step = _scale(self.scale if scale is None else scale, x, prefix)
        first, last = self._limits
        with np.errstate(over="ignore"):
            rounded = _ROUNDINGS[self.rounding](np.asarray(x / step))
        if np.isnan(rounded).any():
            raise QmathError(f"{prefix}NaN has no integer")
        integers = np.clip(rounded.astype(np.float64) + self.zero_point, first, last)
        return QuantizedTensor(
            integers.astype(smallest_dtype(self.num_bits, True)), step,
            np.full(step.shape, self.zero_point, np.int32), self.num_bits,
            narrow_range=self.narrow_range, signed=True,
            axis=x.ndim - 1 if step.ndim else None,
        )  # fmt: skip

    @property
    def _limits(self) -> tuple[int, int]:
        half = 1 << (self.num_bits - 1)
        return -half + self.narrow_range, half - 1


class PowerOfTwoQuantizer(Quantizer):
    """A stored range, snapped to a power of two before it is used.

    Parameters
    ----------
    num_bits : int
        Width, 2 to 16.
    narrow_range : bool
        Leave the lowest integer unused.

    Notes
    -----
    Of the stored minimum, ``p = 2 ** ceil(log2(-min))``, exactly; the range is ``-p`` to
    ``p * (1 - 2 ** (1 - num_bits))``, or to ``p`` if `narrow_range`. TensorFlow's own logarithm may
    take the next power where ``-min`` is one itself or close to it.

    Examples
    --------
    >>> import numpy as np
    >>> from qmath.quantizers import PowerOfTwoQuantizer
    >>> PowerOfTwoQuantizer(8).snapped(np.float32(-0.3))
    (array(-0.5, dtype=float32), array(0.49609375, dtype=float32))
    """

    _kind = "power of two"
    _fields = ("num_bits", "narrow_range")

    def __init__(self, num_bits: int, narrow_range: bool = False) -> None:
        self.num_bits = check_num_bits(num_bits)
        self.narrow_range = check_flag(narrow_range, "narrow_range")

    def snapped(
        self, minimum: ArrayLike, name: str = "min"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the range that is used, of a stored minimum."""
        low = np.asarray(minimum, np.float32)
        if not (low < 0).all():
            raise QmathError(f"{name}: a minimum of {low} is not negative; it has no power of two")
        mantissa, exponent = np.frexp(-low)
        end = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
        ratio = 1.0 if self.narrow_range else 1 - 2.0 ** (1 - self.num_bits)
        return np.asarray(-end, np.float32), np.asarray(end * np.float32(ratio), np.float32)


def _scale(scale: ArrayLike | str, x: Float32Array, prefix: str) -> Float32Array:
    if isinstance(scale, str):
        raise QmathError(f"{prefix}the scale is in the file, as {scale!r}; give its value")
    step = np.asarray(as_float32(scale, f"{prefix}scale"))
    step = step.reshape(()) if step.size == 1 else step.reshape(-1)
    if not (np.isfinite(step).all() and (step >= np.finfo(np.float32).tiny).all()):
        raise QmathError(f"{prefix}the scale must be finite and positive, not {step}")
    if step.ndim and (not x.ndim or step.shape != x.shape[-1:]):
        raise QmathError(f"{prefix}{step.size} scales do not fit values of shape {x.shape}")
    return step
