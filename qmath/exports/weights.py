"""The integers of a model's weights: made once, and kept for whoever asks again."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, Any, NamedTuple
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from qmath.containers.lazy_array import LazyArray
from qmath.errors import QmathError
from qmath.exports import manifest
from qmath.kernels import exact
from qmath.kernels._range import Op
from qmath.kernels.builds import arithmetic_of
from qmath.model import Float32Array, QatTensor, QuantizedTensor

__all__ = ["Weights", "count"]

_IN_MEMORY = 1 << 23  # bytes of integers; more of them go to a file
_PART = 1 << 20  # elements that are read at once: each thread has enough of them
_BLOCK = 1 << 15  # elements


class _Place(NamedTuple):
    """Where in the file a weight's integers are, and the weight with none that take memory."""

    offset: int
    hollow: QuantizedTensor


class Weights(Mapping[str, QuantizedTensor]):
    """Quantized weights by name, in the model's own order of axes.

    Each is read from the model and quantized once. The first integers are then kept in memory, the
    others in a temporary file, so that memory is bounded by the largest weight. Where no such file
    can be written, weights are quantized anew each time. What is returned is the caller's own.

    Parameters
    ----------
    tensors : mapping of str to QatTensor
        Of any role.
    signed : bool
        Two's complement integers, or TensorFlow's unsigned count.
    """

    def __init__(self, tensors: Mapping[str, QatTensor], signed: bool) -> None:
        self._tensors = {name: t for name, t in tensors.items() if t.role == "weight"}
        self._signed = signed
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
                return self._read(kept)
        found = kept or self._quantize(self._tensors[name])[1]
        return dataclasses.replace(found, values=found.values.copy())

    def quantize_and_count(self, name: str) -> tuple[QuantizedTensor, dict[str, int]]:
        """Return a weight, read anew and not to be changed, and what `count` tells of it."""
        tensor = self._tensors[name]
        if (found := _by_parts(tensor, self._signed)) is None:
            floats, quantized = self._quantize(tensor)
            return quantized, count(tensor, floats, quantized)
        with self._lock:
            if name not in self._kept:
                self._keep(name, found[0])
        return found

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
        elif self._can_write:
            try:
                offset = self._write(values)
            except OSError:  # there is no folder for temporary files, or no room in it
                self._forget_file()
                return
            hollow = np.broadcast_to(np.zeros((), values.dtype), values.shape)
            self._kept[name] = _Place(offset, dataclasses.replace(quantized, values=hollow))

    def _write(self, values: NDArray[Any]) -> int:
        if self._file is None:
            self._file = TemporaryFile()  # noqa: SIM115, closed by `finalize`
            finalize(self, self._file.close)
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(values.reshape(-1).view(np.uint8).data)
        self._file.flush()
        return offset

    def _forget_file(self) -> None:
        self._can_write = False
        for name in [name for name, kept in self._kept.items() if isinstance(kept, _Place)]:
            del self._kept[name]
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _read(self, place: _Place) -> QuantizedTensor:
        assert self._file is not None
        values = np.empty_like(place.hollow.values, order="C")
        self._file.seek(place.offset)
        self._file.readinto(values.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
        return dataclasses.replace(place.hollow, values=values)


def _by_parts(tensor: QatTensor, signed: bool) -> tuple[QuantizedTensor, dict[str, int]] | None:
    """Return the integers of a large weight and its counts, made as its floats are read.

    They are read into the same memory, which the system need not clear for each weight. Where that
    cannot be, there is nothing; whatever fails does so again, and with its message, at once.
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
    counts: Counter[str] = Counter()
    start = 0
    try:
        for floats in stored.parts(_PART):
            quantized = dataclasses.replace(tensor, values=floats).quantize(signed=signed)
            counts.update(count(tensor, floats, quantized))
            if len(floats) == stored.shape[0]:
                return quantized, dict(counts)
            if values is None:
                values = np.empty(stored.shape, quantized.values.dtype)
            values[start : start + len(floats)] = quantized.values
            start += len(floats)
    except QmathError:
        return None
    assert values is not None
    return dataclasses.replace(quantized, values=values), dict(counts)


def count(tensor: QatTensor, floats: Float32Array, quantized: QuantizedTensor) -> dict[str, int]:
    """Count the elements outside the nudged range, and the near-ties of `qmath.kernels.exact`."""
    if tensor.recovered is not None:  # the values are those of the integers
        return {"clipped": 0, "near_ties": 0}
    low, high = manifest.stored_range(tensor)
    bits, narrow = quantized.num_bits, quantized.narrow_range
    unsigned = quantized.zero_point + quantized.signed * 2 ** (bits - 1)
    build = tensor.spec.build
    op: Op = "args" if tensor.spec.op == "args" else "per_channel" if low.ndim else "vars"
    nudged = arithmetic_of(build).nudge(low, high, bits, narrow, op)
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
