"""Layers that training left float, and functions that a model ends with, in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from qmath.exports.tflite import moves
from qmath.exports.tflite.floats import Floats, along, ordered_for
from qmath.exports.tflite.graph import Tensor
from qmath.exports.tflite.keras_layers import KERAS_LAYERS
from qmath.exports.tflite.moves import UnsupportedError
from qmath.integer.budget import Budget
from qmath.integer.lowering import activations, geometry, rescaling
from qmath.integer.lowering.float_layers.layer import Call
from qmath.integer.program import FloatStep, Linear, SoftmaxStep
from qmath.layers import LAYERS, MOVES, NORMALIZATION, POOLS, kind_of
from qmath.model import Node

__all__ = ["FloatLayers"]

# Functions by the operator that computes each alone, with its options.
_FUNCTIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "elu": ("ELU", {}),
    "exponential": ("EXP", {}),
    "gelu": ("GELU", {"approximate": False}),
    "sigmoid": ("LOGISTIC", {}),
    "tanh": ("TANH", {}),
}


class FloatLayers(Floats):
    """Writes steps in float32: see `Floats`."""

    def step(self, step: FloatStep) -> Tensor:
        """Write a step in float32."""
        xs = [
            self.real(self.values[source]) if isinstance(source, str)
            else self.sum(source, f"{step.name}/input{i}")
            for i, source in enumerate(step.sources)
        ]  # fmt: skip
        return self._function(step, xs) or self._layer(step, xs)

    def softmax(self, step: SoftmaxStep) -> Tensor:
        """Write a softmax between two quantizers, but for the second one."""
        return self._softmax(step.name, self.real(self.values[step.source]), step.axis)

    def _function(self, step: FloatStep, xs: Sequence[Tensor]) -> Tensor | None:
        """Write a function that is known by itself, and not by the layer that it is of."""
        function, x = step.apply, xs[0]
        if function is activations.identity:
            return x
        if isinstance(function, partial):
            given = function.keywords
            if function.func is activations.piecewise:
                return self.activated(step.name, x, given["activation"])
            if function.func is activations.softmax:
                return self._softmax(step.name, x, given["axis"])
            if function.func is activations.total:
                return self._total(step.name, xs, **given)
            if function.func is rescaling.applied:
                return self._rescaled(step.name, x, given["operations"])
            if function.func is activations.extreme:
                op = "MINIMUM" if given["is_minimum"] else "MAXIMUM"
                return self.combined(step.name, op, xs)
        if function is activations.product:
            return self.combined(step.name, "MUL", xs)
        for name, smooth in activations.SMOOTH.items():
            if function is smooth and name == "softmax":
                return self._softmax(step.name, x, -1)
            if function is smooth and name == "swish":
                gate = self.op("LOGISTIC", [x], step.name, x.shape)
                return self.op("MUL", [x, gate], step.name, x.shape)
            if function is smooth and name in _FUNCTIONS:
                op, options = _FUNCTIONS[name]
                return self.op(op, [x], step.name, x.shape, **options)
        return None

    def _layer(self, step: FloatStep, xs: Sequence[Tensor]) -> Tensor:
        """Write a layer of float32 arithmetic by its config and its weights."""
        node, x = self.nodes.get(step.name), xs[0]
        kind = None if node is None else kind_of(node.class_name)
        if node is not None and kind == "weighted" and not step.is_function:
            return self._weighted_layer(node, x)
        if node is not None and kind == "normalization" and not step.is_function:
            return self._normalized(node, x)
        if node is not None and kind in POOLS:
            return self._pooled(node, x)
        if node is not None and kind in MOVES:
            linear = geometry.move(node, x.shape[1:])
            return moves.move(
                self.builder, x, node.name, linear.kind, linear.shape, linear.attributes
            )
        if node is not None and kind == "concatenation":
            return self._joined(node, xs)
        if node is not None and node.class_name in KERAS_LAYERS and not step.is_function:
            prefix = f"{node.layer}/"
            tensors = [t for t in self.bundle.model.tensors.values() if t.name.startswith(prefix)]
            weights = {
                t.name.removeprefix(prefix): self.values_of(t)
                for t in tensors
                if t.values is not None
            }
            call = Call(node, tuple(x.shape[1:] for x in xs), weights)
            return KERAS_LAYERS[node.class_name](self, call, xs)
        what = f"the float layer {step.name}" + (f" ({node.class_name})" if node else "")
        raise UnsupportedError(what, moves.LEAVES)

    def _normalized(self, node: Node, x: Tensor) -> Tensor:
        tensors = self.bundle.model.tensors
        gamma, beta, mean, variance = (
            np.asarray(default if tensor is None else self.values_of(tensor), np.float64)
            for tensor, default in (
                (tensors.get(f"{node.layer}/{key}"), default)
                for key, default in NORMALIZATION.items()
            )
        )
        factor = gamma / np.sqrt(variance + node.config.get("epsilon", 1e-3))
        y = self.constant_op("MUL", x, factor, node.name)
        return self.constant_op("ADD", y, beta - mean * factor, node.name)

    def _pooled(self, node: Node, x: Tensor) -> Tensor:
        """Write a pool, of two axes at most unless it is over all."""
        is_maximum = kind_of(node.class_name) in ("max_pool", "global_max")
        if is_maximum:
            _, shape, attributes = geometry.max_pool(node, x.shape[1:])
        else:
            linear, _ = geometry.average_pool(node, x.shape[1:], Budget())
            shape, attributes = linear.shape, dict(linear.attributes)
        if attributes.get("global"):
            op, axes = ("REDUCE_MAX" if is_maximum else "MEAN"), range(1, len(x.shape) - 1)
            y = moves.reduced(self.builder, x, node.name, op, axes, None)
            return moves.reshaped(self.builder, y, node.name, shape)
        if geometry.is_volume(attributes):
            raise UnsupportedError("a pool of three axes in float32")
        op = "MAX_POOL_2D" if is_maximum else "AVERAGE_POOL_2D"
        return moves.pool(self.builder, x, node.name, op, shape, attributes)

    def _joined(self, node: Node, xs: Sequence[Tensor]) -> Tensor:
        axis = node.config.get("axis", -1) % len(xs[0].shape)
        shape = list(xs[0].shape)
        shape[axis] = sum(x.shape[axis] for x in xs)
        return self.op("CONCATENATION", xs, node.name, shape, axis=axis)

    def _rescaled(self, name: str, x: Tensor, operations: Sequence[rescaling.Operation]) -> Tensor:
        for op, constant in operations:
            x = self.constant_op(op.upper(), x, constant, name)
        return x

    def _weighted_layer(self, node: Node, x: Tensor) -> Tensor:
        layer, tensors = LAYERS[node.class_name], self.bundle.model.tensors
        tensor = tensors[f"{node.layer}/{layer.kernel}"]
        linear = geometry.weighted(node, x.shape[1:], self.values_of(tensor))
        bias = tensors.get(f"{node.layer}/bias")
        values = np.zeros(linear.shape[-1]) if bias is None else self.values_of(bias)
        if tensor.role != "weight" or layer.axes[-1] == "I":
            return self.apply(node.name, x, linear, self._constant(node, linear), values)
        weight, held = self.weight(tensor.name, linear)
        scale = along(self.bundle.weights[tensor.name].scale, linear.shape[-1])
        if not scale.ndim:
            return self.apply(node.name, x, linear, weight, values)
        y = self.apply(node.name, x, linear, weight, np.zeros_like(values))
        y = self.constant_op("MUL", y, scale / held, node.name)
        return self.constant_op("ADD", y, values, node.name)

    def _constant(self, node: Node, linear: Linear) -> Tensor:
        """Return a weight that training left float, or whose scales run along the summed axis."""
        values, _ = ordered_for(np.asarray(linear.weights), linear)
        return self.builder.constant(f"{node.name}/kernel", "FLOAT32", values)

    def _softmax(self, name: str, x: Tensor, axis: int) -> Tensor:
        """Write a softmax, of another axis than the last between two transpositions."""
        axes = list(range(len(x.shape)))
        axes[axis], axes[-1] = axes[-1], axes[axis]
        if axis != -1:
            x = self._transposed(name, x, axes)
        y = self.op("SOFTMAX", [x], name, x.shape, beta=1.0)
        return y if axis == -1 else self._transposed(name, y, axes)

    def _transposed(self, name: str, x: Tensor, axes: Sequence[int]) -> Tensor:
        order = self.builder.constant(f"{name}/axes", "INT32", axes)
        return self.op("TRANSPOSE", [x, order], name, [x.shape[axis] for axis in axes])

    def _total(
        self, name: str, xs: Sequence[Tensor], signs: Sequence[float], share: float = 1.0
    ) -> Tensor:
        op = "SUB" if signs[1:] and signs[1] < 0 else "ADD"
        y = self.combined(name, op, xs)
        return y if share == 1 else self.constant_op("MUL", y, np.asarray(share), name)
