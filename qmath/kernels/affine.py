"""The affine map: from a range to scale and zero point, from floats to integers.

Notes
-----
TensorFlow nudges every range so that real zero is an integer. The integers are those behind
TensorFlow's fake quantization, not a rounding of ``inputs / scale``: the two differ near ties.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.kernels._arrays import as_index, unmasked
from qmath.kernels._blocks import each_block, fits_at_once
from qmath.kernels._environment import check_rounding
from qmath.kernels._float32 import SMALLEST_NORMAL, Float32Array, as_float32
from qmath.kernels._nudge import Nudged, is_ordinary, is_zero_range
from qmath.kernels._range import MOST_KEPT, Arithmetic, Op, Range, range_of
from qmath.kernels.builds import Build, arithmetic_of
from qmath.kernels.quantized_tensor import QuantizedTensor

__all__ = ["quantize"]

_FEW = 1 << 12  # elements, of which no library adds up squares in threads


class NanError(QmathError):
    """A float to be quantized is NaN.

    Attributes
    ----------
    prefix : str
        What the message begins with; all of it, of an error that quotes this one.
    index : tuple of int, optional
        Of the float.
    """

    def __init__(self, prefix: str, index: tuple[int, ...] | None = None) -> None:
        super().__init__(prefix, index)  # by which it is pickled
        self.prefix, self.index = prefix, index

    def __str__(self) -> str:
        if self.index is None:
            return self.prefix
        return f"{self.prefix}the input at {self.index} is NaN, which no integer stands for"


def check_num_bits(num_bits: SupportsIndex) -> int:
    """Return `num_bits` as an int in 2 … 16, the widths TensorFlow's kernels take."""
    if type(num_bits) is int and 2 <= num_bits <= 16:
        return num_bits
    is_bool = isinstance(num_bits, (bool, np.bool_))
    bits = None if is_bool else as_index(num_bits)
    if bits is None:
        raise QmathError(
            f"num_bits must be an integer between 2 and 16, inclusive, got {num_bits!r}"
        )
    if not 2 <= bits <= 16:
        raise QmathError(f"num_bits must be between 2 and 16, inclusive, got {bits}")
    return bits


def check_flag(value: object, name: str) -> bool:
    """Return `value` as a bool, if it is one: any other number would enter the arithmetic."""
    if value is True or value is False:
        return value
    if not isinstance(value, (bool, np.bool_)):
        raise QmathError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def scale_and_zero_point(
    min: ArrayLike,
    max: ArrayLike,
    num_bits: SupportsIndex,
    *,
    narrow_range: bool = False,
    signed: bool = True,
    name: str | None = None,
    build: Build = "tf",
    op: Literal["vars", "args"] = "vars",
) -> tuple[Float32Array, NDArray[np.int32]]:
    """Return the scale and zero point that a range gives, as `quantize` does.

    Parameters
    ----------
    min, max : array-like of float32
        Range ends, shape ``()`` or ``(C,)``.
    num_bits, narrow_range, signed, name, build, op
        As for `quantize`.

    Returns
    -------
    scale : ndarray of float32
    zero_point : ndarray of int32

    Raises
    ------
    QmathError
        The range does not determine integers, see `quantize`.

    Examples
    --------
    >>> scale, zero_point = scale_and_zero_point(0.0, 6.0, 4, signed=False)
    >>> scale, zero_point
    (array(0.4, dtype=float32), array(0, dtype=int32))
    """
    check_rounding()
    bits = check_num_bits(num_bits)
    prefix = f"{name}: " if name else ""
    narrow = check_flag(narrow_range, f"{prefix}narrow_range")
    signed = check_flag(signed, f"{prefix}signed")
    low, high = as_float32(min, f"{prefix}min"), as_float32(max, f"{prefix}max")
    kernel: tuple[Arithmetic, Op]
    kernel = arithmetic_of(build, prefix), "per_channel" if low.ndim and op == "vars" else op
    integers = _integers_of(low, high, bits, narrow, signed, *kernel, prefix)
    return integers.scale.copy(), integers.zero_point.copy()


