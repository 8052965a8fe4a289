"""From fake-quantized floats back to integers, where the floats alone determine them.

A quantizer that keeps no range still leaves its lattice in the values that it returns. Dividing by
a guessed scale and rounding finds integers for any floats; here they count only if the
reconstruction equals the floats in every bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.kernels._arrays import as_array, place_of
from qmath.kernels._environment import check_rounding, flushes_subnormals
from qmath.kernels._float32 import Float32Array
from qmath.kernels._lattice_others import bits_of, others_of
from qmath.kernels._lattice_search import (
    EVALUATE,
    PRODUCT,
    QUOTIENT,
    SHIFTED,
    SHIFTED_QUOTIENT,
    Row,
    Width,
)
from qmath.kernels.affine import check_flag, check_num_bits, smallest_dtype
from qmath.kernels.recovered_lattice import RecoveredLattice

__all__ = ["recover"]

_INFINITE = np.uint32(0x7F800000)
_NEGATIVE_ZERO = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
# The smallest first; of two alike, the signed one.
_DTYPES = (np.int8, np.uint8, np.int16, np.uint16, np.int32)


def recover(
    values: ArrayLike,
    *,
    max_bits: SupportsIndex = 16,
    axis: SupportsIndex | None = None,
    zero_point: ArrayLike | None = None,
    signed: bool = True,
    name: str | None = None,
) -> RecoveredLattice:
    """Find the integers and the scale behind fake-quantized floats.

    Parameters
    ----------
    values : array-like of float
        What a quantizer returned. Other dtypes than float32 are converted where that is exact.
    max_bits : int
        The width of the quantizer, or the largest that comes into question, 2 to 16.
    axis : int, optional
        The axis along which each index has a scale of its own. Default: one scale.
    zero_point : int or array-like of int, optional
        The integer of real zero, one or one for each channel. The values do not tell it; without
        it the integers are relative to zero, as if it were 0.
    signed : bool
        Whether zero points count from ``-2**(max_bits - 1)``, as TFLite's do, or from 0.
    name : str, optional
        Put in front of error messages.

    Returns
    -------
    RecoveredLattice
        Without integers if no lattice gives `values` in every bit.

    Raises
    ------
    QmathError
        `values` hold NaN or infinity, are masked, or are no float32 exactly; an argument is out
        of bounds.

    Notes
    -----
    Tried in this order: ``k * scale`` (TensorFlow's fake quantization, and ``round(x / s) * s``);
    ``k / scale`` (``round(x * S) / S``); ``2 * (k / n) - 1`` and ``2 * (k * (1 / n)) - 1``
    (DoReFa), whose integers count from 0 for -1 to n for 1. The sign of zeros is not looked at.
    Every width contains real zero: a lattice fits if the integers, and that of zero, do.

    Of the lattices that fit, the coarsest is returned: integers have no common factor. If only
    even integers occur in a channel, they come back halved, with the scale doubled, and
    `alternatives` has the multiple by 2.

    Examples
    --------
    >>> import numpy as np, qmath
    >>> values = np.array([-7, 3, 0, 5], np.float32) * np.float32(0.1)
    >>> found = qmath.recover(values, max_bits=4)
    >>> found
    <RecoveredLattice of shape (4,): 4 bits, unique, (integers - zero_point) * scale>
    >>> found.integers, found.scale
    (array([-7,  3,  0,  5], dtype=int8), array(0.1, dtype=float32))
    >>> int(found.zero_point_min), int(found.zero_point_max)
    (-1, 2)
    >>> qmath.recover(values + np.float32(1e-3), max_bits=4)
    <RecoveredLattice: none of 4 bits, off by 1.01e+07 ulp>
    """
    check_rounding()
    prefix = f"{name}: " if name else ""
    bits, signed = check_num_bits(max_bits), check_flag(signed, f"{prefix}signed")
    array = _exact_float32(values, prefix)
    place = _normal_axis(axis, array.ndim, prefix)
    count = None if place is None else array.shape[place]
    widths = _widths(zero_point, count, bits, signed, prefix)
    with np.errstate(all="ignore"):
        rows = _rows(array, place, widths, prefix)
        # Of the shifted forms, in which 0 need not be an integer, a zero point says nothing.
        for form in EVALUATE if zero_point is None else (PRODUCT, QUOTIENT):
            found = _fit(form, array, place, rows, bits)
            if found is not None:
                return found
        error = np.array([row.largest_error() for row in rows]).reshape(_beside(array, place))
    return RecoveredLattice(
        form=None, integers=None, scale=None, scale_max=None, zero_point=None,
        zero_point_min=None, zero_point_max=None, num_bits=None, max_bits=bits, axis=place,
        is_unique=False, ambiguities=("",) * len(rows), alternatives=((),) * len(rows),
        max_error_ulp=error, negative_zeros=_negative_zeros(array),
    )  # fmt: skip


def _fit(
    form: str, values: Float32Array, axis: int | None, rows: Sequence[Row], max_bits: int
) -> RecoveredLattice | None:
    """Return the integers in this form, if every channel has a lattice of it."""
    lattices = [row.lattices(form) for row in rows]
    if not all(found.largest.size for found in lattices):
        return None
    shape = _beside(values, axis)
    scale = np.array([found.scale[0] for found in lattices], np.float32).reshape(shape)
    scale_max = np.array([found.scale_max[0] for found in lattices], np.float32).reshape(shape)
    zero = np.array([row.width.zero_point or 0 for row in rows], np.int32).reshape(shape)
    steps = _steps(form, values, scale)
    if not np.array_equal(EVALUATE[form](steps, scale), values):  # all bits but the sign of zeros
        return None
    coarsest = [(row, float(found.largest[0])) for row, found in zip(rows, lattices, strict=True)]
    num_bits = max((bits_of(row, form, largest) for row, largest in coarsest), default=1)
    least, greatest = (None, None) if form in SHIFTED else _zero_point_ends(coarsest, shape)
    others = [others_of(row, form) for row in rows]
    return RecoveredLattice(
        form=form, integers=_integers(steps, zero, form, num_bits, rows), scale=scale,
        scale_max=scale_max, zero_point=zero, zero_point_min=least, zero_point_max=greatest,
        num_bits=num_bits, max_bits=max_bits, axis=axis,
        is_unique=not any(why for why, _ in others), ambiguities=tuple(why for why, _ in others),
        alternatives=tuple(listed for _, listed in others),
        max_error_ulp=np.zeros(shape), negative_zeros=_negative_zeros(values),
    )  # fmt: skip


def _beside(values: Float32Array, axis: int | None) -> tuple[int, ...]:
    """Return the shape in which an entry for each channel broadcasts against the values."""
    return () if axis is None else (values.shape[axis],) + (1,) * (values.ndim - 1 - axis)


def _steps(form: str, values: Float32Array, scale: Float32Array) -> Float32Array:
    """Return the integers relative to the zero point; float32 finds the nearest."""
    steps: NDArray[Any]
    if form == PRODUCT:
        steps = values / np.where(scale == 0, np.float32(1), scale)
    elif form == QUOTIENT:
        steps = values * scale
    else:
        counts = scale if form == SHIFTED_QUOTIENT else np.rint(np.float32(1) / scale)
        steps = (values + np.float32(1)) * (counts / np.float32(2))
    return np.asarray(np.rint(steps), np.float32)


def _integers(
    steps: Float32Array, zero: NDArray[np.int32], form: str, num_bits: int, rows: Sequence[Row]
) -> NDArray[Any]:
    """Return the integers in the smallest dtype, which a given zero point makes signed or not."""
    integers = np.asarray(steps.astype(np.int32) + zero)
    if form in SHIFTED:
        return integers.astype(smallest_dtype(num_bits, signed=False))
    if rows and rows[0].width.zero_point is not None:
        return integers.astype(smallest_dtype(num_bits, signed=rows[0].width.lowest < 0))
    low, high = integers.min(initial=0), integers.max(initial=0)
    fitting = (np.iinfo(d) for d in _DTYPES if np.iinfo(d).min <= low and high <= np.iinfo(d).max)
    return integers.astype(next(fitting).dtype)


def _zero_point_ends(
    coarsest: Sequence[tuple[Row, float]], shape: tuple[int, ...]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the least and the greatest zero point by which the integers fit into the width."""
    least, greatest = [], []
    for row, largest in coarsest:
        low, high = row.ends(largest)
        least.append(row.width.lowest - low)
        greatest.append(row.width.highest - high)
    return np.array(least, np.int32).reshape(shape), np.array(greatest, np.int32).reshape(shape)


def _negative_zeros(values: Float32Array) -> int:
    return int(np.count_nonzero(values.view(np.uint32) == _NEGATIVE_ZERO))


def _rows(
    values: Float32Array, axis: int | None, widths: Sequence[Width], prefix: str
) -> list[Row]:
    """Return the values of each channel with their distinct magnitudes."""
    lines = values.reshape(1, -1)
    if axis is not None:
        lines = np.moveaxis(values, axis, 0).reshape(
            len(widths), values.size // max(1, len(widths))
        )
    rows = []
    for line, width in zip(lines, widths, strict=True):
        bits = np.sort(line.view(np.uint32) & _MAGNITUDE)
        if bits.size and bits[-1] >= _INFINITE:
            raise _not_finite(values, prefix)
        is_new = np.ones(bits.size, bool)
        np.not_equal(bits[1:], bits[:-1], out=is_new[1:])
        distinct = bits[is_new].view(np.float32)
        rows.append(Row(line, distinct[distinct > 0], width))
    return rows


def _not_finite(values: Float32Array, prefix: str) -> QmathError:
    where = _first(~np.isfinite(values))
    return QmathError(
        f"{prefix}the value at {where} is {values[where]}, which no integer stands for; pass what "
        "the quantizer returned"
    )


def _first(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(mask.argmax()), mask.shape))


