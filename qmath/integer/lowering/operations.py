"""The operations of layers on integers, and the weights that they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.lowering import geometry
from qmath.integer.program import Linear, Shape
from qmath.model import Node, QatTensor, QuantizedTensor

__all__ = ["Operations", "Quantize", "relative_integers"]

Array = NDArray[Any]
Quantize = Callable[[QatTensor], QuantizedTensor]


class Operations:
    """The operations of layers on integers, each made once for all calls of its layer.

    Parameters
    ----------
    quantize : callable
        Returns the integers of a weight.
    """

    def __init__(self, quantize: Quantize) -> None:
        self.quantize = quantize
        self._made: dict[tuple[str, Shape], tuple[Linear, Array]] = {}

    def of(self, node: Node, tensor: QatTensor, shape: Shape) -> tuple[Linear, Array]:
        """Return the operation of a layer on an input of `shape`, and its weights' scales."""
        key = tensor.name, shape
        if key not in self._made:
            q = self.quantize(tensor)
            linear = geometry.weighted(node, shape, relative_integers(q), tensor.name)
            own = {k: node.config[k] for k in ("kernel", "is_dynamic") if k in node.config}
            linear = replace(linear, name=tensor.name, attributes={**linear.attributes, **own})
            self._made[key] = linear, q.scale.astype(np.float64)
        return self._made[key]


def relative_integers(weight: QuantizedTensor) -> Array:
    """Return integers minus their zero point, in the smallest signed dtype for their width.

    A zero point beside the middle takes a bit more: with one of 127, 8 bits reach from -255 to 0.

    Examples
    --------
    >>> import qmath
    >>> relative_integers(qmath.quantize([-1.0, 1.0], -1.0, 1.0, 8, narrow_range=True))
    array([-127,  127], dtype=int8)
    >>> relative_integers(qmath.quantize([-1.0, 1.0], -1.0, 0.0, 8))
    array([-255,    0], dtype=int16)
    """
    half = weight.signed << (weight.num_bits - 1)
    low = int(weight.narrow_range) - half - int(weight.zero_point.max())
    high = (1 << weight.num_bits) - 1 - half - int(weight.zero_point.min())
    dtype = next(
        dtype
        for dtype in (np.int8, np.int16, np.int32)
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max
    )
    if weight.values.dtype == dtype and not weight.zero_point.any():
        return weight.values
    return np.asarray(np.subtract(weight.values, weight.zero_point, dtype=np.int32).astype(dtype))
