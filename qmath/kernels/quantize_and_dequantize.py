"""TensorFlow's ``quantize_and_dequantize_v2`` and its gradient, bit for bit, in NumPy.

Names, argument order and defaults are those of ``tf.quantization.quantize_and_dequantize_v2``;
`name` is accepted and ignored. The arithmetic is that of
``tensorflow/core/kernels/quantize_and_dequantize_op.h`` on a CPU: float32, one rounding an
operation, subnormals counting as zero. Its integers are symmetric about 0, without a zero point:
this is another grid than that of the fake-quant ops, whatever the range.
"""

from __future__ import annotations

import operator
from typing import Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.kernels._blocks import each_block, non_overlapping, output
from qmath.kernels._environment import check_rounding
from qmath.kernels._float32 import (
    SMALLEST_NORMAL,
    Float32Array,
    as_float32,
    bounds_of,
    extremes,
    flush,
    maximum,
    minimum,
    rounded,
)
from qmath.kernels._gradients import backprop
from qmath.kernels.affine import check_flag

__all__ = [
    "QuantizeAndDequantizeV4Gradient",
    "place_of",
    "quantize_and_dequantize_v2",
    "quantize_and_dequantize_v2_gradient",
]

_LARGEST = np.float32(np.finfo(np.float32).max)
# Up to this scale a flushed subnormal is less than 2**-26 of an integer step, and not seen.
_ORDINARY_SCALE = np.float32(2.0**100)
_HALF = np.float32(0.5)


class QuantizeAndDequantizeV4Gradient(NamedTuple):
    """Gradients of `quantize_and_dequantize_v2`; those of the range are 0."""

    input_backprop: Float32Array
    input_min_backprop: Float32Array
    input_max_backprop: Float32Array


class _Grid(NamedTuple):
    """Scale, its inverse and the clamping range: float32, of shape ``()`` or ``(C,)``."""

    scale: Float32Array
    inverse: Float32Array
    min: Float32Array
    max: Float32Array


def quantize_and_dequantize_v2(
    input: ArrayLike,
    input_min: ArrayLike,
    input_max: ArrayLike,
    signed_input: bool = True,
    num_bits: SupportsIndex = 8,
    range_given: bool = False,
    round_mode: Literal["HALF_TO_EVEN", "HALF_UP"] = "HALF_TO_EVEN",
    name: str | None = None,
    narrow_range: bool = False,
    axis: SupportsIndex | None = None,
    *,
    out: Float32Array | None = None,
) -> Float32Array:
    """Round floats to the multiples of a scale that lets a range fit into integers.

    Parameters
    ----------
    input : array-like of float
        Any shape; anything but float32 is cast to it first.
    input_min, input_max : array-like of float
        The range if `range_given`, otherwise not looked at: of shape ``()``, or ``(C,)`` for an
        `axis` of length `C`.
    signed_input : bool
        Whether the integers are ``-2**(n-1) … 2**(n-1) - 1``, or ``0 … 2**n - 1``.
    num_bits : int
        Width `n`, 1 to 61 if signed, to 62 otherwise.
    range_given : bool
        Clamp to the given range, or take the range of the data and clamp nothing.
    round_mode : {"HALF_TO_EVEN", "HALF_UP"}
        How ties are rounded; ``"HALF_UP"`` is ``floor(x + 0.5)`` in float32.
    name : str, optional
        Ignored.
    narrow_range : bool
        Leave the lowest integer unused; without effect on unsigned integers.
    axis : int, optional
        One range for each index of this axis; a negative one is taken modulo the rank.
    out : ndarray of float32, optional
        Where to write the result; may be `input` itself, or overlap it.

    Returns
    -------
    ndarray of float32
        Of the shape of `input`, equal to ``tf.quantization.quantize_and_dequantize_v2``. If the
        data are so small (below ``2**(num_bits - 127)``, and above 0 if unsigned) that the scale
        overflows, every result is zero and its sign may differ.

    Raises
    ------
    QmathError
        `num_bits` is out of range; the given range has another shape, holds NaN or is inverted;
        the range is to be taken from data with NaN, where TensorFlow's result depends on the
        position of the NaN; `axis` is not an axis of `input`.

    Notes
    -----
    A given range per `axis` is computed as by the raw op ``QuantizeAndDequantizeV3``: the op
    behind TensorFlow's function refuses every such call.

    Examples
    --------
    >>> import qmath
    >>> qmath.quantize_and_dequantize_v2([0.3, -0.8, 5.0], -1.0, 1.0, num_bits=3, range_given=True)
    array([ 0.33333334, -0.6666667 ,  1.        ], dtype=float32)
    """
    del name
    check_rounding()
    x = as_float32(input, "input")
    signed, narrow = (
        check_flag(signed_input, "signed_input"),
        check_flag(narrow_range, "narrow_range"),
    )
    given = check_flag(range_given, "range_given")
    limits = _limits(num_bits, signed, narrow)
    if round_mode not in ("HALF_TO_EVEN", "HALF_UP"):
        raise QmathError(f"round_mode must be 'HALF_TO_EVEN' or 'HALF_UP', got {round_mode!r}")
    place = place_of(axis, x.ndim)
    out = output(out, x.shape)
    if given:
        low, high = _given_range(input_min, input_max, x.shape, place)
        if (wrong := ~(low <= high)).any():
            index = int(np.flatnonzero(wrong)[0])
            raise QmathError(
                f"invalid range: input_min {low.flat[index]} > input_max {high.flat[index]}"
            )
    elif not x.size:
        return out
    else:
        low, high = _range_of_data(x, place)
    with np.errstate(all="ignore"):
        grid = _grid(low, high, limits)
    columns = x if place is None else np.moveaxis(x, place, -1)
    written = out if place is None else np.empty(columns.shape, np.float32)
    _fill(
        non_overlapping(columns, written), grid, given, round_mode == "HALF_UP", written.reshape(-1)
    )
    if place is not None:
        out[...] = np.moveaxis(written, -1, place)
    return out


