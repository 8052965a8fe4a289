"""A file's tensors → `QatTensor`: the integers as they are, with the scale that the file states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qmath.containers.tflite.file import Tensor
from qmath.model import (
    QatTensor,
    QuantizedTensor,
    QuantSpec,
    Role,
    StatedParams,
    StoredIntegers,
)

__all__ = ["PROVENANCE", "WIDTHS", "activation", "bias", "constant", "scale_of", "weight"]

Array = NDArray[Any]

PROVENANCE = "the file's own integers"
WIDTHS = {"INT2": 2, "INT4": 4, "UINT4": 4, "INT8": 8, "UINT8": 8, "INT16": 16}
_SETTINGS = ("num_bits", "per_axis", "narrow_range")


class Dequantized:
    """The real values of integers, made when they are asked for."""

    dtype = np.dtype(np.float32)

    def __init__(self, quantized: QuantizedTensor) -> None:
        self._quantized = quantized
        self.shape = quantized.values.shape

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("the real values of integers are always made")
        return self._quantized.dequantize().astype(dtype or self.dtype, copy=False)


@np.errstate(over="ignore")  # an infinite range is refused where it is used
def activation(
    name: str,
    tensor: Tensor,
    role: Role,
    num_bits: int | None = None,
    *,
    is_mirrored: bool = False,
    is_from_float: bool = False,
) -> QatTensor | None:
    """Return what the integers of a computed tensor mean, ``None`` of one that has none.

    `num_bits` is their width where operations clamp them to fewer than the file's type holds.
    Mirrored, an integer stands for what the one at the other end stood for, with the other sign.
    `is_from_float` is that of `qmath.model.StatedParams`.
    """
    q, width = tensor.quantization, WIDTHS.get(tensor.type)
    if q is None or width is None or q.scale.size != 1 or not q.scale[0]:
        return None
    bits = num_bits or width
    half = 0 if tensor.type[0] == "U" else 1 << (bits - 1)
    zero_point, scale = int(q.zero_point[0]) + half, np.float32(q.scale[0])
    if not 0 <= zero_point < 1 << bits:
        return None
    if is_mirrored:
        zero_point = (1 << bits) - 1 - zero_point
    low, high = (np.float32((end - zero_point) * float(scale)) for end in (0, (1 << bits) - 1))
    return QatTensor(
        name,
        role,
        None,
        np.asarray(low),
        np.asarray(high),
        QuantSpec(None, bits, False, None, False, "tflite"),
        dict.fromkeys(_SETTINGS, PROVENANCE),
        stated=StatedParams(
            np.asarray(scale), np.asarray(zero_point, np.int32), tensor.type[0] == "U",
            is_from_float,
        ),
    )  # fmt: skip


@np.errstate(over="ignore")
def weight(
    name: str, tensor: Tensor, arranged: Callable[[Array], Array], axis: int | None
) -> QatTensor:
    """Return a constant of integers as a weight.

    Parameters
    ----------
    name : str
    tensor : Tensor
    arranged : callable
        Puts the file's axes in the order of the result's.
    axis : int or None
        The result's axis that several scales run along.
    """
    assert tensor.data is not None
    assert tensor.quantization is not None
    bits, q = WIDTHS[tensor.type], tensor.quantization
    half = 1 << (bits - 1) if tensor.type[0] == "U" else 0
    data = tensor.data
    if half:  # signed integers are less by half of what the unsigned count
        data = (data.astype(np.int16) - half).astype(np.int8)
    values = arranged(data)
    column: tuple[int, ...] = ()
    if q.scale.size > 1 and axis is not None:
        column = (-1,) + (1,) * (values.ndim - 1 - axis)
    scale = q.scale.astype(np.float32).reshape(column)
    zero_point = (q.zero_point - half).astype(np.int32).reshape(column)
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    narrow = bool(values.size) and int(values.min()) > lowest
    quantized = QuantizedTensor(
        values, scale, zero_point, bits, narrow, True, axis if column else None
    )
    low, high = (
        np.ravel((end - zero_point) * scale.astype(np.float64)).astype(np.float32)
        for end in (lowest + narrow, highest)
    )
    return QatTensor(
        name, "weight", Dequantized(quantized),
        low if column else low.reshape(()), high if column else high.reshape(()),
        QuantSpec(None, bits, bool(column), None, narrow, "tflite"),
        dict.fromkeys(_SETTINGS, PROVENANCE), recovered=quantized,
    )  # fmt: skip


def bias(layer: str, tensor: Tensor) -> list[QatTensor]:
    """Return a bias: floats, or integers and the scale of these."""
    assert tensor.data is not None
    name = f"{layer}/bias"
    if tensor.data.dtype.kind == "f":
        return [constant(name, tensor)]
    scale = scale_of(tensor)
    stored = StoredIntegers(
        8 * tensor.data.dtype.itemsize, f"{name}_scale", "values.astype(np.float32) * scale"
    )
    values = tensor.data.reshape(-1)
    return [
        QatTensor(name, "float", values, stored=stored),
        QatTensor(f"{name}_scale", "float", scale),
    ]


def constant(
    name: str, tensor: Tensor, arranged: Callable[[Array], Array] = np.asarray
) -> QatTensor:
    """Return a constant of floats."""
    assert tensor.data is not None
    return QatTensor(name, "float", arranged(tensor.data.astype(np.float32, copy=False)))


def scale_of(tensor: Tensor) -> NDArray[np.float32]:
    """Return a tensor's scales, of shape ``()`` or ``(C,)``; 1 where the file states none."""
    if tensor.quantization is None:
        return np.ones((), np.float32)
    scale = tensor.quantization.scale
    return scale if scale.size > 1 else scale.reshape(())
