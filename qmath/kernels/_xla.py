"""XLA on a CPU (``jit_compile=True``), with and without fused multiply-adds.

Mirrors ``tensorflow/compiler/tf2xla/kernels/fake_quantize_ops.cc`` as XLA simplifies it: a division
by a constant becomes a product with its inverse, so that the range -6 to 6 of 8 bits, whose exact
zero point is 127.5, reaches 127.499985 and then 127. What is below the range is the minimum, NaN
too. With ``FakeQuantWithMinMaxArgs`` the compiler computes the range itself, see `_compiled_nudge`,
and leaves NaN.

Of short rows (`has_short_rows`) that compiler works on the last elements two at a time, and
computes what stands for the maximum beforehand, with two roundings. It depends on the whole shape,
and is refused: the integers are the same.

The gradients choose between the gradient and 0, instead of multiplying. XLA sums in a tree, see
`_tree_sum`, and from some size on in parts, one for a thread, whose number is the machine's.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.kernels._blocks import each_block, non_overlapping, output
from qmath.kernels._float32 import Bounds, Float32Array, flush, rounded
from qmath.kernels._from_minimum import FusedSteps, StepsFromMinimum, nudged_zero_point
from qmath.kernels._nudge import Nudged, quant_limits
from qmath.kernels._range import Arithmetic, Build, Op, Range

MOST_SUMMED = 5000  # elements of a gradient's inputs up to which the order of the sums is known
_WINDOW = 32
_VECTOR = 8  # floats of a register


def _nudge(
    min: Float32Array, max: Float32Array, num_bits: int, narrow_range: bool, op: Op
) -> Nudged:
    first, last = quant_limits(num_bits, narrow_range)
    if op == "args":
        return _compiled_nudge(min, max, first, last)
    with np.errstate(all="ignore"):
        low = flush(min).astype(np.float64)
        span = rounded(flush(max).astype(np.float64) - low).astype(np.float64)
        steps = np.float64(last - first)
        if op == "args_gradient":
            scale, inverse = rounded(span / steps), rounded(steps / span)
        else:
            scale = rounded(span * np.float64(np.float32(1) / np.float32(steps)))
            inverse = rounded(1 / scale.astype(np.float64))
        wide = scale.astype(np.float64)
        below = rounded(low / wide)
        if op == "per_channel" and low.size == 1:
            # XLA sees through the vector of one scale that it divides by: a / (b / c) is a * c / b.
            inverse = rounded(steps / span)
            below = rounded(rounded(low * steps).astype(np.float64) / span)
        zero = nudged_zero_point(below, num_bits, narrow_range)
        ends = rounded((first - zero) * wide), rounded((last - zero) * wide)
    return _nudged(scale, inverse, zero, *ends)


def _compiled_nudge(min: Float32Array, max: Float32Array, first: int, last: int) -> Nudged:
    """Nudge as the compiler does, of which a range that is an attribute is a constant.

    It reads subnormal ends as zero, but keeps a subnormal scale for the zero point, though not for
    the ends. And it rounds a zero point on a tie to even, the other ops half away from zero.
    """
    with np.errstate(all="ignore"):
        low = flush(min)
        span = flush(max) - low
        scale = span / np.float32(last - first)
        inverse = np.float32(last - first) / span
        estimate = np.float32(first) - low / scale
        zero = np.rint(np.minimum(np.maximum(estimate, np.float32(first)), np.float32(last)))
        scale = flush(np.asarray(scale))
        ends = (np.float32(first) - zero) * scale, (np.float32(last) - zero) * scale
        return _nudged(*map(flush, map(np.asarray, (scale, inverse, zero, *ends))))


def _nudged(*parts: NDArray[np.floating]) -> Nudged:
    scale, inverse, zero, low, high = (np.asarray(part, np.float32) for part in parts)
    return Nudged(scale, inverse, zero, low, high, np.zeros_like(zero))


def has_short_rows(shape: tuple[int, ...]) -> bool:
    """Whether rows are of 3, 5 or 7 elements, less than a register holds and an odd number."""
    axes = [size for size in shape if size != 1]
    return len(axes) > 1 and axes[-1] < _VECTOR and axes[-1] % 2 == 1


def refuse_maximum_of_short_rows(x: Float32Array, ranges: Range) -> None:
    """Refuse elements whose result the compiler may have computed with or without fusing."""
    if not has_short_rows(x.shape):
        return
    top = ranges.nudged.max
    fused, apart = (kind.steps(ranges.nudged, "args") for kind in (XLA_CPU, XLA_CPU_NOFMA))
    last = fused.exactly(top, ranges.nudged)
    ends = [steps.exact_floats(top, ranges.nudged) for steps in (fused, apart)]
    if ends[0] != ends[1] and (fused.exactly(x, ranges.nudged) == last).any():
        raise QmathError(
            f"inputs: in arrays of shape {x.shape}, of rows of 3, 5 or 7, XLA makes of some "
            f"elements that become the maximum {ends[0]}, of others {ends[1]}, and qmath does not "
            "know of which; quantize gives the integers, which are the same"
        )


def _backprop(g: Float32Array, x: Float32Array, bounds: Bounds, out: Float32Array) -> None:
    """Write the gradients where ``min <= x <= max``, else 0, of flat arrays."""

    def work(block: slice, lower: Float32Array, upper: Float32Array) -> None:
        inside = (x[block] >= lower) & (x[block] <= upper)
        out[block] = np.where(inside, g[block], np.float32(0))

    each_block(work, x.size, bounds)


def _backward(
    g: Float32Array, x: Float32Array, ranges: Range, out: Float32Array | None
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Return the three gradients of the ops whose range is a variable."""
    if x.size > MOST_SUMMED:
        raise QmathError(
            f"XLA's sums of {x.size} gradients depend on the machine's threads; they are known up "
            f"to {MOST_SUMMED} elements. backprops_wrt_input alone is that of "
            "fake_quant_with_min_max_args_gradient"
        )
    out, bounds = output(out, x.shape), ranges.bounds
    axes = tuple(range(x.ndim - bounds.lower.ndim))
    low, high = (
        _tree_sum(np.where(outside, g, np.float32(0)), axes)
        for outside in (x < bounds.lower, x > bounds.upper)
    )
    _backprop(non_overlapping(g, out), non_overlapping(x, out), bounds, out.reshape(-1))
    return out, low, high


