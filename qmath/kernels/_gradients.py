"""The gradients' kernels: a mask times the gradients, and two sums in the order of Eigen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._blocks import (
    each_block,
    in_threads,
    non_overlapping,
    output,
    run_blocks,
    threads_for,
)
from qmath.kernels._eigen_sum import (
    LARGEST_LEAF,
    Leaves,
    has_small,
    has_small_magnitude,
    leaf_sums,
)
from qmath.kernels._float32 import Bounds, Float32Array, flush
from qmath.kernels._range import Range

_TOGETHER = 4  # leaves, whose passes then stay in the cache


def backward(
    g: Float32Array, x: Float32Array, ranges: Range, out: Float32Array | None
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Return the three gradients of the ops whose range is a variable."""
    out = output(out, x.shape)
    shape, channels = ranges.nudged.scale.shape, ranges.nudged.scale.size
    sums = np.zeros((2, channels), np.float32)
    if x.size:
        columns = (-1, channels)
        gs, xs = (non_overlapping(a, out) for a in (g, x))
        idle = ranges.zero_range.reshape(-1)
        if channels == 1 and not ranges.any_zero_range:
            both = _in_one_leaf if _is_one_leaf(gs) else _in_one_pass
            low, high = both(gs, xs, ranges.bounds, out.reshape(-1)).reshape(2, *shape)
            return out, np.asarray(low), np.asarray(high)
        passed = gs.reshape(columns)[:, idle] if ranges.any_zero_range else None
        if not idle.all():
            sums = _outside_sums(gs, xs, ranges.bounds)
        backprop(gs, xs, ranges.bounds, out.reshape(-1))
        if passed is not None:
            sums[:, idle] = 0
            out.reshape(columns)[:, idle] = passed
    low, high = (np.asarray(part).reshape(shape) for part in sums)
    return out, low, high


def backprop(g: Float32Array, x: Float32Array, bounds: Bounds, out: Float32Array) -> None:
    """Write ``g * (min <= x <= max)`` of flat arrays, subnormal gradients flushed."""

    def work(block: slice, lower: Float32Array, upper: Float32Array) -> None:
        inside = x[block] >= lower
        np.logical_and(inside, x[block] <= upper, out=inside)
        factor = inside.astype(np.float32)  # a product with bools would convert them more slowly
        gradients = flush(g[block]) if has_small(g[block]) else g[block]
        np.multiply(gradients, factor, out=out[block])

    each_block(work, x.size, bounds)


def _outside_sums(g: Float32Array, x: Float32Array, bounds: Bounds) -> Float32Array:
    """Sum ``g * (x < min)`` and ``g * (x > max)`` of flat arrays for each channel: ``(2, C)``."""
    channels = bounds.lower.size
    leaves = Leaves(x.size // channels, channels)
    share = -(-leaves.number // threads_for(x.size))

    def add(block: slice, lower: Float32Array, upper: Float32Array) -> None:
        finite = np.isfinite(g[block])
        is_finite = finite.all()
        for side, outside in enumerate((x[block] < lower, x[block] > upper)):
            # a product with 0 is NaN where the gradient is not finite, and otherwise changes no sum
            at = (outside if is_finite else outside | ~finite).nonzero()[0]
            if at.size:
                values = g[block][at] if is_finite else g[block][at] * outside[at]
                leaves.add(side, at + block.start, values)

    def run(number: int) -> None:
        last = leaves.edges[min(number + share, leaves.number)]
        run_blocks(add, leaves.edges[number], min(last, leaves.body), bounds)

    def products(part: slice) -> Float32Array:
        gs, xs = (a[part].reshape(-1, channels) for a in (g, x))
        return np.stack([gs * (xs < bounds.lower), gs * (xs > bounds.upper)])

    in_threads(run, range(0, leaves.number, share))
    with np.errstate(all="ignore"):
        return leaves.total(products)


def _is_one_leaf(g: Float32Array) -> bool:
    """Whether gradients are few, and no sum of them can meet a subnormal."""
    return g.size <= LARGEST_LEAF and not has_small(g)


def _in_one_leaf(
    g: Float32Array, x: Float32Array, bounds: Bounds, out: Float32Array
) -> Float32Array:
    """Do what `_in_one_pass` does for few elements, whose passes cost more to start than to run."""
    lower, upper = (bound.reshape(()) for bound in bounds)
    masks = np.empty((3, g.size), np.bool_)
    with np.errstate(all="ignore"):
        np.less(x, lower, out=masks[0])
        np.greater(x, upper, out=masks[1])
        np.greater_equal(x, lower, out=masks[2])
        np.greater(masks[2], masks[1], out=masks[2])  # inside: not above the range
        products = masks.astype(np.float32)
        np.multiply(products, g, out=products)
        out[...] = products[2]
        return leaf_sums(products[:2])


def _in_one_pass(
    g: Float32Array, x: Float32Array, bounds: Bounds, out: Float32Array
) -> Float32Array:
    """Do what `backprop` and `_outside_sums` do for one channel, some leaves at a time.

    All products with the masks are added, also the zeros, as NumPy adds neighbours fast.
    """
    leaves = Leaves(x.size, 1)
    share = -(-leaves.number // threads_for(x.size))
    lower, upper = (bound.reshape(()) for bound in bounds)
    sides = ((0, np.less, lower), (1, np.greater, upper))

    def run(number: int) -> None:
        size = min(x.size, _TOGETHER * leaves.largest)
        masks, values = np.empty((2, size), np.bool_), np.empty(size, np.float32)
        end = min(number + share, leaves.number)
        with np.errstate(all="ignore"):
            for first in range(number, end, _TOGETHER):
                last = min(first + _TOGETHER, end)
                count = leaves.edges[last] - leaves.edges[first]
                work(first, last, masks[:, :count], values[:count])

    def work(first: int, last: int, masks: NDArray[np.bool_], values: Float32Array) -> None:
        inside, outside = masks
        block = slice(leaves.edges[first], leaves.edges[last])
        gradients, inputs = g[block], x[block]
        np.abs(gradients, out=values)
        is_finite = values.max() < np.inf
        is_small = has_small_magnitude(values)
        for side, compare, bound in sides:
            compare(inputs, bound, out=outside)
            if not is_finite or outside.any():  # otherwise nothing but zeros would be added
                np.copyto(values, outside)  # a product with bools would convert them more slowly
                np.multiply(gradients, values, out=values)
                leaves.add_all(side, first, last, values, is_small=is_small)
        np.greater_equal(inputs, lower, out=inside)
        np.greater(inside, outside, out=inside)  # and not above the range
        np.copyto(values, inside)
        np.multiply(flush(gradients) if is_small else gradients, values, out=out[block])

    in_threads(run, range(0, leaves.number, share))
    with np.errstate(all="ignore"):
        return leaves.total()
