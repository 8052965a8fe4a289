"""The result of quantization: a module of its own, because the kernels need no other record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._environment import in_default_environment
from qmath.kernels._float32 import Float32Array

__all__ = ["QuantizedTensor"]


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Integers with the scale and zero point that give them their meaning.

    The real values are, in this order of operations and these dtypes,
    ``(values.astype(np.int32) - zero_point).astype(np.float32) * scale``: bit for bit what
    TensorFlow's fake quantization returns.

    Attributes
    ----------
    values : ndarray
        The smallest NumPy integer dtype that holds `num_bits`. Signed: ``-2**(n-1)`` to
        ``2**(n-1) - 1``, as TFLite stores. Unsigned: ``0`` to ``2**n - 1``, as TensorFlow counts.
    scale : ndarray of float32
        Real size of one integer step, shape ``()``, or ``(C,)`` for the last axis.
    zero_point : ndarray of int32
        The integer that stands for real zero, of the same shape as `scale`.
    num_bits : int
        Width, 2 to 16.
    narrow_range : bool
        Whether the lowest integer is unused.
    signed : bool
        Whether `values` count from ``-2**(n-1)``.
    axis : int or None
        The axis of `values` that `scale` runs along, or ``None`` for one scale.
    """

    values: NDArray[Any]
    scale: Float32Array
    zero_point: NDArray[np.int32]
    num_bits: int
    narrow_range: bool
    signed: bool
    axis: int | None = None

    def __repr__(self) -> str:
        count = f"{'signed' if self.signed else 'unsigned'}{', narrow' * self.narrow_range}"
        scales = (
            f"{self.scale.size} scales along axis {self.axis}" if self.scale.ndim else "1 scale"
        )
        array = f"{self.values.dtype} of shape {self.values.shape}"
        return f"<QuantizedTensor: {array}, {self.num_bits} bits, {count}, {scales}>"

    @in_default_environment
    def dequantize(self) -> Float32Array:
        """Return the real values, float32: TensorFlow's fake-quantized tensor, bit for bit.

        Examples
        --------
        >>> import qmath
        >>> qmath.quantize([0.3, -1.0], -1.0, 0.75, 3).dequantize()
        array([ 0.25, -1.  ], dtype=float32)
        """
        shifted = (self.values.astype(np.int32) - self.zero_point).astype(np.float32)
        return np.asarray(shifted * self.scale)
