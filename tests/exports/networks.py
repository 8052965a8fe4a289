"""Networks made by hand, with random weights, of every operation that an integer model has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qmath import Graph, Node, QatModel, QatTensor, QuantSpec


class Network:
    """A model under construction; `add` returns the new node's name."""

    def __init__(
        self,
        *shape: int,
        bits: int = 8,
        weight_bits: int = 8,
        is_symmetric: bool = False,
        seed: int = 0,
    ) -> None:
        self.bits, self.weight_bits, self.is_symmetric = bits, weight_bits, is_symmetric
        self.rng = np.random.default_rng(seed)
        self.tensors: list[QatTensor] = []
        self.nodes: list[Node] = []
        self.add("InputLayer", batch_input_shape=[None, *shape])
        self.add("QuantizeLayer", ends=(-1.0, 1.5))

    def add(
        self,
        class_name: str,
        *inputs: str,
        kernel: tuple[int, ...] = (),
        ends: tuple[float, float] | None = None,
        per_axis: bool = True,
        is_float: bool = False,
        pointwise: int = 0,
        **config: Any,
    ) -> str:
        """Add a layer after `inputs`, or the last; with a kernel, with a quantized output."""
        name = f"{class_name.lower()}{len(self.nodes)}"
        inputs = inputs or tuple(node.name for node in self.nodes[-1:])
        config = {"padding": "valid", "strides": (1, 1), **config} if kernel else config
        self.nodes.append(Node(name, name, class_name, inputs, config, "MyConfig"))
        if kernel:
            is_depthwise = class_name.startswith("Depthwise")
            weight = "depthwise_kernel" if is_depthwise or pointwise else "kernel"
            self.tensors.append(self._weight(f"{name}/{weight}", kernel, per_axis, is_float))
            channels = kernel[-2 if class_name.endswith("Transpose") else -1]
            if is_depthwise or pointwise:
                channels *= kernel[-2]
            if pointwise:
                shape = (*(1,) * (len(kernel) - 2), channels, pointwise)
                self.tensors.append(
                    self._weight(f"{name}/pointwise_kernel", shape, per_axis, False)
                )
                channels = pointwise
            bias = self.rng.normal(size=channels).astype(np.float32)
            self.tensors.append(QatTensor(f"{name}/bias", "float", bias))
        if ends is not None:
            spec = QuantSpec("MovingAverageQuantizer", self.bits, False, False, False)
            low, high = map(np.float32, ends)
            self.tensors.append(QatTensor(f"{name}/output", "output", None, low, high, spec))
        return name

    def _weight(
        self, name: str, shape: tuple[int, ...], per_axis: bool, is_float: bool
    ) -> QatTensor:
        values = self.rng.normal(size=shape).astype(np.float32)
        if is_float:
            return QatTensor(name, "float", values)
        axes = tuple(range(len(shape) - 1)) if per_axis else None
        symmetric = self.is_symmetric
        spec = QuantSpec("LastValueQuantizer", self.weight_bits, per_axis, symmetric, symmetric)
        low, high = np.float32(0.9) * values.min(axes), np.float32(0.95) * values.max(axes)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        # Zero lies within, as after training.
        low, high = np.minimum(low, np.float32(-0.01)), np.maximum(high, np.float32(0.01))
        return QatTensor(name, "weight", values, low, high, spec)

    def model(self, *outputs: str) -> QatModel:
        outputs = outputs or (self.nodes[-1].name,)
        graph = Graph(tuple(self.nodes), (self.nodes[0].name,), outputs)
        return QatModel({t.name: t for t in self.tensors}, graph, source="net.h5")