def _tree_sum(x: Float32Array, axes: tuple[int, ...]) -> Float32Array:
    """Sum along the first axes: in windows of up to 32 along each, until no axis is longer.

    Mirrors ``tree_reduction_rewriter.cc``. Zeros fill up the windows, half of them in front.
    """
    while any(x.shape[axis] > _WINDOW for axis in axes):
        shape: list[int] = []
        padding = [(0, 0)] * x.ndim
        for axis in axes:
            size = x.shape[axis]
            window = min(size, _WINDOW)
            count = -(-size // window) if window else 0
            spare = count * window - size
            padding[axis] = (spare // 2, spare - spare // 2)
            shape += [count, window]
        windows = np.pad(x, padding).reshape(*shape, *x.shape[len(axes) :])
        inner = [2 * axis + 1 for axis in axes]
        x = _row_by_row(np.moveaxis(windows, inner, range(len(axes))), len(axes))
    return _row_by_row(x, len(axes))


def _row_by_row(x: Float32Array, number: int) -> Float32Array:
    """Sum along the first axes, one element after the other."""
    rows = x.reshape(math.prod(x.shape[:number]), *x.shape[number:])
    if len(rows) == 1:  # a sum that XLA removes, with what an addition does to the element
        return np.asarray(rows[0])
    total = np.zeros(rows.shape[1:], np.float32)
    with np.errstate(all="ignore"):
        for row in flush(rows):
            total = rounded(total.astype(np.float64) + row)
    return np.asarray(total)


def _xla(name: Build, kind: type[StepsFromMinimum]) -> Arithmetic:
    return Arithmetic(
        name=name,
        nudge=_nudge,
        steps=lambda nudged, op: kind(
            nudged, divides=False, keeps_nan=op == "args", upper_first=False
        ),
        backprop=_backprop,
        backward=_backward,
        keeps_zero_ranges=False,
        rounding_errors=(11, 5),
    )


XLA_CPU = _xla("xla-cpu", FusedSteps)
XLA_CPU_NOFMA = _xla("xla-cpu-nofma", StepsFromMinimum)
