"""How large an accumulator can get, proved from the actual integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.program import Linear, Term

__all__ = [
    "CARRIER",
    "accumulator_bits",
    "channel_intervals",
    "exact_dtype",
    "interval",
    "least_weights",
    "multiplier_room",
]

Array = NDArray[Any]

CARRIER = 62  # bits of magnitude in int64, one left for the sum of product and addend


def interval(term: Term) -> tuple[int, int]:
    """Return the least and greatest value that a term's accumulators, or parts of it, can take."""
    low, high = channel_intervals(term)
    return int(low.min()), int(high.max())


def channel_intervals(term: Term) -> tuple[Array, Array]:
    """Return the least and greatest value of a term's accumulators.

    Zero lies within every interval and every partial sum too, whatever the order of summation:
    the ends add up only what is negative, or positive.

    Returns
    -------
    low, high : ndarray of int64
        Of shape ``(C,)`` for each channel, or ``()`` where channels cannot be told apart.
    """
    low, high = (np.asarray(limit, np.int64) for limit in term.params.limits)
    least, most = np.int64(0), np.int64(0)  # of sums before the last ones
    for linear in term.ops:
        if linear.weights is not None:
            above, below = linear.signed_sums
            first, last = low.min(), high.max()
            low = np.minimum(below * last + above * first, least)
            high = np.maximum(above * last + below * first, most)
            least, most = low.min(), high.max()
        elif linear.factor is not None:
            ends = np.multiply.outer([low.min(), high.max()], linear.factor.params.limits)
            low, high = ends.min(initial=0), ends.max(initial=0)
        elif linear.kind in ("pool_sum", "bilinear", "upsample"):
            low, high = low * linear.gain, high * linear.gain
        else:  # the channels may lie elsewhere now
            low, high = low.min(), high.max()
    return np.asarray(low), np.asarray(high)


def least_weights(linear: Linear) -> Array:
    """Return the least weight of each output channel."""
    return np.asarray(np.asarray(linear.weights).min(linear.summed_axes).reshape(-1))


def accumulator_bits(low: Array | int, high: Array | int) -> Array:
    """Return the two's complement width that holds every value from `low` to `high`."""
    # frexp's exponent is the bit length; below 2**53 the conversion is exact.
    lengths = np.frexp(np.asarray(high, np.float64))[1], np.frexp(-1.0 - np.asarray(low))[1]
    return np.asarray(np.maximum(lengths[0], np.where(np.asarray(low) < 0, lengths[1], 0)) + 1)


def multiplier_room(terms: int) -> int:
    """Return the bits of int64 for the products of sums and multipliers, of so many terms."""
    return CARRIER - 1 - (terms + 1).bit_length()


def exact_dtype(low: int, high: int, name: str) -> type[np.floating[Any]]:
    """Return the float dtype in which sums within these bounds are exact."""
    largest = max(-low, high)
    if largest >= 2**53:
        raise QmathError(f"{name}: its accumulator can reach {largest}, more than 53 bits")
    return np.float32 if largest < 2**24 else np.float64
