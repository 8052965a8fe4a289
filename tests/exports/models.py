"""Small models made by hand: every role, layout and kind of range, without a file."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from qmath import Graph, Node, QatModel, QatTensor, QuantSpec
from qmath.model import Hint

CONV = QuantSpec("LastValueQuantizer", 4, per_axis=True, symmetric=True, narrow_range=True)
DENSE = QuantSpec("LastValueQuantizer", 5, per_axis=False, symmetric=False, narrow_range=False)
FIXED = QuantSpec("FixedQuantizer", 8, per_axis=False, narrow_range=False, op="args")
AVERAGE = QuantSpec("MovingAverageQuantizer", 8, False, False, False)
UNKNOWN = QuantSpec(per_axis=False)
HINT = Hint(
    '--quantizer "MyConfig.activation=MovingAverageQuantizer(num_bits=N, per_axis=False, '
    'symmetric=False, narrow_range=False)"',
    "N stands for the width in your training script",
)


def weight(name: str, values: np.ndarray, spec: QuantSpec, margin: float = 0.95) -> QatTensor:
    """Return a weight whose range is a little too narrow, as training leaves it."""
    axes = tuple(range(values.ndim - 1)) if spec.per_axis else None
    low, high = values.min(axis=axes) * np.float32(margin), values.max(axis=axes)
    if spec.symmetric:
        high = np.maximum(-low, high)
        low = -high
    return QatTensor(name, "weight", values, np.asarray(low), np.asarray(high), spec)


def ranged(
    name: str, low: float, high: float, spec: QuantSpec = AVERAGE, **fields: Any
) -> QatTensor:
    fields = {"role": "activation", **fields}
    return QatTensor(name, min=np.asarray(low, np.float32), max=np.asarray(high, np.float32),
                     spec=spec, **fields)  # fmt: skip


def unknown(name: str, low: float = -1.0, high: float = 2.0) -> QatTensor:
    return ranged(name, low, high, UNKNOWN, hint=HINT)


def model(**changes: QatTensor | None) -> QatModel:
    """Return a network of five layers; `changes` replace (``None``: drop) tensors by name."""
    rng = np.random.default_rng(2)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    tensors = [
        ranged("quantize_layer/output", 0.0, 1.0, role="input"),
        weight("conv/kernel", draw(3, 3, 2, 5), CONV),
        QatTensor("conv/bias", "float", draw(5)),
        ranged("conv/post_activation", 0.0, 6.0),
        weight("dw/depthwise_kernel", draw(3, 3, 5, 1), replace(CONV, num_bits=10)),
        ranged("dw/post_activation", -3.0, 2.5),
        weight("up/kernel", draw(2, 2, 4, 5), replace(DENSE, num_bits=8)),
        ranged("up/post_activation", -3.0, 2.5, replace(AVERAGE, num_bits=4)),
        weight("dense/kernel", draw(16, 3), DENSE),
        QatTensor("dense/bias", "float", draw(3).astype(np.float16)),
        ranged("dense/post_activation", -6.0, 4.0, FIXED),
    ]
    by_name = {tensor.name: tensor for tensor in tensors} | changes
    return QatModel(
        {name: tensor for name, tensor in by_name.items() if tensor is not None},
        graph(),
        notes=("a note",),
        source="/somewhere/hand made.h5",
        files=SimpleNamespace(sha256="0" * 64, hashing=nullcontext),
    )


def graph() -> Graph:
    def node(name: str, kind: str, *inputs: str, **config: Any) -> Node:
        return Node(name, name, kind, inputs, config, "MyConfig")

    nodes = (
        node("image", "InputLayer"),
        node("quantize_layer", "QuantizeLayer", "image"),
        node("conv", "Conv2D", "quantize_layer", strides=(1, 1), activation="relu",
             kernel_initializer={"class_name": "Zeros"}, scale=[float("inf")]),
        node("dw", "DepthwiseConv2D", "conv", activation="linear"),
        node("up", "Conv2DTranspose", "dw", activation="linear"),
        node("flatten", "Flatten", "up"),
        node("dense", "Dense", "flatten", activation="softmax"),
    )  # fmt: skip
    return Graph(nodes, ("image",), ("dense",))


WIDTHS = (2, 3, 4, 5, 7, 8, 10, 16)


def every_width() -> QatModel:
    """Return weights of every width, per tensor and per channel, of 90 elements each."""
    rng = np.random.default_rng(3)
    tensors = []
    for num_bits in WIDTHS:
        for kind, spec in (("tensor", DENSE), ("channel", CONV)):
            values = rng.normal(size=(3, 3, 2, 5)).astype(np.float32)
            name = f"{kind}{num_bits}/kernel"
            tensors.append(weight(name, values, replace(spec, num_bits=num_bits)))
    return QatModel({tensor.name: tensor for tensor in tensors})


# What a layer may be called, and a file, C or Verilog can trip over.
STRANGE_NAMES = (
    "a/b", "a:b", "a_b", "A_B", "a b/c.d", "größe/日本", "2d/kernel", "while", "module", "CON",
    "signed", "", "…", "x" * 300, "x" * 299 + "y", "a.scale/b",
)  # fmt: skip


def strange_names() -> QatModel:
    """Return 5-bit weights of strange and colliding names, each with values of its own."""
    rng = np.random.default_rng(4)
    return QatModel(
        {
            name: weight(name, rng.normal(size=(3, 2)).astype(np.float32), DENSE)
            for name in STRANGE_NAMES
        }
    )