def quantize(
    inputs: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: SupportsIndex,
    *,
    narrow_range: bool = False,
    per_axis: bool = False,
    op: Literal["vars", "args"] = "vars",
    signed: bool = True,
    name: str | None = None,
    out: NDArray[Any] | None = None,
    build: Build = "tf",
) -> QuantizedTensor:
    """Map floats to the integers behind TensorFlow's fake quantization.

    Parameters
    ----------
    inputs : array-like of float
        Any shape; infinities are clamped. Anything but float32 is cast to it first, as
        TensorFlow does.
    min, max : array-like of float
        The range as a quantizer stored it, before nudging: scalars, or shape ``(C,)`` for an
        input of shape ``(…, C)`` with ``per_axis=True``.
    num_bits : int
        Width of the integers, 2 to 16.
    narrow_range : bool
        Leave the lowest integer unused.
    per_axis : bool
        One range for each index of the last axis.
    op : {"vars", "args"}
        Whose arithmetic counts per tensor: ``FakeQuantWithMinMaxVars`` divides by the scale,
        ``FakeQuantWithMinMaxArgs`` multiplies by its inverse. Per axis there is one op only,
        which multiplies.
    signed : bool
        Two's complement integers, as TFLite stores them, or TensorFlow's unsigned count.
    name : str, optional
        Put in front of error messages.
    out : ndarray, optional
        Where to write ``result.values``: C-contiguous, of the smallest integer dtype that holds
        `num_bits`, of the shape of `inputs`, and not overlapping them.
    build : {"tf", "tf<2.6", "xla-cpu", "xla-cpu-nofma"}
        Whose kernels, see `qmath.fake_quant_with_min_max_args`: scale, zero point and integers are
        theirs.

    Returns
    -------
    QuantizedTensor
        ``result.dequantize()`` equals TensorFlow's fake quantization of `inputs` in every bit,
        under the default build. The others add the nudged minimum to multiples of the scale, which
        rounds once more: their floats are a few ulps off those of their own integers.

    Raises
    ------
    QmathError
        `inputs` hold NaN (the content of `out` is then undefined); ``min > max``; the scale, its
        inverse or the width of the nudged range would not be a finite, normal float32 (so
        no integers can reproduce TensorFlow); shapes do not fit; a flag is neither True nor
        False; there is no such build.

    Notes
    -----
    Mirrors ``tensorflow/core/kernels/fake_quant_ops_functor.h``. A range of 0 to 0,
    ``min == max == 0``, gives scale 0, and every value is the zero point (0 when signed); of XLA it
    makes NaN, and raises.
    Ranges that miss zero are moved to contain it: ``[1, 2]`` is quantized as ``[0, 1]``.

    Examples
    --------
    >>> import qmath
    >>> q = qmath.quantize([-1.0, -0.3, 0.0, 0.4, 9.0], min=-1.0, max=0.875, num_bits=4)
    >>> q.values, q.scale, q.zero_point
    (array([-8, -2,  0,  3,  7], dtype=int8), array(0.125, dtype=float32), array(0, dtype=int32))
    """
    check_rounding()
    bits = check_num_bits(num_bits)
    prefix = f"{name}: " if name else ""
    narrow = check_flag(narrow_range, f"{prefix}narrow_range")
    per_axis = check_flag(per_axis, f"{prefix}per_axis")
    signed = check_flag(signed, f"{prefix}signed")
    x = as_float32(inputs, f"{prefix}inputs")
    low, high = as_float32(min, f"{prefix}min"), as_float32(max, f"{prefix}max")
    if op not in ("vars", "args"):
        raise QmathError(f"{prefix}op must be 'vars' or 'args', got {op!r}")
    check_range_shape(x.shape, low, high, per_axis, prefix)
    kernel: tuple[Arithmetic, Op]
    kernel = arithmetic_of(build, prefix), "per_channel" if per_axis else op
    integers = _integers_of(low, high, bits, narrow, signed, *kernel, prefix)
    values = _output(out, x, integers.dtype, prefix)
    _fill(x, values, integers, prefix)
    scale, zero_point = integers.scale.copy(), integers.zero_point.copy()
    axis = x.ndim - 1 if per_axis else None
    return QuantizedTensor(values, scale, zero_point, bits, narrow, signed, axis)


def quantize_as_tflite(
    inputs: ArrayLike, scale: float, limits: tuple[int, int], name: str
) -> NDArray[np.int32]:
    """Return the integers of TFLite's ``QUANTIZE``, relative to the zero point.

    Parameters
    ----------
    inputs : array-like of float
    scale : float
        A float32's value.
    limits : tuple of int
        Lowest and highest result.
    name : str
        Put in front of error messages.

    Raises
    ------
    QmathError
        `inputs` hold NaN.

    Notes
    -----
    Mirrors ``AffineQuantize`` of ``tensorflow/lite/kernels/internal/reference/quantize.h``: a
    division in float32, rounded half away from zero.

    Examples
    --------
    >>> quantize_as_tflite([-1.0, -0.3, 0.0, 0.4375, 9.0], 0.125, (-8, 7), "x").tolist()
    [-8, -2, 0, 4, 7]
    """
    x = as_float32(inputs, f"{name}: inputs")
    is_nan = np.isnan(x)
    if is_nan.any():
        raise _is_nan(int(is_nan.argmax()), x.shape, f"{name}: ")
    with np.errstate(over="ignore"):
        steps = np.abs(x / np.float32(scale))
    whole = np.floor(np.minimum(steps, np.float32(1 << 20)))
    rounded = whole + (steps - whole >= np.float32(0.5))
    return np.asarray(np.clip(np.copysign(rounded, x), *limits).astype(np.int32))


