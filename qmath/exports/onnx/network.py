"""From a model's layers to ONNX nodes in float32, with quantizers where training had them.

A network is written layer by layer, as TensorFlow computes it: convolutions, sums and activations
of fake-quantized tensors. How a quantizer is written is a format's own affair, see `Quantizers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle, QuantizedRange
from qmath.exports.onnx import moves, windows
from qmath.exports.onnx.axes import elsewhere
from qmath.exports.onnx.cuts import Cuts, is_cut
from qmath.exports.onnx.folding import Fold, foldable, real
from qmath.exports.onnx.graph import GraphBuilder, Value, arranged
from qmath.integer.budget import Budget
from qmath.integer.lowering import activations, geometry, layouts, rescaling
from qmath.integer.program import Activation, Shape
from qmath.layers import (
    ACTIVATIONS,
    LAYERS,
    MOVES,
    NORMALIZATION,
    activation_of,
    kind_of,
    supports,
)
from qmath.model import Graph, Node, QatTensor, why_no_graph

__all__ = ["Network", "Quantizers", "Weight", "build", "check_exportable"]

Array = NDArray[Any]

# ONNX's operation of two inputs; sums and averages add.
_COMBINATIONS = {"Subtract": "Sub", "Multiply": "Mul", "Maximum": "Max", "Minimum": "Min"}


@dataclass(frozen=True, eq=False)
class Weight:
    """A quantized weight to be written.

    Attributes
    ----------
    tensor : QatTensor
    layout : str or None
        The order of a kernel's axes, such as ``"HWIO"``.
    factor : ndarray of float64 or None
        What each output channel is multiplied by: a folded batch normalization.
    """

    tensor: QatTensor
    layout: str | None = None
    factor: NDArray[np.float64] | None = None


class Quantizers(Protocol):
    """How a format writes quantizers.

    Attributes
    ----------
    clamps : bool
        Whether what quantizes a value clamps it, so that nothing has to before.
    adds_biases : bool
        Whether a convolution's bias is an addition of its own.
    """

    clamps: bool
    adds_biases: bool

    def weight(self, builder: GraphBuilder, weight: Weight) -> str:
        """Add a weight; return the name of its real values, in ONNX's order of axes."""

    def activation(
        self, builder: GraphBuilder, value: Value, step: str, tensor: str, params: QuantizedRange
    ) -> tuple[str, Value]:
        """Quantize a value; return the name of what tells its integers, and the real values.

        `step` is the name of the quantized tensor in the integer model, `tensor` the name of the
        model's tensor that holds the range.
        """


@dataclass(frozen=True, eq=False)
class Network:
    """A graph that is complete.

    Attributes
    ----------
    model : ModelProto
    export : dict
        What the manifest says of the export: ``format`` and ``options``; and ``names``, that is
        ``inputs`` and ``outputs`` by layer, ``integers`` by step, these with a flag that says
        whether the channels come first; and ``cuts``, if there are any, by the step that stands
        for the layer: the outputs that it reads, and the input that is what it makes.
    """

    model: Any
    export: dict[str, Any]


def check_exportable(bundle: Bundle, format: str) -> Graph:
    """Return the graph of a bundle's model, or raise that there is nothing to write.

    Raises
    ------
    OutputError
        The model holds no layers, or some that are not supported; or test vectors are asked for.
    """
    graph = bundle.model.graph
    if graph is None:
        raise OutputError(
            f"{bundle.model.source}: {why_no_graph(bundle.model)}, so there is no "
            f"network for the format {format!r}; name the file of its architecture, or export to "
            "npz"
        )
    if bundle.program is None:
        raise OutputError(
            f"{bundle.model.source}: the format {format!r} holds a whole network, which this model "
            f"does not give: {bundle.obstacles}; else export to npz"
        )
    missing = sorted({
        node.class_name
        for node in graph.nodes
        if not supports(node.class_name, "onnx") and not is_cut(node)
    })  # fmt: skip
    if missing:
        raise OutputError(
            f"{bundle.model.source}: the format {format!r} has no form of the layers "
            f"{', '.join(missing)}; export to npz"
        )
    if bundle.vectors:
        raise OutputError(f"the format {format!r} holds no test vectors; export them to npz")
    return graph


