"""The layers that a model computes in integers, and those that it computes in float.

A model that lowers to an integer program is what that program is, and settings that are unknown
change nothing in it. Of any other model, with a layer that cannot be run or an open shape, the
graph and the table of layer classes tell as much as they can.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import Literal

from qmath._text import is_plain
from qmath.errors import QmathError
from qmath.inspection.advice import OTHER_SOURCES, Advice
from qmath.integer.lowering import portability
from qmath.integer.lowering.builder import remedy_of
from qmath.integer.lowering.float_layers.rule import REMEDY
from qmath.integer.lowering.lower import lower
from qmath.integer.program import Program
from qmath.layers import ACTIVATIONS, LAYERS, activation_of, kind_of, unknown_of
from qmath.model import Node, QatModel, QatTensor, own_quantized

__all__ = ["Flow", "follow"]

# The output of a layer: integers with one scale; sums of their products, which a following
# quantizer turns into integers without floats; or floats.
State = Literal["integers", "sums", "float"]

# Kinds of layers that add up integers of several scales, or scale and bend them.
_SUMS = frozenset({
    "sum", "concatenation", "normalization", "relu", "average_pool", "global_average",
})  # fmt: skip
# Kinds that change no value: a quantizer belongs on what is before them.
_KEEPS = frozenset({"identity", "reshape", "permute"})


@dataclass(frozen=True)
class _Tensors:
    """What a model's tensors say of its layers.

    Attributes
    ----------
    names : set of str
    weighted : set of str
        The layers with a quantized weight.
    unseen : set of str
        The weights that a quantizer of the user's own changes.
    """

    names: Set[str]
    weighted: Set[str]
    unseen: Set[str]

    @classmethod
    def of(cls, model: QatModel) -> _Tensors:
        """Read a model once, as layers are many."""
        weights = (name for name, tensor in model.tensors.items() if tensor.role == "weight")
        weighted = {name.rpartition("/")[0] for name in weights}
        return cls(model.tensors.keys(), weighted, {*own_quantized(model)})

    def has(self, node: Node, which: str) -> bool:
        """Return whether a layer has the quantizer of this name."""
        return f"{node.layer}/{which}" in self.names

    def is_rounded(self, node: Node) -> bool:
        """Return whether a layer's own quantizers round what it returns."""
        return self.has(node, "post_activation") or self.has(node, "output")


@dataclass(frozen=True)
class Flow:
    """Whether all layers but the last run in integers (``None``: unknown), and which do not.

    `program` is the integer program, if there is one with unknown settings as they may be.
    """

    integer_only: bool | None
    warnings: tuple[Advice, ...] = ()
    program: Program | None = None


def follow(model: QatModel, ready: Set[str]) -> Flow:
    """Say where a model computes in float before its last layer, and what to do about it.

    Parameters
    ----------
    model : QatModel
        With a graph, or nothing can be said.
    ready : set of str
        Names of the tensors that determine integers.
    """
    if model.graph is None:
        return Flow(None)
    warnings = _follow_graph(model)
    quantized = [tensor for tensor in model.tensors.values() if tensor.role != "float"]
    lost = any(t.spec.is_complete and t.name not in ready for t in quantized)
    if lost or not quantized:
        return Flow(False, warnings)
    try:
        program = lower(_completed(model))
    except QmathError:
        return Flow(not warnings, warnings)
    found = (
        *_of_float_layers(model, program, warnings), *_shapeless(program), *_wide_sums(program),
    )  # fmt: skip
    return Flow(not program.float_layers, found, program)


def _completed(model: QatModel) -> QatModel:
    """Return the model with settings for every quantizer: none decides what runs in float."""

    def complete(tensor: QatTensor) -> QatTensor:
        spec, is_list = tensor.spec, tensor.min is not None and tensor.min.ndim > 0
        spec = replace(
            spec,
            num_bits=spec.num_bits or 8,
            narrow_range=bool(spec.narrow_range),
            per_axis=is_list if spec.per_axis is None else spec.per_axis,
        )
        return replace(tensor, spec=spec)

    tensors = {
        name: tensor if tensor.role == "float" else complete(tensor)
        for name, tensor in model.tensors.items()
    }
    return replace(model, tensors=tensors)


