"""What recovering integers from values returns: they, or how far from a lattice the values are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._float32 import Float32Array, Float64Array

__all__ = ["Alternative", "RecoveredLattice"]


class Alternative(NamedTuple):
    """Another lattice that gives the same floats within the width.

    Attributes
    ----------
    form : str
        Its formula.
    scale : float32
        Its scale, the smallest of those that give the same integers.
    num_bits : int
        The width that its integers need.
    factor : int or None
        By which it multiplies the integers of the coarsest lattice; ``None`` if it has others.
    """

    form: str
    scale: np.float32
    num_bits: int
    factor: int | None


@dataclass(frozen=True, eq=False, repr=False)
class RecoveredLattice:
    """The coarsest lattice that gives some floats bit for bit, or the word that there is none.

    "Per channel" means: one entry without an axis, else one for each index of it. Arrays of such
    are shaped to broadcast against the integers: ``()``, or ``(C,)`` for the last axis.

    Attributes
    ----------
    form : str or None
        The formula in float32 that turns integers into the floats; ``None`` if no lattice does.
        The first is ``(integers.astype(np.int32) - zero_point).astype(np.float32) * scale``.
    integers : ndarray or None
        Of the smallest integer dtype, in the shape of the values.
    scale : ndarray of float32, or None
        Per channel; 0 where there is no nonzero value (in a quotient 1).
    scale_max : ndarray of float32, or None
        The largest float32 that gives the same floats with the same integers, as all between it
        and `scale` do. Equal to `scale` where the last bit is certain.
    zero_point : ndarray of int32, or None
        Per channel, as given, or 0: then the integers are relative to real zero.
    zero_point_min, zero_point_max : ndarray of int32, or None
        Between which ends `max_bits` allow the zero point, per channel. ``None`` without integers
        and in forms that have no zero point.
    num_bits : int or None
        The width that the integers need, with whatever zero point suits each channel, unless it
        is given.
    max_bits : int
        The width that was allowed.
    axis : int or None
        The axis of the channels.
    is_unique : bool
        Whether no other lattice fits within `max_bits`, in any of the forms.
    ambiguities : tuple of str
        Per channel why it is not unique: ``"empty"``; ``"all zero"``
        (any scale); ``"one magnitude"`` (almost any integer); ``"multiples"`` (of the integers,
        with a finer scale); ``"other integers"``. ``""`` where it is unique.
    alternatives : tuple of tuple of Alternative
        Per channel the coarsest eight of the other lattices.
    max_error_ulp : ndarray of float64
        Per channel 0, or by how many units in the last place the closest lattice that was seen
        misses a value, in the first form.
    negative_zeros : int
        How many values are -0.0: integers have no such zero, so they come back as 0.0.
    """

    form: str | None
    integers: NDArray[Any] | None
    scale: Float32Array | None
    scale_max: Float32Array | None
    zero_point: NDArray[np.int32] | None
    zero_point_min: NDArray[np.int32] | None
    zero_point_max: NDArray[np.int32] | None
    num_bits: int | None
    max_bits: int
    axis: int | None
    is_unique: bool
    ambiguities: tuple[str, ...]
    alternatives: tuple[tuple[Alternative, ...], ...]
    max_error_ulp: Float64Array
    negative_zeros: int

    def __repr__(self) -> str:
        if self.integers is None:
            error = self.max_error_ulp.max(initial=0)
            return f"<RecoveredLattice: none of {self.max_bits} bits, off by {error:.3g} ulp>"
        kind = "unique" if self.is_unique else "ambiguous"
        return (
            f"<RecoveredLattice of shape {self.integers.shape}: {self.num_bits} bits, {kind}, "
            f"{self.form}>"
        )
