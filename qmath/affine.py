"""The affine map: from a range to scale and zero point, from floats to integers.

Notes
-----
TensorFlow nudges every range so that real zero is an integer: `nudge` mirrors ``Nudge`` in
``tensorflow/core/kernels/fake_quant_ops_functor.h``. The integers are those behind
TensorFlow's fake quantization, not a rounding of ``inputs / scale``: the two differ near ties.
"""

from __future__ import annotations

import operator
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._blocks import blocks
from qmath._float32 import (
    SMALLEST_NORMAL,
    Float32Array,
    as_float32,
    flush,
    maximum,
    minimum,
    rounded,
)
from qmath.errors import QmathError
from qmath.types import QuantizedTensor

__all__ = ["quantize"]

# From this scale on, whether a subnormal was flushed cannot be seen in any result: what a flush
# changes is below 2**-126, less than 2**-26 of an integer step.
_ORDINARY_SCALE = np.float32(2.0**-100)


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


def check_num_bits(num_bits: SupportsIndex) -> int:
    """Return `num_bits` as an int in 2 … 16, the widths TensorFlow's kernels take."""
    if isinstance(num_bits, (bool, np.bool_)) or not hasattr(num_bits, "__index__"):
        raise QmathError(
            f"num_bits must be an integer between 2 and 16, inclusive, got {num_bits!r}"
        )
    bits = operator.index(num_bits)
    if not 2 <= bits <= 16:
        raise QmathError(f"num_bits must be between 2 and 16, inclusive, got {bits}")
    return bits


def check_flag(value: object, name: str) -> bool:
    """Return `value` as a bool, if it is one: any other number would enter the arithmetic."""
    if not isinstance(value, (bool, np.bool_)):
        raise QmathError(f"{name} must be True or False, got {value!r}")
    return bool(value)


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
        What the kernels compute, NaN and infinities included.
    """
    low, high = quant_limits(num_bits, narrow_range)
    with np.errstate(all="ignore"):
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
    """Whether plain float32 arithmetic gives TensorFlow's bits, flushed subnormals or not."""
    return np.asarray(
        np.isfinite(nudged.scale) & (nudged.scale >= _ORDINARY_SCALE)
        & np.isfinite(nudged.inverse) & (nudged.inverse >= SMALLEST_NORMAL)
    )  # fmt: skip


def steps(x: Float32Array, nudged: Nudged, divide: bool, out: Float32Array) -> None:
    """Write the integers relative to the zero point, as float32: plain arithmetic.

    Order and kind of every operation are those of the kernels: ``FakeQuantWithMinMaxVars``
    divides by the scale, ``…Args`` and ``…VarsPerChannel`` multiply by its inverse.
    """
    np.minimum(x, nudged.max, out=out)
    np.maximum(out, nudged.min, out=out)
    np.subtract(out, nudged.min, out=out)
    if divide:
        np.divide(out, nudged.scale, out=out)
    else:
        np.multiply(out, nudged.inverse, out=out)
    np.subtract(out, nudged.quant_zero, out=out)
    np.add(out, np.float32(0.5), out=out)
    np.floor(out, out=out)


def careful_steps(x: Float32Array, nudged: Nudged, divide: bool) -> Float32Array:
    """Return what `steps` writes, for any range: subnormals flushed, NaN bounds ignored."""
    clamped = maximum(minimum(flush(x), nudged.max), nudged.min)
    shifted = rounded(clamped.astype(np.float64) - nudged.min).astype(np.float64)
    t = rounded(shifted / nudged.scale if divide else shifted * nudged.inverse)
    relative = rounded(t.astype(np.float64) - nudged.quant_zero)
    return np.asarray(np.floor(rounded(relative.astype(np.float64) + 0.5)))


def scale_and_zero_point(
    min: ArrayLike,
    max: ArrayLike,
    num_bits: SupportsIndex,
    *,
    narrow_range: bool = False,
    signed: bool = True,
    name: str | None = None,
) -> tuple[Float32Array, NDArray[np.int32]]:
    """Return the scale and zero point that a range gives, as `quantize` does.

    Parameters
    ----------
    min, max : array-like of float32
        Range ends, shape ``()`` or ``(C,)``.
    num_bits, narrow_range, signed, name
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
    bits = check_num_bits(num_bits)
    prefix = f"{name}: " if name else ""
    narrow, signed = _flags(prefix, narrow_range=narrow_range, signed=signed)
    low, high = as_float32(min, f"{prefix}min"), as_float32(max, f"{prefix}max")
    nudged, dead = _usable(low, high, bits, narrow, name)
    return _scale_and_zero_point(nudged, dead, bits, signed)


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

    Returns
    -------
    QuantizedTensor
        ``result.dequantize()`` equals TensorFlow's fake quantization of `inputs` in every bit.

    Raises
    ------
    QmathError
        `inputs` hold NaN; ``min > max``; the scale or its inverse would not be a finite, normal
        float32 (so there are no integers that reproduce TensorFlow); shapes do not fit; a flag is
        neither True nor False.

    Notes
    -----
    Mirrors ``tensorflow/core/kernels/fake_quant_ops_functor.h``. A dead range,
    ``min == max == 0``, gives scale 0, and every value is the zero point (0 when signed).
    Ranges that miss zero are moved to contain it: ``[1, 2]`` is quantized as ``[0, 1]``.

    Examples
    --------
    >>> import qmath
    >>> q = qmath.quantize([-1.0, -0.3, 0.0, 0.4, 9.0], min=-1.0, max=0.875, num_bits=4)
    >>> q.values, q.scale, q.zero_point
    (array([-8, -2,  0,  3,  7], dtype=int8), array(0.125, dtype=float32), array(0, dtype=int32))
    """
    bits = check_num_bits(num_bits)
    prefix = f"{name}: " if name else ""
    narrow, per_axis, signed = _flags(
        prefix, narrow_range=narrow_range, per_axis=per_axis, signed=signed
    )
    x = as_float32(inputs, f"{prefix}inputs")
    low, high = as_float32(min, f"{prefix}min"), as_float32(max, f"{prefix}max")
    if op not in ("vars", "args"):
        raise QmathError(f"{prefix}op must be 'vars' or 'args', got {op!r}")
    check_range_shape(x.shape, low, high, per_axis, prefix)
    nudged, dead = _usable(low, high, bits, narrow, name)
    values = np.empty(x.shape, smallest_dtype(bits, signed))
    offset = nudged.zero_point - np.float32(2 ** (bits - 1) * signed)
    _fill(x, values, nudged, offset, divide=op == "vars" and not per_axis, prefix=prefix)
    scale, zero_point = _scale_and_zero_point(nudged, dead, bits, signed)
    axis = x.ndim - 1 if per_axis else None
    return QuantizedTensor(values, scale, zero_point, bits, narrow, signed, axis)


