"""Networks of chosen names and widths, and with batch normalization: for formats of networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qmath import Graph, Node, QatModel, QatTensor, QuantSpec
from tests.exports.models import AVERAGE, CONV, DENSE, ranged, weight


class Network:
    """A network under construction; every layer's method returns the layer's name."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.tensors: dict[str, QatTensor] = {}

    def layer(self, name: str, kind: str, *inputs: str, **config: Any) -> str:
        self.nodes.append(Node(name, name, kind, inputs, config, "MyConfig"))
        return name

    def quantize(self, layer: str, low: float, high: float, spec: QuantSpec = AVERAGE) -> str:
        """Quantize what a layer returns."""
        self.add(ranged(f"{layer}/output", low, high, spec, role="output"))
        return layer

    def kernel(self, layer: str, *shape: int, spec: QuantSpec = CONV, bias: int = 0) -> None:
        name = "depthwise_kernel" if self.nodes[-1].class_name.startswith("Depth") else "kernel"
        values = self.rng.normal(size=shape).astype(np.float32)
        self.add(weight(f"{layer}/{name}", values, spec))
        if bias:
            self.floats(f"{layer}/bias", bias)

    def normalization(self, name: str, x: str, channels: int) -> str:
        self.layer(name, "BatchNormalization", x, axis=[3], epsilon=1e-3)
        for key in ("gamma", "beta", "moving_mean"):
            self.floats(f"{name}/{key}", channels)
        variance = self.rng.uniform(0.5, 2, channels).astype(np.float32)
        self.add(QatTensor(f"{name}/moving_variance", "float", variance))
        return name

    def floats(self, name: str, *shape: int) -> None:
        self.add(QatTensor(name, "float", self.rng.normal(size=shape).astype(np.float32)))

    def add(self, tensor: QatTensor) -> None:
        self.tensors[tensor.name] = tensor

    def model(self, *outputs: str) -> QatModel:
        inputs = tuple(node.name for node in self.nodes if node.class_name == "InputLayer")
        return QatModel(self.tensors, Graph(tuple(self.nodes), inputs, outputs), source="by hand")


def of_width(
    num_bits: int,
    per_axis: bool,
    names: tuple[str, ...] = ("image", "quantize", "conv", "dw", "dense"),
) -> QatModel:
    """Return a network whose weights and activations all have this width."""
    image, quantize, conv, dw, dense = names
    act = replace(AVERAGE, num_bits=num_bits)
    spec = replace(CONV if per_axis else DENSE, num_bits=num_bits)
    n = Network(num_bits)
    x = n.layer(image, "InputLayer", batch_input_shape=[None, 7, 6, 3])
    x = n.layer(quantize, "QuantizeLayer", x)
    n.quantize(x, -1.0, 1.5, act)
    x = n.layer(conv, "Conv2D", x, strides=[2, 1], padding="same", activation="relu")
    n.kernel(x, 3, 3, 3, 5, spec=spec, bias=5)
    n.quantize(x, 0.0, 6.0, replace(act, narrow_range=True))
    x = n.layer(dw, "DepthwiseConv2D", x, strides=[1, 1], padding="valid", activation="linear")
    n.kernel(x, 2, 3, 5, 2, spec=spec, bias=10)
    n.quantize(x, -20.0, 20.0, act)
    x = n.layer("flatten", "Flatten", x)
    x = n.layer(dense, "Dense", x, activation="linear")
    n.kernel(x, 3 * 4 * 10, 4, spec=replace(spec, narrow_range=False), bias=4)
    n.quantize(x, -90.0, 110.0, act)
    return n.model(x)