def _exact_float32(values: ArrayLike, prefix: str) -> Float32Array:
    """Return the values as C-contiguous float32, if they are such."""
    try:
        array = as_array(values, f"{prefix}values")
    except TypeError as error:
        raise QmathError(f"{prefix}values must be an array of floats: {error}") from None
    if array.dtype.kind != "f":
        raise QmathError(
            f"{prefix}values are {array.dtype}; pass the floats that a quantizer returned, not "
            "their integers"
        )
    if flushes_subnormals() and _is_exposed(array):
        raise QmathError(
            f"{prefix}values of magnitudes below 2**-100 or above 2**100 have subnormal scales, "
            "and this thread takes subnormals for zero: another library has set that; call "
            "recover in another process"
        )
    with np.errstate(all="ignore"):
        narrow = np.ascontiguousarray(array, np.float32).reshape(array.shape)
        lost = (narrow != array) & ~np.isnan(array) if array.dtype.itemsize > 4 else None
    if lost is not None and lost.any():
        where = _first(lost)
        raise QmathError(
            f"{prefix}the value at {where}, {array[where]!s}, is no float32; only float32 "
            "lattices are recovered: pass .astype(np.float32) if that is what the model computes"
        )
    return narrow


def _is_exposed(array: NDArray[Any]) -> bool:
    """Return whether subnormals may matter: beside values that large or small, or among them."""
    if array.itemsize > 8:
        return True
    bits = np.abs(array).view(f"{array.dtype.byteorder}u{array.itemsize}")
    low, high = np.array([2.0**-100, 2.0**100]).astype(array.dtype).view(bits.dtype)
    return bool((((bits > 0) & (bits < low)) | (bits > high)).any())