def build(
    onnx: Any,
    bundle: Bundle,
    quantizers: Quantizers,
    opsets: dict[str, int],
    *,
    format: str,
    options: dict[str, Any],
    fold: bool = False,
    batch: int | str = "N",
) -> Network:
    """Write a model's layers as an ONNX graph.

    Parameters
    ----------
    onnx : module
    bundle : Bundle
    quantizers : Quantizers
    opsets : dict of str to int
        Version of each domain.
    format : str
    options : dict
        As they were given to the format.
    fold : bool
        Multiply the weights' scales by the batch normalizations that follow directly.
    batch : int or str
        How many examples the network takes; a name leaves it open.
    """
    graph = check_exportable(bundle, format)
    assert bundle.program is not None  # checked
    layers = _Layers(onnx, bundle, graph, quantizers, fold)
    inputs = {key: layers.builder.unique(key) for key in bundle.program.inputs}
    # The outputs have their layers' names, as far as these are free.
    outputs = [layers.builder.unique(key) for key in graph.outputs]
    given = {inputs[key]: shape for key, shape in bundle.program.inputs.items()}
    shapes: dict[str, Shape] = {}
    cuts = Cuts(bundle.program, layers, given, shapes)
    for node in graph.nodes:
        if kind_of(node.class_name) == "input":
            shape = bundle.program.inputs[node.name]
            layers.values[node.name] = Value(inputs[node.name], shape)
        else:
            value = cuts.written(node)
            if value is not None:  # else no shape is known there
                layers.values[node.name] = value
    reached = [key for key in graph.outputs if key in layers.values]
    outputs = [outputs[graph.outputs.index(key)] for key in reached]
    for key, output in zip(reached, outputs, strict=True):
        layers.output(layers.values[key], output, shapes)
    if cuts.names:  # after the model's own
        shapes = {name: shapes[name] for name in (*outputs, *shapes)}
    model = layers.builder.model("qmath", given, shapes, opsets, batch)
    names = {"inputs": inputs, "outputs": outputs, "integers": layers.integers}
    if cuts.names:
        names["cuts"] = cuts.names
    return Network(model, {"format": format, "options": options, "names": names})


