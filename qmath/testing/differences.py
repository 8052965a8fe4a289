"""What two arrays of results differ in: how many, where, by how much, and by what pattern."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["agreeing", "axis_names", "differing", "patterns", "shown"]

Array = NDArray[Any]
_NAMES = {2: ("case", "channel"), 4: ("case", "row", "column", "channel")}


def differing(mine: Array, expected: Array) -> NDArray[np.bool_]:
    """Return where results differ: integers in value, floats in bits, any NaN equal to any."""
    if expected.dtype.kind != "f":
        return np.asarray(mine != expected)
    bits = [np.ascontiguousarray(x).view(f"u{x.itemsize}") for x in (mine, expected)]
    differs = bits[0].reshape(mine.shape) != bits[1].reshape(expected.shape)
    return np.asarray(differs & ~(np.isnan(mine) & np.isnan(expected)))


def axis_names(rank: int) -> tuple[str, ...]:
    """Return what the axes of an array of this rank are called.

    Examples
    --------
    >>> axis_names(4), axis_names(1)
    (('case', 'row', 'column', 'channel'), ('element',))
    """
    if rank == 1:
        return ("element",)
    return _NAMES.get(rank, tuple(f"axis {axis}" for axis in range(rank)))


def patterns(mine: Array, expected: Array, names: Sequence[str]) -> list[str]:
    """Return what all that differs has in common, if anything, in words.

    Examples
    --------
    >>> mine = np.array([[0, 5], [0, 7]])
    >>> patterns(mine, np.array([[0, 4], [0, 6]]), axis_names(2))
    ['all in channel 1', 'each is 1 too high']
    """
    differs = differing(mine, expected)
    places = np.argwhere(differs)
    if len(places) < 2:
        return []
    if differs.all():
        found = ["every element differs"]
    else:
        found = [
            f"all in {name} {places[0, axis]}"
            for axis, name in enumerate(names)
            if differs.shape[axis] > 1 and (places[:, axis] == places[0, axis]).all()
        ]
    got, wanted = mine[differs], expected[differs]
    if expected.dtype.kind == "f":
        if np.array_equal(got, wanted):
            found.append("the sign of zero is all that differs")
        return found
    return [*found, *_of_integers(got.astype(np.int64), wanted.astype(np.int64), expected)]


def _of_integers(got: Array, wanted: Array, expected: Array) -> Iterator[str]:
    """Yield what differing integers have in common."""
    steps = got - wanted
    if (steps == steps[0]).all():
        yield f"each is {abs(steps[0])} too {'high' if steps[0] > 0 else 'low'}"
    elif (np.abs(steps) == 1).all():
        yield "each is off by 1"
    if (wanted == wanted[0]).all():
        end = {int(expected.max()): ", the highest", int(expected.min()): ", the lowest"}
        yield f"expected is always {wanted[0]}{end.get(int(wanted[0]), '')}"
    if (got == got[0]).all():
        yield f"the result is always {got[0]}"


def agreeing(mine: Array, others: Iterable[tuple[str, Array]]) -> list[str]:
    """Return the names of those results that `mine` equals in every element.

    What `mine`'s dtype cannot hold wraps around in it, as it does in a kernel.
    """
    return [name for name, other in others if _agrees(mine, other)]


def _agrees(mine: Array, other: Array) -> bool:
    if mine.shape != other.shape:
        return False
    if mine.dtype.kind != "f":
        other = other.astype(np.int64)
    return not differing(mine, other.astype(mine.dtype)).any()


def shown(value: Any) -> str:
    """Return a number as messages show it: a float32 with its bits.

    Examples
    --------
    >>> shown(np.float32(0.5)), shown(np.int8(-3))
    ('0.5 (3f000000)', '-3')
    """
    if np.asarray(value).dtype == np.float32:
        return f"{value:.9g} ({int(np.asarray(value).view(np.uint32)):08x})"
    return str(value)