def of_every_layer(high: float = 8.1237) -> QatModel:
    """Return a network with most kinds of layer, of images and of signals.

    With `high` 9.0, means of integers are rounded to the scale they have, so that many are ties.
    """
    n = Network()
    x = n.layer("image", "InputLayer", batch_input_shape=[None, 9, 8, 4])
    x = n.quantize(n.layer("quantize", "QuantizeLayer", x), -1.0, 1.5)
    x = n.layer("pad", "ZeroPadding2D", x, padding=[[1, 0], [2, 1]])
    x = n.layer("groups", "Conv2D", x, strides=[1, 1], padding="valid", activation="linear")
    n.kernel(x, 3, 3, 2, 6)
    x = n.normalization("bn", x, 6)
    x = n.layer("relu6", "ReLU", x, max_value=6.0)
    n.quantize(x, 0.0, 6.0)
    y = n.layer("dilated", "DepthwiseConv2D", x, dilation_rate=[2, 2], padding="same",
                activation="linear")  # fmt: skip
    n.kernel(y, 3, 3, 6, 1, bias=6)
    y = n.layer("leaky", "LeakyReLU", n.normalization("bn2", y, 6), alpha=0.25)
    x = n.quantize(n.layer("sum", "Add", x, y), -9.0, 9.0)
    y = n.layer("max", "MaxPooling2D", x, pool_size=[2, 3], strides=[1, 1], padding="same")
    x = n.layer("average", "AveragePooling2D", x, pool_size=[3, 3], strides=[1, 1], padding="same")
    x = n.quantize(n.layer("joined", "Concatenate", x, y, axis=-1), -high, high)
    x = n.layer("transposed", "Conv2DTranspose", x, strides=[2, 3], padding="same",
                activation="linear")  # fmt: skip
    n.kernel(x, 1, 2, 3, 12, spec=DENSE, bias=3)
    n.quantize(x, -20.0, 20.0)
    x = n.layer("permuted", "Permute", x, dims=[3, 1, 2])
    x = n.layer("reshaped", "Reshape", x, target_shape=[-1, 4])
    x = n.layer("signal", "Conv1D", x, strides=[2], padding="causal", activation="relu")
    n.kernel(x, 5, 4, 6, bias=6)
    n.quantize(x, 0.0, 60.0)
    x = n.layer("longer", "UpSampling1D", x, size=2)
    x = n.layer("shorter", "AveragePooling1D", x, pool_size=[3], strides=[2], padding="same")
    x = n.quantize(x, 0.0, 57.0)
    x = n.layer("padded", "ZeroPadding1D", x, padding=[1, 2])
    y = n.layer("highest", "GlobalMaxPooling1D", x)
    x = n.quantize(n.layer("mean", "GlobalAveragePooling1D", x), 0.0, 50.0)
    x = n.quantize(n.layer("difference", "Subtract", y, x), -9.0, 60.0)
    x = n.layer("dense", "Dense", x, activation="linear")
    n.kernel(x, 6, 5, spec=DENSE, bias=5)
    n.quantize(x, -60.0, 60.0)
    outputs = [n.layer(kind, "Activation", x, activation=kind) for kind in
               ("sigmoid", "softmax", "tanh", "swish")]  # fmt: skip
    return n.model(*outputs)


def of_shared_layers() -> QatModel:
    """Return two inputs through one layer, whose biases are float16, and what they sum up to.

    A transposed convolution with scales along its input channels follows, which runs in float.
    """
    n = Network(7)
    calls = []
    for i, (name, call) in enumerate((("left", "conv"), ("right", "conv#1"))):
        x = n.layer(name, "InputLayer", batch_input_shape=[None, 5, 4, 3])
        x = n.quantize(n.layer(f"quantize{i}", "QuantizeLayer", x), -1.0, 1.5 + i)
        config = {"strides": [1, 1], "padding": "same", "activation": "relu"}
        n.nodes.append(Node(call, "conv", "Conv2D", (x,), config, "MyConfig"))
        calls.append(call)
    n.add(weight("conv/kernel", n.rng.normal(size=(3, 3, 3, 6)).astype(np.float32), CONV))
    n.add(QatTensor("conv/bias", "float", n.rng.normal(size=6).astype(np.float16)))
    n.quantize("conv", 0.0, 9.0)
    x = n.quantize(n.layer("sum", "Add", *calls), 0.0, 17.0)
    x = n.layer("up", "Conv2DTranspose", x, strides=[2, 2], padding="same", activation="linear")
    n.kernel(x, 3, 2, 4, 6, bias=4)
    return n.model(n.quantize(x, -40.0, 40.0), "conv#1")