def _normal_axis(axis: SupportsIndex | None, ndim: int, prefix: str) -> int | None:
    if axis is None:
        return None
    if (place := place_of(axis, ndim)) is None:
        raise QmathError(
            f"{prefix}axis={axis!r} of values of {ndim} dimensions; choose another, or None for "
            "one scale"
        )
    return place


def _widths(
    zero_point: ArrayLike | None, count: int | None, bits: int, signed: bool, prefix: str
) -> list[Width]:
    """Return the width of each channel's integers; `count` is ``None`` without an axis."""
    lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    channels = 1 if count is None else count
    if zero_point is None:
        return [Width(lowest, highest, None)] * channels
    zeros = as_array(zero_point, f"{prefix}zero_point")
    if zeros.dtype.kind not in "iu" or zeros.shape not in ((), () if count is None else (count,)):
        wanted = "an integer" if count is None else f"an integer or {count} of them"
        raise QmathError(f"{prefix}zero_point must be {wanted}, got {zero_point!r}")
    if not ((zeros >= lowest) & (zeros <= highest)).all():
        convention = "signed" if signed else "unsigned"
        raise QmathError(
            f"{prefix}zero_point={zero_point!r} is not in {lowest} … {highest}, the {convention} "
            f"integers of {bits} bits; check it, max_bits and signed"
        )
    return [Width(lowest, highest, int(z)) for z in np.broadcast_to(zeros, channels)]
