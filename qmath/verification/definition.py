"""Fake quantization as each build of TensorFlow defines it, one rounding after the other.

This is what `qmath.verification.all_floats` holds the kernels to. It shares nothing with them:
each operation is computed in float64, which holds the exact result of one float32 operation well
enough, and is rounded to float32, where what is subnormal counts as zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.model import Float32Array

__all__ = ["fake_quant", "middles"]

Float64Array = NDArray[np.float64]
_TINY = 2.0**-126
# x86 calls a result tiny after it was rounded to 24 bits, whatever its exponent.
_TINY_RESULT = _TINY * (1 - 2.0**-25)


def fake_quant(
    x: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int,
    *,
    narrow_range: bool,
    op: str,
    build: str,
) -> Float32Array:
    """Return what a build's op makes of floats, by its definition.

    Parameters
    ----------
    x : array-like of float32
        Of the shape ``(N,)``, or ``(N, C)`` for ``C`` ranges.
    min, max : array-like of float32
        Of shape ``()`` or ``(C,)``.
    num_bits : int
    narrow_range : bool
    op : {"vars", "per_channel", "args"}
    build : {"tf", "tf<2.6", "xla-cpu", "xla-cpu-nofma"}

    Returns
    -------
    ndarray of float32
        Of the shape of `x`.

    Notes
    -----
    ``tf`` is ``tensorflow/core/kernels/fake_quant_ops_functor.h`` since version 2.6, ``tf<2.6``
    the same file before. ``xla-cpu`` is ``tf2xla/kernels/fake_quantize_ops.cc`` with the
    simplifications that XLA applies.
    """
    with np.errstate(all="ignore"):
        values, low, high = (_flushed(part) for part in (x, min, max))
        scale, inverse, nudged_min, nudged_max = _nudged(
            low, high, num_bits, narrow_range, op, build
        )
        if build.startswith("xla"):
            clamped = np.where(values > nudged_min, values, nudged_min)
            clamped = np.where(clamped > nudged_max, nudged_max, clamped)
            if op == "args":  # whose compiled comparisons leave NaN
                clamped = np.where(np.isnan(values), values, clamped)
        else:
            clamped = np.where(nudged_max < values, nudged_max, values)
            clamped = np.where(clamped < nudged_min, nudged_min, clamped)
        shifted = _round(clamped - nudged_min)
        if build == "xla-cpu":
            whole = np.floor(_multiply_add(shifted, inverse, np.float64(0.5)))
            return _multiply_add(whole, scale, nudged_min).astype(np.float32)
        divides = op == "vars" if build == "tf" else op != "args" and build == "tf<2.6"
        steps = _round(shifted / scale if divides else shifted * inverse)
        if build == "tf":
            zero = np.floor(_round(_round(-nudged_min * inverse) + 0.5))
            result = _round(np.floor(_round(_round(steps - zero) + 0.5)) * scale)
        else:
            result = _round(_round(np.floor(_round(steps + 0.5)) * scale) + nudged_min)
        is_zero = (low == 0) & (high == 0) & (op != "args") & (not build.startswith("xla"))
        return np.where(is_zero, 0.0, result).astype(np.float32)


def middles(
    min: ArrayLike, max: ArrayLike, num_bits: int, *, narrow_range: bool, op: str, build: str
) -> Float32Array:
    """Return what each integer of ranges of shape ``(C,)`` stands for, about: ``(N, C)``."""
    steps = np.arange(2**num_bits - narrow_range, dtype=np.float64)[:, np.newaxis]
    with np.errstate(all="ignore"):
        low, high = _flushed(min), _flushed(max)
        scale, _, nudged_min, _ = _nudged(low, high, num_bits, narrow_range, op, build)
        return (steps * scale + nudged_min).astype(np.float32)


def _nudged(
    low: Float64Array, high: Float64Array, num_bits: int, narrow_range: bool, op: str, build: str
) -> tuple[Float64Array, Float64Array, Float64Array, Float64Array]:
    """Return the scale, its inverse, and the ends of the range after nudging."""
    first, last = float(narrow_range), 2.0**num_bits - 1
    if build.startswith("xla") and op == "args":
        return _of_constants(low, high, first, last)
    span = _round(high - low)
    scale, inverse = _round(span / (last - first)), _round((last - first) / span)
    if build.startswith("xla"):
        scale = _round(span * float(np.float32(1 / (last - first))))
        inverse = _round(1 / scale)
    elif build == "tf<2.6":
        inverse = _round(1 / scale)
    below = _round(low / scale)
    if build.startswith("xla") and op == "per_channel" and low.size == 1:
        # With one channel, XLA sees what its scale was made of, and divides by that.
        inverse = _round((last - first) / span)
        below = _round(_round(low * (last - first)) / span)
    estimate = _round(first - below)
    # Half away from zero, of what is no less than `first`; NaN counts as 0.
    zero = np.nan_to_num(np.floor(np.clip(estimate, first, last) + 0.5), nan=0.0)
    return scale, inverse, _round((first - zero) * scale), _round((last - zero) * scale)


def _of_constants(
    low: Float64Array, high: Float64Array, first: float, last: float
) -> tuple[Float64Array, Float64Array, Float64Array, Float64Array]:
    """Return what XLA's compiler makes of a range that is an attribute of the op.

    It keeps subnormal results until they are used, and a zero point on a tie goes to the even
    integer.
    """

    def single(exact: Float64Array) -> Float64Array:
        return np.asarray(exact).astype(np.float32).astype(np.float64)

    span = single(high - low)
    scale, inverse = single(span / (last - first)), single((last - first) / span)
    estimate = np.clip(single(first - single(low / scale)), first, last)
    zero = 2 * np.round(estimate / 2)  # the even neighbour, if it is as near as another
    zero = np.where(np.abs(estimate - zero) > 0.5, zero + np.sign(estimate - zero), zero)
    scale = _flushed(scale)
    ends = single((first - zero) * scale), single((last - zero) * scale)
    return tuple(map(_flushed, (scale, inverse, *ends)))  # type: ignore[return-value]


def _flushed(values: ArrayLike) -> Float64Array:
    """Return float32 values in float64, subnormals as zeros of their sign."""
    wide = np.asarray(values, np.float32).astype(np.float64)
    return np.where(np.abs(wide) < _TINY, np.copysign(0.0, wide), wide)


def _round(exact: Any) -> Float64Array:
    """Round what one operation makes to float32, and keep it in float64."""
    wide = np.asarray(exact, np.float64)
    kept = np.where(np.abs(wide) < _TINY_RESULT, np.copysign(0.0, wide), wide)
    return kept.astype(np.float32).astype(np.float64)


def _multiply_add(a: Float64Array, b: Float64Array, c: Float64Array) -> Float64Array:
    """Return ``a * b + c``, rounded once.

    The product of two float32 is exact in float64. Where the sum is not, it is taken to the
    neighbour of the two with an odd last bit, which no later rounding to float32 mistakes.
    """
    product = a * b
    total = np.asarray(product + c)
    of_c = total - product
    lost = (product - (total - of_c)) + (c - of_c)
    is_even = (total.view(np.int64) & 1) == 0
    beside = np.nextafter(total, np.copysign(np.inf, lost))
    return _round(np.where((lost != 0) & is_even & np.isfinite(total), beside, total))
