"""How far the float32 sums of a trained model may be from the exact ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.program import (
    Linear,
    MoveStep,
    QuantizedStep,
    QuantParams,
    Requantize,
    SoftmaxStep,
    TableStep,
)
from qmath.integer.softmax import of_reals

__all__ = ["float32_noise", "noise_of"]

Array = NDArray[Any]

_FUNCTION = 16  # roundings of a float32 implementation of a smooth function: 8 ulp


def float32_noise(step: Requantize, values: Mapping[str, Array]) -> Array:
    """Bound what a float32 evaluation of each element of a step may be off, in integer steps.

    A sum of `n` float32 products has an error of at most ``n * 2**-24`` times the sum of their
    magnitudes, whatever its order; each further operation (bias, batch normalization, addition)
    adds a rounding of that magnitude, and the quantizer a few of the whole range, which it shifts
    to start at zero. See Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1.

    Parameters
    ----------
    step : Requantize
    values : mapping of str to ndarray
        The unsigned integers that the step starts from.

    Returns
    -------
    ndarray of float64
    """
    magnitude = np.abs(step.value.offset)
    operations = 0
    for term in step.value.terms:
        relative = values[term.source].astype(np.float64) - term.params.zero_point
        sums = np.abs(relative)
        for linear in term.ops:
            weights = None if linear.weights is None else np.abs(linear.weights.astype(np.float64))
            if linear.factor is not None:
                zero_point = linear.factor.params.zero_point
                weights = np.abs(values[linear.factor.source].astype(np.float64) - zero_point)
            sums = linear.apply(sums, weights)
        magnitude = magnitude + sums * np.abs(term.scale)
        operations = max(operations, sum(_length(op) for op in term.ops))
    roundings = operations + 8 + 2 * len(step.value.terms)
    return _noise(roundings, magnitude / step.params.scale, step.params)


def noise_of(
    step: QuantizedStep,
    rows: Requantize | None,
    values: Mapping[str, Array],
    source_scale: float = 1.0,
) -> Array | None:
    """Return the bound for a step that rounds sums, or what a table, or a move of `rows`, holds.

    `source_scale` is that of the integers that a softmax reads.
    Of anything else it is ``None``: nothing is rounded, or by TensorFlow's own arithmetic.
    """
    if isinstance(step, Requantize):
        return float32_noise(step, values)
    if isinstance(step, TableStep):
        y = step.results.astype(np.float64)[values[step.source]] / step.params.scale
        return _noise(_FUNCTION, np.abs(y), step.params)
    if isinstance(step, SoftmaxStep):
        x = values[step.source].astype(np.float64) * source_scale
        # What is subtracted from the greatest value before the exponential is rounded, too.
        spread = x.max(step.axis, keepdims=True) - x.min(step.axis, keepdims=True)
        y = of_reals(x, step.axis) / step.params.scale
        return _noise(_FUNCTION + step.shape[step.axis] + spread, y, step.params)
    if rows is not None:
        noise = np.asarray(float32_noise(rows, values))
        if isinstance(step, MoveStep) and "of_sum" in step.attributes:
            return step.apply(noise)
        return np.asarray(noise.max(axis=1).reshape(len(noise), *step.shape))
    return None


def _noise(roundings: int | Array, magnitude: Array, params: QuantParams) -> Array:
    return np.asarray((roundings * magnitude + 4 * 2.0**params.num_bits) * 2.0**-24)


def _length(linear: Linear) -> int:
    """Return how many products or values one output of an operation sums up."""
    if linear.kind == "bilinear":  # whose places, of float32, are off by as much
        return linear.gain + 4 * max(linear.shape)
    if linear.weights is None:
        return int(linear.gain)
    count: int = math.prod(linear.weights.shape[axis] for axis in linear.summed_axes)
    return count * linear.gain
