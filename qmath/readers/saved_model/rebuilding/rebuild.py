"""The function that serves, op by op → the layers that it runs, as a config would describe them.

For SavedModels that hold no config. A layer's ops are recognized by what they compute, and put
together by the variables that they read: ``Conv2D``, ``BiasAdd``, ``Relu`` and a fake-quant op
whose range is that layer's are one ``Conv2D`` layer. Scopes only give names to what has no
variables. What is not recognized is no graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qmath.model import Graph
from qmath.readers.architecture.graph import NotAGraphError
from qmath.readers.records import StoredTensor
from qmath.readers.saved_model.fake_quants import FAKE_QUANTS
from qmath.readers.saved_model.functions import (
    Argument,
    Frame,
    FunctionGraph,
    Output,
    Source,
    VariableSource,
    key_of,
)
from qmath.readers.saved_model.rebuilding.ops import OPS
from qmath.readers.saved_model.rebuilding.params import Param, constant
from qmath.readers.saved_model.rebuilding.partial_layers import (
    LayerOutput,
    PartialLayer,
    PartialLayers,
    Value,
    unknown,
)

__all__ = ["rebuild"]

# Of a batch normalization, whose first output is called ``y``.
_OTHER_OUTPUTS = ("batch_", "reserve_")

_Shape = list[int | None]


def rebuild(
    graph: FunctionGraph, frame: Frame, signature: Any, variables: Mapping[object, StoredTensor]
) -> Graph:
    """Return the layers that a function runs.

    Parameters
    ----------
    graph : FunctionGraph
    frame : Frame
        The call that computes, within the function of a signature; its arguments are the model's.
    signature : message or None
        The ``SignatureDef``, which tells the shapes of the inputs.
    variables : mapping of object to StoredTensor
        As `PartialLayers` takes them.

    Raises
    ------
    NotAGraphError
        An op is not one of a layer that is known.
    FileFormatError
        The file is damaged.
    """
    builder = _Builder(graph, variables)
    outer = frame
    while outer.caller is not None:
        outer = outer.caller
    arguments = list(outer.function.arguments)
    shapes = _shapes(signature)
    for name in frame.function.arguments:
        source = graph.source(frame, name)
        if isinstance(source, Argument):
            builder.add_input(source, arguments[source.number], shapes)
    outputs = [
        graph.source(frame, frame.function.returned.get(name, name))
        for name in frame.function.outputs
    ]
    return builder.build(outputs)


def _shapes(signature: Any) -> dict[str, _Shape | None]:
    """Return the shapes of a signature's inputs, with the batch, as far as they are known."""
    shapes: dict[str, _Shape | None] = {}
    for name, tensor in signature.inputs.items() if signature is not None else ():
        sizes = [dim.size if dim.size >= 0 else None for dim in tensor.tensor_shape.dim]
        shapes[name] = None if tensor.tensor_shape.unknown_rank else sizes
    return shapes


