"""What a stored range says by itself about the quantizer that left it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.readers.records import Fact, StoredTensor

__all__ = ["is_mirrored", "ratio_facts", "shape_facts", "trained_channels", "width_from_ratio"]

# TensorFlow divides by the ratio or multiplies by its reciprocal, in float32.
_ULPS = 2
_TINY = 1e-37
_UNTRAINED = 6.0


def shape_facts(item: StoredTensor) -> list[Fact]:
    """Return what it means that a range is stored: a quantizer with variables, of that shape."""
    if item.min is None or not item.is_stored:
        return []
    says = f"its stored range, of shape {item.min.shape}, says"
    return [
        Fact("op", "vars", "range shape", says),
        Fact("per_axis", item.min.ndim == 1, "range shape", says),
    ]


def ratio_facts(item: StoredTensor, facts: Iterable[Fact]) -> list[Fact]:
    """Return what the ratio of a weight's range proves, unless another quantizer left it."""
    if (
        item.role != "weight"
        or item.min is None
        or item.max is None
        or not item.is_stored
        or any(fact.field == "quantizer" and fact.value != "LastValueQuantizer" for fact in facts)
    ):
        return []
    num_bits = width_from_ratio(item.min, item.max)
    if num_bits is None:
        return []
    says = f"its stored range, with max/-min = {2**num_bits - 2}/{2**num_bits}, says"
    values = {"num_bits": num_bits, "narrow_range": False, "symmetric": True}
    ratio = [Fact(field, value, "range ratio", says) for field, value in values.items()]
    # What a graph runs is certain, so a range that looks like another width's is so by chance.
    run = {fact.field: fact.value for fact in facts if fact.source == "graph"}
    return ratio if all(run.get(fact.field, fact.value) == fact.value for fact in ratio) else []


def trained_channels(
    minimum: NDArray[Any], maximum: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ranges that training has set and that float32 holds in full precision.

    Left out: 0 to 0 (a channel of zeros), -6 to 6 (the initial range) and subnormal ranges.
    """
    low = np.atleast_1d(minimum).astype(np.float64)
    high = np.atleast_1d(maximum).astype(np.float64)
    initial = (low == -_UNTRAINED) & (high == _UNTRAINED)
    kept = ~initial & (np.maximum(np.abs(low), np.abs(high)) >= _TINY)
    return low[kept], high[kept]


def width_from_ratio(minimum: NDArray[Any], maximum: NDArray[Any]) -> int | None:
    """Return the width of a symmetric wide quantizer, if the range is surely one's.

    TFMOT keeps ``max / -min == (2**n - 2) / 2**n`` for ``symmetric=True, narrow_range=False`` in
    every channel, so the ratio tells n: 7/8 is 4 bits.

    Parameters
    ----------
    minimum, maximum : ndarray of float32
        The stored range, ``()`` or ``(C,)``.

    Returns
    -------
    int or None
        2 to 16; ``None`` if there is no such n.

    Examples
    --------
    >>> width_from_ratio(np.float32(-0.8), np.float32(0.7))
    4
    >>> width_from_ratio(np.float32(-0.8), np.float32(0.8)) is None
    True
    """
    low, high = trained_channels(minimum, maximum)
    if not low.size:
        return None
    tolerance = _ULPS * np.spacing(high.astype(np.float32)).astype(np.float64)
    for num_bits in range(2, 17):
        ratio = 1 - 2.0 ** (1 - num_bits)
        if np.all((high > 0) & (np.abs(high + low * ratio) <= tolerance)):
            return num_bits
    return None


def is_mirrored(minimum: NDArray[Any], maximum: NDArray[Any]) -> bool:
    """Tell whether min is exactly -max in every trained channel, as symmetric narrow leaves it."""
    low, high = trained_channels(minimum, maximum)
    return bool(low.size) and bool(np.all(low == -high))
