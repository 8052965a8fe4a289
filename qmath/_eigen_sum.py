"""Sums in the order of Eigen's reduction, compiled for AVX and run by one thread.

Mirrors ``InnerMostDimReducer`` with tree reduction (Eigen, ``TensorReduction.h``): halves, split
on a register boundary, down to leaves of 8192 elements; in a leaf four accumulators of eight
lanes, then the lanes pairwise, then the scalar tail. All columns of a ``(n, C)`` array are summed
at once; a column's sum does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qmath._float32 import Float32Array, flush

_LANES = 8  # float32 in an AVX register
_ACCUMULATORS = 4  # in Eigen's inner loop
_UNROLLED = _ACCUMULATORS * _LANES
_LEAF = 1024 * _LANES
_CHUNK = 8192  # elements that stay in the first cache while they are masked and added
_SMALL_BITS = 2 * int(np.float32(2.0**-102).view(np.uint32)) - 1
_INFINITE_BITS = 2 * int(np.float32(np.inf).view(np.uint32))


def has_small(x: Float32Array) -> bool:
    """Whether a sum of elements of `x` can meet a subnormal.

    Sums of multiples of FLT_MIN are zero or normal, and from 2**-102 on every float32 is one.
    """
    doubled = _doubled(x)
    np.subtract(doubled, np.uint32(1), out=doubled)  # what is zero becomes the largest
    return bool(doubled.min() < _SMALL_BITS)


def _doubled(x: Float32Array) -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
    """Return the bits without the sign, times 2: they are ordered as the magnitudes are."""
    bits = x.view(np.uint32)
    return np.add(bits, bits)


def leaves_of(count: int, first: int = 0) -> Iterator[slice]:
    """Yield the leaves of the tree over so many rows, in order."""
    if count <= _LEAF:
        yield slice(first, first + count)
    else:
        split = _split(count)
        yield from leaves_of(split, first)
        yield from leaves_of(count - split, first + split)


def tree_sum(leaves: Iterator[Float32Array], count: int) -> Float32Array:
    """Add up the sums of the leaves, given in their order."""
    if count <= _LEAF:
        return next(leaves)
    split = _split(count)
    left = tree_sum(leaves, split)
    return flush(left + tree_sum(leaves, count - split))


def _split(count: int) -> int:
    """Return the rows of the left half."""
    return -(-((count + 1) // 2) // _LANES) * _LANES


class OutsideSums:
    """For one leaf, the sums of ``g * (x < lower)`` and of ``g * (x > upper)``.

    Parameters
    ----------
    lower, upper : ndarray of float32
        Shape ``(C,)``.
    """

    def __init__(self, lower: Float32Array, upper: Float32Array) -> None:
        self._width = _UNROLLED * lower.size
        self._chunk = max(1, _CHUNK // self._width) * self._width
        self._sides = ((np.less, lower), (np.greater, upper))
        times = self._chunk // lower.size
        self._tiled = [np.tile(b, times) if b.size > 1 else b[0] for b in (lower, upper)]
        self._flags = np.empty(self._chunk, np.bool_)
        # The accumulators, and after them what is added to them row by row.
        self._buffer = np.empty(self._width + self._chunk, np.float32)

    def __call__(self, g: Float32Array, x: Float32Array) -> Float32Array:
        """Return the ``(2, C)`` sums of the columns of a leaf, C-contiguous ``(n, C)`` arrays."""
        doubled = _doubled(g)
        finite = bool(doubled.max() < _INFINITE_BITS)
        np.subtract(doubled, np.uint32(1), out=doubled)
        unrolled = len(x) // _UNROLLED * _UNROLLED
        if doubled.min() < _SMALL_BITS:
            masked = np.stack([g * compare(x, bound) for compare, bound in self._sides])
            if has_small(masked):
                return np.stack([_sum_flushing(part) for part in masked])
        lanes = self._unrolled(g[:unrolled].reshape(-1), x[:unrolled].reshape(-1), finite)
        rest = np.stack([g[unrolled:] * cmp(x[unrolled:], bound) for cmp, bound in self._sides])
        return _folded(lanes.reshape(2, _ACCUMULATORS, _LANES, x.shape[1]), rest)

    def _unrolled(self, g: Float32Array, x: Float32Array, finite: bool) -> Float32Array:
        """Return the accumulators after Eigen's unrolled loop, from +0 on."""
        width, buffer = self._width, self._buffer
        sums = np.zeros((2, width), np.float32)
        for start in range(0, g.size, self._chunk):
            stop = min(start + self._chunk, g.size)
            outside, body = self._flags[: stop - start], buffer[width : width + stop - start]
            for (compare, _), bound, total in zip(self._sides, self._tiled, sums, strict=True):
                compare(x[start:stop], bound[: stop - start] if bound.ndim else bound, out=outside)
                if finite and not outside.any():
                    continue  # zeros of either sign, which change no sum that began at +0
                np.copyto(body, outside)
                np.multiply(g[start:stop], body, out=body)
                buffer[:width] = total
                np.add.reduce(buffer[: width + stop - start].reshape(-1, width), axis=0, out=total)
        return sums


def _folded(lanes: Float32Array, rest: Float32Array) -> Float32Array:
    """Fold accumulators ``(2, 4, 8, C)``, then the rows ``(2, n, C)`` after the unrolled loop."""
    total = np.add.reduce(lanes, axis=1)
    packed = rest.shape[1] // _LANES * _LANES
    for row in range(0, packed, _LANES):
        total += rest[:, row : row + _LANES]
    for half in (4, 2, 1):  # ((v0+v4)+(v2+v6)) + ((v1+v5)+(v3+v7))
        total = total[:, :half] + total[:, half:]
    tail = np.zeros_like(total[:, 0])
    for row in range(packed, rest.shape[1]):
        tail += rest[:, row]
    return np.asarray(tail + total[:, 0])


def _sum_flushing(x: Float32Array) -> Float32Array:
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
