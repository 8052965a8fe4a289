"""How a layer of each kind is lowered: one function each.

A rule takes the builder, the layer's node and the values of its inputs, and returns the layer's
value before the activation and quantizers that it ends with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.bounds import accumulator_bits, interval
from qmath.integer.budget import check_size
from qmath.integer.lowering import activations, geometry, portability, rescaling
from qmath.integer.lowering.builder import Builder
from qmath.integer.lowering.cuts import UnsupportedError
from qmath.integer.lowering.operations import relative_integers
from qmath.integer.lowering.params import width_and_steps
from qmath.integer.lowering.sums import ZERO, can_pool, joined_activation, moved, normalized
from qmath.integer.lowering.values import Extreme, Floats, Function, Integers, Value
from qmath.integer.program import (
    Activation,
    Factor,
    Linear,
    MoveStep,
    Normalization,
    Operand,
    Origin,
    Shape,
    Term,
    UnroundedSum,
)
from qmath.layers import LAYERS, MOVES, NORMALIZATION
from qmath.model import Node, QatTensor

__all__ = ["RULES"]

Array = NDArray[Any]
Rule = Callable[[Builder, Node, Sequence[Value]], Value]

_MOST_PARTS = 1 << 26  # sums of one output that are kept until they are added
_MOST_BITS = 48  # of sums of products of several tensors: a multiplier has 11 left of int64


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
    tensors = [build.tensor(node, name) for name in layer.kernels]
    if all(tensor.role == "weight" for tensor in tensors) and isinstance(value, Integers):
        sums = (_separable if layer.then else _products)(build, node, value, tensors)
        reason = _too_wide(sums.terms) if layer.then else ""
        if len(sums.terms) * math.prod(sums.shape) > _MOST_PARTS:
            reason = (
                f"train it with per_axis=False: its kernel has {len(sums.terms)} scales along the "
                "summed axis, whose sums would take too much memory"
            )
        if not reason:
            return sums
    else:
        reason = _lack(build, node, value, tensors)
    linears: list[Linear] = []
    shape = value.shape
    for tensor in tensors:
        linears.append(geometry.weighted(node, shape, build.real(tensor), tensor.name))
        shape = linears[-1].shape
    bias = build.bias(node, shape[-1]).astype(np.float32)
    apply = partial(_weighted_in_float, linears=tuple(linears), bias=bias)
    constants = (*(np.asarray(linear.weights) for linear in linears), bias)
    return build.float_step(node, [value], apply, shape, reason, constants=constants)


def _weighted_in_float(x: Array, linears: Sequence[Linear], bias: Array) -> Array:
    for linear in linears:
        x = linear.apply(x, linear.weights)
    return np.asarray(x + bias)


def _too_wide(terms: Sequence[Term]) -> str:
    """Say what to do about sums that leave no room for a multiplier, ``""`` if they do."""
    bits = max(int(accumulator_bits(*interval(term))) for term in terms)
    if bits <= _MOST_BITS:
        return ""
    return f"give what it multiplies fewer bits: its sums take {bits}, of {_MOST_BITS} at most"


def _lack(build: Builder, node: Node, value: Value, tensors: Sequence[QatTensor]) -> str:
    """Say what a layer with kernels would need to run in integers."""
    needed = f"quantize its input, the output of {node.inputs[0]}"
    if all(tensor.role == "weight" for tensor in tensors):
        return needed
    is_unseen = any(tensor.name in build.unseen for tensor in tensors)
    reason = "quantize its weights"
    if is_unseen:
        reason = "make its own quantizer known (SavedModel, qmath.from_keras, qmath recover)"
    if isinstance(value, Integers):
        return reason
    return f"{reason} and {needed if is_unseen else needed.removeprefix('quantize ')}"


def _products(
    build: Builder, node: Node, value: Integers, tensors: Sequence[QatTensor]
) -> UnroundedSum:
    """Return the term of a layer with one kernel; several, if its inputs have a scale each."""
    (tensor,) = tensors
    linear, scale = build.operations.of(node, tensor, value.shape)
    axes = LAYERS[node.class_name].axes
    if axes[-1] == "I" and scale.ndim == 1:
        bias = build.bias(node, linear.shape[-1])
        return UnroundedSum(_of_channels(value, linear, scale), bias, linear.shape)
    width, steps = width_and_steps(tensor)
    kernel = np.asarray(linear.weights).shape
    scale, width = (_of_outputs(a, axes, kernel) for a in (scale, width))
    bias = build.bias(node, linear.shape[-1], value.params.scale * scale)
    build.notes += portability.of_weights(tensor.name, scale)
    origin = Origin(width, steps, build.origin_bias(node, bias))
    term = Term(value.name, (linear,), value.params.scale * scale, value.params, origin)
    return UnroundedSum((term,), bias, linear.shape)


def _separable(
    build: Builder, node: Node, value: Integers, tensors: Sequence[QatTensor]
) -> UnroundedSum:
    """Return the term of a depthwise kernel and a pointwise one, of which nothing is rounded.

    There is one for each multiplier of the channels, if these have a scale each.
    """
    depthwise, pointwise = tensors
    first, scales = build.operations.of(node, depthwise, value.shape)
    second, scale = build.operations.of(node, pointwise, first.shape)
    build.notes += portability.of_weights(pointwise.name, scale)
    parts = []
    for i, of in enumerate(np.atleast_1d(scales)):
        ops, count = (first, second), scales.size
        if count > 1:
            ops = (_part(first, "M", i, count), _part(second, "I", i, count))
        own = np.asarray(value.params.scale * of * scale)
        parts.append(Term(value.name, ops, own, value.params))
    return UnroundedSum(tuple(parts), build.bias(node, second.shape[-1]), second.shape)


def _part(linear: Linear, axis: str, first: int, count: int) -> Linear:
    """Return an operation with every `count`-th of its weights along an axis."""
    weights, shape = np.asarray(linear.weights), linear.shape
    if axis == "M":
        weights, shape = weights[..., first::count], (*shape[:-1], shape[-1] // count)
    else:
        weights = weights[..., first::count, :]
    attributes = {**linear.attributes, "part": [axis, first, count]}
    gain = 1 if axis == "M" else count
    return replace(linear, weights=weights, shape=shape, gain=gain, attributes=attributes)


def _of_channels(value: Integers, linear: Linear, scale: Array) -> tuple[Term, ...]:
    """Return a term for each input channel of a kernel, whose last axis they are."""
    count, weights = len(scale), np.asarray(linear.weights)
    parts = []
    for i in range(count):
        crop = geometry.crop(
            ((0, 0),) * (len(value.shape) - 1) + ((i, count - 1 - i),), value.shape
        )
        attributes = {**linear.attributes, "part": ["I", i, 1]}
        part = replace(linear, weights=weights[..., i : i + 1], gain=count, attributes=attributes)
        own = np.asarray(value.params.scale * scale[i])
        parts.append(Term(value.name, (crop, part), own, value.params))
    return tuple(parts)


def _of_outputs(array: Array, axes: str, kernel: Shape) -> Array:
    """Return what a kernel has one of, or some of, for each output channel."""
    if array.ndim and "M" in axes:
        return np.broadcast_to(array, kernel[2:]).reshape(-1)
    return array.reshape(-1) if array.ndim else array


def _normalization(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    value = values[0]
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
        apply = partial(_scaled, factor=f, shift=s)
        return build.float_step(node, [value], apply, value.shape, constants=(factor, shift))
    build.budget.spend_again(node.name, accumulator)
    build.notes += portability.of_normalization(node.name, factor, accumulator.terms)
    g, b, m, v = (np.asarray(array, np.float32) for array in (gamma, beta, mean, variance))
    normalization = Normalization(g, b, m, v, epsilon)
    terms = tuple(
        replace(t, scale=t.scale * factor, origin=normalized(t, normalization))
        for t in accumulator.terms
    )
    return replace(accumulator, terms=terms, offset=accumulator.offset * factor + shift)


def _scaled(x: Array, factor: Array, shift: Array) -> Array:
    return np.asarray(x * factor + shift)


def _relu(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    value = values[0]
    if node.class_name == "PReLU":
        slope = _slope(build.real(build.tensor(node, "alpha")), node, value.shape)
        return _with_operand(build, node, build.activate(node, value, Activation(slope)), "alpha")
    activation = activations.relu_layer(node)
    if activation is not None:
        return build.activate(node, value, activation)
    function = activations.above_threshold(node)
    if isinstance(value, Integers):
        return Function(value, function)
    return build.float_step(node, [value], function, value.shape, is_function=True)


def _slope(alpha: Array, node: Node, shape: Shape) -> Array:
    """Return the slopes of a PReLU, which share axes: one, one for each channel, or all."""
    shared = tuple(n if n == m else 1 for n, m in zip(alpha.shape, shape, strict=False))
    if len(alpha.shape) != len(shape) or alpha.shape != shared:
        raise geometry.misfit(node, shape, f"what slopes of shape {alpha.shape} broadcast to")
    slopes = alpha.astype(np.float64)
    return slopes.reshape(alpha.shape[-1]) if alpha.size == alpha.shape[-1] else slopes


def _sum(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    if node.class_name == "Subtract" and len(values) != 2:
        raise QmathError(f"{node.name}: it subtracts two inputs, and has {len(values)}")
    share = 1 / len(values) if node.class_name == "Average" else 1.0
    signs = [1.0, -1.0 if node.class_name == "Subtract" else 1.0, *(1.0,) * len(values)]
    shape = _joint_shape(node, values)
    if not any(build.is_obstacle(value) for value in values):
        sums = [part for value in values if (part := build.accumulator(value)) is not None]
        for part in sums:
            build.budget.spend_again(node.name, part)
        sums = [_broadcast(build, node, part, shape) for part in sums]
        terms = [
            replace(t, scale=t.scale * sign * share)
            for part, sign in zip(sums, signs, strict=False)
            for t in part.terms
        ]
        offset = sum((p.offset * s * share for p, s in zip(sums, signs, strict=False)), ZERO)
        return UnroundedSum(tuple(terms), np.asarray(offset), shape)
    add = partial(activations.total, signs=signs[: len(values)], share=share)
    return build.float_step(node, values, add, shape)


def _joint_shape(node: Node, values: Sequence[Value]) -> Shape:
    """Return the shape that a layer's inputs have together."""
    try:
        return np.broadcast_shapes(*(value.shape for value in values))
    except ValueError:
        raise geometry.misfit(node, values[0].shape, "inputs that broadcast") from None


