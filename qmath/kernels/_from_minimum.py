"""Steps counted from the nudged minimum, as the builds but the default one count them.

They are ``floor((clamped - min) / scale + 0.5)``, and stand for ``steps * scale + min``: two
roundings, of which a fused multiply-add saves one. Real zero itself then comes back as what the
roundings leave of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._float32 import (
    Float32Array,
    Float64Array,
    flush,
    maximum,
    minimum,
    rounded,
)
from qmath.kernels._nudge import Nudged, quant_limits

_HALF = np.float32(0.5)
_FEW = 1 << 13  # elements, of which two passes cost less than a clip and a look for NaN
_CHUNK = 1 << 15  # elements whose float64 stay in the cache


class StepsFromMinimum:
    """Steps with two roundings where there is a product and a sum.

    Parameters
    ----------
    nudged : Nudged
    divides : bool
        By the scale, instead of multiplying by its inverse.
    keeps_nan : bool
        What becomes of NaN: itself, or the nudged minimum.
    upper_first : bool
        Which bound clamps first: the other one wins where a range is inverted.
    """

    truncates = True  # a half is added to what is not negative

    def __init__(
        self, nudged: Nudged, *, divides: bool, keeps_nan: bool, upper_first: bool
    ) -> None:
        self._divides, self._keeps_nan, self._upper_first = divides, keeps_nan, upper_first
        factor = nudged.scale if divides else nudged.inverse
        self.constants: tuple[NDArray[Any], ...] = (nudged.min, nudged.max, factor)

    def __call__(
        self,
        x: Float32Array,
        constants: Sequence[NDArray[Any]],
        out: Float32Array,
        *,
        floor: bool = True,
        keeps_nan: bool = False,
    ) -> None:
        """Write the steps of a block; ``floor=False`` leaves the last pass to the caller."""
        low, high, factor, *_ = constants
        leaves_nan = self._keeps_nan or keeps_nan
        if low.ndim or x.size < _FEW:
            np.minimum(x, high, out=out)
            # fmax takes the number of a number and NaN
            (np.maximum if leaves_nan else np.fmax)(out, low, out=out)
        else:
            x.clip(low, high, out=out)
            if not leaves_nan and np.isnan(np.minimum.reduce(out, axis=None)):
                np.fmax(out, low, out=out)
        np.subtract(out, low, out=out)
        self._scale(out, factor)
        if floor:
            np.floor(out, out=out)

    def _scale(self, shifted: Float32Array, factor: NDArray[Any]) -> None:
        (np.divide if self._divides else np.multiply)(shifted, factor, out=shifted)
        np.add(shifted, _HALF, out=shifted)

    def to_floats(
        self, steps: Float32Array, scale: Float32Array, constants: Sequence[NDArray[Any]]
    ) -> None:
        """Turn steps into what they stand for, in place."""
        np.multiply(steps, scale, out=steps)
        np.add(steps, constants[0], out=steps)

    def exactly(self, x: Float32Array, nudged: Nudged, *, keeps_nan: bool = False) -> Float32Array:
        """Return the steps of any range: subnormals flushed."""
        a = flush(x)
        low, high = nudged.min, nudged.max
        if self._upper_first:
            clamped = maximum(minimum(a, high), low)
        else:
            clamped = np.where(a > low, a, low)
            clamped = np.where(clamped > high, high, clamped)
        if self._keeps_nan:
            clamped = np.where(np.isnan(a), a, clamped)
        shifted = rounded(clamped.astype(np.float64) - nudged.min).astype(np.float64)
        steps = np.floor(self._scaled(shifted, nudged))
        return np.where(np.isnan(x), x, steps) if keeps_nan else np.asarray(steps)

    def _scaled(self, shifted: Float64Array, nudged: Nudged) -> Float32Array:
        t = rounded(shifted / nudged.scale if self._divides else shifted * nudged.inverse)
        return rounded(t.astype(np.float64) + 0.5)

    def exact_floats(self, x: Float32Array, nudged: Nudged) -> Float32Array:
        """Return what the steps of any range stand for."""
        product = rounded(self.exactly(x, nudged).astype(np.float64) * nudged.scale)
        return rounded(product.astype(np.float64) + nudged.min)

    def shift(self, zero_point: Float32Array, lowest: int) -> Float32Array:
        """Return what makes TensorFlow's count of the integers out of steps."""
        return np.full_like(zero_point, lowest)


