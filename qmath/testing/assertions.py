"""Assertions whose failure says how many results differ, where, and what they agree with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.testing.differences import agreeing, axis_names, differing, patterns, shown
from qmath.testing.layer import Layer
from qmath.testing.tensor import Tensor

__all__ = ["assert_same_bits", "assert_same_integers"]

Array = NDArray[Any]
_LISTED = 3


class _HasTies(Protocol):
    def to_tie(self, index: Sequence[int]) -> float | None: ...


def assert_same_integers(
    mine: ArrayLike, expected: ArrayLike, case: Layer | Tensor | None = None
) -> None:
    """Assert that integers are equal.

    Parameters
    ----------
    mine, expected : array-like of int
        Of the same shape and dtype.
    case : Layer or Tensor, optional
        What both were computed from. With it a failure says how far each is from its rounding
        tie, and which profile or rounding gives the same integers as `mine`.

    Raises
    ------
    AssertionError
        They differ.

    Examples
    --------
    >>> import numpy as np
    >>> assert_same_integers(np.int8([[1, 2], [3, 4]]), np.int8([[1, 1], [3, 3]]))
    Traceback (most recent call last):
        ...
    AssertionError: 2 of 4 integers differ
      at [0,1]: 2, expected 1
      at [1,1]: 4, expected 3
    all in channel 1
    each is 1 too high
    """
    got, wanted = _same_kind(mine, expected, "iu", "integers")
    if differing(got, wanted).any():
        others = () if case is None else case.other_integers()
        raise AssertionError(_message(got, wanted, "integers", case, others))


def assert_same_bits(mine: ArrayLike, expected: ArrayLike, tensor: Tensor | None = None) -> None:
    """Assert that floats are equal bit for bit; any NaN equals any other.

    Parameters
    ----------
    mine, expected : array-like of float
        Of the same shape and dtype.
    tensor : Tensor, optional
        What both were computed from: a failure says more with it, as in `assert_same_integers`.

    Raises
    ------
    AssertionError
        They differ.

    Examples
    --------
    >>> import numpy as np
    >>> assert_same_bits(np.float32([0.5, -0.0]), np.float32([0.5, 0.0]))
    Traceback (most recent call last):
        ...
    AssertionError: 1 of 2 floats differ
      at [1]: -0 (80000000), expected 0 (00000000)
    """
    got, wanted = _same_kind(mine, expected, "f", "floats")
    if differing(got, wanted).any():
        others = () if tensor is None else tensor.other_floats()
        raise AssertionError(_message(got, wanted, "floats", tensor, others))


def _same_kind(mine: ArrayLike, expected: ArrayLike, kinds: str, noun: str) -> tuple[Array, Array]:
    """Return both as arrays, if they are alike in dtype and shape."""
    got, wanted = np.asarray(mine), np.asarray(expected)
    if wanted.dtype.kind not in kinds:
        raise AssertionError(f"what is expected has to be {noun}, got {wanted.dtype}")
    if got.dtype != wanted.dtype or got.shape != wanted.shape:
        raise AssertionError(
            f"expected {wanted.dtype} of shape {wanted.shape}, got {got.dtype} of shape {got.shape}"
        )
    return got, wanted


def _message(
    mine: Array, expected: Array, noun: str, case: _HasTies | None, others: Iterable[Any]
) -> str:
    differs = differing(mine, expected)
    lines = [f"{differs.sum():,} of {mine.size:,} {noun} differ"]
    for place in np.argwhere(differs)[:_LISTED]:
        index = tuple(place.tolist())
        got, wanted = (shown(x[index]) for x in (mine, expected))
        tie = None if case is None else case.to_tie(index)
        words = "" if tie is None else f", {tie:.3g} steps from a rounding tie"
        where = f"at [{','.join(map(str, index))}]: " if index else ""
        lines.append(f"  {where}{got}, expected {wanted}{words}")
    names = axis_names(mine.ndim) if mine.ndim else ()
    lines += patterns(mine, expected, names)
    lines += [f"all agree under {name}" for name in agreeing(mine, others)]
    return "\n".join(lines)