def _of_float_layers(
    model: QatModel, program: Program, warnings: tuple[Advice, ...]
) -> Iterator[Advice]:
    """Yield the graph's advice on each float layer, or, where it has none, the remedy."""
    said: set[str] = set()
    float_layers = program.float_layers
    by_layer: dict[str, list[Advice]] = {}
    for item in warnings:
        by_layer.setdefault(item.where, []).append(item)
    cuts = {cut.name.removesuffix("/activation"): cut.class_name for cut in program.cuts}
    for node in model.graph.nodes if model.graph else ():
        if node.name not in float_layers or node.layer in said:
            continue
        said.add(node.layer)
        if node.name in cuts:
            yield _cut_point(node, cuts[node.name], float_layers[node.name])
            continue
        if node.layer in by_layer:
            yield from by_layer[node.layer]
            continue
        remedy = float_layers[node.name]
        kind = "float-layer" if LAYERS[node.class_name].kernel else "float-function"
        kind = "float-input" if remedy.startswith("quantize its input") else kind
        yield Advice(kind, node.layer, _in_the_middle(node.class_name), remedy)


def _shapeless(program: Program) -> Iterator[Advice]:
    """Ask for the shapes that nothing in the model tells."""
    for cut in program.cuts:
        if not cut.is_shaped:
            note = next(n for n in program.notes if n.startswith(f"{cut.name}: "))
            message, end, remedy = note.removeprefix(f"{cut.name}: ").partition(" left out; ")
            message += end.removesuffix("; ")
            yield Advice("open-shape", cut.name, message, remedy)


def _wide_sums(program: Program) -> Iterator[Advice]:
    """Say of which sums the profile `integer` has few bits of a multiplier."""
    for note in program.notes:
        if portability.FEW_BITS in note:
            where, _, text = note.partition(": ")
            message, _, remedy = text.partition("; ")
            yield Advice("wide-sums", where, message, remedy)


def _follow_graph(model: QatModel) -> tuple[Advice, ...]:
    """Follow integers and floats from the inputs to the outputs, layer by layer."""
    graph = model.graph
    assert graph is not None
    tensors = _Tensors.of(model)
    states: dict[str, State] = {}
    warnings: dict[tuple[str, str], Advice] = {}
    nodes = {node.name: node for node in graph.nodes}
    last = set(graph.outputs) - {name for node in graph.nodes for name in node.inputs}
    for node in graph.nodes:
        states[node.name], found = _compute(tensors, node, states, nodes, is_last=node.name in last)
        for item in found:
            warnings[item.kind, item.where] = item
    return tuple(warnings.values())


def _compute(
    tensors: _Tensors,
    node: Node,
    states: dict[str, State],
    nodes: dict[str, Node],
    *,
    is_last: bool,
) -> tuple[State, list[Advice]]:
    """Return the state of a node's output, and the reasons why the node computes in float."""
    kind = kind_of(node.class_name)
    is_rounded = tensors.is_rounded(node)
    unknown = unknown_of(node)
    if unknown == node.class_name:
        return "integers" if is_rounded else "float", [_cut_point(node, unknown)]
    state, found = _layer(tensors, node, states, nodes)
    if tensors.has(node, "pre_activation"):
        state = "integers"
    if unknown is not None:
        return "integers" if is_rounded else "float", [*found, _cut_point(node, unknown)]
    name = activation_of(node)
    function = ACTIVATIONS[name].kind if name in ACTIVATIONS else None
    if function == "relu" and state == "integers":
        state = "sums"
    if kind == "extreme" and state != "float" and not is_rounded:
        message = _in_the_middle(node.class_name)
        found.append(Advice("float-function", node.layer, message, _annotate(node.layer)))
        state = "float"
    is_table = function in ("elementwise", "vector") and state == "integers" and is_rounded
    if kind is None or not (function in ("linear", "relu") or is_table):
        # The last activation may stay float: nothing before it needs float.
        if not is_last:
            if kind == "activation" and function == "elementwise" and state != "integers":
                found.append(_float_input(node, states, nodes))
            else:
                found.append(_float_function(node, state))
        state = "float"
    return "integers" if is_rounded else state, found


