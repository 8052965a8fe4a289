"""Activation functions: the piecewise linear ones, the smooth ones, and tables of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.lowering.cuts import UnsupportedError
from qmath.integer.program import Activation, QuantParams
from qmath.kernels._environment import check_kept, in_default_environment, least_magnitude
from qmath.layers import ACTIVATIONS
from qmath.model import Node

Array = NDArray[Any]

PIECEWISE: dict[str, Activation | None] = {
    name: None if row.kind == "linear" else Activation(limit=row.limit)
    for name, row in ACTIVATIONS.items()
    if row.kind in ("linear", "relu")
}


def identity(x: Array) -> Array:
    """Return an output as it is: no quantizer rounds it."""
    return x


def piecewise(x: Array, activation: Activation) -> Array:
    """Apply a ReLU, bounded or leaky."""
    slope, limit = (np.asarray(a, x.dtype) for a in (activation.slope, activation.limit))
    negative = x * slope if activation.leaks else x.dtype.type(0)
    return np.asarray(np.minimum(np.where(x > 0, x, negative), limit))


def total(*arrays: Array, signs: Sequence[float], share: float = 1.0) -> Array:
    """Add, subtract or average arrays."""
    full = aligned(arrays)
    result = full[0]
    for x, sign in zip(full[1:], signs[1:], strict=True):
        result = result + x if sign > 0 else result - x
    return np.asarray(result if share == 1 else result / result.dtype.type(len(full)))


def product(*arrays: Array) -> Array:
    """Multiply arrays."""
    return np.asarray(reduce(np.multiply, aligned(arrays)))


def extreme(*arrays: Array, is_minimum: bool) -> Array:
    """Return the least or the greatest of arrays."""
    return np.asarray(reduce(np.minimum if is_minimum else np.maximum, aligned(arrays)))


def aligned(arrays: Sequence[Array]) -> list[Array]:
    """Return arrays of one rank: the axes that one lacks come after the batch, as in Keras."""
    rank = max(x.ndim for x in arrays)
    return [x.reshape(len(x), *(1,) * (rank - x.ndim), *x.shape[1:]) for x in arrays]


@in_default_environment
def sigmoid(x: Array) -> Array:
    """Return ``1 / (1 + exp(-x))`` without overflow."""
    e = np.exp(-np.abs(x))
    result = np.asarray(np.where(x >= 0, 1, e) / (1 + e))
    check_kept("a sigmoid", float(result.min(initial=1)))
    return result


@in_default_environment
def softmax(x: Array, axis: int = -1) -> Array:
    """Normalize the exponentials along an axis."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    result = np.asarray(e / e.sum(axis=axis, keepdims=True))
    check_kept("a softmax", float(result.min(initial=1)))
    return result


def swish(x: Array) -> Array:
    """Return ``x * sigmoid(x)``."""
    return np.asarray(x * sigmoid(x))


