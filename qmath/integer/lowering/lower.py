"""Graph + tensors → Program: fold batch normalization, biases and additions into accumulators.

Between two fake-quantized tensors a model is a sum of integer accumulators, each with a scale, plus
an offset: batch normalization multiplies the scales and moves the offset, an addition joins the
terms, a concatenation places them side by side. Nothing is rounded, so no layout or order of
layers is special; the one rounding happens where training had a fake-quant node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from qmath.errors import MissingSettingsError, QmathError
from qmath.integer import softmax
from qmath.integer.budget import check_size
from qmath.integer.cuts import Layers
from qmath.integer.lowering import activations, geometry, layouts, rescaling
from qmath.integer.lowering.builder import SEVERAL, Builder
from qmath.integer.lowering.cuts import Open, Shapes, UnsupportedError
from qmath.integer.lowering.float_layers.rule import float_layer
from qmath.integer.lowering.masks import MASKED, Masks
from qmath.integer.lowering.operations import Operations, Quantize
from qmath.integer.lowering.rules import RULES
from qmath.integer.lowering.values import Function, Integers, Value
from qmath.integer.program import CutStep, FloatStep, Program, Shape, Step, sources
from qmath.kernels._environment import in_default_environment
from qmath.layers import (
    ACTIVATIONS,
    LAYERS,
    activation_of,
    ends_with_activation,
    supports,
    unknown_of,
)
from qmath.model import Graph, Node, QatModel, QatTensor, ask_for_settings, why_no_graph

__all__ = ["lower"]

_JOINS = ("sum", "product", "extreme", "concatenation")  # kinds that take several inputs


@in_default_environment
def lower(
    model: QatModel,
    input_shapes: Mapping[str, Shape] | None = None,
    quantize: Quantize = QatTensor.quantize,
    layers: Layers | None = None,
) -> Program:
    """Return the integer program of a model.

    A layer that qmath cannot compute is a cut point: the program goes up to it, and on from it as
    far as the shape of what it makes is known.

    Parameters
    ----------
    model : QatModel
        With a graph, and settings known for every tensor.
    input_shapes : mapping of str to tuple, optional
        Shapes without the batch of the inputs, and of the outputs of layers that qmath cannot
        compute, where the model leaves them open.
    quantize : callable, optional
        Returns the integers of a weight, for whoever has made them before.
    layers : mapping of str to callable, optional
        Functions of layers that qmath cannot compute, which tell their shapes where nothing else
        does; see `qmath.integer.cuts.bind`.

    Returns
    -------
    Program

    Raises
    ------
    MissingSettingsError
        A range has no width.
    QmathError
        The model has no graph, or layers that do not fit each other, or one whose name is that of
        a quantized tensor; the message names it.
    """
    if model.graph is None:
        raise QmathError(
            f"{model.source}: {why_no_graph(model)}, so there is nothing to run; "
            "name a file that has them with --architecture (architecture= in Python)"
        )
    stored = [t.name for t in model.tensors.values() if t.stored and not t.stored.is_bias]
    if stored:
        raise QmathError(
            f"{model.source}: Keras itself quantized {', '.join(stored)}, which qmath passes on "
            "and does not run"
        )
    unknown = {
        t.role for t in model.tensors.values() if t.role != "float" and not t.spec.is_complete
    }
    if unknown:
        raise MissingSettingsError(ask_for_settings(model, unknown))
    build = Builder(model, {**model.shapes, **(input_shapes or {})}, Operations(quantize))
    return _program(build, model.graph, Shapes(model.graph, build.input_shapes, layers or {}))


def _program(build: Builder, graph: Graph, shapes: Shapes) -> Program:
    values: dict[str, Value] = {}
    masks, left = Masks(), Open(build.model.tensors)
    for node in graph.nodes:
        why, behind = None, left.before(node)
        if masks.act_on(node):
            why = UnsupportedError(node.name, MASKED, "mask nothing there")
        try:
            if behind:
                value = _behind(build, shapes, node, why, behind)
            elif why is not None:
                value = _cut(build, shapes, node, [values[name] for name in node.inputs], why)
            else:
                value = _layer(build, shapes, node, [values[name] for name in node.inputs])
            if value is not None:
                values[node.name] = value
            left.follow(node, value is not None, build.steps, behind)
        except QmathError:
            raise
        except MemoryError:
            raise QmathError(
                f"{node.name}: the memory that is left does not hold what this {node.class_name} "
                "makes; give the model a smaller input"
            ) from None
        except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise QmathError(
                f"{node.name}: the config of this {node.class_name} is not understood ({error!r})"
            ) from error
    outputs = tuple(
        _finished(build, values[name], name) for name in graph.outputs if name in values
    )
    ends = [value.name for value in map(values.get, left.read) if isinstance(value, Integers)]
    steps = [left.noted(step) for step in _needed(build.steps, {*outputs, *ends})]
    names = Counter([*build.inputs, *(step.name for step in steps)])
    name, count = max(names.items(), key=lambda item: item[1])
    if count > 1:
        raise QmathError(
            f"{name}: this is the name of a layer, and of what another layer's quantizer "
            "makes; rename the layer"
        )
    made, readers = _by_name(steps)
    float_layers = {
        layer.layer: layer.remedy
        for layer in build.float_layers
        if layer.step in made and _counts(made[layer.step], readers.get(layer.step, ()))
    }
    return Program(build.inputs, tuple(steps), outputs, float_layers, tuple(build.notes))


def _layer(build: Builder, shapes: Shapes, node: Node, inputs: Sequence[Value]) -> Value | None:
    """Lower one layer; ``None`` says that nothing is known of what it makes."""
    if node.outputs > 1 or not supports(node.class_name, "run"):
        return _cut(build, shapes, node, inputs)
    mark = build.mark()
    try:
        return _known(build, node, inputs)
    except UnsupportedError as why:
        build.go_back(mark)
        return _cut(build, shapes, node, inputs, why)


def _behind(
    build: Builder,
    shapes: Shapes,
    node: Node,
    why: UnsupportedError | None,
    behind: tuple[str, ...],
) -> Value | None:
    """Lower a layer that follows cuts of unknown shape: only another cut starts again there."""
    if why is None and unknown_of(node) is None:
        return None
    return _cut(build, shapes, node, (), why, behind)


def _known(build: Builder, node: Node, inputs: Sequence[Value]) -> Value:
    """Lower a layer of a known class, with the quantizers and the activation that it ends with."""
    kind = LAYERS[node.class_name].kind
    _check_call(node)
    if kind == "float" and inputs:
        value: Value = float_layer(build, node, inputs)
    else:
        _check_inputs(node, kind, inputs)
        value = layouts.lowered(build, node, inputs, RULES[kind])
    if kind == "input":
        return value
    check_size(node.name, value.shape)
    value = build.quantized(node, value, "pre_activation")
    value = _activated(build, node, value)
    value = build.quantized(node, value, "post_activation")
    return build.quantized(node, value, "output")


def _cut(
    build: Builder,
    shapes: Shapes,
    node: Node,
    inputs: Sequence[Value],
    why: UnsupportedError | None = None,
    behind: tuple[str, ...] = (),
) -> Value | None:
    """Add a cut point for a layer, with the quantizers that are sure to act on what it makes."""
    if not inputs and not behind:
        raise QmathError(f"{node.name}: this {node.class_name} has no inputs, so that it is none")
    if node.outputs > 1:
        build.cut(node, inputs, node.class_name, lambda _: None, SEVERAL, behind=behind)
        return None
    class_name = node.class_name if why else unknown_of(node) or node.class_name
    made = build.cut(
        node, inputs, class_name, lambda step: shapes.of(node, step, inputs), why=why,
        behind=behind,
    )  # fmt: skip
    if made is None:
        return None
    check_size(node.name, made.shape)
    value: Value = made
    if why is not None and why.is_rounded:
        return value
    if ends_with_activation(node.class_name):
        value = build.quantized(node, value, "post_activation")
    return build.quantized(node, value, "output")


def _check_call(node: Node) -> None:
    """Raise if a layer is called with more than its inputs: training=True, or a mask."""
    named = {*node.arguments} - ({"key", "value"} if "Attention" in node.class_name else set())
    if named:
        given = ", ".join(sorted(named))
        raise UnsupportedError(node.name, f"it is called with {given}", f"call it without {given}")


def _check_inputs(node: Node, kind: str, inputs: Sequence[Value]) -> None:
    """Raise unless a layer has as many inputs as its kind, and as many axes as its class."""
    if kind == "input":
        return
    if not inputs or (len(inputs) > 1 and kind not in _JOINS):
        raise QmathError(
            f"{node.name}: this {node.class_name} takes {len(inputs)} inputs in the config, which "
            "it cannot; the file is damaged, save the model again"
        )
    rank = geometry.rank_of(node.class_name)
    if rank is not None and len(inputs[0].shape) != rank + 1:
        raise geometry.misfit(node, inputs[0].shape, f"{rank + 1} axes, channels last")


def _activated(build: Builder, node: Node, value: Value) -> Value:
    name = activation_of(node)
    if name not in ACTIVATIONS:
        made = build.cut(node, [value], name, lambda _: value.shape)
        assert made is not None
        return made
    if name == "linear":
        return value
    if name in activations.PIECEWISE:
        return layouts.activated(build, node, value, partial(_piecewise, build, node, name))
    function = activations.smooth(node, name, len(value.shape))
    lack = ""
    if isinstance(value, Integers):
        if ACTIVATIONS[name].kind == "elementwise":
            return Function(value, function, name=name, kernel=node.config.get("kernel", ""))
        axis, params = activations.softmax_axis(node, len(value.shape)), build.params_after(node)
        error = softmax.error_of(params, value.shape[axis]) if params else 0.0
        if params and error <= softmax.MOST_ERROR:
            return Function(value, function, axis, name)
        lack = f"quantize its output, or leave {name} to the end of the model"
        if params:
            lack = f"give its quantizer a wider range than [{params.min:g}, {params.max:g}]"
    elif LAYERS[node.class_name].kind != "activation":
        lack = (
            f"quantize it before its activation, {name}: give this {node.class_name} a linear "
            f"activation and a quantized output, and {name} to an Activation layer after it"
        )
    return build.float_step(node, [value], function, value.shape, lack=lack, is_function=True)


def _piecewise(build: Builder, node: Node, name: str, value: Value) -> Value:
    value = build.rescaled(node, value, rescaling.of_activation(name))
    return build.activate(node, value, activations.PIECEWISE[name])


def _finished(build: Builder, value: Value, name: str) -> str:
    """Return the step of an output."""
    return value.name if isinstance(value, Integers) else build.floats(value, name).name


def _by_name(steps: Sequence[Step]) -> tuple[dict[str, Step], dict[str, list[Step]]]:
    """Return which step makes each tensor, and which steps read it."""
    readers: dict[str, list[Step]] = {}
    for step in steps:
        for name in sources(step):
            readers.setdefault(name, []).append(step)
    return {step.name: step for step in steps}, readers


def _counts(made: Step, readers: Sequence[Step]) -> bool:
    """Whether a float step is not a function, or a part of one, that the model ends with."""
    return not all(isinstance(step, FloatStep) and step.is_function for step in (made, *readers))


def _needed(steps: list[Step], ends: set[str]) -> list[Step]:
    """Return the steps that these and the cuts depend on, in order."""
    needed = {*ends, *(step.name for step in steps if isinstance(step, CutStep))}
    kept: list[Step] = []
    for step in reversed(steps):
        if step.name in needed:
            kept.append(step)
            needed.update(sources(step))
    return kept[::-1]
