"""The function that serves, op by op → the layers that it runs, as a config would describe them.

For SavedModels that hold no config. A layer's ops are recognized by what they compute, and put
together by the variables that they read: ``Conv2D``, ``BiasAdd``, ``Relu`` and a fake-quant op
whose range is that layer's are one ``Conv2D`` layer. Scopes only give names to what has no
variables. What is not recognized is no graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from qmath.model import Graph
from qmath.readers.architecture.graph import NotAGraphError
from qmath.readers.saved_model.drafts import Draft, Drafts, Flow, Names, Value, key_of, unknown
from qmath.readers.saved_model.fake_quants import FAKE_QUANTS
from qmath.readers.saved_model.functions import (
    Argument,
    Frame,
    FunctionGraph,
    Output,
    Source,
    VariableSource,
)
from qmath.readers.saved_model.ops import OPS
from qmath.readers.saved_model.values import Param, constant

__all__ = ["read_layers"]

# Of a batch normalization, whose first output is called ``y``.
_OTHER_OUTPUTS = ("batch_", "reserve_")


def read_layers(
    graph: FunctionGraph,
    outer: Frame,
    inner: Frame,
    shapes: Mapping[str, list[int | None] | None],
    names: Names,
) -> Graph:
    """Return the layers that a function runs.

    Parameters
    ----------
    graph : FunctionGraph
    outer, inner : Frame
        The function of a signature, and the one within that computes.
    shapes : mapping of str to list
        Of the arguments of `outer`, with the batch, by name.
    names : Names

    Raises
    ------
    NotAGraphError
        An op is not one of a layer that is known.
    FileFormatError
        The file is damaged.
    """
    builder = _Builder(graph, names)
    arguments = list(outer.function.arguments)
    for name in inner.function.arguments:
        source = graph.source(inner, name)
        if isinstance(source, Argument):
            builder.add_input(source, arguments[source.number], shapes)
    outputs = [
        graph.source(inner, inner.function.returned.get(name, name))
        for name in inner.function.outputs
    ]
    return builder.build(outputs)


class _Builder:
    def __init__(self, graph: FunctionGraph, names: Names) -> None:
        self._graph = graph
        self._names = names
        self._values: dict[object, Value] = {}
        self._uses: Counter[object] = Counter()
        self._drafts = Drafts(names, self._uses)
        self._inputs: list[Draft] = []

    def add_input(
        self, source: Argument, name: str, shapes: Mapping[str, list[int | None] | None]
    ) -> None:
        """Add an input of the model."""
        draft = Draft("InputLayer", (), {"batch_input_shape": shapes.get(name)}, name, source, name)
        self._drafts.drafts.append(draft)
        self._inputs.append(draft)
        self._values[source] = Flow(draft)

    def build(self, outputs: Sequence[Source]) -> Graph:
        """Return the layers between the inputs and these outputs."""
        for output, inputs in self._ordered(outputs):
            values = [self._value(source) for source in inputs]
            self._values[key_of(output)] = self._evaluate(output, values)
        ends = []
        for source in outputs:
            value = self._value(source)
            if not isinstance(value, Flow) or value.views:
                raise NotAGraphError("an output of the model is none of a layer")
            ends.append(value.draft)
        return self._drafts.graph(self._inputs, ends)

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
            return Param("Variable", name=self._names.weights.get(source.node, "?"))
        if key_of(source) not in self._values:
            raise NotAGraphError("a value follows from itself")
        value = self._values[key_of(source)]
        if isinstance(source, Output):
            place = source.output.rpartition(":")[2]
            if source.node.op == "Split" and isinstance(value, Flow):
                (_, count), number = value.views[-1], place[:6]
                step = ("step", count, int(number) if number.isdecimal() else 0)
                return Flow(value.draft, (*value.views[:-1], step))
            if place not in ("", "0") or source.output.startswith(_OTHER_OUTPUTS):
                raise NotAGraphError(f"the op {source.node.op} has several outputs")
        return value

    def _evaluate(self, output: Output, inputs: list[Value]) -> Value:
        op = output.node.op
        if op in FAKE_QUANTS:
            return self._fake_quant(output, inputs)
        params = [value for value in inputs if isinstance(value, Param)]
        if op == "Shape" or len(params) == len(inputs):
            return Param(op, tuple(params), values=constant(output.node, params), scope=output.name)
        if op not in OPS:
            raise unknown(output)
        try:
            return OPS[op](self._drafts, output, inputs)
        except (LookupError, ValueError, ArithmeticError):  # other inputs than the op has
            raise unknown(output) from None

    def _fake_quant(self, output: Output, inputs: list[Value]) -> Value:
        """Let the layer whose range an op reads quantize what it computes."""
        value = inputs[0]
        if isinstance(value, Param):
            return Param("FakeQuant", (value,), scope=output.name)
        if output.node.op.endswith("Args"):
            raise NotAGraphError(f"{output.name} quantizes to a fixed range")
        source = self._graph.source(output.frame, self._graph.input(output.frame, output.node, 1))
        low = source.node if isinstance(source, VariableSource) else -1
        if low not in self._names.ranges or value.views:
            raise NotAGraphError(f"{output.name} quantizes to a range that no layer keeps")
        layer, _, which = self._names.ranges[low].rpartition("/")
        draft = value.draft
        is_activation = draft.class_name == "Activation" and not draft.layer
        if (
            is_activation
            and draft.inputs[0].layer == layer
            and which != "pre_activation"
            and self._drafts.is_open(draft.inputs[0], "post_activation")
            and self._drafts.is_open(draft, which)
        ):
            draft = self._drafts.merge(draft)
        can_take = draft.class_name != "InputLayer" and draft.layer in ("", layer)
        if not can_take or not self._drafts.is_open(draft, which):
            draft = self._drafts.add("QuantizeLayer", [value], {}, output, layer).draft
        draft.layer = layer
        draft.ranges.append(which)
        draft.last = key_of(output)
        return Flow(draft)