def _flags(prefix: str, **flags: object) -> list[bool]:
    return [check_flag(value, f"{prefix}{name}") for name, value in flags.items()]


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


def _usable(
    low: Float32Array, high: Float32Array, num_bits: int, narrow_range: bool, name: str | None
) -> tuple[Nudged, NDArray[np.bool_]]:
    """Nudge a range that must determine integers; dead channels get constants that round to 0."""
    dead = is_dead(low, high)
    half = np.float32(2 ** (num_bits - 1))
    nudged = nudge(low, high, num_bits, narrow_range)
    with np.errstate(invalid="ignore"):
        inverted = low > high
    problems = {
        "is not finite": ~(np.isfinite(low) & np.isfinite(high)),
        "is inverted (min > max)": inverted,
        "is too wide: its scale, the scale's inverse or an end leaves float32's normal range": ~(
            np.isfinite(nudged.scale)
            & (nudged.inverse >= SMALLEST_NORMAL)
            & np.isfinite(nudged.min)
            & np.isfinite(nudged.max)
        ),
        "is too narrow: its scale or the scale's inverse leaves float32's normal range": ~(
            (nudged.scale >= SMALLEST_NORMAL) & np.isfinite(nudged.inverse)
        ),
    }
    for problem, where in problems.items():
        where = where & ~dead
        if where.any():
            index = int(np.flatnonzero(where)[0])
            channel = f" of channel {index}" if low.ndim else ""
            ends = f"[{low.flat[index]!s}, {high.flat[index]!s}]"
            raise QmathError(
                f"{name + ': ' if name else ''}the range {ends}{channel} {problem}, so no integers "
                "reproduce TensorFlow; retrain or supply the range"
            )
    idle = Nudged(*map(np.float32, (1, 1, half, 0, 0, 0)))
    return Nudged(*(np.where(dead, z, part) for part, z in zip(nudged, idle, strict=True))), dead


def is_dead(low: Float32Array, high: Float32Array) -> NDArray[np.bool_]:
    """Whether ``min == max == 0``, subnormals counting as zero: all outputs are 0."""
    return np.asarray((np.abs(low) < SMALLEST_NORMAL) & (np.abs(high) < SMALLEST_NORMAL))


def _scale_and_zero_point(
    nudged: Nudged, dead: NDArray[np.bool_], num_bits: int, signed: bool
) -> tuple[Float32Array, NDArray[np.int32]]:
    scale = np.where(dead, np.float32(0), nudged.scale)
    offset = np.float32(2 ** (num_bits - 1) * signed)
    return scale, np.asarray(nudged.zero_point - offset, np.int32)


def _fill(
    x: Float32Array,
    values: NDArray[Any],
    nudged: Nudged,
    offset: Float32Array,
    *,
    divide: bool,
    prefix: str,
) -> None:
    """Write the integers of `x` to `values`, block by block."""
    ordinary = bool(is_ordinary(nudged).all())
    flat, flat_values = np.ascontiguousarray(x).reshape(-1), values.reshape(-1)
    buffer = np.empty(0, np.float32)
    with np.errstate(all="ignore"):
        for block, (*parts, shift) in blocks(flat.size, (*nudged, offset)):
            constants = Nudged(*parts)
            if buffer.size != block.stop - block.start:  # the first block, and a shorter last one
                buffer = np.empty(block.stop - block.start, np.float32)
            if ordinary:
                steps(flat[block], constants, divide, buffer)
            else:
                buffer[...] = careful_steps(flat[block], constants, divide)
            if np.isnan(buffer.min()):
                index = np.unravel_index(block.start + int(np.isnan(buffer).argmax()), x.shape)
                where = tuple(int(i) for i in index)
                raise QmathError(
                    f"{prefix}the input at {where} is NaN, which no integer stands for"
                )
            buffer += shift
            np.copyto(flat_values[block], buffer, casting="unsafe")