def smallest_dtype(num_bits: int, signed: bool) -> np.dtype[Any]:
    """Return the smallest NumPy integer dtype that holds `num_bits`."""
    return np.dtype(f"{'i' if signed else 'u'}{1 if num_bits <= 8 else 2}")


def check_range_shape(
    shape: tuple[int, ...], low: Float32Array, high: Float32Array, per_axis: bool, prefix: str = ""
) -> None:
    """Raise unless the range's shape is ``()``, or ``(C,)`` for a last axis of length `C`."""
    if per_axis and not shape:
        raise QmathError(
            f"{prefix}per-axis quantization needs inputs of rank 1 or more, got rank 0"
        )
    expected = shape[-1:] if per_axis else ()
    for end, array in (("min", low), ("max", high)):
        if array.shape != expected:
            raise QmathError(f"{prefix}{end} must have shape {expected}, got {array.shape}")


def _output(
    out: NDArray[Any] | None, x: Float32Array, dtype: np.dtype[Any], prefix: str
) -> NDArray[Any]:
    """Return the array to write the integers of `x` to."""
    if out is None:
        return np.empty(x.shape, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != x.shape:
        raise QmathError(f"{prefix}out must be an array of {dtype}, of shape {x.shape}")
    if not out.flags.c_contiguous or not out.flags.writeable or np.may_share_memory(out, x):
        raise QmathError(f"{prefix}out must be C-contiguous, writeable and apart from the inputs")
    return unmasked(out, f"{prefix}out")


class _Integers(NamedTuple):
    """What a range makes of floats: arrays of the range's shape.

    Attributes
    ----------
    ranges : Range
        With constants that give 0 for ranges of 0 to 0.
    scale, zero_point : ndarray
    shift : ndarray of float32
        What is added to the steps.
    is_shifted : bool
        Whether that changes any.
    dtype : dtype
        Of the integers.
    """

    ranges: Range
    scale: Float32Array
    zero_point: NDArray[np.int32]
    shift: Float32Array
    is_shifted: bool
    dtype: np.dtype[Any]


def _integers_of(
    low: Float32Array,
    high: Float32Array,
    num_bits: int,
    narrow: bool,
    signed: bool,
    arithmetic: Arithmetic,
    op: Op,
    prefix: str,
) -> _Integers:
    """Return what a range makes of floats, known already if it is one of the last few."""
    settings = (num_bits, narrow, signed, arithmetic, op)
    try:
        if low.size > MOST_KEPT:
            return _made(low, high, *settings)
        return _kept(low.tobytes(), high.tobytes(), low.shape, *settings)
    except QmathError as error:
        raise QmathError(f"{prefix}{error}") from None


@lru_cache(maxsize=128)
def _kept(
    low: bytes,
    high: bytes,
    shape: tuple[int, ...],
    num_bits: int,
    narrow: bool,
    signed: bool,
    arithmetic: Arithmetic,
    op: Op,
) -> _Integers:
    ends = [np.frombuffer(end, np.float32).reshape(shape) for end in (low, high)]
    kept = _made(ends[0], ends[1], num_bits, narrow, signed, arithmetic, op)
    parts = (kept.scale, kept.zero_point, kept.shift)
    for part in (*parts, *kept.ranges.nudged, *kept.ranges.steps.constants):
        part.setflags(write=False)
    return kept


def _made(
    low: Float32Array,
    high: Float32Array,
    num_bits: int,
    narrow: bool,
    signed: bool,
    arithmetic: Arithmetic,
    op: Op,
) -> _Integers:
    """Nudge a range that must determine integers."""
    ranges = range_of(low, high, num_bits, narrow, arithmetic, op)
    if ranges.any_flush or not ranges.has_width:  # of the others, all that is checked holds
        _refuse_unusable(low, high, ranges)
    scale = ranges.nudged.scale
    shift = ranges.steps.shift(ranges.nudged.zero_point, int(narrow))
    if ranges.any_zero_range:
        scale = np.where(ranges.zero_range, np.float32(0), scale)
        ranges = _with_idle(ranges, num_bits, arithmetic, op)
        shift = np.where(ranges.zero_range, ranges.nudged.zero_point, shift)
    offset = np.float32(2 ** (num_bits - 1) * signed)
    zero_point = (ranges.nudged.zero_point - offset).astype(np.int32)[...]
    shift = np.asarray(shift - offset)
    dtype = smallest_dtype(num_bits, signed)
    return _Integers(ranges, scale, zero_point, shift, bool(shift.any()), dtype)


def _with_idle(ranges: Range, num_bits: int, arithmetic: Arithmetic, op: Op) -> Range:
    """Give ranges of 0 to 0 constants that give 0."""
    half = np.float32(2 ** (num_bits - 1))
    idle = Nudged(*map(np.float32, (1, 1, half, 0, 0, 0)))
    parts = (
        np.where(ranges.zero_range, z, part) for part, z in zip(ranges.nudged, idle, strict=True)
    )
    nudged = Nudged(*parts)
    return ranges._replace(
        nudged=nudged,
        any_flush=not is_ordinary(nudged).all(),
        steps=arithmetic.steps(nudged, op),
    )


def _refuse_unusable(low: Float32Array, high: Float32Array, ranges: Range) -> None:
    """Raise if a range other than 0 to 0 determines no integers."""
    nudged = ranges.nudged
    with np.errstate(all="ignore"):
        width, inverted = nudged.max - nudged.min, low > high
    problems = {
        "becomes NaN under this build": is_zero_range(low, high),
        "is not finite": ~(np.isfinite(low) & np.isfinite(high)),
        "is inverted (min > max)": inverted,
        "is too wide: its width, scale or the scale's inverse leaves float32's normal range": ~(
            np.isfinite(nudged.scale) & (nudged.inverse >= SMALLEST_NORMAL) & np.isfinite(width)
        ),
        "is too narrow: its scale or the scale's inverse leaves float32's normal range": ~(
            (nudged.scale >= SMALLEST_NORMAL) & np.isfinite(nudged.inverse)
        ),
    }
    for problem, where in problems.items():
        where = where & ~ranges.zero_range
        if where.any():
            index = int(np.flatnonzero(where)[0])
            channel = f" of channel {index}" if low.ndim else ""
            ends = f"[{low.flat[index]!s}, {high.flat[index]!s}]"
            raise QmathError(
                f"the range {ends}{channel} {problem}, so no integers reproduce TensorFlow; "
                "retrain or supply the range"
            )


def _fill(x: Float32Array, values: NDArray[Any], integers: _Integers, prefix: str) -> None:
    """Write the integers of `x` to `values`, block by block."""
    ranges, is_shifted = integers.ranges, integers.is_shifted
    steps = ranges.steps
    if not ranges.any_flush and fits_at_once(x.size, integers.shift):
        _fill_at_once(x, values, integers, prefix)
        return
    flat, result = np.ascontiguousarray(x).reshape(-1), values.reshape(-1)

    def check(block: slice, buffer: Float32Array) -> None:
        least = np.minimum.reduce(buffer)
        if least != least:
            raise _is_nan(block.start + int(np.isnan(buffer).argmax()), x.shape, prefix)

    def plainly(block: slice, shift: Float32Array, *constants: Float32Array) -> None:
        buffer = np.empty(block.stop - block.start, np.float32)
        floor = is_shifted or not steps.truncates
        steps(flat[block], constants, buffer, floor=floor, keeps_nan=True)
        check(block, buffer)
        if is_shifted:
            np.add(buffer, shift, out=buffer)
        np.copyto(result[block], buffer, casting="unsafe")

    def exactly(block: slice, shift: Float32Array, *parts: Float32Array) -> None:
        buffer = steps.exactly(flat[block], Nudged(*parts), keeps_nan=True)
        check(block, buffer)
        np.copyto(result[block], buffer + shift, casting="unsafe")

    if ranges.any_flush:
        each_block(exactly, flat.size, (integers.shift, *ranges.nudged))
    else:
        each_block(plainly, flat.size, (integers.shift, *steps.constants))


def _fill_at_once(x: Float32Array, values: NDArray[Any], integers: _Integers, prefix: str) -> None:
    """Write the integers of few floats, as `_fill`, whose calls would cost more than the work."""
    buffer, steps = np.empty(x.shape, np.float32), integers.ranges.steps
    floor = integers.is_shifted or not steps.truncates
    with np.errstate(all="ignore"):
        steps(x, steps.constants, buffer, floor=floor, keeps_nan=True)
        flat = buffer.reshape(-1)
        least = flat.dot(flat) if x.size <= _FEW else np.minimum.reduce(flat)  # finite, or NaN
        if least != least:
            raise _is_nan(int(np.isnan(flat).argmax()), x.shape, prefix)
        if integers.is_shifted:
            np.add(buffer, integers.shift, out=buffer)
        np.copyto(values, buffer, casting="unsafe")


def _is_nan(index: int, shape: tuple[int, ...], prefix: str) -> NanError:
    return NanError(prefix, tuple(int(i) for i in np.unravel_index(index, shape)))