def images(**widths: int) -> QatModel:
    """Return convolutions, pools, paddings, a leaky ReLU, a permutation, a dense layer."""
    net = Network(7, 6, 3, **widths)
    net.add("ZeroPadding2D", padding=((1, 0), (2, 1)))
    net.add("Conv2D", kernel=(3, 2, 3, 4), dilation_rate=(2, 1), ends=(-6.0, 6.0))
    net.add("MaxPooling2D", pool_size=(2, 2), strides=(1, 1), padding="same")
    net.add("DepthwiseConv2D", kernel=(3, 3, 4, 2), strides=(2, 2), padding="same")
    net.add("LeakyReLU", alpha=0.3, ends=(-2.0, 7.0))
    net.add("Conv2DTranspose", kernel=(3, 3, 5, 8), strides=(2, 2), padding="same",
            per_axis=False, activation="relu", ends=(0.0, 9.0))  # fmt: skip
    net.add("AveragePooling2D", pool_size=(3, 3), strides=(2, 2), padding="same", ends=(0.0, 4.0))
    net.add("Permute", dims=(3, 1, 2))
    net.add("Reshape", target_shape=(5, -1))
    net.add("UpSampling1D", size=2)
    net.add("Dense", kernel=(8, 6), ends=(-5.0, 5.0))
    net.add("Activation", activation="tanh", ends=(-1.0, 1.0))
    net.add("Flatten")
    net.add("Dense", kernel=(60, 3), per_axis=False, ends=(-4.0, 4.0))
    return net.model()


def separable() -> QatModel:
    """Return depthwise convolutions of bytes, and 1x1 ones with a stride and with groups."""
    net = Network(5, 7, 20, is_symmetric=True)
    net.add("DepthwiseConv2D", kernel=(3, 3, 20, 1), padding="same", ends=(-3.0, 4.0))
    net.add("Conv2D", kernel=(1, 1, 20, 8), ends=(-4.0, 4.0))
    net.add("Conv2D", kernel=(1, 1, 8, 8), strides=(2, 2), ends=(-4.0, 4.0))
    net.add("Conv2D", kernel=(1, 1, 4, 8), ends=(-4.0, 4.0))  # two groups
    return net.model()


def branches(**widths: int) -> QatModel:
    """Return sums, differences and concatenations, of rounded tensors and of unrounded ones."""
    net = Network(6, 6, 4, **widths)
    quantized = net.nodes[-1].name
    one = net.add("Conv2D", quantized, kernel=(1, 1, 4, 4), padding="same")
    two = net.add("Conv2D", quantized, kernel=(3, 3, 2, 4), padding="same")  # two groups
    net.add("BatchNormalization", two, epsilon=1e-3)
    for name, sign in (("gamma", -1), ("beta", 1), ("moving_mean", 1), ("moving_variance", 1)):
        values = net.rng.uniform(0.5, 1.5, 4) * [1, sign, 1, 1]
        net.tensors.append(QatTensor(f"{net.nodes[-1].name}/{name}", "float", np.float32(values)))
    total = net.add("Add", one, net.nodes[-1].name)
    total = net.add("ReLU", total, max_value=6.0, ends=(0.0, 6.0))
    difference = net.add("Subtract", total, quantized)
    difference = net.add("LeakyReLU", difference, alpha=0.2, ends=(-1.0, 6.0))
    joined = net.add("Concatenate", total, one, difference, axis=-1, ends=(-4.0, 6.0))
    below = net.add("Concatenate", joined, joined, axis=1, ends=(-4.0, 5.0))
    up = net.add("UpSampling2D", below, size=(1, 2))
    mean = net.add("GlobalAveragePooling2D", up, ends=(-1.0, 3.0))
    smooth = net.add("UpSampling2D", total, size=(3, 2), interpolation="bilinear", ends=(0.0, 5.3))
    net.add("UpSampling2D", one, size=(1, 4), interpolation="bilinear")
    even = net.add("ReLU", max_value=4.0, ends=(0.0, 4.1))
    most = net.add("GlobalMaxPooling2D", below)
    positive = net.add("ReLU", one)
    mixed = net.add("Concatenate", positive, two, ends=(-3.0, 6.0))  # an activation of its own
    return net.model(mean, most, mixed, smooth, even)


