"""Arrays that enter: NumPy's own, without a mask over them; and their axes."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError

__all__ = ["as_array", "as_index", "place_of", "unmasked"]

_WITH_MASKS = (np.ndarray, list, tuple)
_DEPTH = 32  # of nested lists: NumPy 1 has no arrays of more dimensions


def as_array(value: ArrayLike, name: str) -> NDArray[Any]:
    """Return `value` as a plain array; a masked one as its data, unless elements are masked.

    Raises
    ------
    QmathError
        Elements are masked: what lies under a mask is no data, and no integer stands for it. Or
        the parts of a list have several shapes.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, _WITH_MASKS) and _has_masked(value, _DEPTH):
        raise QmathError(
            f"{name} must have no masked elements, which stand for no number; pass .filled(number) "
            "or, without them, .compressed()"
        )
    try:
        return np.asarray(value)
    except QmathError:  # of a lazy tensor, whose file says what is wrong
        raise
    except ValueError as error:
        raise QmathError(f"{name} must be an array: {error}") from error


def unmasked(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return the array itself, or as `as_array` does if it can have a mask."""
    return as_array(array, name) if hasattr(array, "mask") else array


def _has_masked(value: object, depth: int) -> bool:
    # Without numpy.ma, which NumPy 2 imports only for those who use it.
    if isinstance(value, np.ndarray):
        return bool(np.any(getattr(value, "mask", False)))
    if not depth or not isinstance(value, (list, tuple)):
        return False
    return any(_has_masked(part, depth - 1) for part in value if isinstance(part, _WITH_MASKS))


def place_of(axis: SupportsIndex, ndim: int) -> int | None:
    """Return an axis counted from the first, None if an array of so many has no such axis."""
    place = as_index(axis)
    return None if place is None or not -ndim <= place < ndim else place % ndim


def as_index(value: object) -> int | None:
    """Return an integer as an int, None of what is none: an array has an __index__, too."""
    try:
        return operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return None
