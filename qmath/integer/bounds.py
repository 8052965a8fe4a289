"""How large an accumulator can get, proved from the actual integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.program import Linear, Term

Array = NDArray[Any]


def interval(term: Term) -> tuple[int, int]:
    """Return the least and greatest value that a term's accumulator, or a part of it, can take.

    Zero lies within every interval and every partial sum too, whatever the order of summation:
    the ends add up only what is negative, or positive.
    """
    low, high = term.grid.limits
    for linear in term.ops:
        if linear.weights is None:
            low, high = low * linear.gain, high * linear.gain
        else:
            above, below = signed_sums(linear)
            low, high = (
                int((below * high + above * low).min()), int((above * high + below * low).max())
            )  # fmt: skip
    return low, high


def signed_sums(linear: Linear) -> tuple[Array, Array]:
    """Return, for each output channel, the sums of its positive and of its negative weights."""
    weights = np.asarray(linear.weights, np.float64)
    axes = {"depthwise_conv2d": (0, 1), "conv2d_transpose": (0, 1, 3)}.get(
        linear.kind, tuple(range(weights.ndim - 1))
    )
    return np.maximum(weights, 0).sum(axes), np.minimum(weights, 0).sum(axes)


def accumulator_bits(low: int, high: int) -> int:
    """Return the two's complement width that holds every value from `low` to `high`."""
    return max(int(high).bit_length(), int(-low - 1).bit_length() if low < 0 else 0) + 1


def exact_dtype(low: int, high: int, name: str) -> type[np.floating[Any]]:
    """Return the float dtype in which sums within these bounds are exact."""
    largest = max(-low, high)
    if largest >= 2**53:
        raise QmathError(f"{name}: its accumulator can reach {largest}, more than 53 bits")
    return np.float32 if largest < 2**24 else np.float64
