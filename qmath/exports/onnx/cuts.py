"""Cut points of a network: layers that the graph leaves to whoever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from qmath.exports.onnx.graph import GraphBuilder, Value
from qmath.integer.program import CutStep, Program, Shape
from qmath.layers import ends_with_activation, kind_of, supports, unknown_of
from qmath.model import Node

__all__ = ["Cuts", "Writer", "is_cut"]


class Writer(Protocol):
    """What writes the layers of a network."""

    builder: GraphBuilder
    values: dict[str, Value]

    def written(self, node: Node) -> Value:
        """Write a layer."""

    def computed(self, node: Node) -> Value:
        """Write a layer without its quantizers and its activation."""

    def quantized(self, node: Node, value: Value, which: str) -> Value:
        """Write one of a layer's quantizers, if it has it."""

    def output(self, value: Value, name: str, shapes: dict[str, Shape]) -> None:
        """Make a value an output of the graph, and add its shape to `shapes`."""


def is_cut(node: Node) -> bool:
    """Whether a network leaves a layer to whoever runs it: it is unknown, or float."""
    is_float = kind_of(node.class_name) == "float" and not supports(node.class_name, "onnx")
    return is_float or unknown_of(node) == node.class_name


class Cuts:
    """Layers that a network does not hold: what they read is an output, what they make an input.

    One graph holds what is before a cut and what is after it, as one file holds a network, and both
    may share weights. ``onnx.utils.extract_model`` takes them apart by the names.
    """

    def __init__(
        self,
        program: Program,
        layers: Writer,
        inputs: dict[str, Shape],
        outputs: dict[str, Shape],
    ) -> None:
        self.layers, self.inputs, self.outputs = layers, inputs, outputs
        self.steps = {step.name: step for step in program.steps}
        self.names: dict[str, dict[str, Any]] = {}

    def written(self, node: Node) -> Value | None:
        """Return what a layer makes, ``None`` if no shape is known of it."""
        layers, values = self.layers, self.layers.values
        if not all(name in values for name in node.inputs):  # behind a cut of unknown shape
            value = self._cut(node.name, []) if self._starts(node) else None
        elif is_cut(node) or self.is_unsupported(node):
            value = self._cut(node.name, [values[name] for name in node.inputs])
        elif unknown_of(node):
            value = layers.quantized(node, layers.computed(node), "pre_activation")
            activation = f"{node.name}/activation"
            value = self._cut(activation if activation in self.steps else node.name, [value])
        else:
            return layers.written(node)
        if value is None:
            return None
        # A cut may make what its quantizers have rounded.
        ends = ("post_activation", "output")
        for which in ends if ends_with_activation(node.class_name) else ends[1:]:
            if f"{node.name}/{which}" in self.steps:
                value = layers.quantized(node, value, which)
        return value

    def is_unsupported(self, node: Node) -> bool:
        """Whether a layer of a known class is a cut, for its settings."""
        step = self.steps.get(node.name)
        return isinstance(step, CutStep) and step.class_name == node.class_name

    def _starts(self, node: Node) -> bool:
        """Whether the network goes on from a layer although what that reads is not in it."""
        step = self.steps.get(node.name)
        return isinstance(step, CutStep) and bool(step.behind)

    def _cut(self, key: str, read: Sequence[Value]) -> Value | None:
        step, unique = self.steps.get(key), self.layers.builder.unique
        names = [unique(f"{key}/input{i}" if len(read) > 1 else f"{key}/input")
                 for i in range(len(read))]  # fmt: skip
        for value, name in zip(read, names, strict=True):
            self.layers.output(value, name, self.outputs)
        entry = self.names[key] = {"reads": names, "makes": None}
        if step is None or (isinstance(step, CutStep) and not step.is_shaped):
            return None
        entry["makes"] = made = unique(key)
        self.inputs[made] = step.shape
        return Value(made, step.shape)
