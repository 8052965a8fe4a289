"""Where a model computes in integers and where in float, followed through its graph."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from qmath.advice import Advice, activation
from qmath.types import Node, QatModel

__all__ = ["Flow", "follow"]

# What flows out of a layer: integers with one scale; sums of products of such, which a following
# quantizer turns into integers without any float; or floats.
State = Literal["integers", "sums", "float"]

_WEIGHTED = frozenset({
    "Conv1D", "Conv2D", "Conv2DTranspose", "Conv3D", "Dense", "DepthwiseConv2D", "EinsumDense",
    "Embedding", "SeparableConv2D",
})  # fmt: skip
_KEEPS = frozenset({
    "Activation", "Cropping1D", "Cropping2D", "Dropout", "Flatten", "GaussianNoise",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "MaxPooling1D", "MaxPooling2D", "Permute",
    "QuantizeLayer", "ReLU", "RepeatVector", "Reshape", "SpatialDropout1D", "SpatialDropout2D",
    "UpSampling1D", "ZeroPadding1D", "ZeroPadding2D",
})  # fmt: skip
_SUMS = frozenset({
    "Add", "Average", "AveragePooling1D", "AveragePooling2D", "BatchNormalization", "Concatenate",
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "Subtract", "SyncBatchNormalization",
    "UpSampling2D",
})  # fmt: skip
# Layers that change no value: a quantizer belongs on what is before them.
_RESHAPES = frozenset({"Dropout", "Flatten", "Permute", "Reshape", "SpatialDropout2D"})
_PIECEWISE_LINEAR = frozenset({"linear", "relu", "relu6"})


@dataclass(frozen=True)
class Flow:
    """Whether a model needs no float before its last layer (``None``: unknown), and what does."""

    integer_only: bool | None
    warnings: tuple[Advice, ...] = ()


def follow(model: QatModel, ready: Set[str]) -> Flow:
    """Follow integers and floats from the inputs to the outputs.

    Parameters
    ----------
    model : QatModel
        With a graph, or nothing can be said.
    ready : set of str
        Names of the tensors whose settings are known.
    """
    graph = model.graph
    if graph is None:
        return Flow(None)
    states: dict[str, State] = {}
    warnings: dict[tuple[str, str], Advice] = {}
    nodes = {node.name: node for node in graph.nodes}
    last = set(graph.outputs) - {name for node in graph.nodes for name in node.inputs}
    for node in graph.nodes:
        states[node.name], found = _compute(model, node, states, nodes, is_last=node.name in last)
        for item in found:
            warnings[item.kind, item.where] = item
    quantized = {tensor.name for tensor in model.tensors.values() if tensor.role != "float"}
    return Flow(not warnings and bool(quantized) and quantized <= ready, tuple(warnings.values()))


def _compute(
    model: QatModel,
    node: Node,
    states: dict[str, State],
    nodes: dict[str, Node],
    *,
    is_last: bool,
) -> tuple[State, list[Advice]]:
    """Return the state of a node's output, and what keeps the node from computing in integers."""
    fed: set[State] = {states[name] for name in node.inputs}
    state: State = "float" if "float" in fed else "sums" if "sums" in fed else "integers"
    found = []
    if node.class_name == "InputLayer":
        state = "float"
    elif node.class_name in _WEIGHTED or node.class_name == "Multiply":
        if state != "integers" and node.class_name != "Embedding":
            found.append(_float_input(node, states, nodes))
        if node.class_name in _WEIGHTED and not _has(model, node, "weight"):
            found.append(_float_layer(node))
        state = "float" if found else "sums"
    elif node.class_name in _SUMS:
        state = "float" if state == "float" else "sums"
    function = activation(node)
    known = _WEIGHTED | _SUMS | _KEEPS | {"InputLayer", "Multiply"}
    if node.class_name not in known or function not in _PIECEWISE_LINEAR:
        # The last layer's function needs no float before it; an argmax does without the function.
        if not is_last:
            what = node.class_name if node.class_name not in known else function
            found.append(_float_function(node, what))
        state = "float"
    if _has(model, node, "post_activation") or _has(model, node, "output"):
        state = "integers"
    return state, found


def _has(model: QatModel, node: Node, what: str) -> bool:
    """Whether a layer has a quantized weight, or a quantizer of the given name."""
    if what != "weight":
        return f"{node.layer}/{what}" in model.tensors
    return any(
        tensor.role == "weight" and name.rpartition("/")[0] == node.layer
        for name, tensor in model.tensors.items()
    )


def _float_layer(node: Node) -> Advice:
    return Advice(
        "float-layer",
        node.layer,
        f"the weights of {node.class_name} were left float",
        "before quantize_apply, wrap the layer: tfmot.quantization.keras.quantize_annotate_layer("
        "layer, MyConfig()), where MyConfig.get_weights_and_quantizers returns its kernel",
    )


def _float_input(node: Node, states: dict[str, State], nodes: dict[str, Node]) -> Advice:
    """Advise on a layer of which an input has no quantizer; name the layer that should get one."""
    source = next(nodes[name] for name in node.inputs if states[name] != "integers")
    while source.class_name in _RESHAPES and source.inputs:
        source = nodes[source.inputs[0]]
    if source.class_name == "InputLayer":
        remedy = (
            "quantize the model's input with a tfmot QuantizeLayer after it, as quantize_apply "
            "does with its default scheme"
        )
    else:
        remedy = (
            f"before quantize_apply, annotate {source.layer} with a QuantizeConfig whose "
            "get_output_quantizers returns [MovingAverageQuantizer(num_bits=N, per_axis=False, "
            "symmetric=False, narrow_range=False)]"
        )
    message = f"its input, from {source.layer}, has no quantizer"
    return Advice("float-input", node.layer, message, remedy)


def _float_function(node: Node, function: str) -> Advice:
    return Advice(
        "float-function",
        node.layer,
        f"{function} is computed in float in the middle of the model",
        "use relu or a linear activation there, or compute this layer in float or by a table "
        "of its quantized inputs",
    )
