"""Sums of products of integers as QONNX's nodes, with the widths that are proved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.exports.bundle import Bundle
from qmath.exports.onnx import moves, windows
from qmath.exports.onnx.fixed_types import fixed_type, result, whole
from qmath.exports.onnx.graph import GraphBuilder, Value, arranged
from qmath.integer.bounds import accumulator_bits, channel_intervals
from qmath.integer.program import Linear, Requantize, Term

__all__ = ["DOMAIN", "MOVES", "Sums", "UnsupportedError", "quant"]

DOMAIN = "qonnx.custom_op.general"
MOVES = ("reshape", "broadcast", "permute", "pad", "crop", "upsample")
_LAYOUTS = {
    "conv2d": "HWIO", "depthwise_conv2d": "HWIM", "conv2d_transpose": "HWOI", "conv3d": "DHWIO",
    "dense": "IO",
}  # fmt: skip
Precision = dict[str, str]


class UnsupportedError(Exception):
    """Nothing in the graph's words is a part of a step."""


def quant(
    builder: GraphBuilder,
    x: str,
    wanted: str,
    num_bits: int,
    *,
    signed: bool,
    rounding: str,
    is_reserved: bool = False,
) -> str:
    """Add a quantizer of scale 1, under a name that is reserved for it, or like the one wanted."""
    name = wanted if is_reserved else builder.unique(wanted)
    names = [
        builder.constant(f"{wanted}/{key}", value)
        for key, value in (("scale", 1.0), ("zeropt", 0.0), ("bitwidth", float(num_bits)))
    ]
    node = builder.onnx.helper.make_node(
        "Quant", [x, *names], [name], name=name, domain=DOMAIN, signed=int(signed), narrow=0,
        rounding_mode=rounding,
    )  # fmt: skip
    builder.nodes.append(node)
    return name


class Sums:
    """Writes the accumulators of terms.

    Parameters
    ----------
    builder : GraphBuilder
    bundle : Bundle
    precisions : dict of str to dict
        By node, the types of its numbers: is added to.
    relative : callable
        Returns a step's integers from the zero point.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        bundle: Bundle,
        precisions: dict[str, Precision],
        relative: Callable[[str], Value],
    ) -> None:
        self.builder, self.bundle = builder, bundle
        self.precisions, self.relative = precisions, relative
        self._weights: dict[int, str] = {}

    def sum(self, step: Requantize, term: Term) -> Value:
        """Write a term's operations; return its accumulators."""
        x = self.relative(term.source)
        for number, op in enumerate(term.ops, 1):
            before = len(self.builder.nodes)
            x = self._linear(step, op, x)
            low, high = channel_intervals(dataclasses.replace(term, ops=term.ops[:number]))
            of_sum = result(int(low.min()), int(high.max()))
            for node in self.builder.nodes[before:]:
                if node.op_type != "Quant":
                    is_sum = node.op_type in ("Conv", "ConvTranspose", "MatMul")
                    self.precisions[node.name] = (
                        {"accum": of_sum["result"], **self._weight_type(op), **of_sum}
                        if is_sum
                        else of_sum
                    )
        return x

    def _weight_type(self, op: Linear) -> Precision:
        weights = np.ones(1) if op.weights is None else np.asarray(op.weights)
        ends = (whole(int(end)) for end in (weights.min(), weights.max()))
        return {"weight": fixed_type(*ends), "bias": fixed_type(whole(0))}  # which there is not

    def _linear(self, step: Requantize, op: Linear, x: Value) -> Value:
        if op.kind in MOVES:
            return moves.moved(self.builder, x, step.name, op)
        if op.kind == "multiply":
            assert op.factor is not None
            return self._product(step, op, x, self.relative(op.factor.source))
        if op.kind == "pool_sum":
            return self._pooled(step, op, x)
        if op.kind not in _LAYOUTS:
            raise UnsupportedError(f"the kind {op.kind}")
        layout, weights = _LAYOUTS[op.kind], np.asarray(op.weights)
        if op.kind == "dense":
            kernel = self._weight(op, weights)
            given = self.builder.channels_last(x)
            return self.builder.layer("MatMul", [given, kernel], step.name, op.shape)
        if len(x.shape) == 2:  # a signal
            layout, weights = layout[1:], weights[0]
        kernel = self._weight(op, arranged(weights, layout))
        x = self.builder.channels_first(x)
        if op.kind == "conv2d_transpose":
            attributes = windows.of_transposed(op, x)
            return self.builder.layer(
                "ConvTranspose", [x, kernel], step.name, op.shape, **attributes
            )
        attributes = windows.of_convolution(op, x)
        return self.builder.layer("Conv", [x, kernel], step.name, op.shape, **attributes)

    def _product(self, step: Requantize, op: Linear, x: Value, factor: Value) -> Value:
        rank = len(op.shape)
        both = [
            moves.unsqueezed(self.builder, self.builder.channels_last(y), step.name, rank)
            for y in (x, factor)
        ]
        return self.builder.layer("Mul", both, step.name, op.shape)

    def _pooled(self, step: Requantize, op: Linear, x: Value) -> Value:
        """Sum up windows as a convolution with ones, which is exact in every tool."""
        x = self.builder.channels_first(x)
        *spatial, channels = x.shape
        is_global = bool(op.attributes.get("global"))
        size = spatial if is_global else windows.last(op.attributes["size"], x)
        plain: dict[str, Any] = {"strides": size, "pads": [(0, 0)] * len(size)}
        of_window = plain if is_global else op.attributes
        kernel = self._weight(op, np.ones((channels, 1, *size)))
        kept = (*[1] * len(size), channels) if is_global else op.shape
        made = self.builder.layer(
            "Conv", [x, kernel], step.name, kept, kernel_shape=size,
            strides=windows.last(of_window["strides"], x), dilations=[1] * len(size),
            pads=windows.of_pads(of_window["pads"], x), group=channels,
        )  # fmt: skip
        if kept == op.shape:
            return made
        # The order of axes of length 1 does not matter.
        flat = Linear("reshape", op.apply, op.shape)
        return moves.moved(self.builder, replace(made, channels_first=False), step.name, flat)

    def _weight(self, op: Linear, values: NDArray[Any]) -> str:
        """Return the name of an operation's integers, in ONNX's order of axes."""
        if op.weights is None or id(op.weights) not in self._weights:
            tensor = op.name or "ones"
            integers = self.builder.constant(f"{tensor}/integers", values)
            least, most = int(values.min()), int(values.max())
            needed = int(accumulator_bits(least, most))
            held = self.bundle.weights[op.name].num_bits if op.name in self.bundle.weights else 2
            made = quant(
                self.builder,
                integers,
                f"{tensor}/quantized",
                max(needed, held),
                signed=True,
                rounding="ROUND",
            )
            if op.weights is None:
                return made
            self._weights[id(op.weights)] = made
        return self._weights[id(op.weights)]
