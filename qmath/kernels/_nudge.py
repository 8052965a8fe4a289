"""From a range to the constants of its fake quantization.

Mirrors ``Nudge`` in ``tensorflow/core/kernels/fake_quant_ops_functor.h``. Small tensors feel what
this costs, so it is done in plain float32 where that provably gives TensorFlow's bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._float32 import SMALLEST_NORMAL, Float32Array, flush, rounded

# From this scale on, whether a subnormal was flushed cannot be seen in any result: what a flush
# changes is below 2**-126, less than 2**-26 of an integer step.
_ORDINARY_SCALE = np.float32(2.0**-100)
_HALF = np.float32(0.5)


class Nudged(NamedTuple):
    """A range after nudging: float32 arrays, all of shape ``()`` or ``(C,)``.

    `zero_point` counts as TensorFlow does, from 0; `quant_zero` is the kernels' own second
    estimate of ``zero_point - quant_min``, which their rounding subtracts.
    """

    scale: Float32Array
    inverse: Float32Array
    zero_point: Float32Array
    min: Float32Array
    max: Float32Array
    quant_zero: Float32Array


def quant_limits(num_bits: int, narrow_range: bool) -> tuple[int, int]:
    """Return the lowest and highest integer, counted from 0 as TensorFlow does."""
    return int(narrow_range), 2**num_bits - 1


def nudge(min: Float32Array, max: Float32Array, num_bits: int, narrow_range: bool) -> Nudged:
    """Move ranges so that real zero is an integer, as TensorFlow's ``Nudge`` does.

    Parameters
    ----------
    min, max : ndarray of float32
        Range ends, shape ``()`` or ``(C,)``; any values.
    num_bits : int
        Width, 2 to 16.
    narrow_range : bool
        Whether the lowest integer is unused.

    Returns
    -------
    Nudged
        The numbers that the kernels compute, NaN and infinities included.
    """
    with np.errstate(all="ignore"):
        plain = _plain_nudge(min, max, num_bits, narrow_range)
        if is_ordinary(plain).all():
            return plain
        return _exact_nudge(min, max, num_bits, narrow_range)


def _plain_nudge(min: Float32Array, max: Float32Array, num_bits: int, narrow_range: bool) -> Nudged:
    """Nudge in plain float32, which is exact where the outcome `is_ordinary`.

    There the range is at least ``2**-99`` wide, so flushing a subnormal end would change neither
    the difference nor, the quotient being below ``2**-25``, the zero point; and no later result
    that is not 0 is tiny.
    """
    low, high = (np.float32(limit) for limit in quant_limits(num_bits, narrow_range))
    span = max - min
    scale, inverse = span / (high - low), (high - low) / span
    estimate = np.minimum(np.maximum(low - min / scale, low), high)
    # std::round, half away from zero: in float64, where adding a half is exact
    zero = np.floor(estimate.astype(np.float64) + 0.5).astype(np.float32)
    nudged_min, nudged_max = (low - zero) * scale, (high - zero) * scale
    quant_zero = np.floor(-nudged_min * inverse + _HALF)
    return Nudged(*map(np.asarray, (scale, inverse, zero, nudged_min, nudged_max, quant_zero)))


def _exact_nudge(min: Float32Array, max: Float32Array, num_bits: int, narrow_range: bool) -> Nudged:
    """Nudge any range, whatever is subnormal, infinite or NaN."""
    low, high = quant_limits(num_bits, narrow_range)
    low64 = flush(min).astype(np.float64)
    span = rounded(flush(max).astype(np.float64) - low64).astype(np.float64)
    scale = rounded(span / (high - low)).astype(np.float64)
    inverse = rounded((high - low) / span).astype(np.float64)
    estimate = rounded(low - rounded(low64 / scale).astype(np.float64)).astype(np.float64)
    # std::round, half away from zero; NaN becomes 0 in the conversion to uint16.
    zero = np.floor(np.clip(estimate, low, high) + 0.5)
    zero = np.where(np.isnan(estimate), 0.0, zero)
    nudged_min = rounded((low - zero) * scale)
    nudged_max = rounded((high - zero) * scale)
    product = rounded(-nudged_min.astype(np.float64) * inverse).astype(np.float64)
    quant_zero = np.floor(rounded(product + 0.5))
    constants = (scale, inverse, zero, nudged_min, nudged_max, quant_zero)
    return Nudged(*(np.asarray(constant, np.float32) for constant in constants))


def is_ordinary(nudged: Nudged) -> NDArray[np.bool_]:
    """Return where plain float32 arithmetic gives TensorFlow's bits, flushed subnormals or not."""
    return np.asarray(
        np.isfinite(nudged.scale) & (nudged.scale >= _ORDINARY_SCALE)
        & np.isfinite(nudged.inverse) & (nudged.inverse >= SMALLEST_NORMAL)
    )  # fmt: skip


def is_zero_range(low: Float32Array, high: Float32Array) -> NDArray[np.bool_]:
    """Whether ``min == max == 0``, subnormals counting as zero: all outputs are 0."""
    return np.asarray((np.abs(low) < SMALLEST_NORMAL) & (np.abs(high) < SMALLEST_NORMAL))
