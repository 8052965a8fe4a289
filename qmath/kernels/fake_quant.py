"""TensorFlow's fake quantization ops and their gradients, bit for bit, in NumPy.

Names, argument order and defaults are those of ``tf.quantization``; `name` is accepted and
ignored. The arithmetic is that of ``tensorflow/core/kernels/fake_quant_ops_functor.h`` on a CPU,
checks and messages those of ``fake_quant_ops.cc``: float32, one rounding an operation, no fused
multiply-add, subnormals counting as zero.

Notes
-----
Like the kernels, these functions accept every range silently: an inverted range gives a constant,
an infinite or NaN range gives NaN, and a range that misses zero is moved to contain it.
`qmath.quantize` raises for the ranges that determine no integers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.kernels._blocks import each_block, fits_at_once, non_overlapping, output
from qmath.kernels._environment import check_rounding
from qmath.kernels._float32 import Float32Array, as_float32, flush
from qmath.kernels._nudge import Nudged
from qmath.kernels._range import Arithmetic, Op, Range, range_of
from qmath.kernels._xla import refuse_maximum_of_short_rows
from qmath.kernels.affine import check_flag, check_num_bits, check_range_shape
from qmath.kernels.builds import Build, arithmetic_of

__all__ = [
    "FakeQuantWithMinMaxVarsGradient",
    "FakeQuantWithMinMaxVarsPerChannelGradient",
    "fake_quant_with_min_max_args",
    "fake_quant_with_min_max_args_gradient",
    "fake_quant_with_min_max_vars",
    "fake_quant_with_min_max_vars_gradient",
    "fake_quant_with_min_max_vars_per_channel",
    "fake_quant_with_min_max_vars_per_channel_gradient",
]

Array = NDArray[Any]


class FakeQuantWithMinMaxVarsGradient(NamedTuple):
    """Gradients of `fake_quant_with_min_max_vars`: of the inputs' shape, and two scalars."""

    backprops_wrt_input: Float32Array
    backprop_wrt_min: Float32Array
    backprop_wrt_max: Float32Array


class FakeQuantWithMinMaxVarsPerChannelGradient(NamedTuple):
    """Gradients of `fake_quant_with_min_max_vars_per_channel`: ``(…, C)``, ``(C,)``, ``(C,)``."""

    backprops_wrt_input: Float32Array
    backprop_wrt_min: Float32Array
    backprop_wrt_max: Float32Array


def fake_quant_with_min_max_args(
    inputs: ArrayLike,
    min: float = -6,
    max: float = 6,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
    *,
    out: Float32Array | None = None,
    build: Build = "tf",
) -> Float32Array:
    """Fake-quantize with a range given as two numbers.

    Parameters
    ----------
    inputs : array-like of float
        Any shape; cast to float32 as TensorFlow casts NumPy arrays.
    min, max : float
        The range, ``min < max``.
    num_bits : int
        Width, 2 to 16. A float is truncated and None is the default, as TensorFlow has it.
    narrow_range : bool
        Leave the lowest integer unused. No number is taken for a bool; None is the default.
    name : str, optional
        Ignored.
    out : ndarray of float32, optional
        Where to write the result; may be `inputs` itself, or overlap them.
    build : {"tf", "tf<2.6", "xla-cpu", "xla-cpu-nofma"}
        Whose kernels: eager TensorFlow from 2.6 on, or before it; or those that XLA compiles
        (``jit_compile=True``) for a CPU with or without fused multiply-adds.

    Returns
    -------
    ndarray of float32
        Of the shape of `inputs`, equal to ``tf.quantization.fake_quant_with_min_max_args``.

    Raises
    ------
    QmathError
        `num_bits` is out of range; no such build; not ``min < max``, where subnormals count as 0.
        With the build ``"xla-cpu"``, elements of rows of 3, 5 or 7 that become the maximum: XLA
        computes it in two ways, and for this range they differ.

    Notes
    -----
    This op multiplies by the inverse of the scale, where `fake_quant_with_min_max_vars` divides
    by the scale: near a tie their results differ by one step.

    Examples
    --------
    >>> import qmath
    >>> qmath.fake_quant_with_min_max_args([2.0]), qmath.fake_quant_with_min_max_vars([2.0], -6, 6)
    (array([2.0235295], dtype=float32), array([1.9764706], dtype=float32))
    """
    del name
    check_rounding()
    ranges = _args_range(min, max, num_bits, narrow_range, arithmetic_of(build))
    # This op has no case of its own for ranges of 0 to 0.
    ranges = ranges._replace(zero_range=np.zeros_like(ranges.zero_range))
    x = as_float32(inputs, "inputs")
    if build == "xla-cpu":
        refuse_maximum_of_short_rows(x, ranges)
    return _forward(x, ranges, out)