def signals(**widths: int) -> QatModel:
    """Return layers of one dimension."""
    net = Network(12, 3, **widths)
    net.add("Conv1D", kernel=(3, 3, 4), padding="causal", strides=(2,), activation="relu",
            ends=(0.0, 5.0))  # fmt: skip
    net.add("MaxPooling1D", pool_size=(2,), padding="same", strides=(1,))
    net.add("ZeroPadding1D", padding=(1, 2))
    net.add("AveragePooling1D", pool_size=(3,), strides=(1,), padding="same", ends=(0.0, 4.0))
    net.add("Dense", kernel=(4, 5), ends=(-4.0, 4.0))
    net.add("GlobalAveragePooling1D", ends=(-2.0, 2.0))
    return net.model()


def combinations(**widths: int) -> QatModel:
    """Return products, extremes, averages and sums of tensors, some of which broadcast."""
    net = Network(6, 5, 4, **widths)
    start = net.nodes[-1].name
    one = net.add("Conv2D", start, kernel=(1, 1, 4, 4), ends=(-3.039, 4.068))
    sums = net.add("Conv2D", start, kernel=(3, 3, 4, 4), padding="same")
    rows = net.add("AveragePooling2D", start, pool_size=(1, 5), ends=(-0.821, 0.931))
    mean = net.add("GlobalAveragePooling2D", start, ends=(-0.312, 0.420))
    gate = net.add("Dense", mean, kernel=(4, 4), ends=(0.0, 2.670))
    outputs = [
        net.add("Multiply", one, gate, ends=(-4.260, 5.425)),
        net.add("Multiply", rows, one, start, ends=(-3.234, 3.306)),
        net.add("Maximum", one, sums, rows, ends=(-2.182, 6.714)),
        net.add("Minimum", gate, one, ends=(-3.312, 2.272)),
        net.add("Average", one, sums, gate, ends=(-4.468, 4.612)),
        net.add("Add", sums, rows, gate, ends=(-5.650, 7.020)),
        net.add("Subtract", mean, one, ends=(-4.572, 3.561)),
    ]
    scaled = net.add("Multiply", one, rows)
    net.add("Cropping2D", scaled, cropping=((1, 0), (2, 1)))
    outputs.append(net.add("LeakyReLU", alpha=0.25, ends=(-0.578, 3.612)))
    net.add("RepeatVector", gate, n=3)
    net.add("Cropping1D", cropping=(0, 1))
    outputs.append(net.add("Dense", kernel=(4, 3), ends=(-3.507, 3.663)))
    return net.model(*outputs)


def functions(**widths: int) -> QatModel:
    """Return activations: slopes of channels and of elements, a threshold, smooth functions."""
    net = Network(4, 3, 2, **widths)
    start = net.nodes[-1].name
    sums = net.add("Conv2D", start, kernel=(2, 2, 2, 3))
    outputs = []
    for source, shape in ((sums, (3, 2, 3)), (start, (1, 1, 2)), (start, (4, 1, 1))):
        outputs.append(net.add("PReLU", source, ends=(-1.37, 2.19)))
        slopes = net.rng.uniform(-0.5, 0.8, shape).astype(np.float32)
        net.tensors.append(QatTensor(f"{outputs[-1]}/alpha", "float", slopes))
    outputs.append(net.add("PReLU", start, ends=(-0.77, 1.21)))
    net.tensors.append(net._weight(f"{outputs[-1]}/alpha", (1, 3, 2), False, False))
    outputs.append(net.add("ReLU", sums, max_value=1.3, negative_slope=0.4, ends=(-1.13, 1.47)))
    outputs.append(
        net.add("ReLU", start, threshold=0.2, max_value=1.1, negative_slope=0.3, ends=(-0.71, 1.23))
    )
    outputs.append(net.add("ThresholdedReLU", start, theta=0.4, ends=(0.0, 1.43)))
    outputs.append(net.add("ELU", start, alpha=0.6, ends=(-0.57, 1.53)))
    names = "elu exponential gelu mish selu softplus softsign swish silu hard_swish"
    for name in names.split():
        outputs.append(net.add("Activation", start, activation=name, ends=(-0.83, 2.41)))
    for source in (start, sums):
        outputs.append(
            net.add("Activation", source, activation="hard_sigmoid", ends=(0.013, 0.979))
        )
    outputs.append(net.add("Softmax", start, axis=1))
    return net.model(*outputs)


