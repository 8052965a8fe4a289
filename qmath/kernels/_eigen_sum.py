"""Sums in the order of Eigen's reduction, compiled for AVX and run by one thread.

Mirrors ``InnerMostDimReducer`` with tree reduction (Eigen, ``TensorReduction.h``): halves, split
on a register boundary, down to leaves of 8192 elements; in a leaf four accumulators of eight
lanes, then the lanes pairwise, then the scalar tail. All columns of a ``(n, C)`` array are summed
at once; a column's sum does not depend on the others.

A sum that begins at +0 stays what it is when a zero of either sign is added, so that what is
masked out need not be added at all.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator
from itertools import accumulate, groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._float32 import Float32Array, flush

_LANES = 8  # float32 in an AVX register
_ACCUMULATORS = 4  # in Eigen's inner loop
_UNROLLED = _ACCUMULATORS * _LANES
LARGEST_LEAF = 1024 * _LANES
_GROUP = np.dtype((np.void, 4 * _UNROLLED))  # bytes of what the accumulators take at once
_SMALL = np.float32(2.0**-102)


def has_small(x: Float32Array) -> bool:
    """Return whether a sum of elements of `x` can meet a subnormal.

    Sums of multiples of FLT_MIN are zero or normal, and from 2**-102 on every float32 is one.
    """
    return has_small_magnitude(np.abs(x))


def has_small_magnitude(magnitudes: Float32Array) -> bool:
    """Return what `has_small` does, of magnitudes, which are overwritten."""
    if magnitudes.min(initial=np.inf) >= _SMALL:
        return False
    bits = magnitudes.view(np.uint32)
    np.subtract(bits, np.uint32(1), out=bits)  # what is zero becomes the largest
    return bool(bits.min() < _SMALL.view(np.uint32) - np.uint32(1))


def leaf_sums(rows: Float32Array) -> Float32Array:
    """Return the sum of each row of an array, one leaf long, that can meet no subnormal.

    It is what `Leaves` comes to, without what only more leaves need.
    """
    count, size = rows.shape
    unrolled, packed = (size // part * part for part in (_UNROLLED, _LANES))
    accumulators = _ACCUMULATORS * (unrolled > 0)
    registers = np.zeros((count, accumulators + (packed - unrolled) // _LANES, _LANES), np.float32)
    if unrolled:
        groups = np.add.reduce(rows[:, :unrolled].reshape(count, -1, _UNROLLED), axis=1)
        registers[:, :accumulators] += groups.reshape(count, _ACCUMULATORS, _LANES)
    registers[:, accumulators:] += rows[:, unrolled:packed].reshape(count, -1, _LANES)
    sums = np.add.reduce(registers, axis=1)
    for half in (4, 2, 1):
        sums = sums[:, :half] + sums[:, half:]
    if packed < size:
        sums[:, 0] += np.add.accumulate(rows[:, packed:], axis=1)[:, -1]
    return np.asarray(sums[:, 0])


class Leaves:
    """The leaves of the tree over the rows of ``(n, C)`` arrays, and two sums of each.

    Attributes
    ----------
    number : int
        How many leaves there are.
    edges : list of int
        Where each leaf begins, and the last one ends, in elements of the flat array.
    largest : int
        Rows of the largest leaf.
    body : int
        Number of elements before the scalar tail.
    """

    def __init__(self, count: int, channels: int) -> None:
        sizes = list(_sizes(count))
        self.number, self.largest = len(sizes), max(sizes)
        self.edges = [channels * rows for rows in accumulate(sizes, initial=0)]
        self.body = count // _LANES * _LANES * channels
        self._count, self._channels = count, channels
        self._small: set[int] = set()  # leaves in whose sums a subnormal may be met
        self._flushed: dict[tuple[int, int], Float32Array] = {}  # sums, by side and leaf
        # For each leaf, its accumulators and the registers that are added to the first of them.
        accumulators = _ACCUMULATORS * (count >= _UNROLLED)
        registers = accumulators + max(rows % _UNROLLED // _LANES for rows in sizes)
        self._sizes, self._accumulators = sizes, accumulators
        self._sums = np.zeros((2, self.number, registers, _LANES, channels), np.float32)
        self._tails = np.zeros((2, channels), np.float32)
        self._begins = np.array(self.edges[:-1])
        self._unrolled = np.array([rows // _UNROLLED * _UNROLLED * channels for rows in sizes])
        self._after = accumulators * _LANES * channels

    def add(self, side: int, positions: NDArray[np.intp], values: Float32Array) -> None:
        """Add values at ascending positions of the flat array's body to one of the sums.

        No two threads may add to one leaf.
        """
        first, last = (bisect(self.edges, int(positions[end])) - 1 for end in (0, -1))
        if has_small(values):
            self._small.update(range(first, last + 1))
        leaf: Any = first
        if last > first:
            begins = np.searchsorted(positions, self.edges[first : last + 2])
            leaf = np.repeat(np.arange(first, last + 1), np.diff(begins))
        inner = positions - self._begins[leaf]
        beyond = inner - self._unrolled[leaf]
        inner %= _UNROLLED * self._channels
        place = np.where(beyond < 0, inner, beyond + self._after)
        place += leaf * self._sums[0, 0].size
        np.add.at(self._sums[side].reshape(-1), place, values)

    def add_all(
        self, side: int, first: int, last: int, values: Float32Array, *, is_small: bool
    ) -> None:
        """Add all addends of the leaves `first` to ``last - 1`` to one of the sums.

        There must be one channel, and no leaf that `add` adds to.

        Parameters
        ----------
        side, first, last : int
        values : ndarray of float32
            The part of the flat array that the leaves cover, contiguous.
        is_small : bool
            Whether `has_small` may be true of them.
        """
        start, leaf = 0, first
        for rows, equal in groupby(self._sizes[first:last]):
            count = len(list(equal))
            own = values[start : start + count * rows].reshape(count, rows)
            self._add_equal(self._sums[side, leaf : leaf + count, :, :, 0], own)
            for number, addends in enumerate(own if is_small else (), leaf):
                if has_small(addends):
                    self._flushed[side, number] = _flushing_sum(addends[:, np.newaxis])
            start, leaf = start + count * rows, leaf + count
        if last == self.number and self.body < self.edges[-1]:
            self._tails[side] = np.add.accumulate(values[self.body - self.edges[-1] :])[-1]

    def _add_equal(self, sums: Float32Array, values: Float32Array) -> None:
        """Add the body of leaves of one size, the rows of `values`."""
        count, rows = values.shape
        unrolled, packed = (rows // part * part for part in (_UNROLLED, _LANES))
        if unrolled:
            groups = values[:, :unrolled].view(_GROUP)
            # Side by side, so that each step of NumPy's loop adds the groups of all leaves.
            lines = np.ascontiguousarray(groups.T).view(np.float32)
            added = np.add.reduce(lines, axis=0).reshape(count, _ACCUMULATORS, _LANES)
            sums[:, :_ACCUMULATORS] += added
        if unrolled < packed:
            registers = values[:, unrolled:packed].reshape(count, -1, _LANES)
            sums[:, self._accumulators :][:, : registers.shape[1]] += registers

    def total(self, products: Callable[[slice], Float32Array] | None = None) -> Float32Array:
        """Return the two sums, of shape ``(2, C)``.

        Parameters
        ----------
        products : callable, optional
            Returns all addends of a slice of the flat array: shape ``(2, n, C)``. It is needed
            after `add`.
        """
        sums = np.add.reduce(self._sums, axis=2)
        for half in (4, 2, 1):  # ((v0+v4)+(v2+v6)) + ((v1+v5)+(v3+v7))
            sums = sums[:, :, :half] + sums[:, :, half:]
        leaves = sums[:, :, 0]
        if products is not None:
            self._look_up(products)
        if self.body < self.edges[-1]:
            leaves[:, -1] += self._tails
        for (side, number), flushed in self._flushed.items():
            leaves[side, number] = flushed
        return _tree_sum(iter(leaves.swapaxes(0, 1)), self._count, flushing=bool(self._flushed))

    def _look_up(self, products: Callable[[slice], Float32Array]) -> None:
        """Sum what `add` is not given, the tail, or what it may have added wrongly."""
        if self.body < self.edges[-1]:
            tail = products(slice(self.body, None))
            self._tails = np.add.accumulate(tail, axis=1)[:, -1]
            if has_small(tail):
                self._small.add(self.number - 1)
        for number in self._small:
            addends = products(slice(*self.edges[number : number + 2]))
            self._flushed |= {(side, number): _flushing_sum(addends[side]) for side in (0, 1)}


def _sizes(count: int) -> Iterator[int]:
    """Yield the number of rows of each leaf, in order."""
    if count <= LARGEST_LEAF:
        yield count
    else:
        split = _split(count)
        yield from _sizes(split)
        yield from _sizes(count - split)


def _split(count: int) -> int:
    """Return the rows of the left half."""
    return -(-((count + 1) // 2) // _LANES) * _LANES


def _tree_sum(leaves: Iterator[Float32Array], count: int, *, flushing: bool) -> Float32Array:
    if count <= LARGEST_LEAF:
        return next(leaves)
    split = _split(count)
    left = _tree_sum(leaves, split, flushing=flushing)
    total = left + _tree_sum(leaves, count - split, flushing=flushing)
    return flush(total) if flushing else total


def _flushing_sum(x: Float32Array) -> Float32Array:
    """Sum the columns of one leaf with every operand and every partial sum flushed.

    A sum in the range of subnormals is exact, so it can be flushed afterwards.
    """
    rows = flush(x)
    unrolled = len(x) // _UNROLLED * _UNROLLED
    lanes = np.zeros((_ACCUMULATORS, _LANES, x.shape[1]), np.float32)
    for group in rows[:unrolled].reshape(-1, *lanes.shape):
        lanes = flush(lanes + group)
    total = lanes[0]
    for accumulator in lanes[1:]:
        total = flush(total + accumulator)
    packed = len(x) // _LANES * _LANES
    for row in range(unrolled, packed, _LANES):
        total = flush(total + rows[row : row + _LANES])
    for half in (4, 2, 1):
        total = flush(total[:half] + total[half:])
    tail = np.zeros_like(total[0])
    for last in rows[packed:]:
        tail = flush(tail + last)
    return flush(tail + total[0])