def fake_quant_with_min_max_vars(
    inputs: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
    *,
    out: Float32Array | None = None,
    build: Build = "tf",
) -> Float32Array:
    """Fake-quantize with one range for the whole tensor.

    Parameters
    ----------
    inputs : array-like of float
        Any shape.
    min, max : array-like of float
        The range, of shape ``()``. Every value is taken, as TensorFlow does: see the module.
    num_bits, narrow_range, name, out, build
        As for `fake_quant_with_min_max_args`.

    Returns
    -------
    ndarray of float32
        Of the shape of `inputs`, equal to ``tf.quantization.fake_quant_with_min_max_vars``.

    Raises
    ------
    QmathError
        `num_bits` is out of range; no such build; `min` or `max` is not of shape ``()``.

    Examples
    --------
    >>> import qmath
    >>> qmath.fake_quant_with_min_max_vars([-9.0, 0.1, 0.6, float("nan")], -1.0, 0.75, num_bits=3)
    array([-1. ,  0. ,  0.5,  nan], dtype=float32)
    """
    del name
    check_rounding()
    arithmetic = arithmetic_of(build)
    x, ranges = _vars_range(inputs, min, max, num_bits, narrow_range, arithmetic, "vars")
    return _forward(x, ranges, out)


def fake_quant_with_min_max_vars_per_channel(
    inputs: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
    *,
    out: Float32Array | None = None,
    build: Build = "tf",
) -> Float32Array:
    """Fake-quantize with one range for each index of the last axis.

    Parameters
    ----------
    inputs : array-like of float
        Shape ``(…, C)``, rank 1 or more.
    min, max : array-like of float
        The ranges, of shape ``(C,)``.
    num_bits, narrow_range, name, out, build
        As for `fake_quant_with_min_max_args`.

    Returns
    -------
    ndarray of float32
        Of the shape of `inputs`, equal to
        ``tf.quantization.fake_quant_with_min_max_vars_per_channel``.

    Raises
    ------
    QmathError
        `num_bits` is out of range; no such build; `min` or `max` is not of shape ``(C,)``;
        `inputs` have rank 0, where TensorFlow aborts the process.

    Examples
    --------
    >>> import qmath
    >>> qmath.fake_quant_with_min_max_vars_per_channel([[0.3, 30.0]], [-1, 0], [0.75, 70], 3)
    array([[ 0.25, 30.  ]], dtype=float32)
    """
    del name
    check_rounding()
    arithmetic = arithmetic_of(build)
    x, ranges = _vars_range(inputs, min, max, num_bits, narrow_range, arithmetic, "per_channel")
    return _forward(x, ranges, out)