def convolutions(**widths: int) -> QatModel:
    """Return depthwise convolutions of signals, and transposed ones of every geometry."""
    net = Network(5, 4, 3, **widths)
    start, transposed = net.nodes[-1].name, "Conv2DTranspose"
    more: dict[str, Any] = {"per_axis": False, "ends": (-5.13, 6.07)}
    outputs = [
        net.add(transposed, start, kernel=(3, 3, 4, 3), strides=(2, 2), padding="same",
                output_padding=1, **more),
        net.add(transposed, start, kernel=(2, 3, 2, 3), strides=(3, 3), output_padding=[1, 0],
                **more),
        net.add(transposed, start, kernel=(3, 2, 4, 3), strides=2, padding="same", per_axis=True,
                ends=more["ends"]),
        net.add(transposed, start, kernel=(3, 2, 2, 3), dilation_rate=[2, 2], **more),
        net.add(transposed, start, kernel=(2, 4, 2, 3), dilation_rate=3, padding="same", **more),
    ]  # fmt: skip
    for kernel, per_axis in (((3, 2, 3, 1), True), ((2, 3, 3, 2), True), ((1, 2, 3, 2), False)):
        outputs.append(
            net.add("SeparableConv2D", start, kernel=kernel, pointwise=4, per_axis=per_axis,
                    strides=(2, 2), padding="same", ends=(-9.13, 9.07))
        )  # fmt: skip
    net.add("Reshape", start, target_shape=(-1, 3))
    outputs.append(net.add("SeparableConv1D", kernel=(3, 3, 2), pointwise=5, ends=(-9.13, 9.07)))
    net.add("Reshape", start, target_shape=(-1, 3))
    same = {"padding": "same", "strides": 2, "ends": (-3.07, 2.93)}
    outputs.append(net.add("DepthwiseConv1D", kernel=(3, 3, 1), per_axis=False, **same))
    net.add("DepthwiseConv1D", kernel=(2, 3, 2), dilation_rate=2, ends=(-4.07, 3.93))
    return net.model(*outputs, net.nodes[-1].name)


def volumes(**widths: int) -> QatModel:
    """Return layers of three dimensions, of rounded values and of sums."""
    net = Network(4, 3, 5, 2, **widths)
    start = net.nodes[-1].name
    net.add("ZeroPadding3D", padding=((1, 0), (0, 2), (1, 1)))
    net.add("Cropping3D", cropping=((0, 1), (1, 0), (2, 0)))
    net.add("UpSampling3D", size=(1, 2, 3))
    net.add("SpatialDropout3D", rate=0.5)
    last = net.add("Dense", kernel=(2, 3), ends=(-2.0, 2.0))
    net.add("Dense", start, kernel=(2, 3))
    net.add("UpSampling3D", size=(2, 2, 1))
    net.add("Cropping3D", cropping=1)
    net.add("ZeroPadding3D", padding=(1, 0, 2))
    outputs = [last, net.add("ReLU", max_value=1.0, ends=(0.0, 1.1))]
    window = {"pool_size": (2, 2, 3), "strides": (1, 1, 2), "padding": "same"}
    outputs.append(net.add("AveragePooling3D", start, **window, ends=(-0.83, 1.17)))
    outputs.append(net.add("MaxPooling3D", start, **window))
    outputs.append(net.add("GlobalAveragePooling3D", start, ends=(-0.47, 0.71)))
    outputs.append(net.add("GlobalMaxPooling3D", start))
    outputs.append(net.add("Rescaling", start, scale=[0.7, -1.3], offset=0.2, ends=(-1.7, 1.9)))
    statistics = {"axis": 1, "mean": [0.1, 0.2, -0.1, 0.0], "variance": [0.5, 1.1, 2.3, 0.9]}
    outputs.append(net.add("Normalization", start, **statistics, ends=(-1.71, 2.03)))
    conv, ends = "Conv3D", (-5.13, 6.07)
    strides = {"strides": (2, 1, 2), "padding": "same"}
    outputs.append(net.add(conv, start, kernel=(3, 2, 3, 2, 4), **strides, ends=ends))
    outputs.append(net.add(conv, start, kernel=(2, 3, 1, 1, 4), per_axis=False, ends=ends))
    outputs.append(net.add(conv, start, kernel=(2, 2, 2, 2, 3), dilation_rate=[3, 1, 2], ends=ends))
    return net.model(*outputs)


