"""Sums that TFLite has no integers for, in float32 between DEQUANTIZE and QUANTIZE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.containers.tflite.schema import PADDINGS
from qmath.exports.bundle import Bundle
from qmath.exports.tflite import moves
from qmath.exports.tflite.graph import GraphBuilder, Tensor
from qmath.exports.tflite.weighted import Call, apply, ordered
from qmath.integer.profiles.tflite_kernels import OPERATIONS
from qmath.integer.program import Activation, Linear, Term, UnroundedSum
from qmath.model import QatTensor

__all__ = ["Floats"]

Array = NDArray[Any]

# Versions of operators with float32 weights: of a transposed convolution, the first with a bias.
_VERSIONS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 3}
_MOST_BITS = 8


class Floats:
    """Writes operators on float32.

    Parameters
    ----------
    builder : GraphBuilder
    bundle : Bundle
    values : mapping of str to Tensor
        What there is, by step and input.
    """

    def __init__(self, builder: GraphBuilder, bundle: Bundle, values: Mapping[str, Tensor]) -> None:
        self.builder, self.bundle, self.values = builder, bundle, values
        graph = bundle.model.graph
        self.nodes = {node.name: node for node in graph.nodes} if graph else {}
        self._real: dict[int, Tensor] = {}

    def real(self, x: Tensor) -> Tensor:
        """Return the real values of a tensor."""
        if x.is_float:
            return x
        if x.index not in self._real:
            self._real[x.index] = self.op("DEQUANTIZE", [x], x.name, x.shape, moves.version(x))
        return self._real[x.index]

    def values_of(self, tensor: QatTensor) -> Array:
        """Return the float32 values that inference uses."""
        if tensor.role == "weight":
            return np.asarray(self.bundle.weights[tensor.name].dequantize())
        return np.asarray(tensor.values, np.float32)

    # ---- sums that no quantizer rounds, or that TFLite does not round as training did

    def sum(self, value: UnroundedSum, name: str) -> Tensor:
        """Write the real values of an unrounded sum."""
        parts = [
            self._term(term, name if len(value.terms) == 1 else f"{name}/term{i}")
            for i, term in enumerate(value.terms)
        ]
        y = self.combined(name, "ADD", parts)
        if value.offset.any():
            y = self.constant_op("ADD", y, value.offset, name)
        return y if value.activation is None else self.activated(name, y, value.activation)

    def _term(self, term: Term, name: str) -> Tensor:
        x = self.real(self.values[term.source])
        assert x.is_float
        held = np.asarray(self._scale_of(term.source), np.float64)  # what `x` is a multiple of
        for linear in term.ops:
            if linear.weights is not None:
                write = self.apply
                if linear.kind == "conv3d":
                    linear, write = _ungrouped(linear, x.shape[-1]), self._convolution_3d
                weight, scale = self.weight(linear.name, linear)
                x = write(name, x, linear, weight, np.zeros(linear.shape[-1]))
                held = held * scale
            elif linear.factor is not None:
                factor = self.real(self.values[linear.factor.source])
                x = self.combined(name, "MUL", [x, factor])
                held = held * self._scale_of(linear.factor.source)
            elif linear.kind == "pool_sum":
                x = self._window_sum(name, x, linear)
            elif linear.kind == "bilinear":
                x = moves.bilinear(self.builder, x, name, linear.shape)
                held = held / linear.gain
            else:
                x = moves.move(self.builder, x, name, linear.kind, linear.shape, linear.attributes)
        ratio = np.asarray(term.scale / held)
        return x if _is_one(ratio) else self.constant_op("MUL", x, ratio, name)

    def _scale_of(self, source: str) -> float:
        assert self.bundle.program is not None
        return self.bundle.program.quant_params[source].scale

    def weight(self, name: str, linear: Linear) -> tuple[Tensor, float]:
        """Return a weight's values, made of its integers in the file, and what they stand for.

        They are multiples of its scale; of its integers where each channel has a scale, because
        tflite-micro would multiply all of them by the first. It unpacks none here, either. Those of
        more than 8 bits are float32 in the file.
        """
        q, shown = self.bundle.weights[name], np.asarray(linear.weights)
        relative = q.values.astype(np.int32) - q.zero_point
        is_whole = relative.size == shown.size  # else integers of a part, or with zeros between
        relative = relative.reshape(shown.shape) if is_whole else shown.astype(np.int32)
        values, _ = ordered_for(relative, linear)
        scale = np.float32(q.scale.item() if q.scale.size == 1 else 1)
        bits = max(int(relative.max()).bit_length(), int(-1 - relative.min()).bit_length()) + 1
        if bits > _MOST_BITS:
            real = values.astype(np.float32) * scale
            return self.builder.constant(name, "FLOAT32", real), float(scale)
        held = self.builder.constant(name, "INT8", values, scales=np.asarray(scale))
        return self.real(held), float(scale)

    def apply(self, name: str, x: Tensor, linear: Linear, weight: Tensor, bias: Array) -> Tensor:
        """Write an operation with weights."""
        op = OPERATIONS[linear.kind]
        held = self.builder.constant(f"{name}/bias", "FLOAT32", bias)
        return apply(self.builder, x, name, linear, Call(op, weight, held, _VERSIONS[op]))

    def _convolution_3d(
        self, name: str, x: Tensor, linear: Linear, weight: Tensor, bias: Array
    ) -> Tensor:
        held = self.builder.constant(f"{name}/bias", "FLOAT32", bias)
        x = moves.padded(self.builder, x, name, linear.attributes["pads"])
        strides, dilation = linear.attributes["strides"], linear.attributes["dilation"]
        options = {f"stride_{axis}": int(n) for axis, n in zip("dhw", strides, strict=True)}
        for axis, n in zip("dhw", dilation, strict=True):
            options[f"dilation_{axis}_factor"] = int(n)
        shape = (x.shape[0], *linear.shape)
        options["padding"] = PADDINGS["VALID"]
        return self.op("CONV_3D", [x, weight, held], name, shape, **options)

    def _window_sum(self, name: str, x: Tensor, linear: Linear) -> Tensor:
        """Write a sum over windows, as a convolution with ones, which needs no counts."""
        if linear.attributes.get("global"):
            axes = range(1, len(x.shape) - 1)
            y = moves.reduced(self.builder, x, name, "SUM", axes, None)
            return moves.reshaped(self.builder, y, name, linear.shape)
        attributes = {**linear.attributes, "dilation": (1, 1)}
        ones = np.ones((*attributes["size"], x.shape[-1], 1), np.float32)
        window = replace(linear, kind="depthwise_conv2d", weights=ones, attributes=attributes)
        values, _ = ordered_for(ones, window)
        weight = self.builder.constant(f"{name}/ones", "FLOAT32", values)
        return self.apply(name, x, window, weight, np.zeros(x.shape[-1]))

    # ---- operators

    def activated(self, name: str, x: Tensor, activation: Activation) -> Tensor:
        """Write a ReLU, bounded or leaky, or one with slopes or bounds of channels."""
        slope, limit = np.asarray(activation.slope), np.asarray(activation.limit)
        if not slope.any():
            is_six = limit.ndim == 0 and limit == 6
            y = self.op("RELU6" if is_six else "RELU", [x], name, x.shape)
            limit = np.asarray(np.inf) if is_six else limit
        elif slope.ndim:
            alpha = np.broadcast_to(slope, (*(1,) * (len(x.shape) - 1 - slope.ndim), *slope.shape))
            held = self.builder.constant(f"{name}/slopes", "FLOAT32", alpha)
            y = self.op("PRELU", [x, held], name, x.shape)
        else:
            y = self.op("LEAKY_RELU", [x], name, x.shape, alpha=float(slope))
        return self.constant_op("MINIMUM", y, limit, name) if np.isfinite(limit).any() else y

    def combined(self, name: str, op: str, xs: Sequence[Tensor]) -> Tensor:
        """Write an operator of two inputs over all of them, from the first on."""
        rank = max(len(x.shape) for x in xs) - 1
        y, *others = (moves.aligned(self.builder, x, f"{name}/input{i}", rank)
                      for i, x in enumerate(xs))  # fmt: skip
        for x in others:
            shape = np.broadcast_shapes(y.shape, x.shape)
            y = self.op(op, [y, x], name, shape)
        return y

    def constant_op(self, op: str, x: Tensor, constant: Array, name: str) -> Tensor:
        """Write an operator whose second input is a constant."""
        held = self.builder.constant(f"{name}/constant", "FLOAT32", constant)
        return self.op(op, [x, held], name, x.shape)

    def op(
        self,
        op: str,
        inputs: Sequence[Tensor],
        name: str,
        shape: Sequence[int],
        version: int = 1,
        **options: Any,
    ) -> Tensor:
        """Write an operator; the name of its result begins with `name`."""
        y = self.builder.tensor(f"{name}/{op}", shape, "FLOAT32")
        return self.builder.op(op, inputs, y, version, **options)


def _is_one(ratio: Array) -> bool:
    """Whether a float32 factor changes nothing, up to the rounding of scales."""
    return bool((np.abs(ratio - 1) < 2.0**-22).all())


def _ungrouped(linear: Linear, channels: int) -> Linear:
    """Return a convolution with zeros where an output's group does not read an input."""
    weights = np.asarray(linear.weights)
    *size, own, outputs = weights.shape
    groups = channels // own
    whole = np.zeros((*size, groups, own, groups, outputs // groups), weights.dtype)
    for group in range(groups):
        whole[..., group, :, group, :] = np.split(weights, groups, -1)[group]
    return replace(linear, weights=whole.reshape(*size, channels, outputs))


def ordered_for(weights: Array, linear: Linear) -> tuple[Array, int]:
    """Return weights in TFLite's order, and the axis of their output channels."""
    if linear.kind == "conv3d":
        return weights, weights.ndim - 1
    dilation = linear.attributes.get("dilation", (1, 1))
    return ordered(weights, OPERATIONS[linear.kind], dilation)


def along(scale: Array, channels: int) -> Array:
    """Return a scale, or one for each output channel: of a depthwise kernel they repeat."""
    flat = np.asarray(scale).reshape(-1)
    return np.tile(flat, channels // flat.size) if flat.size > 1 else flat.reshape(())