def _broadcast(build: Builder, node: Node, part: UnroundedSum, shape: Shape) -> UnroundedSum:
    if part.shape == shape:
        return part
    return moved(part, geometry.broadcast(part.shape, shape), 1.0, node.name, build.budget)


def _product(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    shape = _joint_shape(node, values)
    first, *others = values
    accumulator = build.accumulator(first)
    factors = [value for value in others if isinstance(value, Integers)]
    if accumulator is None or not isinstance(first, Integers) or len(factors) < len(others):
        lack = build.unquantized(node, values, as_integers=True)
        return build.float_step(node, values, activations.product, shape, lack=lack)
    (term,) = accumulator.terms
    for value in factors:
        factor = Factor(value.name, value.params, value.shape)
        linear = geometry.product(term.ops[-1].shape if term.ops else first.shape, factor)
        scale = np.asarray(term.scale * value.params.scale)
        term = replace(term, ops=(*term.ops, linear), scale=scale)
        if reason := _too_wide([term]):
            return build.float_step(node, values, activations.product, shape, reason)
    return UnroundedSum((term,), ZERO, shape)


def _extreme(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    shape = _joint_shape(node, values)
    is_minimum = node.class_name == "Minimum"
    if any(build.is_obstacle(value) for value in values):
        apply = partial(activations.extreme, is_minimum=is_minimum)
        return build.float_step(node, values, apply, shape)
    terms: list[Term] = []
    offset: Array = ZERO
    for i, value in enumerate(values):
        part = build.accumulator(value)
        assert part is not None
        build.budget.spend_again(node.name, part)
        row = geometry.reshape((1, math.prod(shape)))
        place = geometry.zero_pad(((i, len(values) - 1 - i),), row.shape)
        stacked = _broadcast(build, node, part, shape)
        for linear in (row, place):
            stacked = moved(stacked, linear, 1.0, node.name, build.budget)
        terms += stacked.terms
        offset = offset + stacked.offset
    function, attributes = geometry.extreme(is_minimum, shape, len(values))
    return Extreme(UnroundedSum(tuple(terms), offset, stacked.shape), function, attributes, shape)


def _concatenation(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    rank = len(values[0].shape)
    axis = node.config.get("axis", -1)
    if not -rank - 1 <= axis <= rank:
        raise geometry.misfit(node, values[0].shape, f"inputs with an axis {axis}")
    if axis in (0, -rank - 1):
        raise UnsupportedError(
            node.name, f"it joins examples (axis={axis})", "join along an axis of one example"
        )
    axis = axis - 1 if axis > 0 else axis % rank
    others = {value.shape[:axis] + value.shape[axis + 1 :] for value in values}
    if len(others) > 1 or {len(value.shape) for value in values} != {rank}:
        raise geometry.misfit(
            node, values[0].shape, f"inputs that differ along axis {axis + 1} only"
        )
    lengths = [value.shape[axis] for value in values]
    parts = [build.accumulator(value) for value in values]
    activations = [part.activation if part else None for part in parts]
    # Only channels can have activations of their own.
    activation = joined_activation(activations, lengths if axis == rank - 1 else None)
    is_mixed = activation is None and any(activations)
    if None in parts or is_mixed:
        rounded = build.quantized_before(node, values)
        if rounded is not None:
            return _concatenation(build, node, rounded)
        shape = (*values[0].shape[:axis], sum(lengths), *values[0].shape[axis + 1 :])
        return build.float_step(node, values, partial(_joined, axis=axis + 1), shape)
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


def _joined(*arrays: Array, axis: int) -> Array:
    return np.concatenate(arrays, axis)


def _rescaling(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    def weight(name: str) -> Array | None:
        tensor = build.model.tensors.get(f"{node.layer}/{name}")
        return None if tensor is None else build.real(tensor)

    operations = rescaling.of_layer(node, values[0].shape, weight)
    return _with_operand(build, node, build.rescaled(node, values[0], operations), "constant")


def _with_operand(build: Builder, node: Node, value: Value, name: str) -> Value:
    """Return a sum that a TFLite operation makes of a constant of integers, with these."""
    tensor = build.model.tensors.get(f"{node.layer}/{name}")
    op = node.config.get("kernel")
    if tensor is None or op is None or not isinstance(value, UnroundedSum):
        return value
    q = build.operations.quantize(tensor)
    is_first = bool(node.config.get("is_first"))
    operand = Operand(op, relative_integers(q), float(q.scale), is_first)
    return replace(value, terms=tuple(replace(term, operand=operand) for term in value.terms))


def _average(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    value = values[0]
    linear, count = geometry.average_pool(node, value.shape, build.budget)
    accumulator = build.accumulator(value)
    if geometry.is_volume(linear.attributes) and accumulator and can_pool(accumulator):
        *planes, last = geometry.in_planes(value.shape, linear.attributes)
        for shape, attributes in planes:
            plane = geometry.plane_sum(shape, attributes)
            accumulator = moved(accumulator, plane, 1.0, node.name, build.budget)
        return moved(accumulator, geometry.reshape(last[0]), 1 / count, node.name, build.budget)
    return build.apply(node, value, linear, 1 / count)


def _maximum(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    value = values[0]
    apply, shape, attributes = geometry.max_pool(node, value.shape)
    if not isinstance(value, Integers):
        rounded = build.quantized_before(node, values)
        if rounded is not None:
            return _maximum(build, node, rounded)
        return build.float_step(node, [value], partial(apply, fill=-np.inf), shape)
    params = value.params
    fill = float(params.limits[0])
    moves: list[tuple[Callable[..., Array], Shape, dict[str, Any]]] = []
    if geometry.is_volume(attributes):
        for to, plane in geometry.in_planes(value.shape, attributes):
            most = partial(geometry.plane_maximum(to, plane), fill=fill)
            moves.append((most, to, {"kind": "pool_max" if plane else "reshape", **plane}))
    else:
        moves.append((partial(apply, fill=fill), shape, {"kind": "pool_max", **attributes}))
    source = value.name
    for i, (function, to, move) in enumerate(moves, 1):
        name = node.name if i == len(moves) else f"{node.name}/{i}"
        build.steps.append(MoveStep(name, source, function, params, to, move))
        source = name
    return Integers(node.name, params, shape)


def _move(build: Builder, node: Node, values: Sequence[Value]) -> Value:
    value = values[0]
    linear = geometry.move(node, value.shape)
    if linear.sums:
        return build.apply(node, value, linear, 1 / linear.gain)
    # What a float layer makes is moved in float: it is rounded once, where training did.
    is_made = isinstance(value, Floats) and value.name not in build.inputs
    if build.accumulator(value) is None and not is_made:
        (value,) = build.quantized_before(node, values) or values
    return build.apply(node, value, linear)


RULES: Mapping[str, Rule] = {
    "input": _input,
    "identity": _identity,
    "activation": _identity,  # which every layer may end with
    "weighted": _weighted,
    "normalization": _normalization,
    "relu": _relu,
    "rescaling": _rescaling,
    "sum": _sum,
    "product": _product,
    "extreme": _extreme,
    "concatenation": _concatenation,
    "average_pool": _average,
    "global_average": _average,
    "max_pool": _maximum,
    "global_max": _maximum,
    **dict.fromkeys(MOVES, _move),
}
