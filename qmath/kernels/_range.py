"""A range with all that its kernels need, and what a build's kernels are.

Ranges are kept for the next call: small tensors feel the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._float32 import Bounds, Float32Array, bounds_of
from qmath.kernels._nudge import Nudged, is_ordinary, is_zero_range

MOST_KEPT = 256  # channels

Op = Literal["args", "args_gradient", "vars", "per_channel"]
Build = Literal["tf", "tf<2.6", "xla-cpu", "xla-cpu-nofma"]


class Steps(Protocol):
    """From floats to steps, which are integers as float32, and from them to floats.

    Attributes
    ----------
    constants : tuple of ndarray
        What a call takes for each block.
    truncates : bool
        Whether no step is below 0, so that truncation is their floor.
    """

    @property
    def constants(self) -> tuple[NDArray[Any], ...]: ...

    @property
    def truncates(self) -> bool: ...

    def __call__(
        self,
        x: Float32Array,
        constants: Sequence[NDArray[Any]],
        out: Float32Array,
        *,
        floor: bool = True,
        keeps_nan: bool = False,
    ) -> None:
        """Write the steps of a block; ``floor=False`` leaves the last pass to the caller."""

    def to_floats(
        self, steps: Float32Array, scale: Float32Array, constants: Sequence[NDArray[Any]]
    ) -> None:
        """Turn steps into what they stand for, in place."""

    def exactly(self, x: Float32Array, nudged: Nudged, *, keeps_nan: bool = False) -> Float32Array:
        """Return the steps of any range."""

    def exact_floats(self, x: Float32Array, nudged: Nudged) -> Float32Array:
        """Return what the steps of any range stand for."""

    def shift(self, zero_point: Float32Array, lowest: int) -> Float32Array:
        """Return what makes TensorFlow's count of the integers out of steps."""


@dataclass(frozen=True, eq=False)
class Arithmetic:
    """How a build computes.

    Attributes
    ----------
    name : str
    nudge : callable
        Takes a range and the op.
    steps : callable
        Takes a nudged range and the op.
    backprop, backward : callable
        The gradients: of the inputs alone, and with those of the range.
    keeps_zero_ranges : bool
        Whether a range of 0 to 0 gives 0.
    rounding_errors : tuple of int
        How far steps, and zero points, are from the exact ones at most, in units of
        ``2**(num_bits - 24)``: see `qmath.kernels.exact`.
    """

    name: Build
    nudge: Callable[[Float32Array, Float32Array, int, bool, Op], Nudged]
    steps: Callable[[Nudged, Op], Steps]
    backprop: Callable[[Float32Array, Float32Array, Bounds, Float32Array], None]
    backward: Callable[..., tuple[Float32Array, Float32Array, Float32Array]]
    keeps_zero_ranges: bool
    rounding_errors: tuple[int, int]


class Range(NamedTuple):
    """A nudged range and where its arithmetic needs care: arrays of the range's shape.

    Attributes
    ----------
    needs_flush : ndarray of bool
        Where plain float32 arithmetic might not give TensorFlow's bits, see `is_ordinary`.
    zero_range : ndarray of bool
        Where ``min == max == 0`` and all becomes 0, see `is_zero_range`.
    any_flush, any_zero_range, has_width : bool
        Whether any needs it, or is of 0 to 0; whether the widths of all nudged ranges are finite.
    steps : Steps
    bounds : Bounds
        Bounds of the nudged range, for the gradients.
    """

    nudged: Nudged
    needs_flush: NDArray[np.bool_]
    zero_range: NDArray[np.bool_]
    any_flush: bool
    any_zero_range: bool
    has_width: bool
    steps: Steps
    bounds: Bounds


def range_of(
    min: Float32Array,
    max: Float32Array,
    num_bits: int,
    narrow_range: bool,
    arithmetic: Arithmetic,
    op: Op,
) -> Range:
    """Return the constants of a range, known already if it is one of the last few."""
    if min.size > MOST_KEPT:
        return _range_of(min, max, num_bits, narrow_range, arithmetic, op)
    return _kept(min.tobytes(), max.tobytes(), min.shape, num_bits, narrow_range, arithmetic, op)


@lru_cache(maxsize=128)
def _kept(
    min: bytes,
    max: bytes,
    shape: tuple[int, ...],
    num_bits: int,
    narrow_range: bool,
    arithmetic: Arithmetic,
    op: Op,
) -> Range:
    low, high = (np.frombuffer(end, np.float32).reshape(shape) for end in (min, max))
    kept = _range_of(low, high, num_bits, narrow_range, arithmetic, op)
    parts = (*kept.nudged, kept.needs_flush, kept.zero_range, *kept.steps.constants, *kept.bounds)
    for part in parts:
        part.setflags(write=False)
    return kept


def _range_of(
    min: Float32Array,
    max: Float32Array,
    num_bits: int,
    narrow_range: bool,
    arithmetic: Arithmetic,
    op: Op,
) -> Range:
    nudged = arithmetic.nudge(min, max, num_bits, narrow_range, op)
    needs_flush = np.asarray(~is_ordinary(nudged))
    zero_range = is_zero_range(min, max) & arithmetic.keeps_zero_ranges
    with np.errstate(all="ignore"):
        has_width = bool(np.isfinite(nudged.max - nudged.min).all())
    flags = bool(needs_flush.any()), bool(zero_range.any()), has_width
    steps, bounds = arithmetic.steps(nudged, op), bounds_of(nudged.min, nudged.max)
    return Range(nudged, needs_flush, zero_range, *flags, steps, bounds)
