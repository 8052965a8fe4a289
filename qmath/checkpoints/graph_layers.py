"""The function that serves, op by op → the layers that it runs, as a config would describe them.

For SavedModels that hold no config. A layer's ops are recognized by what they compute, and put
together by the variables that they read: ``Conv2D``, ``BiasAdd``, ``Relu`` and a fake-quant op
whose range is that layer's are one ``Conv2D`` layer. Scopes only give names to what has no
variables. What is not recognized is no graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qmath.checkpoints.function_graph import (
    Argument,
    Frame,
    FunctionGraph,
    Output,
    Source,
    VariableSource,
)
from qmath.checkpoints.graph_values import (
    Param,
    batch_normalization,
    constant,
    shortest,
    target_shape,
)
from qmath.checkpoints.graphdef import FAKE_QUANTS
from qmath.checkpoints.keras_graph import NotAGraphError
from qmath.types import Graph, Node

__all__ = ["Names", "read_layers"]

_RANGES = ("pre_activation", "post_activation", "output")
_ACTIVATIONS = {"Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Softmax": "softmax",
                "Tanh": "tanh"}  # fmt: skip
_POOLS = {"AvgPool": "AveragePooling", "MaxPool": "MaxPooling"}
_GLOBAL_POOLS = {"Mean": "GlobalAveragePooling", "Max": "GlobalMaxPooling"}
_WEIGHTS = {"Conv2D": "kernel", "DepthwiseConv2dNative": "depthwise_kernel", "MatMul": "kernel",
            "Conv2DBackpropInput": "kernel"}  # fmt: skip
_NO_BROADCAST = "a constant is added or multiplied"


class Names(NamedTuple):
    """What tensors are called: ``conv1/kernel`` by its variable, ranges by their lower end.

    Attributes
    ----------
    weights : mapping of int to str
    ranges : mapping of int to str
    quantized : set of str
        Names of the weights with ranges.
    """

    weights: Mapping[int, str]
    ranges: Mapping[int, str]
    quantized: frozenset[str]


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


@dataclass(eq=False)
class _Draft:
    """A layer that may yet take in ops that follow."""

    class_name: str
    inputs: tuple[_Draft, ...]
    config: dict[str, Any]
    scope: str
    last: object  # the op whose output is the layer's
    layer: str = ""
    ranges: list[str] = field(default_factory=list)
    has_activation: bool = False
    name: str = ""


class _Flow(NamedTuple):
    """What flows out of a layer; `extra` is an axis that makes a signal an image."""

    draft: _Draft
    extra: int | None = None


_Value = Param | _Flow


class _Builder:
    def __init__(self, graph: FunctionGraph, names: Names) -> None:
        self._graph = graph
        self._names = names
        self._values: dict[object, _Value] = {}
        self._uses: Counter[object] = Counter()
        self._drafts: list[_Draft] = []
        self._inputs: list[_Draft] = []

    def add_input(
        self, source: Argument, name: str, shapes: Mapping[str, list[int | None] | None]
    ) -> None:
        """Add an input of the model."""
        draft = _Draft("InputLayer", (), {"batch_input_shape": shapes.get(name)}, name, source)
        draft.layer = draft.name = name
        self._drafts.append(draft)
        self._inputs.append(draft)
        self._values[source] = _Flow(draft)

    def build(self, outputs: Sequence[Source]) -> Graph:
        """Return the layers between the inputs and these outputs."""
        for output, inputs in self._ordered(outputs):
            self._values[_key(output)] = self._evaluate(
                output, [self._value(source) for source in inputs]
            )
        ends = [self._flow(self._value(source), "an output") for source in outputs]
        return self._graph_of(ends)

    # ---- the order of ops

    def _ordered(self, outputs: Sequence[Source]) -> list[tuple[Output, list[Source]]]:
        """Return the ops that outputs depend on, after those that feed them."""
        order: list[tuple[Output, list[Source]]] = []
        inputs: dict[object, list[Source]] = {}
        done: set[object] = set()
        stack = [(source, False) for source in reversed(outputs)]
        self._uses.update(_key(source) for source in outputs)
        while stack:
            source, is_ready = stack.pop()
            key = _key(source)
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
                self._uses.update(map(_key, inputs[key]))
            stack.append((source, True))
            stack += [(fed, False) for fed in reversed(inputs[key]) if _key(fed) not in done]
        return order

    def _value(self, source: Source) -> _Value:
        key = _key(source)
        if key not in self._values:
            if not isinstance(source, VariableSource):
                raise NotAGraphError("a value follows from itself")
            return Param("Variable", name=self._names.weights.get(source.node, "?"))
        if isinstance(source, Output) and source.output.rpartition(":")[2] not in ("", "0"):
            raise NotAGraphError(f"the op {source.node.op} has several outputs")
        return self._values[key]

    def _flow(self, value: _Value, what: str) -> _Draft:
        if not isinstance(value, _Flow) or value.extra is not None:
            raise NotAGraphError(f"{what} is no output of a layer")
        return value.draft

    # ---- ops

    def _evaluate(self, output: Output, inputs: list[_Value]) -> _Value:
        op, node = output.node.op, output.node
        params = [value for value in inputs if isinstance(value, Param)]
        if op in FAKE_QUANTS:
            return self._fake_quant(output, inputs)
        if op == "Shape" or len(params) == len(inputs):
            return Param(op, tuple(params), values=constant(node), frame_name=output.name)
        makes: dict[str, Callable[[Output, list[_Value]], _Value]] = {
            "AddV2": self._sum, "Add": self._sum, "AddN": self._sum, "Sub": self._sum,
            "BiasAdd": self._bias, "ConcatV2": self._concatenate, "ExpandDims": self._expand,
            "FusedBatchNormV3": self._normalize, "LeakyRelu": self._leaky, "Mul": self._scale,
            "Pad": self._pad, "PadV2": self._pad, "Reshape": self._reshape,
            "Squeeze": self._squeeze, "Transpose": self._transpose,
            "Maximum": self._clip, "Minimum": self._clip,
        }  # fmt: skip
        if op in _WEIGHTS:
            return self._weighted(output, inputs)
        if op in _ACTIVATIONS:
            return self._activation(output, inputs)
        if op in _POOLS:
            return self._pool(output, inputs)
        if op in _GLOBAL_POOLS:
            return self._global_pool(output, inputs)
        if op in makes:
            return makes[op](output, inputs)
        raise _unknown(output)

    def _weighted(self, output: Output, inputs: list[_Value]) -> _Value:
        node = output.node
        flow, weight = inputs[0], inputs[1]
        if node.op == "Conv2DBackpropInput":
            flow = inputs[2]
        if not isinstance(flow, _Flow) or not isinstance(weight, Param):
            raise _unknown(output)
        is_signal = flow.extra is not None
        layer = self._layer_of(weight, _WEIGHTS[node.op], output)
        config: dict[str, Any] = {"activation": "linear", "use_bias": False}
        if node.op == "MatMul":
            if node.attr["transpose_a"].b or node.attr["transpose_b"].b or is_signal:
                raise _unknown(output)
            return self._add("Dense", [flow], config, output, layer)
        strides, dilation = _spatial(node, "strides"), _spatial(node, "dilations")
        config |= {"padding": _padding(output), "data_format": "channels_last"}
        config |= {"strides": strides, "dilation_rate": dilation}
        names = {"Conv2D": "Conv2D", "DepthwiseConv2dNative": "DepthwiseConv2D"}
        class_name = names.get(node.op, "Conv2DTranspose")
        if is_signal:
            if node.op != "Conv2D" or flow.extra != 1:
                raise _unknown(output)
            class_name = "Conv1D"
            config |= {"strides": strides[1:], "dilation_rate": dilation[1:]}
        return self._add(class_name, [flow], config, output, layer, extra=flow.extra)

    def _bias(self, output: Output, inputs: list[_Value]) -> _Value:
        flow, bias = inputs
        if not isinstance(flow, _Flow) or not isinstance(bias, Param):
            raise _unknown(output)
        draft = flow.draft
        layer = self._layer_of(bias, "bias", output)
        if layer != draft.layer or not self._is_open(draft) or draft.config["use_bias"]:
            raise NotAGraphError(f"{output.name} adds a bias that is not its layer's")
        draft.config["use_bias"] = True
        draft.last = _key(output)
        return flow

    def _fake_quant(self, output: Output, inputs: list[_Value]) -> _Value:
        value = inputs[0]
        if isinstance(value, Param):
            return Param("FakeQuant", (value,))
        if output.node.op.endswith("Args"):
            raise NotAGraphError(f"{output.name} quantizes to a fixed range")
        source = self._graph.source(output.frame, self._graph.input(output.frame, output.node, 1))
        low = source.node if isinstance(source, VariableSource) else -1
        if low not in self._names.ranges or value.extra is not None:
            raise NotAGraphError(f"{output.name} quantizes to a range that no layer keeps")
        layer, _, which = self._names.ranges[low].rpartition("/")
        draft = value.draft
        previous = draft.inputs[0] if len(draft.inputs) == 1 else draft
        if (
            draft.class_name == "Activation"
            and not draft.layer
            and previous.layer == layer
            and which != "pre_activation"
            and self._is_open(previous, "post_activation")
        ):
            self._merge(draft)
            draft = previous
        can_take = draft.class_name != "InputLayer" and draft.layer in ("", layer)
        if not can_take or not self._is_open(draft, which):
            flow = self._add("QuantizeLayer", [value], {}, output, layer)
            draft = flow.draft
        draft.layer = layer
        draft.ranges.append(which)
        draft.last = _key(output)
        return _Flow(draft)

    def _activation(self, output: Output, inputs: list[_Value]) -> _Value:
        value = inputs[0]
        draft = self._flow(value, f"the input of {output.name}")
        name = _ACTIVATIONS[output.node.op]
        if draft.ranges[-1:] == ["pre_activation"] and self._is_open(draft, "post_activation"):
            draft.config["activation"] = name
            draft.has_activation = True
            draft.last = _key(output)
            return value
        return self._add("Activation", [value], {"activation": name}, output)

    def _leaky(self, output: Output, inputs: list[_Value]) -> _Value:
        attr = output.node.attr
        slope = shortest(attr["alpha"].f) if "alpha" in attr else 0.2
        config = {"max_value": None, "negative_slope": slope, "threshold": 0.0}
        return self._add("ReLU", inputs, config, output)

    def _clip(self, output: Output, inputs: list[_Value]) -> _Value:
        """Recognize the ReLU with a bound, which Keras makes of three ops."""
        flow, bound = inputs
        if not isinstance(flow, _Flow) or not isinstance(bound, Param) or not bound.values:
            raise _unknown(output)
        draft, limit = flow.draft, shortest(bound.values[0])
        if not self._is_open(draft) or draft.config.get("activation") not in ("relu", None):
            raise _unknown(output)
        if output.node.op == "Minimum" and draft.class_name == "Activation" and limit > 0:
            draft.class_name = "ReLU"
            draft.config = {"max_value": limit, "negative_slope": 0.0, "threshold": 0.0}
        elif output.node.op != "Maximum" or draft.class_name != "ReLU" or limit:
            raise _unknown(output)
        draft.last = _key(output)
        return flow

    def _sum(self, output: Output, inputs: list[_Value]) -> _Value:
        scaled, shift = inputs[0], inputs[1] if len(inputs) == 2 else None
        if isinstance(scaled, _Flow) and isinstance(shift, Param):
            layer = batch_normalization(scaled.draft.config.get("factor"), shift)
            if layer is None or not self._is_open(scaled.draft) or output.node.op == "Sub":
                raise NotAGraphError(f"{output.name}: {_NO_BROADCAST}")
            scaled.draft.class_name = "BatchNormalization"
            scaled.draft.config = {"axis": [-1], "epsilon": layer[1]}
            scaled.draft.layer = layer[0]
            scaled.draft.last = _key(output)
            return scaled
        if any(isinstance(value, Param) for value in inputs):
            raise NotAGraphError(f"{output.name}: {_NO_BROADCAST}")
        return self._add("Subtract" if output.node.op == "Sub" else "Add", inputs, {}, output)

    def _scale(self, output: Output, inputs: list[_Value]) -> _Value:
        """Keep a factor until an op tells that it is a batch normalization's."""
        flow, factor = inputs
        if not isinstance(flow, _Flow) or not isinstance(factor, Param):
            raise _unknown(output)
        return self._add("Mul", [flow], {"factor": factor}, output)

    def _normalize(self, output: Output, inputs: list[_Value]) -> _Value:
        flow, *params = inputs
        attr = output.node.attr
        if "is_training" not in attr or attr["is_training"].b or len(params) != 4:
            raise _unknown(output)
        layer = ""
        for param, (name, neutral) in zip(
            reversed(params),
            (("moving_variance", 0), ("moving_mean", 0), ("beta", 0.0), ("gamma", 1.0)),
            strict=True,
        ):
            assert isinstance(param, Param)
            if name in ("beta", "gamma") and set(param.values or ()) == {neutral}:
                continue
            found = self._layer_of(param, name, output)
            if layer and found != layer:
                raise _unknown(output)
            layer = found
        epsilon = shortest(attr["epsilon"].f) if "epsilon" in attr else 1e-4
        return self._add(
            "BatchNormalization", [flow], {"axis": [-1], "epsilon": epsilon}, output, layer
        )

    def _concatenate(self, output: Output, inputs: list[_Value]) -> _Value:
        *flows, axis = inputs
        if not isinstance(axis, Param) or not axis.values or len(axis.values) != 1:
            raise _unknown(output)
        return self._add("Concatenate", flows, {"axis": int(axis.values[0])}, output)

    def _pool(self, output: Output, inputs: list[_Value]) -> _Value:
        flow = inputs[0]
        assert isinstance(flow, _Flow)
        size, strides = (_spatial(output.node, key) for key in ("ksize", "strides"))
        name = f"{_POOLS[output.node.op]}{1 if flow.extra else 2}D"
        if flow.extra:
            if flow.extra != 2 or size[1] != 1 or strides[1] != 1:
                raise _unknown(output)
            size, strides = size[:1], strides[:1]
        config = {"pool_size": size, "strides": strides, "padding": _padding(output)}
        return self._add(name, [flow], config, output, extra=flow.extra)

    def _global_pool(self, output: Output, inputs: list[_Value]) -> _Value:
        flow, axes = inputs
        ranks = {(1,): 1, (1, 2): 2}
        rank = ranks.get(tuple(axes.values or ())) if isinstance(axes, Param) else None
        if rank is None:
            raise _unknown(output)
        config = {"keepdims": output.node.attr["keep_dims"].b}
        return self._add(f"{_GLOBAL_POOLS[output.node.op]}{rank}D", [flow], config, output)

    def _pad(self, output: Output, inputs: list[_Value]) -> _Value:
        flow, widths, *value = inputs
        pads = widths.values if isinstance(widths, Param) else None
        if not pads or len(pads) not in (6, 8) or any(pads[:2]) or any(pads[-2:]):
            raise _unknown(output)
        if any(not isinstance(v, Param) or set(v.values or (1,)) != {0.0} for v in value):
            raise _unknown(output)
        inner = [int(n) for n in pads[2:-2]]
        padding: Any = inner if len(inner) == 2 else [inner[:2], inner[2:]]
        return self._add(f"ZeroPadding{len(inner) // 2}D", [flow], {"padding": padding}, output)

    def _reshape(self, output: Output, inputs: list[_Value]) -> _Value:
        shape = target_shape(inputs[1]) if isinstance(inputs[1], Param) else None
        if shape is None:
            raise _unknown(output)
        return self._add("Reshape", inputs[:1], {"target_shape": shape}, output)

    def _transpose(self, output: Output, inputs: list[_Value]) -> _Value:
        axes = inputs[1].values if isinstance(inputs[1], Param) else None
        if not axes or axes[0] != 0:
            raise _unknown(output)
        return self._add("Permute", inputs[:1], {"dims": [int(a) for a in axes[1:]]}, output)

    def _expand(self, output: Output, inputs: list[_Value]) -> _Value:
        flow, axis = inputs
        if not isinstance(flow, _Flow) or not isinstance(axis, Param) or flow.extra is not None:
            raise _unknown(output)
        place = {1: 1, 2: 2, -3: 1, -2: 2}.get(int((axis.values or (0,))[0]))
        if place is None:
            raise _unknown(output)
        self._moved(flow.draft, output)
        return _Flow(flow.draft, place)

    def _squeeze(self, output: Output, inputs: list[_Value]) -> _Value:
        flow = inputs[0]
        axes = list(output.node.attr["squeeze_dims"].list.i)
        if not isinstance(flow, _Flow) or flow.extra is None or len(axes) != 1:
            raise _unknown(output)
        if axes[0] % 4 != flow.extra:
            raise _unknown(output)
        self._moved(flow.draft, output)
        return _Flow(flow.draft)

    # ---- layers

    def _add(
        self,
        class_name: str,
        inputs: Sequence[_Value],
        config: dict[str, Any],
        output: Output,
        layer: str = "",
        extra: int | None = None,
    ) -> _Flow:
        feeds = []
        for value in inputs:
            if not isinstance(value, _Flow) or value.extra != extra:
                raise _unknown(output)
            feeds.append(value.draft)
        draft = _Draft(class_name, tuple(feeds), config, output.name, _key(output), layer)
        self._drafts.append(draft)
        return _Flow(draft, extra)

    def _moved(self, draft: _Draft, output: Output) -> None:
        """Let a layer end with an op that changes nothing, if nothing else uses what is before."""
        if self._uses[draft.last] == 1:
            draft.last = _key(output)

    def _merge(self, draft: _Draft) -> None:
        """Make an activation part of the layer before it."""
        (previous,) = draft.inputs
        previous.config["activation"] = draft.config["activation"]
        previous.has_activation = True
        previous.last = draft.last
        self._drafts.remove(draft)

    def _is_open(self, draft: _Draft, which: str = "pre_activation") -> bool:
        """Tell whether a layer can take in an op for `which`: nothing else uses what is before."""
        if self._uses[draft.last] != 1:
            return False
        place = _RANGES.index(which)
        if which == "pre_activation" and draft.has_activation:
            return False
        return all(_RANGES.index(other) < place for other in draft.ranges)

    def _layer_of(self, param: Param, name: str, output: Output) -> str:
        """Return the layer whose variable of this name a parameter is, quantized if it must be."""
        is_quantized = False
        while param.op in ("FakeQuant", "Transpose", "ExpandDims") and param.args:
            is_quantized |= param.op == "FakeQuant"
            param = param.args[0]
        layer, _, leaf = param.name.rpartition("/")
        if leaf != name or is_quantized != (param.name in self._names.quantized):
            raise NotAGraphError(f"{output.name} does not use the {name} of a layer")
        return layer

    def _graph_of(self, ends: Sequence[_Draft]) -> Graph:
        ranged: dict[str, list[str]] = {}
        for name in self._names.ranges.values():
            layer, _, which = name.rpartition("/")
            ranged.setdefault(layer, []).append(which)
        counts: Counter[str] = Counter()
        nodes = []
        for draft in self._drafts:
            if draft.class_name == "Mul":
                raise NotAGraphError(f"{draft.scope}: {_NO_BROADCAST}")
            if not draft.layer:
                draft.layer = _label(draft.scope)
                if draft.layer in ranged or counts[draft.layer]:
                    draft.layer += f"/{draft.scope.rpartition('/')[2]}"
            wanted = sorted(ranged.get(draft.layer, ()), key=_RANGES.index)
            if draft.ranges != wanted:
                raise NotAGraphError(f"{draft.scope}: it is not clear what {draft.layer} quantizes")
            number = counts[draft.layer]
            counts[draft.layer] += 1
            draft.name = draft.layer + (f"#{number}" if number else "")
            nodes.append(
                Node(
                    draft.name,
                    draft.layer,
                    draft.class_name,
                    tuple(d.name for d in draft.inputs),
                    {"name": draft.layer.rpartition("/")[2], **draft.config},
                )
            )
        if len({node.name for node in nodes}) < len(nodes):
            raise NotAGraphError("two of its layers have one name")
        return Graph(tuple(nodes), tuple(d.name for d in self._inputs), tuple(d.name for d in ends))


def _key(source: Source) -> object:
    return (id(source.frame), source.node.name) if isinstance(source, Output) else source


def _label(scope: str) -> str:
    """Return the path of the layer that an op lies in, by its scopes below the model's."""
    parts = [part.removeprefix("quant_") for part in scope.split("/")]
    return "/".join(parts[1:-1]) or parts[-1]


def _spatial(node: Any, key: str) -> list[int]:
    values = list(node.attr[key].list.i) if key in node.attr else [1, 1, 1, 1]
    if len(values) != 4 or values[0] != 1 or values[3] != 1:
        raise NotAGraphError(f"the op {node.op} has the {key} {values[:8]}")
    return [int(n) for n in values[1:3]]


def _padding(output: Output) -> str:
    attr = output.node.attr
    padding = attr["padding"].s if "padding" in attr else b""
    layout = attr["data_format"].s if "data_format" in attr else b"NHWC"
    if padding not in (b"SAME", b"VALID") or layout != b"NHWC":
        raise _unknown(output)
    return "same" if padding == b"SAME" else "valid"


def _unknown(output: Output) -> NotAGraphError:
    shown = "".join(c for c in output.name if c.isprintable())
    return NotAGraphError(f"the op {output.node.op} ({shown}) is not one of a layer that is known")
