"""Arrays that anyone computed → a program's unsigned integers: names, axes, sign, lattice.

What an array does not say by itself is told by its values where these leave one reading. Where two
fit, a note says which was taken; an order of axes is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.judging.axes import Axes, arranged
from qmath.integer.judging.names import named
from qmath.integer.program import Program, QuantParams
from qmath.kernels.affine import scale_and_zero_point, smallest_dtype
from qmath.kernels.recognition import RecognizedBuild, recognize_build

__all__ = ["RawArray", "Yours", "integers_of", "integers_of_reals"]

Array = NDArray[Any]


class RawArray(NamedTuple):
    """Integers of raw bytes, whose sign is not stated: as unsigned ones, in one axis."""

    values: Array


@dataclass(frozen=True, eq=False)
class Yours:
    """Integers that a run is compared with.

    Attributes
    ----------
    integers : dict of str to ndarray
        By quantized tensor, in the program's shapes, as TensorFlow counts them: unsigned, but
        those that a clamp should have cut off lie outside the tensor's range.
    reals : frozenset of str
        Tensors that were given as dequantized floats.
    notes : tuple of str
        What was assumed, left out, or is out of range.
    """

    integers: dict[str, Array]
    reals: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


class _Reading(NamedTuple):
    """Integers in one convention, as unsigned ones."""

    name: str
    values: Array


def integers_of(
    program: Program,
    arrays: Mapping[str, Array | RawArray],
    examples: int,
    own: Callable[[], Mapping[str, Array]],
    axes: Axes | None = None,
) -> Yours:
    """Return the integers that arrays hold.

    Parameters
    ----------
    program : Program
    arrays : mapping of str to ndarray or RawArray
        Integers, unsigned or signed, or dequantized reals, by the names that `named` takes.
    examples : int
        How many the data have.
    own : callable
        Returns qmath's integers of the first examples: they decide between two readings that fit.
    axes : str or mapping of str to str, optional
        The order of the arrays' axes, such as ``"NCHW"``, or that of some tensors.

    Raises
    ------
    QmathError
        An array is of no tensor, or of another shape or dtype, or not on its tensor's lattice.
    """
    found, notes = named(program, arrays)
    placed, more = arranged(
        program, {name: _values(array) for name, array in found.items()}, examples, axes
    )
    notes += more
    integers: dict[str, Array] = {}
    assumed: dict[str, list[str]] = {}
    origins: dict[str, list[str]] = {}
    for step in program.quantized:
        if step.name not in placed:
            continue
        values = placed[step.name]
        if values.dtype.kind == "f":
            integers[step.name] = integers_of_reals(values, step.params, step.name)
            if step.params.op != "tflite":
                origin = str(_recognized(values, step.params))
                origins.setdefault(origin, []).append(step.name)
            continue
        is_raw = isinstance(found[step.name], RawArray)
        readings = list(_readings(values, step.params, step.name, is_raw))
        reading = readings[0]
        if len(readings) > 1:
            made = own().get(step.name)
            if made is None:
                raise QmathError(
                    f"{step.name}: yours may be signed or unsigned, and qmath cannot compute it to "
                    "tell: give them as int8 or uint8, or the layer before (--cut NAME=FILE)"
                )
            reading = _chosen(readings, made)
            assumed.setdefault(reading.name, []).append(step.name)
        integers[step.name] = reading.values
        notes += _outside(reading.values, step.params, step.name)
    for name, tensors in assumed.items():
        notes.append(
            f"read as {name} integers, where both signs fit, as more of them are qmath's then: "
            f"{', '.join(tensors)}"
        )
    notes += [f"the floats of {', '.join(of)} are {origin}" for origin, of in origins.items()]
    others = len(program.quantized) - len(integers)
    if others:
        words = f"{len(integers)} of {len(integers) + others} quantized tensors"
        notes.append(f"compared: {words}; qmath's integers stand for the others")
    reals = frozenset(name for name, array in placed.items() if array.dtype.kind == "f")
    return Yours(integers, reals, tuple(notes))


def integers_of_reals(values: Array, params: QuantParams, name: str) -> Array:
    """Return the integers of fake-quantized floats, exactly.

    Raises
    ------
    QmathError
        A value is no integer times the scale, nor what another build of TensorFlow makes of one:
        the floats are of another model.
    """
    if values.dtype not in (np.float32, np.float64) or not np.isfinite(values).all():
        raise QmathError(
            f"{name}: the floats must hold finite float32, dequantized, got {values.dtype}; give "
            "integers, or what the tensor's integers stand for"
        )
    reals = values.astype(np.float32)
    relative = np.rint(values.astype(np.float64) / params.scale)
    is_multiple = np.array_equal(relative.astype(np.float32) * np.float32(params.scale), reals)
    other = None if is_multiple else _of_their_build(reals, params)
    if other is not None:
        params, is_multiple = other, True
        relative = np.rint(values.astype(np.float64) / params.scale)
    low, high = params.limits
    if ((relative < low) | (relative > high)).any():
        raise QmathError(
            f"{name}: the dump's values leave the range [{params.min:.6g}, "
            f"{params.max:.6g}]; was it made from this model?{_whole(values)}"
        )
    if not is_multiple:
        raise QmathError(
            f"{name}: the dump's values are not multiples of the scale "
            f"{params.scale:.9g}; was it made from this model?{_whole(values)}"
        )
    dtype = smallest_dtype(params.num_bits, signed=False)
    return np.asarray((relative + params.zero_point).astype(dtype))


def _recognized(values: Array, params: QuantParams) -> RecognizedBuild:
    """Return which builds give fake-quantized floats with this range."""
    return recognize_build(
        values, np.float32(params.min), np.float32(params.max), params.num_bits,
        narrow_range=params.low == 1, op="args" if params.op == "args" else "vars",
    )  # fmt: skip


def _of_their_build(values: Array, params: QuantParams) -> QuantParams | None:
    """Return the parameters by the build that made floats off the lattice, if one did."""
    builds = _recognized(values, params).builds if params.op != "tflite" else ()
    if not builds:
        return None
    build = params.build if params.build in builds else builds[0]
    scale, zero_point = scale_and_zero_point(
        params.min, params.max, params.num_bits, narrow_range=params.low == 1, signed=False,
        build=build, op="args" if params.op == "args" else "vars",
    )  # fmt: skip
    return replace(params, scale=float(scale), zero_point=int(zero_point), build=build)


def _whole(values: Array) -> str:
    is_whole = bool(np.array_equal(values, np.rint(values)))
    return " They are whole: give integers with an integer dtype" if is_whole else ""


def _values(array: Array | RawArray) -> Array:
    return array.values if isinstance(array, RawArray) else np.asarray(array)


def _readings(values: Array, params: QuantParams, name: str, is_raw: bool) -> Iterator[_Reading]:
    """Yield the integers in each convention that they may be in."""
    if values.dtype.kind not in "iu":
        raise QmathError(
            f"{name}: yours must be integers, or dequantized float32, got {values.dtype}"
        )
    half = 1 << (params.num_bits - 1)
    as_signed = values.view(f"i{values.itemsize}") if is_raw else values
    if values.dtype.kind == "u" and not is_raw:
        yield _Reading("unsigned", _small(values, 0, params, name))
        return
    unsigned = _fits(values, 0, 2 * half - 1)
    signed = _fits(as_signed, -half, half - 1)
    only_signed = not is_raw and 8 * values.itemsize <= params.num_bits
    if (unsigned or not signed) and not only_signed:
        yield _Reading("unsigned", _small(as_signed if not unsigned else values, 0, params, name))
    if signed or not unsigned:
        yield _Reading("signed", _small(as_signed, half, params, name))


def _fits(values: Array, low: int, high: int) -> bool:
    return values.size == 0 or bool(low <= int(values.min()) and int(values.max()) <= high)


def _small(values: Array, offset: int, params: QuantParams, name: str) -> Array:
    """Return integers plus `offset` in the smallest dtype, or int32 if some are out of range."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for value in (low, high):
        if abs(value) >= 1 << 30:
            raise QmathError(
                f"{name}: yours holds {value}, which is no integer of {params.num_bits} bits; is "
                "its dtype another, as float32 in raw bytes is, or its accumulator meant?"
            )
    dtype = smallest_dtype(params.num_bits, signed=False)
    is_small = low + offset >= 0 and high + offset < 1 << params.num_bits
    if offset == 0:
        return values.astype(dtype if is_small else np.int32, copy=False)
    moved = values.astype(np.int32) + np.int32(offset)
    return np.asarray(moved.astype(dtype) if is_small else moved)


def _chosen(readings: Sequence[_Reading], own: Array) -> _Reading:
    """Return the reading of which most integers are qmath's own; the first of equals."""
    return max(readings, key=lambda r: int(np.count_nonzero(r.values[: len(own)] == own)))


def _outside(values: Array, params: QuantParams, name: str) -> list[str]:
    if _fits(values, params.low, params.high):
        return []
    count = int(np.count_nonzero((values < params.low) | (values > params.high)))
    return [
        f"{name}: {count:,} of your {values.size:,} integers lie outside its range {params.low} … "
        f"{params.high} (from {values.min()} to {values.max()}, counted from 0); later layers "
        "start from clamped ones"
    ]