def fake_quant_with_min_max_args_gradient(
    gradients: ArrayLike,
    inputs: ArrayLike,
    min: float = -6,
    max: float = 6,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
    *,
    out: Float32Array | None = None,
    build: Build = "tf",
) -> Float32Array:
    """Gradient of `fake_quant_with_min_max_args`.

    Parameters
    ----------
    gradients : array-like of float
        Of the shape of `inputs`.
    inputs, min, max, num_bits, narrow_range, name, build
        As given to the forward op.
    out : ndarray of float32, optional
        Where to write the result.

    Returns
    -------
    ndarray of float32
        ``gradients * 1`` where the input lies in the nudged range, ends included, and
        ``gradients * 0`` elsewhere: a product, so a negative gradient becomes -0.0 and an
        infinite one NaN.

    Raises
    ------
    QmathError
        As the forward op; the shapes of `gradients` and `inputs` differ.

    Examples
    --------
    >>> import qmath
    >>> qmath.fake_quant_with_min_max_args_gradient([1.0, 2.0, -3.0], [0.0, 5.9, 6.1])
    array([ 1.,  2., -0.], dtype=float32)
    """
    del name
    check_rounding()
    arithmetic = arithmetic_of(build)
    ranges = _args_range(min, max, num_bits, narrow_range, arithmetic, "args_gradient")
    g, x = _gradient_inputs(gradients, inputs)
    out = output(out, x.shape)
    flat = non_overlapping(g, out), non_overlapping(x, out)
    arithmetic.backprop(*flat, ranges.bounds, out.reshape(-1))
    return out


def fake_quant_with_min_max_vars_gradient(
    gradients: ArrayLike,
    inputs: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
    *,
    out: Float32Array | None = None,
    build: Build = "tf",
) -> FakeQuantWithMinMaxVarsGradient:
    """Gradients of `fake_quant_with_min_max_vars`.

    Parameters
    ----------
    gradients : array-like of float
        Of the shape of `inputs`.
    inputs, min, max, num_bits, narrow_range, name, build
        As given to the forward op.
    out : ndarray of float32, optional
        Where to write ``backprops_wrt_input``.

    Returns
    -------
    FakeQuantWithMinMaxVarsGradient
        ``backprops_wrt_input`` as in `fake_quant_with_min_max_args_gradient`;
        ``backprop_wrt_min`` and ``backprop_wrt_max`` sum the gradients below and above the
        range. For ``min == max == 0`` the gradients pass unchanged and the sums are 0.

    Raises
    ------
    QmathError
        As the forward op; the shapes of `gradients` and `inputs` differ.

    Notes
    -----
    The sums add up in the order of TensorFlow with one intra-op thread. With more threads
    TensorFlow's own sum depends on their number, above some 45,000 elements. XLA's are known up to
    5,000 elements; more raise.

    Examples
    --------
    >>> import qmath
    >>> qmath.fake_quant_with_min_max_vars_gradient([1.0, 2.0, 4.0], [-9.0, 0.0, 9.0], -6, 6)[1:]
    (array(1., dtype=float32), array(4., dtype=float32))
    """
    del name
    check_rounding()
    g, x = _gradient_inputs(gradients, inputs)
    arithmetic = arithmetic_of(build)
    x, ranges = _vars_range(x, min, max, num_bits, narrow_range, arithmetic, "vars")
    return FakeQuantWithMinMaxVarsGradient(*arithmetic.backward(g, x, ranges, out))


def fake_quant_with_min_max_vars_per_channel_gradient(
    gradients: ArrayLike,
    inputs: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
    *,
    out: Float32Array | None = None,
    build: Build = "tf",
) -> FakeQuantWithMinMaxVarsPerChannelGradient:
    """Gradients of `fake_quant_with_min_max_vars_per_channel`.

    Parameters
    ----------
    gradients : array-like of float
        Of the shape of `inputs`.
    inputs, min, max, num_bits, narrow_range, name, build
        As given to the forward op.
    out : ndarray of float32, optional
        Where to write ``backprops_wrt_input``.

    Returns
    -------
    FakeQuantWithMinMaxVarsPerChannelGradient
        As `fake_quant_with_min_max_vars_gradient`, the sums for each channel, in the same order.

    Raises
    ------
    QmathError
        As the forward op; the shapes of `gradients` and `inputs` differ.

    Examples
    --------
    >>> import qmath
    >>> g = qmath.fake_quant_with_min_max_vars_per_channel_gradient(
    ...     [[1.0, 2.0], [3.0, 4.0]], [[-9.0, 0.0], [0.0, 9.0]], [-6, -6], [6, 6])
    >>> g.backprop_wrt_min, g.backprop_wrt_max
    (array([1., 0.], dtype=float32), array([0., 4.], dtype=float32))
    """
    del name
    check_rounding()
    g, x = _gradient_inputs(gradients, inputs)
    arithmetic = arithmetic_of(build)
    x, ranges = _vars_range(x, min, max, num_bits, narrow_range, arithmetic, "per_channel")
    return FakeQuantWithMinMaxVarsPerChannelGradient(*arithmetic.backward(g, x, ranges, out))


