"""Weights whose quantizer left no range: integers from the values that the forward pass uses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.kernels._lattice_search import PRODUCT
from qmath.kernels.affine import smallest_dtype
from qmath.kernels.lattice import recover
from qmath.kernels.quantized_tensor import QuantizedTensor
from qmath.readers.records import Fact, StoredTensor

__all__ = ["RECOVERED", "NotRecoveredError", "recovered"]

RECOVERED = "recovered from the values"

Float32Array = NDArray[np.float32]


class NotRecoveredError(QmathError):
    """The values lie on no lattice of a width from 2 to 16; the message says how far off."""


def recovered(
    item: StoredTensor, values: Any, says: str, num_bits: int | None = None
) -> StoredTensor:
    """Return a weight with the values that the forward pass uses, and their integers.

    Parameters
    ----------
    item : StoredTensor
    values : array-like
        What the quantizer returned.
    says : str
        Where the values are from, in a sentence: ``"what the live MyQuantizer returned says"``.
    num_bits : int, optional
        The width of the quantizer, if it is known; default: the least that holds the integers.

    Raises
    ------
    NotRecoveredError
        No integers times a scale, per tensor or along the last axis, are the values in every bit.

    Examples
    --------
    >>> from qmath.readers.architecture.config import LayerFacts
    >>> layer = LayerFacts("d", "quant_d", "quant_d", "Dense")
    >>> found = recovered(StoredTensor(layer, "kernel"), np.float32([-0.375, 0.25]), "values say")
    >>> found.min, found.max, {fact.field: fact.value for fact in found.facts}["num_bits"]
    (array(-0.5, dtype=float32), array(0.375, dtype=float32), 3)
    """
    floats = np.asarray(values, np.float32)
    errors = []
    for axis in (None, -1)[: 1 + (floats.ndim > 1)]:
        lattice = recover(floats, max_bits=num_bits or 16, axis=axis, name=item.name)
        if lattice.form == PRODUCT and lattice.integers is not None and lattice.scale is not None:
            bits = num_bits or _width(lattice.integers)
            scale = np.asarray(lattice.scale.reshape(() if axis is None else -1))
            zero = _zero_point(lattice.integers, bits, axis)
            q = QuantizedTensor(
                (lattice.integers.astype(np.int32) + zero).astype(smallest_dtype(bits, True)),
                scale, zero, bits, narrow_range=False, signed=True,
                axis=None if axis is None else floats.ndim - 1,
            )  # fmt: skip
            ends = [(end - zero).astype(np.float32) * scale for end in _limits(bits)]
            return replace(
                item, role="weight", values=floats, min=np.asarray(ends[0]),
                max=np.asarray(ends[1]), is_stored=False, recovered=q,
                facts=_facts(bits, axis is not None, says),
            )  # fmt: skip
        errors.append(float(np.max(lattice.max_error_ulp, initial=0)))
    raise NotRecoveredError(
        f"{item.name}: its quantizer returns values that are no integers of up to {num_bits or 16} "
        f"bits times one scale, per tensor or per channel (off by {min(errors):.3g} ulp); "
        "qmath recover looks for other formulas in an .npz of these values"
    )


def _width(integers: NDArray[Any]) -> int:
    """Return the least width of two's complement integers."""
    low, high = int(integers.min(initial=0)), int(integers.max(initial=0))
    return max(2, max((~low).bit_length(), high.bit_length()) + 1)


def _zero_point(integers: NDArray[Any], num_bits: int, axis: int | None) -> NDArray[np.int32]:
    """Return 0, or the nearest zero point with which the width holds integers relative to zero."""
    others = None if axis is None else tuple(range(integers.ndim - 1))
    least = np.min(integers, axis=others, initial=0).astype(np.int64)
    greatest = np.max(integers, axis=others, initial=0).astype(np.int64)
    first, last = _limits(num_bits)
    return np.asarray(np.clip(0, first - least, last - greatest), np.int32)


def _limits(num_bits: int) -> tuple[int, int]:
    """Return the ends of two's complement."""
    half = 1 << (num_bits - 1)
    return -half, half - 1


def _facts(num_bits: int, per_axis: bool, says: str) -> tuple[Fact, ...]:
    values = {"op": "vars", "num_bits": num_bits, "narrow_range": False, "per_axis": per_axis}
    return tuple(Fact(field, value, RECOVERED, says) for field, value in values.items())
