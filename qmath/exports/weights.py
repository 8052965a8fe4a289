"""The integers of a model's weights: made once, and kept for whoever asks again."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from threading import Lock
from typing import IO, Any, NamedTuple, Protocol
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from qmath.containers.lazy_array import LazyArray
from qmath.errors import QmathError
from qmath.exports import manifest
from qmath.kernels import exact
from qmath.kernels._range import Op, range_of
from qmath.kernels.builds import arithmetic_of
from qmath.model import Float32Array, QatTensor, QuantizedTensor

__all__ = ["Counted", "Output", "Rows", "Weights", "count"]

_IN_MEMORY = 1 << 23  # bytes of integers; more of them go to a file
_PART = 1 << 20  # elements that are read at once: each thread has enough of them
_BLOCK = 1 << 15  # elements


class Rows(Protocol):
    """An array that is written by rows; it is there once it is closed."""

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""

    def close(self) -> None:
        """Say that there are no more."""


class Output(Protocol):
    """Where the integers of weights are written, and can be read again."""

    def rows(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows | None:
        """Return what takes a weight's integers by rows, if they can be written so."""

    def read(self, name: str) -> NDArray[Any]:
        """Return the integers of a weight that was written."""


class Counted(NamedTuple):
    """A weight's integers, what `count` tells of it, and whether they were written by rows.

    Zeros that take no memory stand for integers that were.
    """

    quantized: QuantizedTensor
    counts: dict[str, int]
    is_written: bool = False


class _Place(NamedTuple):
    """Where in the file a weight's integers are, and the weight with none that take memory."""

    offset: int
    hollow: QuantizedTensor