def float_layers() -> QatModel:
    """Return layers in integers with a float one between them, and a softmax at the end."""
    net = Network(5, 5, 2)
    net.add("Conv2D", kernel=(3, 3, 2, 4), ends=(-5.0, 5.0))
    net.add("Conv2D", kernel=(2, 2, 4, 3), is_float=True, ends=(-9.0, 9.0))
    net.add("Flatten")
    net.add("Dense", kernel=(12, 3), ends=(-9.0, 9.0))
    net.add("Softmax")
    return net.model()


def one_float_layer(class_name: str, weight: float, **options: Any) -> QatModel:
    """Return a layer of floats, whose weights and slopes are about as large as `weight`."""
    net = Network(4, 4, 3)
    source = net.nodes[0].name
    net.nodes.pop(), net.tensors.pop()  # what quantizes the input
    inputs = (source,) * (2 if class_name == "Subtract" else 1)
    name = net.add(class_name, *inputs, is_float=True, **options)
    if class_name == "BatchNormalization":
        net.tensors += [
            QatTensor(f"{name}/{which}", "float", np.float32([0.5, 1, 2]))
            for which in ("gamma", "beta", "moving_mean", "moving_variance")
        ]
    scaled = [replace(t, values=t.values * np.float32(weight)) for t in net.tensors[:2]]
    net.tensors[:2] = scaled
    return net.model()


