"""How a layer of each kind is lowered: one function each.

A rule takes the builder, the layer's node and the values of its inputs, and returns the layer's
value before the activation and quantizers that it ends with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.budget import check_size
from qmath.integer.lowering import activations, geometry, portability
from qmath.integer.lowering.builder import Builder
from qmath.integer.lowering.params import width_and_steps
from qmath.integer.lowering.sums import ZERO, joined_activation, moved, normalized
from qmath.integer.lowering.values import Floats, Integers, Value
from qmath.integer.program import MoveStep, Normalization, Origin, Term, UnroundedSum
from qmath.layers import LAYERS, MOVES, NORMALIZATION
from qmath.model import Node

__all__ = ["RULES"]

Array = NDArray[Any]
Rule = Callable[[Builder, Node, Sequence[Value]], Value]


def _input(build: Builder, node: Node, _: Sequence[Value]) -> Value:
    declared = node.config.get("batch_input_shape") or node.config.get("batch_shape") or [None]
    shape = tuple(declared[1:])
    if None in shape or len(declared) < 2:
        shape = tuple(build.input_shapes.get(node.name, (None,)))
    if None in shape or not shape:
        raise QmathError(
            f"{node.name}: the model leaves its input's shape open, {declared[1:]}; name the "
            "data as the input, or give its shape as input_shapes"
        )
    check_size(node.name, shape)
    build.inputs[node.name] = shape
    return Floats(node.name, shape)


def _identity(_build: Builder, _node: Node, values: Sequence[Value]) -> Value:
    return values[0]


def _weighted(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    value, layer = values[0], LAYERS[node.class_name]
    tensor = build.tensor(node, layer.kernel)
    if tensor.role == "weight" and isinstance(value, Integers):
        linear, scale = build.operations.of(node, tensor, value.shape)
        width, steps = width_and_steps(tensor)
        if "M" in layer.axes and scale.ndim:
            repeats = np.asarray(linear.weights).shape[2]
            scale, width = (np.tile(a, repeats) for a in (scale, width))
        if layer.axes[-1] != "I" or not scale.ndim:
            build.notes += portability.of_weights(tensor.name, scale)
            bias = build.bias(node, linear.shape[-1])
            origin = Origin(width, steps, bias.astype(np.float32))
            term = Term(value.name, (linear,), value.params.scale * scale, value.params, origin)
            return UnroundedSum((term,), bias, linear.shape)
        reason = "train it with per_axis=False: its kernel's scales run along the summed axis"
    elif tensor.role == "weight":
        reason = f"quantize its input, the output of {node.inputs[0]}"
    else:
        reason = "quantize its weights"
        if tensor.name in build.unseen:
            reason = "make its own quantizer known (SavedModel, qmath.from_keras, qmath recover)"
        if not isinstance(value, Integers):
            verb = "quantize " if tensor.name in build.unseen else ""
            reason += f" and {verb}its input, the output of {node.inputs[0]}"
    linear = geometry.weighted(node, value.shape, build.real(tensor))
    bias = build.bias(node, linear.shape[-1]).astype(np.float32)

    def apply(x: Array) -> Array:
        return linear.apply(x, linear.weights) + bias

    constants = (np.asarray(linear.weights), bias)
    return build.float_step(node, [value], apply, linear.shape, reason, constants=constants)


def _normalization(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    value = values[0]
    if node.config.get("axis") not in (None, -1, [len(value.shape)], len(value.shape), [-1]):
        raise QmathError(
            f"{node.name}: batch normalization of axis {node.config['axis']} is "
            "not supported; only the last one is"
        )
    given = {key: build.model.tensors.get(f"{node.layer}/{key}") for key in NORMALIZATION}
    gamma, beta, mean, variance = (
        np.float64(NORMALIZATION[key]) if tensor is None else build.real(tensor).astype(np.float64)
        for key, tensor in given.items()
    )
    for key, array in zip(NORMALIZATION, (gamma, beta, mean, variance), strict=True):
        if array.shape not in ((), value.shape[-1:]):
            raise QmathError(
                f"{node.layer}/{key}: it has the shape {array.shape}, and the input of its layer "
                f"has {value.shape[-1]} channels; {geometry.DISAGREES}"
            )
    epsilon = node.config.get("epsilon", 1e-3)
    if not (variance + epsilon > 0).all():
        raise QmathError(
            f"{node.layer}/moving_variance: {variance.min():g} with epsilon {epsilon:g} has no "
            "square root; the file was damaged, or training diverged"
        )
    factor = gamma / np.sqrt(variance + epsilon)
    shift = beta - mean * factor
    accumulator = build.accumulator(value)
    if accumulator is None or accumulator.activation is not None:
        f, s = factor.astype(np.float32), shift.astype(np.float32)
        return build.float_step(
            node, [value], lambda x: x * f + s, value.shape, constants=(factor, shift)
        )
    build.budget.spend_again(node.name, accumulator)
    build.notes += portability.of_normalization(node.name, factor, accumulator.terms)
    g, b, m, v = (np.asarray(array, np.float32) for array in (gamma, beta, mean, variance))
    normalization = Normalization(g, b, m, v, epsilon)
    terms = tuple(
        replace(t, scale=t.scale * factor, origin=normalized(t, normalization))
        for t in accumulator.terms
    )
    return replace(accumulator, terms=terms, offset=accumulator.offset * factor + shift)


def _relu(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    return build.activate(node, values[0], activations.relu_layer(node))


def _sum(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    if node.class_name == "Subtract" and len(values) != 2:
        raise QmathError(f"{node.name}: it subtracts two inputs, and has {len(values)}")
    signs = [1.0, -1.0 if node.class_name == "Subtract" else 1.0, *(1.0,) * len(values)]
    lack = ""
    if not any(build.is_obstacle(value) for value in values):
        sums = [part for value in values if (part := build.accumulator(value)) is not None]
        shapes = dict.fromkeys(part.shape for part in sums)
        held = " and ".join(map(str, shapes))
        lack = f"give it inputs of one shape; it is a limit of qmath to add no integers of {held}"
        for part in sums:
            build.budget.spend_again(node.name, part)
        if len(shapes) == 1:
            terms = [
                replace(t, scale=t.scale * sign)
                for part, sign in zip(sums, signs, strict=False)
                for t in part.terms
            ]
            offset = sum((p.offset * s for p, s in zip(sums, signs, strict=False)), ZERO)
            return UnroundedSum(tuple(terms), np.asarray(offset), sums[0].shape)
    try:
        shape = np.broadcast_shapes(*(value.shape for value in values))
    except ValueError:
        raise geometry.misfit(node, values[0].shape, "inputs that broadcast") from None

    add = partial(activations.total, signs=signs[: len(values)])
    return build.float_step(node, values, add, shape, lack=lack)


def _concatenation(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    rank = len(values[0].shape)
    axis = node.config.get("axis", -1)
    if axis == 0 or not -rank <= axis <= rank:
        raise QmathError(f"{node.name}: concatenation along axis {axis} is not supported")
    axis = axis - 1 if axis > 0 else axis % rank
    others = {value.shape[:axis] + value.shape[axis + 1 :] for value in values}
    if len(others) > 1 or {len(value.shape) for value in values} != {rank}:
        raise geometry.misfit(
            node, values[0].shape, f"inputs that differ along axis {axis + 1} only"
        )
    lengths = [value.shape[axis] for value in values]
    parts = [build.accumulator(value) for value in values]
    activations = [part.activation for part in parts if part]
    activation = joined_activation(activations, lengths) if activations else None
    # Only channels can have activations of their own.
    is_mixed = activation is not None and np.ndim(activation.slope) and axis < rank - 1
    if len(activations) < len(parts) or is_mixed:
        shape = (*values[0].shape[:axis], sum(lengths), *values[0].shape[axis + 1 :])

        def join(*arrays: Array) -> Array:
            return np.concatenate(arrays, axis + 1)

        return build.float_step(node, values, join, shape, lack=_lack_of_join(build, node, values))
    terms: list[Term] = []
    offset: Array = ZERO
    for i, part in enumerate(parts):
        assert part is not None
        pads = [(0, 0)] * rank
        pads[axis] = (sum(lengths[:i]), sum(lengths[i + 1 :]))
        pad = geometry.zero_pad(pads, part.shape)
        placed = moved(part, pad, 1.0, node.name, build.budget)
        terms += placed.terms
        offset = offset + placed.offset
    return UnroundedSum(tuple(terms), offset, placed.shape, activation)


def _lack_of_join(build: Builder, node: Node, values: Sequence[Value]) -> str:
    """Say that nothing is lacking where floats are joined and then quantized, as TFMOT does it."""
    is_rounded = any(
        f"{node.layer}/{which}" in build.model.tensors for which in ("post_activation", "output")
    )
    floats = [value for value in values if build.is_obstacle(value)]
    if not is_rounded or not all(isinstance(value, Floats) for value in floats):
        return ""
    return (
        "nothing is lacking in the model; it is a limit of qmath to join integers only, and not to "
        "round the parts by the quantizer that follows"
    )


def _average(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    linear, count = geometry.average_pool(node, values[0].shape, build.budget)
    return build.apply(node, values[0], linear, 1 / count)


def _maximum(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    value = values[0]
    apply, shape, attributes = geometry.max_pool(node, value.shape)
    if isinstance(value, Integers):
        fill = float(value.params.limits[0])
        move = {"kind": "pool_max", **attributes}
        build.steps.append(
            MoveStep(node.name, value.name, partial(apply, fill=fill), value.params, shape, move)
        )
        return Integers(node.name, value.params, shape)
    return build.float_step(node, [value], partial(apply, fill=-np.inf), shape)


def _move(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    return build.apply(node, values[0], geometry.move(node, values[0].shape))


RULES: Mapping[str, Rule] = {
    "input": _input,
    "identity": _identity,
    "activation": _identity,  # which every layer may end with
    "weighted": _weighted,
    "normalization": _normalization,
    "relu": _relu,
    "sum": _sum,
    "concatenation": _concatenation,
    "average_pool": _average,
    "global_average": _average,
    "max_pool": _maximum,
    "global_max": _maximum,
    **dict.fromkeys(MOVES, _move),
}
