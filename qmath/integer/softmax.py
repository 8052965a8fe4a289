"""A softmax in integers: a table of exponentials, their sum, one division, one multiplication.

With ``d`` the distance of an integer to the greatest one along the axis::

    e = exponentials[d]                       # exp(-d * scale of the source) * 2**30, rounded
    p = ((e << 31) + (sum(e) >> 1)) / sum(e)  # the probability times 2**31, rounded down
    y = (p * multiplier + (1 << (shift - 1))) >> shift

and `y` is clamped. All fits in 64 bits, signed, whatever the length of the axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.program import QuantParams, Shape, SoftmaxStep
from qmath.kernels._environment import in_default_environment

__all__ = ["MOST_ERROR", "error_of", "in_floats", "in_integers", "of_reals", "softmax_step"]

Array = NDArray[Any]
_TABLE_BITS, _SHARE_BITS = 30, 31
MOST_ERROR = 0.25  # in steps: what is worse is left in float32


def error_of(params: QuantParams, length: int) -> float:
    """Bound the error of the integer form before rounding, in integer steps of the result.

    Each exponential is off by half of ``2**-30`` at most, of a sum that is 1 or more; so is the
    share by half of ``2**-31``, and the multiplier by ``2**-31`` of itself.
    """
    return (length + 2.5) * 2.0**-_SHARE_BITS / params.scale


@in_default_environment
def softmax_step(
    name: str,
    source: str,
    read: QuantParams,
    function: Callable[[Array], Array],
    axis: int,
    params: QuantParams,
    shape: Shape,
) -> SoftmaxStep:
    """Return a step of the given name.

    Parameters
    ----------
    source, read : str, QuantParams
        What it reads, and what that means.
    function : callable
        The softmax in float32.
    axis : int
        Counted from the last one.
    params, shape : QuantParams, tuple of int
        Of the result.
    """
    distance = np.arange(read.high - read.low + 1)
    exponentials = np.rint(np.exp(-distance * read.scale) * 2.0**_TABLE_BITS).astype(np.int32)
    mantissa, exponent = math.frexp(1 / params.scale)
    multiplier, shift = round(mantissa * 2**_SHARE_BITS), 2 * _SHARE_BITS - exponent
    if shift > 2 * _SHARE_BITS:  # of a scale above 1
        multiplier, shift = multiplier >> (shift - 2 * _SHARE_BITS), 2 * _SHARE_BITS
    error = error_of(params, shape[axis])
    return SoftmaxStep(
        name, source, function, axis, exponentials, multiplier, shift, error, params, shape
    )


def in_integers(step: SoftmaxStep, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the integers relative to the zero point, by integer arithmetic alone.

    `x` are the source's, relative to any point.
    """
    q = x.astype(np.int64)
    e = step.exponentials[q.max(step.axis, keepdims=True) - q].astype(np.int64)
    total = e.sum(step.axis, keepdims=True)
    share = ((e << _SHARE_BITS) + (total >> 1)) // total
    y = (share * step.multiplier + (1 << (step.shift - 1))) >> step.shift
    return np.asarray(np.clip(y, *step.params.limits), np.float32)


@in_default_environment
def in_floats(step: SoftmaxStep, x: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Return the same as training computes it: in float32, and TensorFlow's quantizer.

    `x` are the source's integers relative to its zero point, `scale` is its scale.
    """
    reals = x * np.float32(scale)
    made: NDArray[np.int32] = step.params.quantize(step.function(reals), step.name)
    return made.astype(np.float32)


@in_default_environment
def of_reals(x: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return a softmax in float64."""
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))