def layers(channels: int, *, weight_bits: int, bits: int = 8, seed: int = 0) -> QatModel:
    """Return convolutions of many geometries side by side, and dense layers after one of them."""
    net = Network(9, 8, channels, bits=bits, weight_bits=weight_bits, is_symmetric=True, seed=seed)
    start, ends = net.nodes[-1].name, (-4.3, 5.1)
    same: dict[str, Any] = {"padding": "same", "ends": ends}
    conv, depthwise = "Conv2D", "DepthwiseConv2D"
    outputs = [
        net.add(conv, start, kernel=(3, 3, channels, 5), strides=(2, 1), **same),
        net.add(conv, start, kernel=(1, 1, channels, 6), **same),
        net.add(conv, start, kernel=(1, 1, channels, 3), strides=(2, 2), **same),
        net.add(conv, start, kernel=(1, 3, channels, 4), per_axis=False, ends=ends),
        net.add(conv, start, kernel=(2, 3, channels, 7), dilation_rate=(3, 2), **same),
        net.add(depthwise, start, kernel=(3, 3, channels, 1), per_axis=False, **same),
        net.add(depthwise, start, kernel=(3, 2, channels, 1), strides=(2, 2), ends=ends),
        net.add(depthwise, start, kernel=(3, 3, channels, 2), **same),
        net.add(depthwise, start, kernel=(2, 2, channels, 3), dilation_rate=(2, 2), ends=ends),
        net.add(depthwise, start, kernel=(3, 3, channels, 1), dilation_rate=(2, 2), **same),
    ]
    if channels % 2 == 0:
        outputs.append(net.add(conv, start, kernel=(3, 3, channels // 2, 4), **same))  # groups
    net.add(
        "ReLU", net.add(conv, start, kernel=(3, 3, channels, 3)), max_value=6.0, ends=(0.0, 6.0)
    )
    outputs.append(net.add("Dense", kernel=(3, 11), per_axis=False, ends=ends))  # of every pixel
    flat = net.add("Flatten")
    outputs.append(net.add("Dense", flat, kernel=(7 * 6 * 11, 5), ends=(-90.0, 95.0)))
    outputs.append(
        net.add("Dense", flat, kernel=(7 * 6 * 11, 5), per_axis=False, ends=(-91.0, 95.0))
    )
    return net.model(*outputs)


def pools_and_sums(channels: int, **widths: int) -> QatModel:
    """Return pools, sums of two tensors and transposed convolutions of many geometries."""
    net = Network(7, 6, channels, is_symmetric=True, **widths)
    start, ends = net.nodes[-1].name, (-4.3, 5.1)
    average, most, transposed = "AveragePooling2D", "MaxPooling2D", "Conv2DTranspose"
    one = net.add("Conv2D", start, kernel=(1, 1, channels, channels), ends=ends)
    other = net.add("Conv2D", start, kernel=(3, 3, channels, channels), padding="same", ends=ends)
    more: dict[str, Any] = {"per_axis": False, "ends": (-5.13, 6.07)}
    outputs = [
        net.add(average, one, pool_size=(3, 2), strides=(2, 1), padding="same", ends=(-2.7, 3.1)),
        net.add(average, one, pool_size=(2, 3), ends=(-1.9, 2.3)),
        net.add(most, one, pool_size=(3, 3), strides=(2, 2), padding="same"),
        net.add(most, one, pool_size=(2, 1), strides=(1, 3)),
        net.add("GlobalMaxPooling2D", one),
        net.add("Add", one, other, ends=(-6.9, 7.7)),
        net.add("Add", one, start, ends=(-4.1, 5.3)),
        net.add("ReLU", net.add("Add", one, one), max_value=6.0, ends=(0.0, 6.0)),
    ]
    geometries: list[tuple[int, int, int, int, str]] = [  # height, width, strides, padding
        (3, 3, 2, 2, "same"), (4, 4, 2, 2, "same"), (2, 3, 1, 2, "valid"), (3, 2, 3, 1, "same"),
        (5, 4, 3, 3, "same"), (3, 5, 1, 1, "same"), (4, 2, 2, 1, "valid"),
    ]  # fmt: skip
    outputs += [
        net.add(transposed, start, kernel=(height, width, 5, channels), strides=(down, right),
                padding=padding, **more)
        for height, width, down, right, padding in geometries
    ]  # fmt: skip
    return net.model(*outputs)


def tied(bits: int) -> QatModel:
    """Return layers with weights of a few bits, and scales that are powers of two: ties."""
    net = Network(6, 5, 3, weight_bits=bits, is_symmetric=True)
    net.add("Conv2D", kernel=(2, 2, 3, 12), ends=(-4.0, 6.0))
    net.add("DepthwiseConv2D", kernel=(2, 2, 12, 1), ends=(-16.0, 24.0))
    net.add("Flatten")
    net.add("Dense", kernel=(144, 6), ends=(-64.0, 96.0))
    net.add("Dense", kernel=(6, 5), ends=(-128.0, 192.0))  # of INT2, not by XNNPACK
    net.add("Dense", kernel=(5, 8), ends=(-256.0, 384.0))
    net.add("Dense", kernel=(8, 4), per_axis=False, ends=(-512.0, 768.0))  # nor this
    for i, tensor in enumerate(net.tensors):
        if tensor.role == "weight":
            most = np.full_like(tensor.max, ((1 << (bits - 1)) - 1) / 4)
            net.tensors[i] = replace(tensor, min=-most, max=most)
    return net.model()


def symmetric(model: QatModel) -> QatModel:
    """Return a model whose activations have their zero in the middle, as INT16 needs."""

    def mended(tensor: QatTensor) -> QatTensor:
        if tensor.role != "output":
            return tensor
        most = np.maximum(np.abs(tensor.min), np.abs(tensor.max))
        spec = replace(tensor.spec, narrow_range=True, symmetric=True)
        return replace(tensor, min=-most, max=most, spec=spec)

    return replace(model, tensors={name: mended(t) for name, t in model.tensors.items()})