def _op_attributes(num_bits: Any, narrow_range: Any) -> tuple[int, bool]:
    """Read the two attributes as TensorFlow does: ``make_int`` truncates, None is the default."""
    if isinstance(num_bits, (float, np.floating)) and np.isfinite(num_bits):
        num_bits = int(num_bits)
    bits = check_num_bits(8 if num_bits is None else num_bits)
    return bits, narrow_range is not None and check_flag(narrow_range, "narrow_range")


def _args_range(
    min: float,
    max: float,
    num_bits: int,
    narrow_range: bool,
    arithmetic: Arithmetic,
    op: Op = "args",
) -> Range:
    bits, narrow = _op_attributes(num_bits, narrow_range)
    low, high = as_float32(min, "min"), as_float32(max, "max")
    check_range_shape((), low, high, per_axis=False)
    ranges = range_of(low, high, bits, narrow, arithmetic, op)
    if ranges.any_flush and not flush(low) < flush(high):
        raise QmathError(f"min has to be smaller than max, was: {low} >= {high}")
    return ranges


def _vars_range(
    inputs: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int,
    narrow_range: bool,
    arithmetic: Arithmetic,
    op: Op,
) -> tuple[Float32Array, Range]:
    bits, narrow = _op_attributes(num_bits, narrow_range)
    x, low, high = as_float32(inputs, "inputs"), as_float32(min, "min"), as_float32(max, "max")
    check_range_shape(x.shape, low, high, per_axis=op == "per_channel")
    return x, range_of(low, high, bits, narrow, arithmetic, op)


def _gradient_inputs(gradients: ArrayLike, inputs: ArrayLike) -> tuple[Float32Array, Float32Array]:
    g, x = as_float32(gradients, "gradients"), as_float32(inputs, "inputs")
    if g.shape != x.shape:
        raise QmathError(f"gradients and inputs must have the same shape, got {g.shape}, {x.shape}")
    return g, x


def _forward(x: Float32Array, ranges: Range, out: Float32Array | None) -> Float32Array:
    """Run the forward kernel: plain arithmetic, and exact steps for the channels that need them."""
    out = output(out, x.shape)
    steps, scale = ranges.steps, ranges.nudged.scale
    if not ranges.any_flush and fits_at_once(x.size, scale):
        with np.errstate(all="ignore"):
            steps(x, steps.constants, out)
            steps.to_floats(out, scale, steps.constants)
        return out
    flat, result = non_overlapping(x, out), out.reshape(-1)

    def plainly(block: slice, scale: Float32Array, *constants: Float32Array) -> None:
        written = result[block]
        steps(flat[block], constants, written)
        steps.to_floats(written, scale, constants)

    def exactly(block: slice, flushes: Array, zero_range: Array, *parts: Float32Array) -> None:
        flushes = np.broadcast_to(flushes != 0, block.stop - block.start)
        is_zero, *nudged = (
            part[flushes] if part.ndim else part for part in (zero_range != 0, *parts[:6])
        )
        fixed = steps.exact_floats(flat[block][flushes], Nudged(*nudged))
        fixed = np.where(is_zero, np.float32(0), fixed)  # +0 everywhere
        if not flushes.all():
            plainly(block, parts[0], *parts[6:])
        result[block][flushes] = fixed

    if ranges.any_flush:
        masks = (ranges.needs_flush.astype(np.float32), ranges.zero_range.astype(np.float32))
        constants = (*masks, *ranges.nudged, *steps.constants)
        each_block(exactly, flat.size, constants)
    else:
        each_block(plainly, flat.size, (ranges.nudged.scale, *steps.constants))
    return out
