"""Layers that multiply by constants and add others: Rescaling, Normalization, a hard sigmoid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.lowering.cuts import UnsupportedError
from qmath.integer.program import Shape
from qmath.layers import ACTIVATIONS
from qmath.model import Node

__all__ = ["Operation", "applied", "factors", "of_activation", "of_layer"]

Array = NDArray[Any]
# Of ONNX, with the constant on its right.
Operation = tuple[Literal["Mul", "Add", "Sub", "Div"], NDArray[np.float32]]

_UFUNCS = {"Mul": np.multiply, "Add": np.add, "Sub": np.subtract, "Div": np.divide}
_EPSILON = np.float32(1e-7)  # what Keras divides by at least


def of_activation(name: str) -> tuple[Operation, ...]:
    """Return what an activation's ReLU is applied after."""
    row = ACTIVATIONS[name]
    if (row.gain, row.shift) == (1, 0):
        return ()
    return ("Mul", np.asarray(row.gain, np.float32)), ("Add", np.asarray(row.shift, np.float32))


def of_layer(
    node: Node, shape: Shape, weight: Callable[[str], Array | None]
) -> tuple[Operation, ...]:
    """Return what a layer does, in the order of Keras's operations.

    Parameters
    ----------
    node : Node
    shape : tuple of int
        Of its input, without the batch.
    weight : callable
        Returns one of the layer's weights by its name, ``None`` if it has none of that name.

    Raises
    ------
    QmathError
        The layer's constants do not fit its input.
    """
    config = node.config
    if node.class_name == "Rescaling":
        scale, offset = (
            _spread(node, np.asarray(config.get(key, default), np.float32), shape)
            for key, default in (("scale", 1.0), ("offset", 0.0))
        )
        return ("Mul", scale), ("Add", offset)
    axes = _kept_axes(node, shape)
    mean, variance = (_statistic(node, shape, axes, key, weight) for key in ("mean", "variance"))
    deviation = np.maximum(np.sqrt(variance), _EPSILON)
    if config.get("invert"):
        return ("Mul", deviation), ("Add", mean)
    return ("Sub", mean), ("Div", deviation)


def _kept_axes(node: Node, shape: Shape) -> list[int]:
    """Return the axes that a normalization has statistics for, without the batch."""
    given = node.config.get("axis", -1)
    listed = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    axes = sorted(axis - 1 if axis > 0 else axis + len(shape) for axis in listed)
    if any(not -len(shape) - 1 <= axis <= len(shape) for axis in listed):
        raise QmathError(
            f"{node.name}: this Normalization has statistics for axis {given}, and its input has "
            f"{len(shape) + 1}; the file is damaged, save the model again"
        )
    if any(axis in (0, -len(shape) - 1) for axis in listed):
        raise UnsupportedError(
            node.name, f"its statistics are those of single examples (axis={given})",
            "name axes of one example",
        )  # fmt: skip
    return axes


def _statistic(
    node: Node, shape: Shape, axes: Sequence[int], key: str, weight: Callable[[str], Array | None]
) -> Array:
    given = node.config.get(key)
    values = weight(key) if given is None else np.asarray(given, np.float32)
    if values is None:
        raise QmathError(f"{node.layer}/{key} is missing, and its layer has none in the config")
    wanted = tuple(n if axis in axes else 1 for axis, n in enumerate(shape))
    try:
        kept = np.broadcast_to(values, tuple(shape[axis] for axis in axes))
    except ValueError:
        raise QmathError(
            f"{node.layer}/{key}: it has the shape {values.shape}, and the input of its layer is "
            f"of shape {shape}; the config and the weights are of different models"
        ) from None
    return _spread(node, kept.reshape(wanted), shape)


def _spread(node: Node, values: Array, shape: Shape) -> Array:
    """Return one value, or one for each channel, or for each element."""
    if values.size == 1:
        return values.reshape(())
    if values.size == values.shape[-1] == shape[-1]:
        return values.reshape(-1)
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        raise QmathError(
            f"{node.name}: constants of shape {values.shape} do not fit an input of shape {shape}"
        ) from None


def applied(x: Array, operations: Sequence[Operation]) -> Array:
    """Return `x` after the operations, in its dtype."""
    for op, constant in operations:
        x = _UFUNCS[op](x, constant.astype(x.dtype))
    return x


def factors(operations: Sequence[Operation]) -> tuple[Array, Array]:
    """Return what the operations multiply by and add, in float64."""
    products = [(op, constant) for op, constant in operations if op in ("Mul", "Div")]
    return applied(np.ones(()), products), applied(np.zeros(()), operations)