class _Builder:
    def __init__(self, graph: FunctionGraph, variables: Mapping[object, StoredTensor]) -> None:
        self._graph = graph
        self._values: dict[object, Value] = {}
        self._uses: Counter[object] = Counter()
        self._layers = PartialLayers(variables, self._uses)
        self._inputs: list[PartialLayer] = []

    def add_input(self, source: Argument, name: str, shapes: Mapping[str, _Shape | None]) -> None:
        """Add an input of the model."""
        partial = PartialLayer(
            "InputLayer", (), {"batch_input_shape": shapes.get(name)}, name, source, name
        )
        self._layers.layers.append(partial)
        self._inputs.append(partial)
        self._values[source] = LayerOutput(partial)

    def build(self, outputs: Sequence[Source]) -> Graph:
        """Return the layers between the inputs and these outputs."""
        for output, inputs in self._ordered(outputs):
            values = [self._value(source) for source in inputs]
            self._values[key_of(output)] = self._evaluate(output, values)
        ends = []
        for source in outputs:
            value = self._value(source)
            if not isinstance(value, LayerOutput) or value.views:
                raise NotAGraphError("an output of the model is none of a layer")
            ends.append(value.partial)
        return self._layers.graph(self._inputs, ends)

    def _ordered(self, outputs: Sequence[Source]) -> list[tuple[Output, list[Source]]]:
        """Return the ops that outputs depend on, after those that feed them; count their uses."""
        order: list[tuple[Output, list[Source]]] = []
        inputs: dict[object, list[Source]] = {}
        done: set[object] = set()
        stack = [(source, False) for source in reversed(outputs)]
        self._uses.update(key_of(source) for source in outputs)
        while stack:
            source, is_ready = stack.pop()
            key = key_of(source)
            if not isinstance(source, Output) or key in done:
                continue
            if is_ready:
                done.add(key)
                order.append((source, inputs[key]))
                continue
            if key in inputs:
                raise NotAGraphError(f"{source.name} follows from itself")
            tensors = [t for t in source.node.input if not t.startswith("^")]
            inputs[key] = [self._graph.source(source.frame, tensor) for tensor in tensors]
            if source.node.op != "Shape":
                self._uses.update(map(key_of, inputs[key]))
            stack.append((source, True))
            stack += [(fed, False) for fed in reversed(inputs[key]) if key_of(fed) not in done]
        return order

    def _value(self, source: Source) -> Value:
        if isinstance(source, VariableSource):
            return Param("Variable", name=self._layers.weights.get(source.node, "?"))
        if key_of(source) not in self._values:
            raise NotAGraphError("a value follows from itself")
        value = self._values[key_of(source)]
        if isinstance(source, Output):
            place = source.output.rpartition(":")[2]
            if source.node.op == "Split" and isinstance(value, LayerOutput):
                (_, axis, count), number = value.views[-1], place[:6]
                step = ("step", axis, count, int(number) if number.isdecimal() else 0)
                return LayerOutput(value.partial, (*value.views[:-1], step))
            if place not in ("", "0") or source.output.startswith(_OTHER_OUTPUTS):
                raise NotAGraphError(f"the op {source.node.op} has several outputs")
        return value

    def _evaluate(self, output: Output, inputs: list[Value]) -> Value:
        op = output.node.op
        if key_of(output) in self._layers.weights:
            weight = Param("Variable", name=self._layers.weights[key_of(output)])
            return Param("FakeQuant", (weight,), scope=output.name)
        if op in FAKE_QUANTS:
            return self._fake_quant(output, inputs)
        params = [value for value in inputs if isinstance(value, Param)]
        if op == "Shape" or len(params) == len(inputs):
            return Param(op, tuple(params), values=constant(output.node, params), scope=output.name)
        if op not in OPS:
            raise unknown(output)
        try:
            return OPS[op](self._layers, output, inputs)
        except (LookupError, ValueError, ArithmeticError):  # other inputs than the op has
            raise unknown(output) from None

    def _fake_quant(self, output: Output, inputs: list[Value]) -> Value:
        """Let the layer whose range an op reads quantize what it computes."""
        value = inputs[0]
        if isinstance(value, Param):
            return Param("FakeQuant", (value,), scope=output.name)
        name = self._range(output)
        if not name or value.views:
            raise NotAGraphError(f"{output.name} quantizes to a range that no layer keeps")
        layer, _, which = name.rpartition("/")
        partial = value.partial
        is_activation = partial.class_name == "Activation" and not partial.layer
        if (
            is_activation
            and partial.inputs[0].layer == layer
            and which != "pre_activation"
            and self._layers.is_open(partial.inputs[0], "post_activation")
            and self._layers.is_open(partial, which)
        ):
            partial = self._layers.merge(partial)
        can_take = partial.class_name != "InputLayer" and partial.layer in ("", layer)
        if not can_take or not self._layers.is_open(partial, which):
            partial = self._layers.add("QuantizeLayer", [value], {}, output, layer).partial
        partial.layer = layer
        partial.ranges.append(which)
        partial.last = key_of(output)
        return LayerOutput(partial)

    def _range(self, output: Output) -> str:
        """Return the name of the range by which an op quantizes what flows, ``""`` if none."""
        ranges = self._layers.ranges
        if key_of(output) in ranges or output.node.op.endswith("Args"):
            return ranges.get(key_of(output), "")
        source = self._graph.source(output.frame, self._graph.input(output.frame, output.node, 1))
        return ranges.get(source.node, "") if isinstance(source, VariableSource) else ""
