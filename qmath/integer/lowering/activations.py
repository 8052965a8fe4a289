"""Activation functions: the piecewise linear ones, the smooth ones, and tables of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.program import Activation, QuantParams
from qmath.kernels._environment import check_kept, in_default_environment
from qmath.layers import ACTIVATIONS
from qmath.model import Node

Array = NDArray[Any]

PIECEWISE: dict[str, Activation | None] = {
    name: None if row.kind == "linear" else Activation(limit=row.limit)
    for name, row in ACTIVATIONS.items()
    if row.kind in ("linear", "relu")
}


def piecewise(x: Array, activation: Activation) -> Array:
    """Apply a ReLU, bounded or leaky."""
    slope, limit = (np.asarray(a, x.dtype) for a in (activation.slope, activation.limit))
    negative = x * slope if activation.leaks else x.dtype.type(0)
    return np.asarray(np.minimum(np.where(x > 0, x, negative), limit))


def total(*arrays: Array, signs: Sequence[float]) -> Array:
    """Add or subtract arrays; the axes that one lacks come after the batch, as in Keras."""
    rank = max(x.ndim for x in arrays)
    full = [x.reshape(len(x), *(1,) * (rank - x.ndim), *x.shape[1:]) for x in arrays]
    result = full[0]
    for x, sign in zip(full[1:], signs[1:], strict=True):
        result = result + x if sign > 0 else result - x
    return np.asarray(result)


@in_default_environment
def sigmoid(x: Array) -> Array:
    """Return ``1 / (1 + exp(-x))`` without overflow."""
    e = np.exp(-np.abs(x))
    result = np.asarray(np.where(x >= 0, 1, e) / (1 + e))
    check_kept("a sigmoid", float(result.min(initial=1)))
    return result


@in_default_environment
def softmax(x: Array) -> Array:
    """Normalize the exponentials along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result = np.asarray(e / e.sum(axis=-1, keepdims=True))
    check_kept("a softmax", float(result.min(initial=1)))
    return result


def swish(x: Array) -> Array:
    """Return ``x * sigmoid(x)``."""
    return np.asarray(x * sigmoid(x))


SMOOTH: dict[str, Callable[[Array], Array]] = {
    "sigmoid": sigmoid, "softmax": softmax, "swish": swish, "tanh": np.tanh,
}  # fmt: skip


def table(
    function: Callable[[Array], Array], source: QuantParams, target: QuantParams
) -> NDArray[np.int32]:
    """Return `function` of every integer of the source, as integers of the target.

    Returns
    -------
    ndarray of int32
        Indexed by the source's unsigned integer; values relative to the target's zero point.
    """
    reals = (np.arange(source.high + 1) - source.zero_point).astype(np.float32)
    results = function(reals * np.float32(source.scale))
    return target.quantize(results, "a table")


def relu_layer(node: Node) -> Activation:
    """Return the activation that a ReLU or LeakyReLU layer is."""
    config = node.config
    if node.class_name == "LeakyReLU":
        return Activation(slope=float(config.get("alpha", config.get("negative_slope", 0.3))))
    if config.get("threshold"):
        raise QmathError(f"{node.name}: a ReLU with a threshold is not supported")
    limit = config.get("max_value")
    slope = config.get("negative_slope") or 0.0
    return Activation(float(slope), float("inf") if limit is None else float(limit))
