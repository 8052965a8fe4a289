"""TensorFlow's ``quantize`` and ``dequantize``, bit for bit, in NumPy.

Names, argument order and defaults are those of ``tf.quantization``; `name` is accepted and
ignored. The arithmetic is that of ``tensorflow/core/kernels/quantize_op.cc``,
``dequantize_op.cc`` and ``quantization_utils.h`` on a CPU, and, where TensorFlow on x86-64 hands
an op to oneDNN, that of ``mkl/mkl_quantize_op.cc`` and ``mkl/mkl_dequantize_op.cc``. Their
integers are another convention than those of `qmath.quantize`: a range becomes a scale in other
ways, and the range in use is returned beside the integers.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from qmath.errors import QmathError
from qmath.kernels._arrays import as_array
from qmath.kernels._blocks import each_block
from qmath.kernels._environment import in_default_environment
from qmath.kernels._float32 import (
    Float32Array,
    as_float32,
    flush,
    maximum,
    minimum,
    rounded,
)
from qmath.kernels._range_steps import (
    ABOVE_INT32,
    STEPS_OF_ONEDNN,
    Steps,
    from_min_combined,
    from_min_first,
    from_scaled,
    min_combined,
    min_first,
    minus,
    plus,
    scaled,
    times,
)
from qmath.kernels.affine import check_flag
from qmath.kernels.quantize_and_dequantize import place_of

__all__ = ["QuantizeV2", "dequantize", "quantize"]

Mode = Literal["MIN_COMBINED", "MIN_FIRST", "SCALED"]
RoundMode = Literal["HALF_AWAY_FROM_ZERO", "HALF_TO_EVEN"]

_MODES = ("MIN_COMBINED", "MIN_FIRST", "SCALED")
_ROUND_MODES = ("HALF_AWAY_FROM_ZERO", "HALF_TO_EVEN")
_DTYPES = {
    "qint8": np.int8,
    "quint8": np.uint8,
    "qint16": np.int16,
    "quint16": np.uint16,
    "qint32": np.int32,
}
_MOST_DIMENSIONS = 5  # that oneDNN's kernels take


class QuantizeV2(NamedTuple):
    """The results of `quantize`: integers, and the range that they stand for."""

    output: NDArray[Any]
    output_min: Float32Array
    output_max: Float32Array


@in_default_environment
def quantize(
    input: ArrayLike,
    min_range: ArrayLike,
    max_range: ArrayLike,
    T: DTypeLike,  # noqa: N803 - TensorFlow's own name
    mode: Mode = "MIN_COMBINED",
    round_mode: RoundMode = "HALF_AWAY_FROM_ZERO",
    name: str | None = None,
    narrow_range: bool = False,
    axis: SupportsIndex | None = None,
    ensure_minimum_range: float = 0.01,
    *,
    onednn: bool = True,
) -> QuantizeV2:
    """Map floats to integers of a range, as ``tf.quantization.quantize`` does.

    Parameters
    ----------
    input : array-like of float
        Any shape; anything but float32 is cast to it first.
    min_range, max_range : array-like of float
        The range: one number each, or ``(C,)`` for an `axis` of length `C`.
    T : str or dtype
        ``"qint8"``, ``"quint8"``, ``"qint16"``, ``"quint16"`` or ``"qint32"``, or the NumPy or
        TensorFlow dtype of these integers.
    mode : {"MIN_COMBINED", "MIN_FIRST", "SCALED"}
        How a range becomes a scale and an offset.
    round_mode : {"HALF_AWAY_FROM_ZERO", "HALF_TO_EVEN"}
        How ties are rounded; the second only with ``"SCALED"``.
    name : str, optional
        Ignored.
    narrow_range : bool
        Leave the lowest integer unused; without effect but with ``"SCALED"``.
    axis : int, optional
        One range for each index of this axis, not with ``"MIN_FIRST"``; a negative one is taken
        modulo the rank.
    ensure_minimum_range : float
        The range is widened to at least this share of its greater end, or of 1.
    onednn : bool
        Whether to compute as TensorFlow does by default on x86-64, where oneDNN serves ``qint8``
        and ``quint8`` with ``"HALF_TO_EVEN"``, and ``quint8`` with ``"MIN_FIRST"``, if neither
        `axis` nor `narrow_range` is given. False is ``TF_ENABLE_ONEDNN_OPTS=0``.

    Returns
    -------
    QuantizeV2
        `output`, int8, uint8, int16, uint16 or int32 of the shape of `input`, and `output_min`
        and `output_max`, float32 of shape ``()``, or ``(C,)`` if there are several: the range
        after it was widened to hold 0. All are equal to ``tf.quantization.quantize``.

    Raises
    ------
    QmathError
        `input` holds NaN, for which TensorFlow's integer depends on its position; the range is
        inverted, not finite, of another shape, or has no finite scale; the settings are not
        TensorFlow's, or it has no kernel for them.

    Notes
    -----
    TensorFlow's traps are kept. The range is widened to hold 0. ``"MIN_COMBINED"`` maps 0.0 of a
    symmetric range to -1 in ``qint8``. ``qint32`` wraps to ``-2**31`` at the top of the range,
    but with ``"MIN_FIRST"``. oneDNN's ``"SCALED"`` scales ``qint8`` by 127.5, not by 127.

    Examples
    --------
    >>> from qmath import tf
    >>> tf.quantize([-1.0, 0.0, 0.5, 2.0], -1.0, 1.0, "qint8").output
    array([-128,   -1,   63,  127], dtype=int8)
    """
    del name
    x = as_float32(input, "input")
    dtype = _dtype(T)
    narrow, with_onednn = (
        check_flag(narrow_range, "narrow_range"),
        check_flag(onednn, "onednn"),
    )
    _check_modes(mode, round_mode)
    place = place_of(axis, x.ndim)
    if place is not None and mode == "MIN_FIRST":
        raise QmathError("mode='MIN_FIRST' has no axis in TensorFlow; choose another mode")
    low, high = _range(min_range, max_range, x.shape, place, ensure_minimum_range)
    by_onednn = with_onednn and place is None and not narrow and dtype in _served(mode, round_mode)
    if by_onednn and mode == "MIN_FIRST" and not x.ndim:
        return QuantizeV2(_scalar_by_onednn(x, low, high), low, high)
    if by_onednn:
        _check_onednn(x.ndim, dtype)
        steps = STEPS_OF_ONEDNN[mode](np.iinfo(dtype), low, high)
    elif mode == "SCALED":
        steps = scaled(np.iinfo(dtype), low, high, narrow, round_mode == "HALF_TO_EVEN")
    else:
        steps = {"MIN_COMBINED": min_combined, "MIN_FIRST": min_first}[mode](
            np.iinfo(dtype), low, high
        )
    _check_scale(low, high, steps.constants)
    if np.isnan(x).any():
        index = tuple(int(i) for i in np.argwhere(np.isnan(x))[0])
        raise QmathError(f"the input at {index} is NaN, for which there is no integer; remove it")
    ends = (end.reshape(()) if end.size == 1 else end for end in (steps.low, steps.high))
    return QuantizeV2(_applied(x, place, steps, dtype), *ends)


@in_default_environment
def dequantize(
    input: ArrayLike,
    min_range: ArrayLike,
    max_range: ArrayLike,
    mode: Mode = "MIN_COMBINED",
    name: str | None = None,
    axis: SupportsIndex | None = None,
    narrow_range: bool = False,
    dtype: DTypeLike = np.float32,
    *,
    onednn: bool = True,
) -> Float32Array:
    """Map integers of a range to floats, as ``tf.quantization.dequantize`` does.

    Parameters
    ----------
    input : array-like of int8, uint8, int16, uint16 or int32
        What TensorFlow calls ``qint8`` and so on, of any shape.
    min_range, max_range : array-like of float
        The range that `quantize` returned: one number each, or ``(C,)`` for an `axis` of length
        `C`.
    mode, axis, narrow_range
        As given to `quantize`; no axis with ``"MIN_FIRST"``.
    name : str, optional
        Ignored.
    dtype : dtype
        float32; NumPy has no bfloat16, TensorFlow's other one.
    onednn : bool
        Whether to compute as TensorFlow does by default on x86-64, where oneDNN serves 8-bit
        integers with ``"SCALED"``. False is ``TF_ENABLE_ONEDNN_OPTS=0``.

    Returns
    -------
    ndarray of float32
        Of the shape of `input`, equal to ``tf.quantization.dequantize``.

    Raises
    ------
    QmathError
        `input` has another dtype; the range has another shape; the settings are not
        TensorFlow's, or it has no kernel for them.

    Notes
    -----
    With ``"SCALED"`` and one range, ``qint32`` of ``2**31 - 64`` and more become negative.

    Examples
    --------
    >>> import numpy as np
    >>> from qmath import tf
    >>> tf.dequantize(np.int8([-128, -1, 127]), -1.0, 1.0)
    array([-1.        , -0.00392151,  1.        ], dtype=float32)
    """
    del name
    q = as_array(input, "input")
    if q.dtype not in _DTYPES.values():
        raise QmathError(
            f"input must be int8, uint8, int16, uint16 or int32, got {q.dtype}; cast it"
        )
    if np.dtype(dtype) != np.float32:
        raise QmathError(f"dtype must be float32, got {np.dtype(dtype)}")
    narrow, with_onednn = (
        check_flag(narrow_range, "narrow_range"),
        check_flag(onednn, "onednn"),
    )
    _check_modes(mode, "HALF_AWAY_FROM_ZERO")
    place = place_of(axis, q.ndim)
    low, high = (flush(end) for end in _ends(min_range, max_range, q.shape, place))
    info = np.iinfo(q.dtype)
    if mode == "MIN_FIRST":
        if place is not None and low.size > 1:
            raise QmathError("mode='MIN_FIRST' has no axis in TensorFlow; choose another mode")
        constants, floats = from_min_first(info, low, high)
    elif mode == "MIN_COMBINED":
        constants, floats = from_min_combined(info, low, high)
    else:
        by_onednn = with_onednn and place is None
        if by_onednn and info.bits != 16:
            _check_onednn(q.ndim, q.dtype)
        by_onednn = by_onednn and info.bits == 8
        constants, floats = from_scaled(info, low, high, narrow, by_onednn)
    columns = q if place is None else np.moveaxis(q, place, -1)
    flat = np.ascontiguousarray(columns).reshape(-1)
    out = np.empty(columns.shape, np.float32)
    written = out.reshape(-1)

    def work(block: slice, *parts: Float32Array) -> None:
        written[block] = floats(flat[block].astype(np.float32), *parts)

    each_block(work, flat.size, constants)
    return out if place is None else np.ascontiguousarray(np.moveaxis(out, -1, place))


def _dtype(value: Any) -> np.dtype[Any]:
    """Return the dtype of the integers that ``tf.qint8`` and so on, or a NumPy dtype, name."""
    name = value if isinstance(value, str) else str(getattr(value, "name", ""))
    with suppress(TypeError):
        dtype: np.dtype[Any] = np.dtype(_DTYPES.get(name, value))
        if dtype in _DTYPES.values():
            return dtype
    raise QmathError(f"T must be one of {', '.join(_DTYPES)}, got {value!r}")


def _check_modes(mode: str, round_mode: str) -> None:
    if mode not in _MODES:
        raise QmathError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
    if round_mode not in _ROUND_MODES:
        raise QmathError(f"round_mode must be one of {', '.join(_ROUND_MODES)}, got {round_mode!r}")
    if round_mode == "HALF_TO_EVEN" and mode != "SCALED":
        raise QmathError(f"round_mode='HALF_TO_EVEN' needs mode='SCALED', got mode={mode!r}")


def _ends(
    low: ArrayLike, high: ArrayLike, shape: tuple[int, ...], place: int | None
) -> tuple[Float32Array, Float32Array]:
    """Return the range as float32, if its shape is right."""
    expected = () if place is None else (shape[place],)
    ends = as_float32(low, "min_range"), as_float32(high, "max_range")
    for end, array in zip(("min_range", "max_range"), ends, strict=True):
        if array.shape != expected and not (place is None and array.size == 1):
            raise QmathError(f"{end} must have shape {expected}, got {array.shape}")
    return ends[0].reshape(expected), ends[1].reshape(expected)


def _range(
    low: ArrayLike, high: ArrayLike, shape: tuple[int, ...], place: int | None, share: float
) -> tuple[Float32Array, Float32Array]:
    """Widen the range to hold 0, and to the least width that is asked for."""
    mn, mx = _ends(low, high, shape, place)
    for end, array in (("min_range", mn), ("max_range", mx)):
        if not np.isfinite(array).all():
            raise QmathError(f"{end} must be finite, got {array[~np.isfinite(array)][0]}")
    if (mx < mn).any():
        index = int(np.flatnonzero(mx < mn)[0])
        raise QmathError(f"invalid range: min_range {mn.flat[index]} > max_range {mx.flat[index]}")
    least = as_float32(share, "ensure_minimum_range")
    if least.shape or not 0 <= least < math.inf:
        raise QmathError(f"ensure_minimum_range must be a number from 0 on, got {share!r}")
    mn, mx = flush(mn), flush(mx)
    zero = np.float32(0)
    lowest = minimum(np.full_like(mn, zero), mn)
    greatest = maximum(maximum(np.ones_like(mn), np.abs(mn)), np.abs(mx))
    epsilon = times(greatest, flush(least))
    highest = maximum(np.full_like(mx, zero), maximum(mx, plus(lowest, epsilon)))
    return lowest, highest


def _served(mode: str, round_mode: str) -> tuple[np.dtype[Any], ...]:
    """Return the dtypes for which TensorFlow takes oneDNN; its qint32 has no kernel."""
    if mode == "SCALED" and round_mode == "HALF_TO_EVEN":
        return np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int32)
    return (np.dtype(np.uint8),) if mode == "MIN_FIRST" else ()


def _check_onednn(ndim: int, dtype: np.dtype[Any]) -> None:
    if dtype == np.int32:
        raise QmathError(
            "TensorFlow has no kernel of oneDNN for qint32; pass onednn=False for what it "
            "computes with TF_ENABLE_ONEDNN_OPTS=0"
        )
    if not 1 <= ndim <= _MOST_DIMENSIONS:
        raise QmathError(
            f"TensorFlow's kernel of oneDNN takes 1 to {_MOST_DIMENSIONS} dimensions, got {ndim}; "
            "reshape the input, or pass onednn=False"
        )


def _scalar_by_onednn(x: Float32Array, low: Float32Array, high: Float32Array) -> NDArray[np.uint8]:
    """Mirror ``ComputeScalar`` of MIN_FIRST, which truncates, and does not clamp."""
    scale = rounded(255.0 / minus(high, low).astype(np.float64))
    _check_scale(low, high, (scale,))
    steps = np.trunc(times(minus(flush(x), low), scale))
    if not 0 <= steps <= np.iinfo(np.uint8).max:
        raise QmathError(
            f"the input {x} lies outside the range {low} … {high}, to which TensorFlow does not "
            "clamp a scalar; give it as an array of shape (1,), or pass onednn=False"
        )
    return steps.astype(np.uint8)


def _check_scale(
    low: Float32Array, high: Float32Array, constants: tuple[Float32Array, ...]
) -> None:
    """Refuse a range by which TensorFlow divides zero or infinity, or divides by infinity."""
    usable = (constants[0] != 0) | (low == high)
    usable = np.logical_and.reduce([usable, *map(np.isfinite, constants)])
    if not np.all(usable):
        index = int(np.flatnonzero(~usable)[0])
        raise QmathError(
            f"the range {low.flat[index]} … {high.flat[index]} has no finite scale; choose "
            "another, or a greater ensure_minimum_range"
        )


def _applied(
    x: Float32Array, place: int | None, steps: Steps, dtype: np.dtype[Any]
) -> NDArray[Any]:
    columns = x if place is None else np.moveaxis(x, place, -1)
    flat = np.ascontiguousarray(columns).reshape(-1)
    out = np.empty(columns.shape, dtype)
    written = out.reshape(-1)

    def work(block: slice, *parts: Float32Array) -> None:
        integers = steps.integers(flush(flat[block]), *parts)
        if dtype == np.int32:  # what x86 makes of a float that is none
            integers = np.where(integers < ABOVE_INT32, integers, -ABOVE_INT32)
        written[block] = integers.astype(dtype)

    each_block(work, flat.size, steps.constants)
    return out if place is None else np.ascontiguousarray(np.moveaxis(out, -1, place))
