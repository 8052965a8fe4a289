"""Compare outputs and remember: how many, how many bits differ, and a digest of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

import qmath
from reference.fuzz import differing_bits

__all__ = ["Tally", "Tick"]

# Called with the number of elements done since the last call.
Tick = Callable[[int], object]


class Tally:
    """Counts over all comparisons of one task.

    Attributes
    ----------
    compared, differing : int
        Number of float32 outputs that were compared, and of bits that differ.
    integers : int
        How many of the comparisons were of `qmath.quantize`, by reconstruction.
    """

    def __init__(self) -> None:
        self.compared = self.integers = self.differing = 0
        self._hash = hashlib.sha256()
        self._floats: np.ndarray | None = None  # which each integer of `in_order` stands for

    def outputs(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Compare float32 outputs; NaN equals NaN."""
        self.compared += theirs.size
        self._count(ours, theirs)

    def reconstructed(self, ours: qmath.QuantizedTensor, theirs: np.ndarray) -> None:
        """Compare dequantized integers with fake-quantized floats."""
        self.integers += theirs.size
        self._count(ours.dequantize(), theirs)

    def in_order(self, ours: qmath.QuantizedTensor, theirs: np.ndarray) -> None:
        """Compare integers with floats that are no multiples of a scale.

        Each integer must always stand for one float, and greater ones for greater floats.
        """
        self.integers += theirs.size
        levels = 1 << ours.num_bits
        codes = ours.values.astype(np.intp)
        channels = codes.shape[-1] if ours.axis is not None else 1
        codes += levels // 2 * ours.signed + levels * np.arange(channels)
        if self._floats is None:
            self._floats = np.full(levels * channels, np.nan, np.float32)
        if np.array_equal(self._floats.take(codes), theirs):
            return
        new = np.isnan(self._floats[codes])
        self._floats[codes[new]] = theirs[new]
        self.differing += int(np.count_nonzero(self._floats[codes] != theirs))
        for row in self._floats.reshape(channels, levels):
            seen = row[~np.isnan(row)]
            self.differing += int(np.count_nonzero(seen[1:] <= seen[:-1]))

    def digest(self, outputs: np.ndarray) -> None:
        """Put integers, or floats with one kind of NaN, into the digest."""
        if outputs.dtype.kind == "f" and np.isnan(outputs.max(initial=0)):
            outputs = np.where(np.isnan(outputs), np.float32(np.nan), outputs)
        self._hash.update(np.ascontiguousarray(outputs))

    def _count(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        if not np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)):
            self.differing += differing_bits(ours, theirs)

    def record(self) -> dict[str, Any]:
        """Return the counts and the digest."""
        return {
            "compared": self.compared,
            "integers": self.integers,
            "differing_bits": self.differing,
            "sha256": self._hash.hexdigest(),
        }
