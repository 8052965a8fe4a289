"""The layers that a model computes in integers, and those that it computes in float.

If a model lowers to an integer program, the program decides. If settings are unknown or a layer is
not supported, the graph gives as much as it can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Literal

from qmath.errors import QmathError
from qmath.inspection.advice import Advice
from qmath.integer.lowering.lower import lower
from qmath.layers import activation_of
from qmath.model import Node, QatModel

__all__ = ["Flow", "follow"]

# The output of a layer: integers with one scale; sums of their products, which a following
# quantizer turns into integers without floats; or floats.
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
# Layers that change no value: a quantizer belongs on the layer before them.
_RESHAPES = frozenset({"Dropout", "Flatten", "Permute", "Reshape", "SpatialDropout2D"})
_PIECEWISE_LINEAR = frozenset({"linear", "relu", "relu6"})


@dataclass(frozen=True)
class Flow:
    """Whether all layers but the last run in integers (``None``: unknown), and which do not."""

    integer_only: bool | None
    warnings: tuple[Advice, ...] = ()


def follow(model: QatModel, ready: Set[str]) -> Flow:
    """Say where a model computes in float before its last layer, and what to do about it.

    Parameters
    ----------
    model : QatModel
        With a graph, or nothing can be said.
    ready : set of str
        Names of the tensors whose settings are known.
    """
    if model.graph is None:
        return Flow(None)
    warnings = _follow_graph(model)
    quantized = {tensor.name for tensor in model.tensors.values() if tensor.role != "float"}
    if not quantized or not quantized <= ready:
        return Flow(False, warnings)
    try:
        float_layers = lower(model).float_layers
    except QmathError:
        return Flow(not warnings, warnings)
    return Flow(not float_layers, tuple(_of_float_layers(model, float_layers, warnings)))


def _of_float_layers(
    model: QatModel, float_layers: Mapping[str, str], warnings: tuple[Advice, ...]
) -> Iterator[Advice]:
    """Yield the graph's advice on each float layer, or, where it has none, the remedy."""
    said: set[str] = set()
    for node in model.graph.nodes if model.graph else ():
        if node.name not in float_layers or node.layer in said:
            continue
        said.add(node.layer)
        known = [item for item in warnings if item.where == node.layer]
        if known:
            yield from known
            continue
        remedy = float_layers[node.name]
        kind = "float-layer" if node.class_name in _WEIGHTED else "float-function"
        kind = "float-input" if remedy.startswith("quantize its input") else kind
        message = f"{node.class_name} is computed in float in the middle of the model"
        yield Advice(kind, node.layer, message, remedy)


def _follow_graph(model: QatModel) -> tuple[Advice, ...]:
    """Follow integers and floats from the inputs to the outputs, layer by layer."""
    graph = model.graph
    assert graph is not None
    states: dict[str, State] = {}
    warnings: dict[tuple[str, str], Advice] = {}
    nodes = {node.name: node for node in graph.nodes}
    last = set(graph.outputs) - {name for node in graph.nodes for name in node.inputs}
    for node in graph.nodes:
        states[node.name], found = _compute(model, node, states, nodes, is_last=node.name in last)
        for item in found:
            warnings[item.kind, item.where] = item
    return tuple(warnings.values())


def _compute(
    model: QatModel,
    node: Node,
    states: dict[str, State],
    nodes: dict[str, Node],
    *,
    is_last: bool,
) -> tuple[State, list[Advice]]:
    """Return the state of a node's output, and the reasons why the node computes in float."""
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
    function = activation_of(node)
    known = _WEIGHTED | _SUMS | _KEEPS | {"InputLayer", "Multiply"}
    if node.class_name not in known or function not in _PIECEWISE_LINEAR:
        # The last activation may stay float: nothing before it needs float.
        if not is_last:
            what = node.class_name if node.class_name not in known else function
            found.append(_float_function(node, what))
        state = "float"
    if _has(model, node, "post_activation") or _has(model, node, "output"):
        state = "integers"
    return state, found


def _has(model: QatModel, node: Node, what: str) -> bool:
    """Return whether a layer has a quantized weight, or a quantizer of the given name."""
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
    """Advise on a layer with an unquantized input; name the layer that should get a quantizer."""
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