def quantize_and_dequantize_v2_gradient(
    gradients: ArrayLike,
    input: ArrayLike,
    input_min: ArrayLike,
    input_max: ArrayLike,
    axis: SupportsIndex | None = None,
    name: str | None = None,
) -> QuantizeAndDequantizeV4Gradient:
    """Gradients of `quantize_and_dequantize_v2`.

    Parameters
    ----------
    gradients : array-like of float
        Of the shape of `input`.
    input, input_min, input_max, axis, name
        As given to the forward op. The range counts here even if it was not given there.

    Returns
    -------
    QuantizeAndDequantizeV4Gradient
        ``input_backprop`` is ``gradients * 1`` where ``input_min <= input <= input_max`` and
        ``gradients * 0`` elsewhere; the others are zeros of the range's shape. Equal to
        ``tf.raw_ops.QuantizeAndDequantizeV4Grad``.

    Raises
    ------
    QmathError
        The shapes do not fit, or `axis` is not an axis of `input`.

    Examples
    --------
    >>> import qmath
    >>> qmath.quantize_and_dequantize_v2_gradient([1.0, 2.0, -3.0], [0.0, 1.0, 1.1], -1, 1)[0]
    array([ 1.,  2., -0.], dtype=float32)
    """
    del name
    check_rounding()
    g, x = as_float32(gradients, "gradients"), as_float32(input, "input")
    if g.shape != x.shape:
        raise QmathError(f"gradients and input must have the same shape, got {g.shape}, {x.shape}")
    place = place_of(axis, x.ndim)
    low, high = _given_range(input_min, input_max, x.shape, place)
    last = -1 if place is None else place
    gs, xs = (np.moveaxis(a, last, -1) if a.ndim else a for a in (g, x))
    dx = np.empty(xs.shape, np.float32)
    bounds = bounds_of(flush(low), flush(high))
    backprop(non_overlapping(gs, dx), non_overlapping(xs, dx), bounds, dx.reshape(-1))
    dx = np.ascontiguousarray(np.moveaxis(dx, -1, last)) if x.ndim else dx
    return QuantizeAndDequantizeV4Gradient(dx, np.zeros_like(low), np.zeros_like(high))


def _limits(num_bits: SupportsIndex, signed: bool, narrow: bool) -> tuple[np.float32, np.float32]:
    """Return the lowest and highest integer, as float32."""
    most = 61 if signed else 62
    bits = -1 if isinstance(num_bits, bool) else _index(num_bits, "num_bits")
    if not 1 <= bits <= most:
        sign = "signed" if signed else "unsigned"
        raise QmathError(f"num_bits must be between 1 and {most} ({sign}), got {num_bits!r}")
    if signed:
        return np.float32(narrow - 2 ** (bits - 1)), np.float32(2 ** (bits - 1) - 1)
    return np.float32(0), np.float32(2**bits - 1)


