"""The gradients' kernels: a mask times the gradients, and two sums in the order of Eigen."""

from __future__ import annotations

import numpy as np

from qmath._blocks import each_block, threads_for
from qmath._eigen_sum import OutsideSums, has_small, leaves_of, tree_sum
from qmath._float32 import LARGEST_SUBNORMAL, Float32Array, flush
from qmath._nudge import Nudged
from qmath._output import apart, output
from qmath._range import Range
from qmath._threads import in_threads

_MOST_CHANNELS = 512


def backward(
    g: Float32Array, x: Float32Array, of: Range, out: Float32Array | None
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Return the three gradients of the ops whose range is a variable."""
    out = output(out, x.shape)
    shape = of.nudged.scale.shape
    sums = np.zeros((2, of.nudged.scale.size), np.float32)
    if x.size:
        columns = (-1, of.nudged.scale.size)
        gs, xs = (apart(a, out) for a in (g, x))
        idle = of.dead.reshape(-1)
        passed = gs.reshape(columns)[:, idle] if of.has_dead else None
        if not idle.all():
            sums = _outside_sums(gs.reshape(columns), xs.reshape(columns), of.nudged)
        backprop(gs, xs, of.nudged.min, of.nudged.max, out.reshape(-1))
        if passed is not None:
            sums[:, idle] = 0
            out.reshape(columns)[:, idle] = passed
    low, high = (np.asarray(part).reshape(shape) for part in sums)
    return out, low, high


def backprop(
    g: Float32Array, x: Float32Array, min: Float32Array, max: Float32Array, out: Float32Array
) -> None:
    """Write ``g * (min <= x <= max)`` of flat arrays, subnormal gradients flushed."""

    def work(block: slice, lower: Float32Array, upper: Float32Array) -> None:
        inside = x[block] >= lower
        np.logical_and(inside, x[block] <= upper, out=inside)
        factor = inside.astype(np.float32)  # a product with bools would convert them more slowly
        gradients = flush(g[block]) if has_small(g[block]) else g[block]
        np.multiply(gradients, factor, out=out[block])

    each_block(work, x.size, _bounds(min, max))


def _bounds(min: Float32Array, max: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Return bounds to compare plain float32 with, as kernels compare with subnormals as zero."""
    lower = np.where(min == 0, -LARGEST_SUBNORMAL, min)
    return lower, np.where(max == 0, LARGEST_SUBNORMAL, max)


def _outside_sums(g: Float32Array, x: Float32Array, nudged: Nudged) -> Float32Array:
    """Sum the columns of ``g * (x < min)`` and of ``g * (x > max)``, a group of columns at a time.

    Many columns are summed side by side, but not so many that their accumulators leave the cache.
    """
    channels = x.shape[1]
    bounds = [np.broadcast_to(bound, channels) for bound in _bounds(nudged.min, nudged.max)]
    groups = [slice(c, c + _MOST_CHANNELS) for c in range(0, channels, _MOST_CHANNELS)]
    parts = [
        _tree(np.ascontiguousarray(g[:, c]), np.ascontiguousarray(x[:, c]), *(b[c] for b in bounds))
        for c in groups
    ]
    return np.concatenate(parts, axis=1)


def _tree(
    g: Float32Array, x: Float32Array, lower: Float32Array, upper: Float32Array
) -> Float32Array:
    """Sum one group; the leaves do not depend on each other, so that threads may share them."""
    leaves = list(leaves_of(len(x)))
    sums = np.empty((len(leaves), 2, x.shape[1]), np.float32)
    share = -(-len(leaves) // threads_for(x.size))

    def run(start: int) -> None:
        with np.errstate(all="ignore"):
            outside = OutsideSums(lower, upper)
            for number in range(start, min(start + share, len(leaves))):
                sums[number] = outside(g[leaves[number]], x[leaves[number]])

    in_threads(run, range(0, len(leaves), share))
    with np.errstate(all="ignore"):
        return tree_sum(iter(sums), len(x))
