"""Layers whose channels are not the last axis: computed with channels last, and moved back.

Everything else here counts on channels being the last axis. What a layer sums up is moved after it
is rounded, or not at all if the next layer has its channels on the same axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.lowering import geometry, sums
from qmath.integer.lowering.builder import Builder
from qmath.integer.lowering.cuts import UnsupportedError
from qmath.integer.lowering.values import Extreme, Floats, Integers, Value
from qmath.integer.program import FloatStep, Linear, MoveStep, Shape, UnroundedSum
from qmath.layers import POOLS, kind_of
from qmath.model import Node

__all__ = ["Moved", "activated", "axes_of", "channels_last", "inverse", "lowered"]

Array = NDArray[Any]
Rule = Callable[[Builder, Node, Sequence[Value]], Value]

# Kinds of layers that a data_format means something to, besides Flatten.
_ARRANGED = frozenset({"weighted", "pad", "crop", "upsample", *POOLS})
# Kinds that compute the same wherever the channels are, if they are there in all inputs.
_ANYWHERE = frozenset({"identity", "activation", "relu", "sum", "concatenation"})


@dataclass(frozen=True, eq=False)
class Moved(Extreme):
    """A sum that is not rounded yet, with its axes in another order.

    Attributes
    ----------
    axes : tuple of int
        Of the source, without the batch, in the order of the value.
    """

    axes: Shape = ()


def axes_of(node: Node, rank: int) -> Shape | None:
    """Return the axes of a layer's input, channels last, ``None`` if they are in that order.

    Raises
    ------
    QmathError
        The config and the input are of different models.
    UnsupportedError
        A batch normalization has channels on several axes, or on that of the examples.
    """
    kind = kind_of(node.class_name)
    if kind == "normalization":
        return _normalized_axes(node, rank)
    is_arranged = kind in _ARRANGED or node.class_name == "Flatten"
    if not is_arranged or node.config.get("data_format") != "channels_first" or rank < 2:
        return None
    return (*range(1, rank), 0)


def _normalized_axes(node: Node, rank: int) -> Shape | None:
    given = node.config.get("axis")
    axes = given if isinstance(given, (list, tuple)) else [-1 if given is None else given]
    if not axes or any(not -rank - 1 <= axis <= rank for axis in axes):
        raise QmathError(
            f"{node.name}: this batch normalization is of axis {given}, and its input has "
            f"{rank + 1}; the file is damaged, save the model again"
        )
    axis = axes[0] % (rank + 1)
    if len(axes) > 1 or not axis:
        what = "several axes" if len(axes) > 1 else "the examples"
        raise UnsupportedError(
            node.name, f"it normalizes {what} (axis={given})", "normalize one axis, the channels"
        )
    return None if axis == rank else (*(i for i in range(rank) if i != axis - 1), axis - 1)


def channels_last(node: Node, name: str) -> Node:
    """Return a layer with its channels last, under another name."""
    config = {**node.config, "data_format": "channels_last"}
    if kind_of(node.class_name) in ("normalization", "concatenation"):
        config["axis"] = -1
    return replace(node, name=name, config=config)


def inverse(axes: Shape) -> Shape:
    """Return the order of axes that undoes another."""
    return tuple(int(axis) for axis in np.argsort(axes))


def lowered(build: Builder, node: Node, values: Sequence[Value], rule: Rule) -> Value:
    """Lower a layer by the rule of its kind, wherever its channels are."""
    axes = axes_of(node, len(values[0].shape)) if values else None
    if axes is not None:
        inputs = [_to_last(build, node, value, axes) for value in values]
        return _computed_last(build, node, inputs, axes, rule)
    moved = [value for value in values if isinstance(value, Moved)]
    if not moved:
        return rule(build, node, values)
    back = inverse(moved[0].axes)
    last = _concatenated_last(node, back)
    is_anywhere = kind_of(node.class_name) in _ANYWHERE and node.class_name != "PReLU"
    if is_anywhere and last and [value.axes for value in moved] == [moved[0].axes] * len(values):
        return _computed_last(build, last, [value.source for value in moved], back, rule)
    return rule(build, node, [_in_place(build, node, value) for value in values])


def activated(
    build: Builder, node: Node, value: Value, activate: Callable[[Value], Value]
) -> Value:
    """Apply an activation that is the same wherever the channels are."""
    if not isinstance(value, Moved):
        return activate(value)
    made = activate(value.source) if value.source.activation is None else None
    if isinstance(made, UnroundedSum):
        return replace(value, source=made)
    return activate(_in_place(build, node, value))


def _concatenated_last(node: Node, axes: Shape) -> Node | None:
    """Return a layer whose input's axes are in another order, ``None`` if it takes no such."""
    if kind_of(node.class_name) != "concatenation":
        return node
    axis, rank = node.config.get("axis", -1), len(axes)
    at = axis - 1 if axis > 0 else axis + rank
    return channels_last(node, node.name) if axes[-1] == at else None


def _computed_last(
    build: Builder, node: Node, inputs: Sequence[Value], axes: Shape, rule: Rule
) -> Value:
    """Compute a layer with its channels last; return what it makes in the layer's own order."""
    mark = len(build.float_layers)
    keeps_axes = node.class_name != "Flatten" and (
        not str(kind_of(node.class_name)).startswith("global") or bool(node.config.get("keepdims"))
    )
    name = f"{node.name}/channels_last" if keeps_axes else node.name
    made = rule(build, channels_last(node, name), inputs)
    build.float_layers[mark:] = [
        replace(layer, layer=node.name) if layer.layer == name else layer
        for layer in build.float_layers[mark:]
    ]
    return _transposed(build, node.name, made, inverse(axes)) if keeps_axes else made


def _to_last(build: Builder, node: Node, value: Value, axes: Shape) -> Value:
    """Return the input of a layer with its channels last."""
    if isinstance(value, Moved) and value.axes == inverse(axes):
        return value.source
    value = _in_place(build, node, value)
    name = f"{node.name}/input"
    if isinstance(value, UnroundedSum):
        linear = _permutation(value.shape, axes)
        return sums.moved(value, linear, 1.0, node.name, build.budget)
    if isinstance(value, (Floats, Integers)):
        return _transposed(build, name, value, axes)
    return _transposed(build, name, build.floats(value, f"{name}0"), axes)


def _in_place(build: Builder, node: Node, value: Value) -> Value:
    """Return a value whose axes are in their own order."""
    if not isinstance(value, Moved):
        return value
    linear = _permutation(value.source.shape, value.axes)
    return sums.moved(value.source, linear, 1.0, node.name, build.budget)


def _permutation(shape: Shape, axes: Shape) -> Linear:
    order = (0, *(axis + 1 for axis in axes))
    out = tuple(shape[axis] for axis in axes)
    return Linear(
        "permute", partial(geometry.transpose, axes=order), out, attributes={"axes": order}
    )


def _transposed(build: Builder, name: str, value: Value, axes: Shape) -> Value:
    """Return a value with its axes in another order, by a step of this name if it needs one."""
    linear = _permutation(value.shape, axes)
    attributes: dict[str, Any] = {"kind": "permute", **linear.attributes}
    if isinstance(value, UnroundedSum):
        attributes["of_sum"] = True
        return Moved(value, linear.apply, attributes, linear.shape, axes)
    if isinstance(value, Integers):
        build.steps.append(
            MoveStep(name, value.name, linear.apply, value.params, linear.shape, attributes)
        )
        return Integers(name, value.params, linear.shape)
    assert isinstance(value, Floats)
    build.steps.append(FloatStep(name, (value.name,), linear.apply, linear.shape, True))
    return Floats(name, linear.shape)