def _precise(name: str, function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return a function that computes in float64 and rounds once."""
    return partial(_rounded_once, name, function)


@in_default_environment
def _rounded_once(name: str, function: Callable[[Array], Array], x: Array) -> Array:
    with np.errstate(over="ignore"):
        result = np.asarray(function(x.astype(np.float64))).astype(x.dtype)
    check_kept(name, least_magnitude(result))
    return result


def elu(x: Array, alpha: float = 1.0) -> Array:
    """Return `x` where positive, else ``alpha * (exp(x) - 1)``."""
    return np.asarray(np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))


def selu(x: Array) -> Array:
    """Return the self-normalizing ELU, with TensorFlow's two constants."""
    scale, scale_alpha = 1.0507009873554804934193349852946, 1.7580993408473768599402175208123
    return np.asarray(np.where(x < 0, scale_alpha * np.expm1(np.minimum(x, 0)), scale * x))


def gelu(x: Array) -> Array:
    """Return ``x`` times the normal distribution's integral up to it."""
    erf = np.array([math.erf(value) for value in (x / math.sqrt(2)).ravel().tolist()])
    return np.asarray(0.5 * x * (1 + erf.reshape(x.shape)))


def hard_swish(x: Array) -> Array:
    """Return ``x`` times a line from 0 at -3 to 1 at 3."""
    return np.asarray(x * np.clip(x + 3, 0, 6) / 6)


def mish(x: Array) -> Array:
    """Return ``x * tanh(softplus(x))``."""
    return np.asarray(x * np.tanh(softplus(x)))


def softplus(x: Array) -> Array:
    """Return ``log(1 + exp(x))``."""
    return np.asarray(np.logaddexp(0, x))


def softsign(x: Array) -> Array:
    """Return ``x / (1 + abs(x))``."""
    return np.asarray(x / (1 + np.abs(x)))


def logarithm(x: Array) -> Array:
    """Return the natural logarithm, the lowest float32 where there is none."""
    lowest = float(np.finfo(np.float32).min)
    return np.log(x, out=np.full_like(x, lowest), where=x > 0)


def square_root(x: Array) -> Array:
    """Return the square root, zero of what is negative."""
    return np.asarray(np.sqrt(np.maximum(x, 0)))


def clip(x: Array, low: float, high: float) -> Array:
    """Bound values from below and above."""
    return np.asarray(np.clip(x, x.dtype.type(low), x.dtype.type(high)))


SMOOTH: dict[str, Callable[..., Array]] = {
    "elu": _precise("an elu", elu),
    "exponential": _precise("an exponential", np.exp),
    "gelu": _precise("a gelu", gelu),
    "hard_silu": _precise("a hard swish", hard_swish),
    "hard_swish": _precise("a hard swish", hard_swish),
    "mish": _precise("a mish", mish),
    "selu": _precise("a selu", selu),
    "sigmoid": sigmoid,
    "silu": swish,
    "softmax": softmax,
    "softplus": _precise("a softplus", softplus),
    "softsign": _precise("a softsign", softsign),
    "swish": swish,
    "tanh": np.tanh,
    "tflite.abs": np.abs,
    "tflite.clip": clip,  # with ends of its own
    "tflite.log": _precise("a logarithm", logarithm),
    "tflite.negative": np.negative,
    "tflite.sqrt": _precise("a square root", square_root),
    "tflite.square": np.square,
}


def smooth(node: Node, name: str, rank: int) -> Callable[[Array], Array]:
    """Return the smooth function that a layer ends with, with the layer's own settings.

    `rank` is the number of axes without the batch.
    """
    if node.class_name == "ELU":
        alpha = float(np.float32(node.config.get("alpha", 1.0)))
        return _precise("an elu", partial(elu, alpha=alpha))
    if name == "tflite.clip":
        return partial(SMOOTH[name], low=node.config["low"], high=node.config["high"])
    if name == "softmax":
        return partial(softmax, axis=softmax_axis(node, rank))
    return SMOOTH[name]


def softmax_axis(node: Node, rank: int) -> int:
    """Return the axis that a softmax runs along, counted from the last one."""
    given = node.config.get("axis", -1) if node.class_name == "Softmax" else -1
    axes = given if isinstance(given, (list, tuple)) else [given]
    axis = axes[0] if axes[0] < 0 else axes[0] - rank - 1
    if not axes or any(not -rank - 1 <= a <= rank for a in axes):
        raise QmathError(
            f"{node.name}: this softmax runs over the axis {given}, and its input has {rank + 1}; "
            "the file is damaged, save the model again"
        )
    if len(axes) != 1 or axis == -rank - 1:
        what = "several axes" if len(axes) > 1 else "the examples"
        raise UnsupportedError(
            node.name, f"it runs over {what} (axis={given})", "give it one other axis"
        )
    return int(axis)


def results(function: Callable[[Array], Array], source: QuantParams) -> NDArray[np.float32]:
    """Return `function` of every integer of the source, indexed by the unsigned integer."""
    reals = (np.arange(source.high + 1) - source.zero_point).astype(np.float32)
    return np.asarray(function(reals * np.float32(source.scale)), np.float32)


def relu_layer(node: Node) -> Activation | None:
    """Return the activation that a ReLU layer is, ``None`` where it jumps at a threshold."""
    config = node.config
    if node.class_name == "LeakyReLU":
        return Activation(slope=float(config.get("alpha", config.get("negative_slope", 0.3))))
    if threshold_of(node):
        return None
    limit = config.get("max_value")
    slope = config.get("negative_slope") or 0.0
    return Activation(float(slope), float("inf") if limit is None else float(limit))


def threshold_of(node: Node) -> float:
    """Return the value from which on a layer passes its input."""
    key, default = ("theta", 1.0) if node.class_name == "ThresholdedReLU" else ("threshold", 0.0)
    threshold = node.config.get(key)
    return default if threshold is None else float(threshold)


def above_threshold(node: Node) -> Callable[[Array], Array]:
    """Return the function of a ReLU that jumps at a threshold, computed as Keras does."""
    threshold, limit = np.float32(threshold_of(node)), node.config.get("max_value")
    slope = np.float32(node.config.get("negative_slope") or 0.0)
    return partial(_above, threshold=threshold, limit=limit, slope=slope)


def _above(x: Array, threshold: np.float32, limit: float | None, slope: np.float32) -> Array:
    y = x * (x > threshold)
    if limit is not None:
        y = np.clip(y, 0, np.float32(limit))
    return np.asarray(y - slope * np.maximum(threshold - x, 0) if slope else y)