class Weights(Mapping[str, QuantizedTensor]):
    """Quantized weights by name, in the model's own order of axes.

    Each is read from the model and quantized once. The first integers are then kept in memory, the
    others in the output, or else in a temporary file, so that memory is bounded by the largest
    weight. Where no such file can be written, weights are quantized anew each time. What is
    returned is the caller's own.

    Parameters
    ----------
    tensors : mapping of str to QatTensor
        Of any role.
    signed : bool
        Two's complement integers, or TensorFlow's unsigned count.
    output : Output, optional
        The caller of `quantize_and_count` writes there what that has not written. It is read until
        `release`.
    """

    def __init__(
        self, tensors: Mapping[str, QatTensor], signed: bool, output: Output | None = None
    ) -> None:
        self._tensors = {name: t for name, t in tensors.items() if t.role == "weight"}
        self._signed = signed
        self._output = output
        self._kept: dict[str, QuantizedTensor | _Place] = {}
        self._free, self._can_write = _IN_MEMORY, True
        self._file: IO[bytes] | None = None
        self._lock = Lock()  # of all this and the file's position

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # Mapping's own would quantize

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, name: str) -> QuantizedTensor:
        with self._lock:
            kept = self._kept.get(name)
            if isinstance(kept, _Place):
                return self._read(name, kept)
        found = kept or self._quantize(self._tensors[name])[1]
        return dataclasses.replace(found, values=found.values.copy())

    def quantize_and_count(self, name: str) -> Counted:
        """Return a weight, read anew and not to be changed, and what `count` tells of it."""
        tensor = self._tensors[name]
        found = _by_parts(tensor, self._signed, self._output)
        if found is None:
            floats, quantized = self._quantize(tensor)
            return Counted(quantized, count(tensor, floats, quantized))
        with self._lock:
            if found.is_written:
                self._kept[name] = _Place(0, found.quantized)
            elif name not in self._kept:
                self._keep(name, found.quantized)
        return found

    def release(self) -> None:
        """Read no more from the output: what is only there is quantized anew."""
        with self._lock:
            self._output = None
            self._forget_places()

    def _quantize(self, tensor: QatTensor) -> tuple[Float32Array, QuantizedTensor]:
        floats = np.asarray(tensor.values, np.float32)
        quantized = dataclasses.replace(tensor, values=floats).quantize(signed=self._signed)
        with self._lock:
            if tensor.name not in self._kept:
                self._keep(tensor.name, quantized)
        return floats, quantized

    def _keep(self, name: str, quantized: QuantizedTensor) -> None:
        values = quantized.values
        if values.nbytes <= self._free:
            self._kept[name] = quantized
            self._free -= values.nbytes
        elif self._output is not None:
            self._kept[name] = _Place(0, _hollow(quantized, values.shape))
        elif self._can_write:
            try:
                offset = self._write(values)
            except OSError:  # there is no folder for temporary files, or no room in it
                self._forget_file()
                return
            self._kept[name] = _Place(offset, _hollow(quantized, values.shape))

    def _write(self, values: NDArray[Any]) -> int:
        if self._file is None:
            from tempfile import TemporaryFile  # which most models need not wait for

            self._file = TemporaryFile()  # noqa: SIM115, closed by `finalize`
            finalize(self, self._file.close)
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(values.reshape(-1).view(np.uint8).data)
        self._file.flush()
        return offset

    def _forget_file(self) -> None:
        self._can_write = False
        self._forget_places()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _forget_places(self) -> None:
        for name in [name for name, kept in self._kept.items() if isinstance(kept, _Place)]:
            del self._kept[name]

    def _read(self, name: str, place: _Place) -> QuantizedTensor:
        if self._output is not None:
            return dataclasses.replace(place.hollow, values=self._output.read(name))
        assert self._file is not None
        values = np.empty_like(place.hollow.values, order="C")
        self._file.seek(place.offset)
        self._file.readinto(values.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
        return dataclasses.replace(place.hollow, values=values)


def _hollow(quantized: QuantizedTensor, shape: tuple[int, ...]) -> QuantizedTensor:
    """Return a weight of that shape with zeros that take no memory."""
    zeros = np.broadcast_to(np.zeros((), quantized.values.dtype), shape)
    return dataclasses.replace(quantized, values=zeros)


def _by_parts(tensor: QatTensor, signed: bool, output: Output | None) -> Counted | None:
    """Return the integers of a large weight and its counts, made as its floats are read.

    They are read into the same memory, which the system need not clear for each weight, and go to
    the output at once. Where that cannot be, there is nothing; whatever fails does so again, and
    with its message, at once.
    """
    stored = tensor.values
    if (
        not isinstance(stored, LazyArray)
        or tensor.recovered is not None
        or stored.dtype != np.float32
        or len(stored.shape) < 2
        or math.prod(stored.shape) < 2 * _PART
    ):
        return None
    values: NDArray[Any] | None = None
    rows: Rows | None = None
    counts: Counter[str] = Counter()
    start = 0
    try:
        for floats in stored.parts(_PART):
            quantized = dataclasses.replace(tensor, values=floats).quantize(signed=signed)
            counts.update(count(tensor, floats, quantized))
            if len(floats) == stored.shape[0]:
                return Counted(quantized, dict(counts))
            if not start:
                dtype = quantized.values.dtype
                rows = None if output is None else output.rows(tensor.name, stored.shape, dtype)
                values = np.empty(stored.shape, dtype) if rows is None else None
            if rows is not None:
                rows.append(quantized.values)
            elif values is not None:
                values[start : start + len(floats)] = quantized.values
            start += len(floats)
    except QmathError:
        return None
    if rows is not None:
        rows.close()
        return Counted(_hollow(quantized, stored.shape), dict(counts), is_written=True)
    assert values is not None
    return Counted(dataclasses.replace(quantized, values=values), dict(counts))


def count(tensor: QatTensor, floats: Float32Array, quantized: QuantizedTensor) -> dict[str, int]:
    """Count the elements outside the nudged range, and the near-ties of `qmath.kernels.exact`."""
    if tensor.recovered is not None:  # the values are those of the integers
        return {"clipped": 0, "near_ties": 0}
    low, high = manifest.stored_range(tensor)
    bits, narrow = quantized.num_bits, quantized.narrow_range
    unsigned = quantized.zero_point + quantized.signed * 2 ** (bits - 1)
    build = tensor.spec.build
    op: Op = "args" if tensor.spec.op == "args" else "per_channel" if low.ndim else "vars"
    nudged = range_of(low, high, bits, narrow, arithmetic_of(build), op).nudged
    near = exact.near_tie_indices(
        floats, low, high, bits, narrow_range=narrow, zero_point=unsigned, build=build
    )
    return {"clipped": _outside(floats, nudged.min, nudged.max), "near_ties": len(near)}


def _outside(floats: Float32Array, low: Float32Array, high: Float32Array) -> int:
    """Count the elements outside a range, or outside those of the last axis, block by block.

    What is compared at once stays in the processor's cache.
    """
    rows = floats.reshape(-1, low.size)
    height = -(-_BLOCK // low.size)
    found = 0
    for start in range(0, len(rows), height):
        lines = rows[start : start + height]
        found += np.count_nonzero(lines < low) + np.count_nonzero(lines > high)
    return int(found)
