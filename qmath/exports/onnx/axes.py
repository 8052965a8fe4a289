"""Layers of a network whose channels are not the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from qmath.exports.onnx.graph import GraphBuilder, Value
from qmath.integer.lowering import layouts
from qmath.integer.program import Shape
from qmath.model import Node

__all__ = ["Writer", "elsewhere"]


class Writer(Protocol):
    """What writes layers whose channels are the last axis."""

    builder: GraphBuilder

    def of_kind(self, node: Node, inputs: list[Value]) -> Value:
        """Write a layer without its quantizers and its activation."""

    def add(
        self,
        op: str,
        inputs: Sequence[Value | str],
        node: Node,
        shape: Sequence[int] | None = None,
        **attributes: Any,
    ) -> Value:
        """Write one operation of a layer."""


def elsewhere(layers: Writer, node: Node, x: Value, axes: Shape) -> Value:
    """Write a layer that has its channels last when its input's axes are in the order `axes`.

    Channels right after the batch are where ONNX has them: nothing is moved then.
    """
    is_first = axes[-1] == 0
    last = layouts.channels_last(node, node.name)
    x = layers.builder.channels_last(x)
    shape = tuple(x.shape[axis] for axis in axes)
    if is_first:
        x = Value(x.name, shape, channels_first=True)
    else:
        x = layers.add("Transpose", [x], node, shape, perm=_with_batch(axes))
    made = layers.of_kind(last, [x])
    if len(made.shape) != len(axes):
        return made
    back = layouts.inverse(axes)
    shape = tuple(made.shape[axis] for axis in back)
    if is_first:
        return Value(layers.builder.channels_first(made).name, shape)
    made = layers.builder.channels_last(made)
    return layers.add("Transpose", [made], node, shape, perm=_with_batch(back))


def _with_batch(axes: Shape) -> Shape:
    return (0, *(axis + 1 for axis in axes))
