"""Graph + tensors → Program: fold batch normalization, biases and additions into accumulators.

Between two fake-quantized tensors a model is a sum of integer accumulators, each with a scale, plus
an offset: batch normalization multiplies the scales and moves the offset, an addition joins the
terms, a concatenation places them side by side. Nothing is rounded, so no layout or order of
layers is special; the one rounding happens where training had a fake-quant node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import MissingSettingsError, QmathError
from qmath.integer.lowering import functions, geometry, guards
from qmath.integer.lowering.functions import relu_layer
from qmath.integer.lowering.params import quant_params, width_and_steps
from qmath.integer.lowering.sums import ZERO, can_pool, joined_activation, moved, normalized
from qmath.integer.lowering.values import FloatLayer, Floats, Function, Integers, Value
from qmath.integer.program import (
    Activation,
    FloatStep,
    Linear,
    MoveStep,
    Normalization,
    Origin,
    Program,
    QuantizeStep,
    Requantize,
    Shape,
    Step,
    TableStep,
    Term,
    UnroundedSum,
    sources,
)
from qmath.model import Node, QatModel, QatTensor, ask_for_settings

__all__ = ["lower"]

Array = NDArray[Any]
IDENTITY = ("Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout1D", "SpatialDropout2D",
            "ActivityRegularization", "QuantizeLayer")  # fmt: skip


def lower(model: QatModel, input_shapes: Mapping[str, Shape] | None = None) -> Program:
    """Return the integer program of a model.

    Parameters
    ----------
    model : QatModel
        With a graph, and settings known for every tensor.
    input_shapes : mapping of str to tuple, optional
        Shapes of the inputs without the batch, where the model leaves them open.

    Returns
    -------
    Program

    Raises
    ------
    MissingSettingsError
        A range has no width.
    QmathError
        The model has no graph, or a layer that is not supported, or one whose name is that of a
        quantized tensor; the message names it.
    """
    if model.graph is None:
        raise QmathError(
            f"{model.source}: the file holds no layers, only tensors, so there is nothing to run; "
            "name a file that has them with --architecture (architecture= in Python)"
        )
    stored = [t.name for t in model.tensors.values() if t.stored]
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
    return _Lowering(model, input_shapes or {}).run()


class _Lowering:
    def __init__(self, model: QatModel, input_shapes: Mapping[str, Shape]) -> None:
        assert model.graph is not None
        self.model, self.graph = model, model.graph
        self.input_shapes = input_shapes
        self.steps: list[Step] = []
        self.values: dict[str, Value] = {}
        self.inputs: dict[str, Shape] = {}
        self.float_layers: list[FloatLayer] = []
        self.notes: list[str] = []

    def run(self) -> Program:
        for node in self.graph.nodes:
            try:
                self.values[node.name] = self.lower_node(node)
            except QmathError:
                raise
            except (LookupError, TypeError, ValueError, ArithmeticError) as error:
                raise QmathError(
                    f"{node.name}: the config of this {node.class_name} is not "
                    f"understood ({error!r})"
                ) from error
        outputs = tuple(self.finish(name) for name in self.graph.outputs)
        self.steps = _needed(self.steps, outputs)
        names = Counter([*self.inputs, *(step.name for step in self.steps)])
        name, count = max(names.items(), key=lambda item: item[1])
        if count > 1:
            raise QmathError(
                f"{name}: this is the name of a layer, and of what another layer's quantizer "
                "makes; rename the layer"
            )
        float_layers = {
            layer.layer: layer.remedy for layer in self.float_layers if self.counts(layer)
        }
        return Program(self.inputs, tuple(self.steps), outputs, float_layers, tuple(self.notes))

    def counts(self, layer: FloatLayer) -> bool:
        """Whether a step runs and is not a function, or a part of one, that the model ends with."""
        made = [step for step in self.steps if step.name == layer.step]
        readers = [step for step in self.steps if layer.step in sources(step)]
        return bool(made) and not all(
            isinstance(step, FloatStep) and step.is_function for step in (*made, *readers)
        )

    def finish(self, name: str) -> str:
        """Return the step of an output."""
        value = self.values[name]
        if isinstance(value, (Integers, Floats)):
            return value.name
        return self.floats(value, name).name

    # ---- one node

    def lower_node(self, node: Node) -> Value:
        inputs = [self.values[name] for name in node.inputs]
        value: Value
        if node.class_name == "InputLayer":
            return self.lower_input(node)
        if node.class_name in geometry.WEIGHTED:
            value = self.lower_weighted(node, inputs[0])
        elif node.class_name == "BatchNormalization":
            value = self.lower_batch_normalization(node, inputs[0])
        elif node.class_name in ("ReLU", "LeakyReLU"):
            value = self.activate(node, inputs[0], relu_layer(node))
        elif node.class_name in ("Activation", "Softmax"):
            value = inputs[0]
        elif node.class_name in ("Add", "Subtract"):
            value = self.lower_add(node, inputs)
        elif node.class_name == "Concatenate":
            value = self.lower_concatenate(node, inputs)
        elif node.class_name in (*geometry.POOLS, *geometry.GLOBAL_POOLS):
            linear, count = geometry.average_pool(node, inputs[0].shape)
            value = self.apply(node, inputs[0], linear, 1 / count)
        elif node.class_name in (*geometry.MAX_POOLS, *geometry.GLOBAL_MAX_POOLS):
            value = self.lower_max_pool(node, inputs[0])
        elif node.class_name in geometry.MOVES:
            value = self.apply(node, inputs[0], geometry.move(node, inputs[0].shape))
        elif node.class_name in IDENTITY:
            value = inputs[0]
        else:
            raise QmathError(f"{node.name}: layers of class {node.class_name} are not supported")
        return self.lower_activation(node, value)

    def lower_input(self, node: Node) -> Value:
        declared = node.config.get("batch_input_shape") or node.config.get("batch_shape") or [None]
        shape = tuple(declared[1:])
        if None in shape or len(declared) < 2:
            shape = tuple(self.input_shapes.get(node.name, (None,)))
        if None in shape or not shape:
            raise QmathError(
                f"{node.name}: the model leaves its input's shape open, {declared[1:]}; name the "
                "data as the input, or give its shape as input_shapes"
            )
        self.inputs[node.name] = shape
        return Floats(node.name, shape)

    def lower_activation(self, node: Node, value: Value) -> Value:
        """Apply the quantizers and the activation that a layer ends with."""
        name = functions.activation_of(node)
        value = self.quantized(node, value, "pre_activation")
        if name in functions.PIECEWISE:
            value = self.activate(node, value, functions.PIECEWISE[name])
        elif name not in functions.SMOOTH:
            raise QmathError(f"{node.name}: the activation {name!r} is not supported")
        elif isinstance(value, Integers) and name in functions.ELEMENTWISE:
            value = Function(value, functions.SMOOTH[name])
        else:
            if node.config.get("axis", -1) not in (-1, len(value.shape)):
                raise QmathError(
                    f"{node.name}: a softmax over axis {node.config['axis']} is not "
                    "supported; only the last one is"
                )
            apply = functions.SMOOTH[name]
            value = self.float_step(node, [value], apply, value.shape, is_function=True)
        value = self.quantized(node, value, "post_activation")
        return self.quantized(node, value, "output")

    # ---- layers

    def lower_weighted(self, node: Node, value: Value) -> Value:
        weight = geometry.WEIGHTED[node.class_name]
        tensor = self.tensor(node, weight)
        if tensor.role == "weight" and isinstance(value, Integers):
            q = tensor.quantize()
            centred = q.values.astype(np.int32) - q.zero_point
            scale = q.scale.astype(np.float64)
            linear = replace(geometry.weighted(node, value.shape, centred), name=tensor.name)
            width, steps = width_and_steps(tensor)
            if node.class_name == "DepthwiseConv2D" and scale.ndim:
                scale, width = (np.tile(a, centred.shape[2]) for a in (scale, width))
            if node.class_name != "Conv2DTranspose" or not scale.ndim:
                self.notes += guards.of_weights(tensor.name, scale)
                bias = self.bias(node)
                origin = Origin(width, steps, bias.astype(np.float32))
                term = Term(value.name, (linear,), value.params.scale * scale, value.params, origin)
                return UnroundedSum((term,), bias, linear.shape)
            reason = "the scales of its kernel run along the summed axis"
        elif tensor.role == "weight":
            reason = f"quantize its input, the output of {node.inputs[0]}"
        else:
            reason = "quantize its weights"
            if not isinstance(value, Integers):
                reason += f" and its input, the output of {node.inputs[0]}"
        linear = geometry.weighted(node, value.shape, self.real(tensor))
        bias = self.bias(node).astype(np.float32)

        def apply(x: Array) -> Array:
            return linear.apply(x, linear.weights) + bias

        return self.float_step(node, [value], apply, linear.shape, reason)

    def lower_batch_normalization(self, node: Node, value: Value) -> Value:
        if node.config.get("axis") not in (None, -1, [len(value.shape)], len(value.shape), [-1]):
            raise QmathError(
                f"{node.name}: batch normalization of axis {node.config['axis']} is "
                "not supported; only the last one is"
            )
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        given = (self.model.tensors.get(f"{node.layer}/{name}") for name in names)
        defaults = (1.0, 0.0, 0.0, 1.0)
        gamma, beta, mean, variance = (
            np.float64(default) if tensor is None else self.real(tensor).astype(np.float64)
            for tensor, default in zip(given, defaults, strict=True)
        )
        epsilon = node.config.get("epsilon", 1e-3)
        if not (variance + epsilon > 0).all():
            raise QmathError(
                f"{node.layer}/moving_variance: {variance.min():g} with epsilon {epsilon:g} has no "
                "square root; the file was damaged, or training diverged"
            )
        factor = gamma / np.sqrt(variance + epsilon)
        shift = beta - mean * factor
        accumulator = self.accumulator(value)
        if accumulator is None or accumulator.activation is not None:
            f, s = factor.astype(np.float32), shift.astype(np.float32)
            return self.float_step(node, [value], lambda x: x * f + s, value.shape)
        self.notes += guards.of_normalization(node.name, factor, accumulator.terms)
        g, b, m, v = (np.asarray(array, np.float32) for array in (gamma, beta, mean, variance))
        normalization = Normalization(g, b, m, v, epsilon)
        terms = tuple(
            replace(t, scale=t.scale * factor, origin=normalized(t, normalization))
            for t in accumulator.terms
        )
        return replace(accumulator, terms=terms, offset=accumulator.offset * factor + shift)

    def lower_add(self, node: Node, values: list[Value]) -> Value:
        signs = [1.0, -1.0 if node.class_name == "Subtract" else 1.0, *(1.0,) * len(values)]
        parts = [self.accumulator(value) for value in values]
        if all(part is not None and part.activation is None for part in parts):
            sums = [part for part in parts if part is not None]
            if len({part.shape for part in sums}) == 1:
                terms = [
                    replace(t, scale=t.scale * sign)
                    for part, sign in zip(sums, signs, strict=False)
                    for t in part.terms
                ]
                offset = sum((p.offset * s for p, s in zip(sums, signs, strict=False)), ZERO)
                return UnroundedSum(tuple(terms), np.asarray(offset), sums[0].shape)
        shape = np.broadcast_shapes(*(value.shape for value in values))

        add = partial(functions.total, signs=signs[: len(values)])
        return self.float_step(node, values, add, shape)

    def lower_concatenate(self, node: Node, values: list[Value]) -> Value:
        rank = len(values[0].shape)
        axis = node.config.get("axis", -1)
        if axis == 0 or not -rank <= axis <= rank:
            raise QmathError(f"{node.name}: concatenation along axis {axis} is not supported")
        axis = axis - 1 if axis > 0 else axis % rank
        lengths = [value.shape[axis] for value in values]
        parts = [self.accumulator(value) for value in values]
        activations = [part.activation for part in parts if part]
        activation = joined_activation(activations, lengths) if activations else None
        # Only channels can have activations of their own.
        is_mixed = activation is not None and np.ndim(activation.slope) and axis < rank - 1
        if len(activations) < len(parts) or is_mixed:
            shape = (*values[0].shape[:axis], sum(lengths), *values[0].shape[axis + 1 :])

            def join(*arrays: Array) -> Array:
                return np.concatenate(arrays, axis + 1)

            return self.float_step(node, values, join, shape)
        terms: list[Term] = []
        offset: Array = ZERO
        for i, part in enumerate(parts):
            assert part is not None
            pads = [(0, 0)] * rank
            pads[axis] = (sum(lengths[:i]), sum(lengths[i + 1 :]))
            placed = moved(part, geometry.zero_pad(pads, part.shape), 1.0)
            terms += placed.terms
            offset = offset + placed.offset
        return UnroundedSum(tuple(terms), offset, placed.shape, activation)

    def lower_max_pool(self, node: Node, value: Value) -> Value:
        apply, shape, attributes = geometry.max_pool(node, value.shape)
        if isinstance(value, Integers):
            fill = float(value.params.limits[0])
            move = {"kind": "pool_max", **attributes}
            self.steps.append(
                MoveStep(
                    node.name, value.name, partial(apply, fill=fill), value.params, shape, move
                )
            )
            return Integers(node.name, value.params, shape)
        return self.float_step(node, [value], partial(apply, fill=-np.inf), shape)

    # ---- values

    def apply(self, node: Node, value: Value, linear: Linear, factor: Any = 1.0) -> Value:
        """Apply an operation without weights: it moves values or sums them."""
        accumulator = self.accumulator(value)
        sums = linear.kind == "pool_sum"
        if isinstance(value, Integers) and not sums:
            apply = partial(_without_weights, linear)
            self.steps.append(
                MoveStep(
                    node.name,
                    value.name,
                    apply,
                    value.params,
                    linear.shape,
                    {"kind": linear.kind, **linear.attributes},
                )
            )
            return Integers(node.name, value.params, linear.shape)
        if accumulator is None or (sums and not can_pool(accumulator)):
            f = np.asarray(factor, np.float32)
            return self.float_step(
                node, [value], lambda x: linear.apply(x, None) * f, linear.shape,
                is_function=not sums,
            )  # fmt: skip
        return moved(accumulator, linear, factor)

    def activate(self, node: Node, value: Value, activation: Activation | None) -> Value:
        if activation is None:
            return value
        accumulator = self.accumulator(value)
        before = accumulator.activation if accumulator else None
        if accumulator is None or (before and (before.leaks or activation.leaks)):
            apply = partial(functions.piecewise, activation=activation)
            return self.float_step(node, [value], apply, value.shape, is_function=True)
        limit = np.minimum(activation.limit, before.limit) if before else activation.limit
        return replace(accumulator, activation=Activation(activation.slope, limit))

    def quantized(self, node: Node, value: Value, which: str) -> Value:
        """Round a value where training did, if it did."""
        tensor = self.model.tensors.get(f"{node.layer}/{which}")
        if tensor is None:
            return value
        name, params = f"{node.name}/{which}", quant_params(tensor)
        step: Step
        if isinstance(value, Floats):
            step = QuantizeStep(name, value.name, params, value.shape)
        elif isinstance(value, Function):
            table = functions.table(value.function, value.source.params, params)
            step = TableStep(name, value.source.name, table, params, value.shape)
        else:
            accumulator = self.accumulator(value)
            assert accumulator is not None
            step = Requantize(name, accumulator, params)
        self.steps.append(step)
        self.notes += guards.of_range(name, params)
        return Integers(name, params, value.shape)

    def accumulator(self, value: Value) -> UnroundedSum | None:
        """Return the value as an unrounded sum, or ``None`` if it is float."""
        if isinstance(value, UnroundedSum):
            return value
        if isinstance(value, Integers):
            term = Term(value.name, (), np.asarray(value.params.scale), value.params)
            return UnroundedSum((term,), ZERO, value.shape)
        return None

    def floats(self, value: Value, name: str) -> Floats:
        """Return the value in float32, by a step if there is none yet."""
        if isinstance(value, Floats):
            return value
        if isinstance(value, Function):
            source = self.accumulator(value.source)
            assert source is not None
            step = FloatStep(name, (source,), value.function, value.shape)
        else:
            source = self.accumulator(value)
            assert source is not None
            step = FloatStep(name, (source,), _same, value.shape)
        self.steps.append(step)
        return Floats(step.name, value.shape)

    def float_step(
        self,
        node: Node,
        values: list[Value],
        apply: Callable[..., Array],
        shape: Shape,
        remedy: str = "",
        is_function: bool = False,
    ) -> Floats:
        """Add a step in float32: a float layer, or a function that the model ends with."""
        sources: list[str | UnroundedSum] = []
        for i, value in enumerate(values):
            if isinstance(value, Function):
                value = self.floats(value, f"{node.name}/input{i}")
            accumulator = self.accumulator(value)
            sources.append(accumulator if accumulator else value.name)  # type: ignore[union-attr]
        taken = {step.name for step in self.steps}
        name = node.name if node.name not in taken else f"{node.name}/activation"
        follows = [v.name for v in values if isinstance(v, Floats) and v.name not in self.inputs]
        if remedy or not follows:  # else the step that it follows is the one to quantize
            feeds = "input, the output" if len(values) == 1 else "inputs, the outputs"
            remedy = remedy or f"quantize its {feeds} of {', '.join(node.inputs)}"
            self.float_layers.append(FloatLayer(node.name, name, remedy))
        self.steps.append(FloatStep(name, tuple(sources), apply, tuple(shape), is_function))
        return Floats(name, tuple(shape))

    # ---- tensors

    def tensor(self, node: Node, name: str) -> QatTensor:
        try:
            return self.model.tensors[f"{node.layer}/{name}"]
        except KeyError:
            raise QmathError(f"{node.layer}/{name} is missing from {self.model.source}") from None

    def real(self, tensor: QatTensor) -> Array:
        """Return the float32 values that inference uses."""
        if tensor.role == "weight":
            return tensor.quantize().dequantize()
        values = np.asarray(tensor.values, np.float32)
        if not np.isfinite(values).all():
            raise QmathError(
                f"{tensor.name} holds NaN or infinities, so training diverged; no "
                "integers stand for them"
            )
        return values

    def bias(self, node: Node) -> Array:
        tensor = self.model.tensors.get(f"{node.layer}/bias")
        return ZERO if tensor is None else self.real(tensor).astype(np.float64)


def _same(x: Array) -> Array:
    return x


def _needed(steps: list[Step], outputs: tuple[str, ...]) -> list[Step]:
    """Return the steps that the outputs depend on, in order."""
    needed = set(outputs)
    kept: list[Step] = []
    for step in reversed(steps):
        if step.name in needed:
            kept.append(step)
            needed.update(sources(step))
    return kept[::-1]


def _without_weights(linear: Linear, x: Array) -> Array:
    return linear.apply(x, None)