class FusedSteps(StepsFromMinimum):
    """Steps with fused multiply-adds, each of which rounds once.

    Notes
    -----
    With an ordinary range, float64 holds what is rounded. The product of two float32 has 48 bits.
    Where it is at least a quarter, the half that is added to it, for a sum below ``2**17``, costs
    two bits more; where it is less, the step is 0 either way. The product of a step, of 17 bits at
    most, and the scale has 41; it and the nudged minimum are multiples of the scale's last place,
    and their sum is no larger. So each is computed in float64 without an error, and rounded to
    float32 once. `fused` does what any range needs.
    """

    def __init__(
        self, nudged: Nudged, *, divides: bool, keeps_nan: bool, upper_first: bool
    ) -> None:
        super().__init__(nudged, divides=divides, keeps_nan=keeps_nan, upper_first=upper_first)
        wide = (part.astype(np.float64) for part in (nudged.inverse, nudged.scale, nudged.min))
        self.constants = (nudged.min, nudged.max, *wide)

    def _scale(self, shifted: Float32Array, factor: NDArray[Any]) -> None:
        _multiply_add(shifted, factor, np.float64(0.5))

    def to_floats(
        self, steps: Float32Array, _scale: Float32Array, constants: Sequence[NDArray[Any]]
    ) -> None:
        """Turn steps into what they stand for, in place."""
        _multiply_add(steps, *constants[3:])

    def _scaled(self, shifted: Float64Array, nudged: Nudged) -> Float32Array:
        return fused(shifted, nudged.inverse, 0.5)

    def exact_floats(self, x: Float32Array, nudged: Nudged) -> Float32Array:
        """Return what the steps of any range stand for."""
        return fused(self.exactly(x, nudged), nudged.scale, nudged.min)


def nudged_zero_point(low: Float32Array, num_bits: int, narrow_range: bool) -> Float64Array:
    """Return the zero point of a range that begins at `low` steps, NaN where that is none."""
    first, last = quant_limits(num_bits, narrow_range)
    estimate = rounded(first - low.astype(np.float64)).astype(np.float64)
    return np.asarray(np.floor(np.clip(estimate, first, last) + 0.5))


def fused(
    a: NDArray[np.floating], b: NDArray[np.floating], c: NDArray[np.floating] | float
) -> Float32Array:
    """Return ``a * b + c`` of float32 values, rounded once and flushed.

    The product is exact in float64. Its sum is rounded to odd: where it is not exact, the last bit
    is set, so that rounding to float32 goes where the sum without an error would go.
    """
    with np.errstate(all="ignore"):
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        addend = np.asarray(c, np.float64)
        total = np.asarray(product + addend)
        back = total - product
        error = (product - (total - back)) + (addend - back)
        is_even = (total.view(np.int64) & 1) == 0
        inexact = (error != 0) & is_even & np.isfinite(total)
        odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        return rounded(np.where(inexact, odd, total))


def _multiply_add(x: Float32Array, factor: Float64Array, addend: Float64Array | np.float64) -> None:
    """Put ``x * factor + addend`` in the place of contiguous `x`, rounded once from float64."""
    if not x.size:
        return
    rows = x.reshape(-1, factor.size) if factor.ndim else x.reshape(-1)
    at_once = max(1, _CHUNK // factor.size)
    wide = _kept_float64(min(len(rows), at_once) * factor.size).reshape(-1, *rows.shape[1:])
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        products = wide[: len(part)]
        products[...] = part
        np.multiply(products, factor, out=products)
        np.add(products, addend, out=products)
        part[...] = products


def _kept_float64(size: int) -> Float64Array:
    """Return an array of this thread's, whose pages the system need not give anew at each call."""
    if size > _CHUNK:
        return np.empty(size)
    kept = _of_thread()
    if not hasattr(kept, "wide"):
        kept.wide = np.empty(_CHUNK)
    found: Float64Array = kept.wide[:size]
    return found


@cache
def _of_thread() -> Any:
    from threading import local  # which NumPy does not import

    return local()