def _layer(
    tensors: _Tensors, node: Node, states: dict[str, State], nodes: dict[str, Node]
) -> tuple[State, list[Advice]]:
    """Return the same of a layer without its quantizers and its activation."""
    fed: set[State] = {states[name] for name in node.inputs}
    state: State = "float" if "float" in fed else "sums" if "sums" in fed else "integers"
    found = []
    kind = kind_of(node.class_name)
    if kind == "input":
        state = "float"
    elif kind == "float":
        message = f"{node.class_name} is computed in float32, with its quantized weights"
        found.append(Advice("float-layer", node.layer, message, REMEDY.format(node.class_name)))
        state = "float"
    elif kind in ("weighted", "product"):
        if state != "integers":
            found.append(_float_input(node, states, nodes))
        if kind != "product" and node.layer not in tensors.weighted:
            found.append(_float_layer(tensors, node))
        state = "float" if found else "sums"
    elif kind in _SUMS or node.config.get("interpolation", "nearest") != "nearest":
        state = "float" if state == "float" else "sums"
    elif kind in ("max_pool", "global_max") and state == "sums" and not tensors.is_rounded(node):
        found.append(_float_input(node, states, nodes))
        state = "float"
    return state, found


def _cut_point(node: Node, unknown: str, remedy: str = "") -> Advice:
    message = f"{unknown} is a cut point: the integer model goes up to it, and on from it"
    return Advice("cut-point", node.layer, message, remedy or remedy_of(unknown))


def _float_layer(tensors: _Tensors, node: Node) -> Advice:
    kernels = LAYERS[node.class_name].kernels
    kernel = " and ".join(kernels)
    message = f"the weights of {node.class_name} were left float"
    remedy = (
        "before quantize_apply, wrap the layer: tfmot.quantization.keras.quantize_annotate_layer("
        f"layer, MyConfig()), where MyConfig.get_weights_and_quantizers returns its {kernel}"
    )
    if any(f"{node.layer}/{name}" in tensors.unseen for name in kernels):
        message = f"the quantizer of the weights of {node.class_name} is not known"
        remedy = OTHER_SOURCES
    elif node.quantize_config is not None:
        config = node.quantize_config if is_plain(node.quantize_config) else "its QuantizeConfig"
        remedy = (
            f"let {config}.get_weights_and_quantizers return its {kernel}, with a quantizer that "
            "keeps its range"
        )
    return Advice("float-layer", node.layer, message, remedy)


def _float_input(node: Node, states: dict[str, State], nodes: dict[str, Node]) -> Advice:
    """Advise on a layer with an unquantized input; name the layer that should get a quantizer."""
    source = next(nodes[name] for name in node.inputs if states[name] != "integers")
    while kind_of(source.class_name) in _KEEPS and source.inputs:
        source = nodes[source.inputs[0]]
    if kind_of(source.class_name) == "input":
        remedy = (
            "quantize the model's input with a tfmot QuantizeLayer after it, as quantize_apply "
            "does with its default scheme"
        )
    else:
        remedy = _annotate(source.layer)
    message = f"its input, from {source.layer}, has no quantizer"
    return Advice("float-input", node.layer, message, remedy)


def _annotate(layer: str) -> str:
    return (
        f"before quantize_apply, annotate {layer} with a QuantizeConfig whose "
        "get_output_quantizers returns [MovingAverageQuantizer(num_bits=N, per_axis=False, "
        "symmetric=False, narrow_range=False)]"
    )


def _float_function(node: Node, state: State) -> Advice:
    """Advise on a function that no table of integers computes, with what comes before it."""
    function, kind = activation_of(node), kind_of(node.class_name)
    known = ACTIVATIONS.get(function)
    if kind is None or known is None:
        what = function if kind is not None and "activation" in node.config else node.class_name
        others = "layer" if kind is None else "activation"
        remedy = (
            f"qmath has no integer form of {what}: use another {others} there, or compute this "
            "layer in float"
        )
    elif state != "integers":
        what = function
        remedy = (
            f"no quantizer comes before {function}: give this {node.class_name} a linear "
            f"activation and a quantized output, and {function} to an Activation layer after it"
        )
    else:
        what, remedy = function, _annotate(node.layer)
    return Advice("float-function", node.layer, _in_the_middle(what), remedy)


def _in_the_middle(what: str) -> str:
    return f"{what} is computed in float in the middle of the model"
