"""Normalizations by the statistics of each example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qmath.integer.lowering.float_layers.layer import Call, Computation, Float64Array
from qmath.integer.program import Shape

__all__ = ["group_normalization", "layer_normalization", "unit_normalization"]


def layer_normalization(call: Call) -> Computation | None:
    """Return Keras's LayerNormalization, over any axes but the batch."""
    (shape,) = call.shapes
    rank = len(shape) + 1
    given = call.config.get("axis", -1)
    axes = tuple(sorted(a % rank for a in (given if isinstance(given, list) else [given])))
    if 0 in axes:
        return None
    scaled = [length if i + 1 in axes else 1 for i, length in enumerate(shape)]
    return _normalization(call, axes, scaled)


def group_normalization(call: Call) -> Computation | None:
    """Return Keras's GroupNormalization of the last axis."""
    (shape,) = call.shapes
    channels, groups = shape[-1], call.config.get("groups", 32)
    groups = channels if groups == -1 else groups
    if call.config.get("axis", -1) not in (-1, len(shape)) or channels % groups:
        return None
    split = (*shape[:-1], groups, channels // groups)
    axes = tuple(i + 1 for i in range(len(split)) if i != len(split) - 2)
    found = _normalization(call, axes, split[-2:])
    if found is None:
        return None

    def apply(x: Float64Array) -> Float64Array:
        return found.apply(x.reshape(len(x), *split)).reshape(x.shape)

    return Computation(apply, shape)


def unit_normalization(call: Call) -> Computation | None:
    """Return Keras's UnitNormalization: a length of 1 along axes."""
    (shape,) = call.shapes
    rank, given = len(shape) + 1, call.config.get("axis", -1)
    axes = tuple(a % rank for a in (given if isinstance(given, list) else [given]))
    if 0 in axes:
        return None

    def apply(x: Float64Array) -> Float64Array:
        squares = np.square(x).sum(axes, keepdims=True)
        return np.asarray(x / np.sqrt(np.maximum(squares, 1e-12)))

    return Computation(apply, shape)


def _normalization(call: Call, axes: Shape, scaled: Sequence[int]) -> Computation | None:
    gamma, beta = call.weight("gamma"), call.weight("beta")
    if any(w is not None and w.size != np.prod(scaled) for w in (gamma, beta)):
        return None
    factor = 1.0 if gamma is None else gamma.reshape(scaled)
    shift = 0.0 if beta is None else beta.reshape(scaled)
    epsilon = float(call.config.get("epsilon", 1e-3))

    def apply(x: Float64Array) -> Float64Array:
        centred = x - x.mean(axes, keepdims=True)
        variance = np.square(centred).mean(axes, keepdims=True)
        return np.asarray(centred / np.sqrt(variance + epsilon) * factor + shift)

    return Computation(apply, call.shapes[0])
