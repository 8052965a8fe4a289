"""Compare outputs and remember: how many, how many bits differ, and a digest of TensorFlow's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

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

    def outputs(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Compare float32 outputs; NaN equals NaN. Theirs go into the digest."""
        self.compared += theirs.size
        self._count(ours, theirs)
        if np.isnan(theirs.max(initial=0)):
            theirs = np.where(np.isnan(theirs), np.float32(np.nan), theirs)
        self._hash.update(np.ascontiguousarray(theirs))

    def reconstructed(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Compare dequantized integers with fake-quantized floats."""
        self.integers += theirs.size
        self._count(ours, theirs)

    def _count(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        if not np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)):
            self.differing += differing_bits(ours, theirs)

    def record(self) -> dict[str, Any]:
        """Return the counts and the digest of TensorFlow's float32 outputs, in order."""
        return {
            "compared": self.compared,
            "integers": self.integers,
            "differing_bits": self.differing,
            "sha256": self._hash.hexdigest(),
        }