def _index(value: SupportsIndex, name: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise QmathError(f"{name} must be an integer, got {value!r}") from None


def place_of(axis: SupportsIndex | None, ndim: int) -> int | None:
    """Return the axis from 0 on; TensorFlow takes negative ones modulo the rank."""
    if axis is None:
        return None
    place = _index(axis, "axis")
    if place >= ndim or not ndim:
        raise QmathError(f"axis={place} of an input of {ndim} dimensions; choose another")
    return place % ndim


def _given_range(
    low: ArrayLike, high: ArrayLike, shape: tuple[int, ...], place: int | None
) -> tuple[Float32Array, Float32Array]:
    """Return the range as float32, if its shape is right."""
    expected = () if place is None else (shape[place],)
    ends = as_float32(low, "input_min"), as_float32(high, "input_max")
    for end, array in zip(("input_min", "input_max"), ends, strict=True):
        if array.shape != expected:
            raise QmathError(f"{end} must have shape {expected}, got {array.shape}")
    return ends


def _range_of_data(x: Float32Array, place: int | None) -> tuple[Float32Array, Float32Array]:
    """Return the smallest and the largest value, for each index of the axis if there is one."""
    others = None if place is None else tuple(i for i in range(x.ndim) if i != place)
    low, high = extremes(x, others)
    if np.isnan(low).any():
        index = tuple(int(i) for i in np.unravel_index(int(np.isnan(x).argmax()), x.shape))
        raise QmathError(
            f"the input at {index} is NaN, so it has no range (TensorFlow's result depends on "
            f"where the NaN is); give a range, or remove the NaN"
        )
    return low, high


def _grid(low: Float32Array, high: Float32Array, limits: tuple[np.float32, np.float32]) -> _Grid:
    """Mirror ``ComputeQuantizationRange``: the side that needs the smaller scale decides."""
    lowest, highest = (np.float64(limit) for limit in limits)
    mn, mx = (flush(end).astype(np.float64) for end in (low, high))
    from_min = np.where(lowest * mn > 0, rounded(lowest / mn), _LARGEST)
    from_max = np.where(highest * mx > 0, rounded(highest / mx), _LARGEST)
    by_min = from_min < from_max
    inverse = np.where(by_min, rounded(mn / lowest), rounded(mx / highest))
    other_max = rounded(highest * inverse.astype(np.float64))
    other_min = rounded(lowest * inverse.astype(np.float64))
    grid = (
        np.where(by_min, from_min, from_max),
        inverse,
        np.where(by_min, flush(low), other_min),
        np.where(by_min, other_max, flush(high)),
    )
    return _Grid(*(np.asarray(part, np.float32) for part in grid))


def _fill(
    x: Float32Array, grid: _Grid, clamps: bool, half_up: bool, out: NDArray[np.float32]
) -> None:
    """Write the multiples of the scale, with plain arithmetic if it gives TensorFlow's bits.

    If a bound is 0, the comparison decides the sign of a result that is 0, so it has to be
    TensorFlow's own.
    """
    ordinary = (grid.scale >= SMALLEST_NORMAL) & (grid.scale <= _ORDINARY_SCALE)
    ordinary &= np.isfinite(grid.inverse) & (np.abs(grid.inverse) >= SMALLEST_NORMAL)
    if clamps:
        ordinary &= (grid.min < 0) & (grid.max > 0)

    def plainly(block: slice, *parts: Float32Array) -> None:
        scale, inverse, low, high = parts
        written = out[block]
        if clamps:
            np.maximum(np.minimum(x[block], high, out=written), low, out=written)
            np.multiply(written, scale, out=written)
        else:
            np.multiply(x[block], scale, out=written)
        if half_up:
            np.floor(np.add(written, _HALF, out=written), out=written)
        else:
            np.rint(written, out=written)
        np.multiply(written, inverse, out=written)

    def exactly(block: slice, *parts: Float32Array) -> None:
        scale, inverse, low, high = parts
        a = flush(x[block])
        if clamps:
            a = maximum(minimum(a, high), low)
        product = rounded(a.astype(np.float64) * scale)
        whole = np.floor(product + _HALF) if half_up else np.rint(product)
        out[block] = rounded(whole.astype(np.float64) * inverse)

    each_block(plainly if ordinary.all() else exactly, x.size, grid)