class _Layers:
    def __init__(
        self, onnx: Any, bundle: Bundle, graph: Graph, quantizers: Quantizers, fold: bool
    ) -> None:
        self.builder = GraphBuilder(onnx, bundle.keys())
        self.bundle, self.model, self.quantizers = bundle, bundle.model, quantizers
        self.values: dict[str, Value] = {}
        self.integers: dict[str, dict[str, Any]] = {}
        self.folds = foldable(bundle, graph) if fold else {}
        self.folded = {fold.node.name for fold in self.folds.values()}

    # ---- one layer

    def written(self, node: Node) -> Value:
        return self.ended(node, self.computed(node))

    def output(self, value: Value, name: str, shapes: dict[str, Shape]) -> None:
        """Make a value an output of the graph, channels last, and add its shape to `shapes`."""
        value = self.builder.channels_last(value)
        self.builder.nodes.append(
            self.builder.onnx.helper.make_node("Identity", [value.name], [name], name=name)
        )
        shapes[name] = value.shape

    def computed(self, node: Node) -> Value:
        """Return what a layer computes before its quantizers and its activation."""
        inputs = [self.values[name] for name in node.inputs]
        axes = layouts.axes_of(node, len(inputs[0].shape))
        self.check_fold(node, len(inputs[0].shape), axes)
        if axes is not None and node.name not in self.folded:
            return elsewhere(self, node, inputs[0], axes)
        return self.of_kind(node, inputs)

    def check_fold(self, node: Node, rank: int, axes: Shape | None) -> None:
        """Fold a batch normalization only if it is of the channels of the layer before."""
        fold = self.folds.get(node.name)
        if fold is not None and layouts.axes_of(fold.node, rank) != axes:
            del self.folds[node.name]
            self.folded.discard(fold.node.name)

    def of_kind(self, node: Node, inputs: list[Value]) -> Value:
        """Return the same of a layer whose channels are the last axis."""
        kind, x = kind_of(node.class_name), inputs[0]
        if kind == "weighted":
            value = self.weighted(node, x)
        elif kind == "normalization":
            value = x if node.name in self.folded else self.normalized(node, x)
        elif kind == "relu":
            value = self.relu(node, x)
        elif kind == "rescaling":
            value = self.rescaled(node, x)
        elif kind in ("sum", "product", "extreme"):
            value = self.combined(node, inputs)
        elif kind == "concatenation":
            value = self.joined(node, inputs)
        elif kind in ("average_pool", "global_average"):
            linear, _ = geometry.average_pool(node, x.shape, Budget())
            value = moves.pooled(
                self.builder, x, node.name, "Average", linear.attributes, linear.shape
            )
        elif kind in ("max_pool", "global_max"):
            _, shape, attributes = geometry.max_pool(node, x.shape)
            value = moves.pooled(self.builder, x, node.name, "Max", attributes, shape)
        elif kind in MOVES:
            value = moves.moved(self.builder, x, node.name, geometry.move(node, x.shape))
        else:
            assert kind in ("identity", "activation")  # `check_exportable` refuses others
            value = x
        return value

    def ended(self, node: Node, value: Value) -> Value:
        """Add the quantizers and the activation that a layer ends with."""
        function = ACTIVATIONS[name := activation_of(node)]
        value = self.quantized(node, value, "pre_activation")
        if name in activations.PIECEWISE and not function.onnx:
            value = self.piecewise(node, value, activations.PIECEWISE[name])
        elif function.kind == "vector":
            value = self.builder.channels_last(value)
            axis = activations.softmax_axis(node, len(value.shape))
            value = self.add(function.op, [value], node, axis=axis)
        elif node.class_name == "ELU":
            value = self.add(function.op, [value], node, alpha=float(node.config.get("alpha", 1)))
        elif name in ("swish", "silu"):
            value = self.add("Mul", [value, self.add("Sigmoid", [value], node)], node)
        elif name in ("hard_swish", "hard_silu"):  # ONNX's own is younger than QONNX's opset
            line = self.add("HardSigmoid", [value], node, alpha=1 / 6, beta=0.5)
            value = self.add("Mul", [value, line], node)
        else:
            inputs = [value, *self.builder.operands(node, name, value)]
            value = self.add(function.op or function.onnx, inputs, node)
        value = self.quantized(node, value, "post_activation")
        return self.quantized(node, value, "output")

    def quantized(self, node: Node, value: Value, which: str) -> Value:
        tensor = f"{node.layer}/{which}"
        if tensor not in self.model.tensors:
            return value
        params = self.bundle.tensors[tensor]
        assert isinstance(params, QuantizedRange)
        step = f"{node.name}/{which}"
        name, value = self.quantizers.activation(self.builder, value, step, tensor, params)
        self.integers[step] = {"name": name, "channels_first": value.channels_first}
        return value

    def add(
        self,
        op: str,
        inputs: Sequence[Value | str],
        node: Node,
        shape: Sequence[int] | None = None,
        **attributes: Any,
    ) -> Value:
        """Add a node; the result has the order of axes of its first input, and its shape."""
        return self.builder.layer(op, inputs, node.name, shape, **attributes)

    # ---- layers with weights

    def weighted(self, node: Node, x: Value) -> Value:
        *inner, last = LAYERS[node.class_name].kernels
        for name in inner:
            x = self.product(node, x, name, None)
        return self.product(node, x, last, self.folds.get(node.name), is_last=True)

    def product(
        self, node: Node, x: Value, name: str, fold: Fold | None, *, is_last: bool = False
    ) -> Value:
        """Write the product with one kernel of a layer, to the last of which the bias is added."""
        layer = LAYERS[node.class_name]
        tensor = self.model.tensors[f"{node.layer}/{name}"]
        layout = self.bundle.manifest["tensors"][tensor.name]["source_layout"]
        assert tensor.values is not None  # else there is no program
        # Only the kernel's shape counts here.
        kernel = np.broadcast_to(np.float32(0), np.shape(tensor.values))
        linear = geometry.weighted(node, x.shape, kernel, name)
        weight = self.weight(tensor, layout, fold)
        rank = len(x.shape)
        is_added = self.quantizers.adds_biases and layer.axes != "IO"
        axes = (1, -1, *(1,) * (rank - 1)) if is_added else (-1,)
        bias = self.bias(node, fold, axes) if is_last else None
        if layer.axes == "IO":
            product = self.add(
                "MatMul", [self.builder.channels_last(x), weight], node, linear.shape
            )
            return product if bias is None else self.add("Add", [product, bias], node)
        x = self.builder.channels_first(x)
        inputs = [] if bias is None or self.quantizers.adds_biases else [bias]
        transposed = layer.axes in ("HWOI", "WOI")
        attributes = (
            windows.of_transposed(linear, x) if transposed else windows.of_convolution(linear, x)
        )
        made = self.add("ConvTranspose" if transposed else "Conv", [x, weight, *inputs], node,
                        linear.shape, **attributes)  # fmt: skip
        return made if bias is None or inputs else self.add("Add", [made, bias], node)

    def weight(
        self,
        tensor: QatTensor,
        layout: str | None,
        fold: Fold | None = None,
        axes: Shape | None = None,
    ) -> str:
        """Return the name of a tensor's real values, in ONNX's order of axes, or in a shape."""
        if tensor.role == "weight":
            factor = fold.factor if fold else None
            return self.quantizers.weight(self.builder, Weight(tensor, layout, factor))
        values = arranged(np.asarray(tensor.values), layout)
        values = values if axes is None else values.reshape(axes)
        if tensor.stored is not None:  # a bias in integers
            step = np.asarray(self.model.tensors[tensor.stored.scale].values, np.float32)
            return self.builder.constant(f"{tensor.name}/real", values.astype(np.float32) * step)
        if values.dtype == np.float32:
            return self.builder.parameter(tensor.name, "FLOAT", values)
        # Of float16, say: what is computed with is float32.
        return self.builder.constant(f"{tensor.name}/float32", values)

    def bias(self, node: Node, fold: Fold | None, axes: Shape) -> str | None:
        tensor = self.model.tensors.get(f"{node.layer}/bias")
        if fold:
            shift = fold.shift + (0 if tensor is None else real(self.bundle, tensor) * fold.factor)
            return self.builder.constant(f"{fold.node.name}/bias", shift.reshape(axes))
        return None if tensor is None else self.weight(tensor, None, axes=axes)

    def normalized(self, node: Node, x: Value) -> Value:
        x = self.builder.channels_first(x)
        names = []
        for key, default in NORMALIZATION.items():
            tensor = self.model.tensors.get(f"{node.layer}/{key}")
            if tensor is None:
                plain = np.full(x.shape[-1], default, np.float32)
                names.append(self.builder.constant(f"{node.name}/{key}", plain))
            else:
                names.append(self.weight(tensor, None))
        epsilon = float(node.config.get("epsilon", 1e-3))
        return self.add("BatchNormalization", [x, *names], node, epsilon=epsilon)

    # ---- layers without

    def relu(self, node: Node, x: Value) -> Value:
        """Write a ReLU with settings of its own, or with slopes, or with a threshold."""
        if node.class_name == "PReLU":
            slopes = self.weight(self.model.tensors[f"{node.layer}/alpha"], None)
            return self.add("PRelu", [self.builder.channels_last(x), slopes], node)
        activation = activations.relu_layer(node)
        if activation is not None:
            return self.piecewise(node, x, activation)
        end = self.builder.constant(f"{node.name}/threshold", activations.threshold_of(node))
        passes = self.add("Cast", [self.add("Greater", [x, end], node)], node, to=1)
        value = self.add("Mul", [x, passes], node)
        limit, slope = node.config.get("max_value"), node.config.get("negative_slope") or 0.0
        if limit is not None:
            value = self.piecewise(node, value, Activation(limit=float(limit)))
        if slope:
            below = self.add(
                "Relu", [self.add("Neg", [self.add("Sub", [x, end], node)], node)], node
            )
            factor = self.builder.constant(f"{node.name}/slope", slope)
            value = self.add("Sub", [value, self.add("Mul", [below, factor], node)], node)
        return value

    def piecewise(self, node: Node, x: Value, activation: Activation | None) -> Value:
        if activation is None:
            return x
        slope, limit = float(activation.slope), float(activation.limit)
        if limit < np.inf and self.is_clamped(node, limit):
            limit = np.inf
        if slope:
            x = self.add("LeakyRelu", [x], node, alpha=slope)
        elif limit == np.inf:
            x = self.add("Relu", [x], node)
        if limit < np.inf:
            high = self.builder.constant(f"{node.name}/max", limit)
            ends = [high] if slope else [self.builder.constant(f"{node.name}/min", 0), high]
            x = self.add("Min" if slope else "Clip", [x, *ends], node)
        return x

    def is_clamped(self, node: Node, limit: float) -> bool:
        """Whether the quantizer right after an activation clamps to this limit, or below it."""
        ends = ["post_activation", "output"]
        if kind_of(node.class_name) == "relu":
            ends = ["pre_activation", *(ends if activation_of(node) == "linear" else [])]
        names = (f"{node.layer}/{end}" for end in ends)
        found = next((name for name in names if name in self.model.tensors), None)
        if found is None or not self.quantizers.clamps:
            return False
        params = self.bundle.tensors[found]
        assert isinstance(params, QuantizedRange)
        highest = 2**params.num_bits - 1 - int(params.zero_point)
        return bool(limit >= (highest - 0.25) * float(params.scale))  # it is rounded to that

    def rescaled(self, node: Node, x: Value) -> Value:
        def weight(name: str) -> Array | None:
            tensor = self.model.tensors.get(f"{node.layer}/{name}")
            return None if tensor is None else np.asarray(tensor.values, np.float32)

        x = self.builder.channels_last(x)
        for op, constant in rescaling.of_layer(node, x.shape, weight):
            x = self.add(op, [x, self.builder.constant(f"{node.name}/constant", constant)], node)
        return x

    def combined(self, node: Node, inputs: list[Value]) -> Value:
        ranks = {len(x.shape) for x in inputs}
        order: Callable[[Value], Value] = self.builder.channels_last
        if len(ranks) == 1 and any(x.channels_first for x in inputs):
            order = self.builder.channels_first
        op = _COMBINATIONS.get(node.class_name, "Add")
        total, *others = (
            moves.unsqueezed(self.builder, order(x), node.name, max(ranks)) for x in inputs
        )
        for x in others:
            total = self.add(op, [total, x], node, np.broadcast_shapes(total.shape, x.shape))
        if node.class_name == "Average":
            count = self.builder.constant(f"{node.name}/count", float(len(inputs)))
            total = self.add("Div", [total, count], node)
        return total

    def joined(self, node: Node, inputs: list[Value]) -> Value:
        rank = len(inputs[0].shape)
        given = node.config.get("axis", -1)
        axis = given - 1 if given > 0 else given % rank
        first = any(x.channels_first for x in inputs)
        order = self.builder.channels_first if first else self.builder.channels_last
        shape = list(inputs[0].shape)
        shape[axis] = sum(x.shape[axis] for x in inputs)
        place = (1 if axis == rank - 1 else axis + 2) if first else axis + 1
        return self.add("Concat", [order(x) for x in inputs], node, shape, axis=place)
