"""Networks that an integer graph has a form of, small enough to be compiled by a C++ compiler."""

from __future__ import annotations

import numpy as np

from qmath import QatModel, QatTensor
from tests.exports.networks import Network


def straight(**widths: int) -> QatModel:
    """Return a convolution, a depthwise one and a dense layer, as in many classifiers."""
    net = Network(5, 4, 2, is_symmetric=True, **widths)
    net.add("Conv2D", kernel=(3, 3, 2, 3), padding="same", activation="relu", ends=(0.0, 6.0))
    net.add("DepthwiseConv2D", kernel=(2, 2, 3, 1), strides=(2, 2), ends=(-3.0, 4.0))
    net.add("Flatten")
    net.add("Dense", kernel=(12, 3), ends=(-5.0, 5.0))
    return net.model()


def residual(**widths: int) -> QatModel:
    """Return a sum of two branches, pools, weights with zero points, a softmax at the end."""
    net = Network(4, 4, 2, **widths)
    one = net.add("Conv2D", kernel=(1, 1, 2, 2), ends=(-3.0, 3.0))
    two = net.add("Conv2D", one, kernel=(3, 3, 2, 2), padding="same", ends=(-5.0, 5.0))
    net.add("Add", one, two, ends=(-6.0, 7.0))
    net.add("MaxPooling2D", pool_size=(2, 2), strides=(2, 2))
    net.add("Conv2D", kernel=(1, 1, 2, 3), activation="relu", ends=(0.0, 4.0))
    net.add("AveragePooling2D", pool_size=(2, 2), ends=(0.0, 4.0))
    net.add("Flatten")
    net.add("Dense", kernel=(3, 2), ends=(-5.0, 5.0))
    return net.model(net.add("Activation", activation="softmax"))


def leaky() -> QatModel:
    """Return leaky ReLUs of two slopes."""
    net = Network(5, 4, 2)
    net.add("Conv2D", kernel=(3, 3, 2, 3), padding="same")
    net.add("LeakyReLU", alpha=0.3, ends=(-2.0, 7.0))
    net.add("DepthwiseConv2D", kernel=(2, 2, 3, 1))
    net.add("LeakyReLU", alpha=0.1, ends=(-0.5, 3.0))
    net.add("Flatten")
    net.add("Dense", kernel=(36, 2), ends=(-9.0, 9.0))
    return net.model()


def of_powers_of_two() -> QatModel:
    """Return a convolution whose scales are all powers of two, other ones in each channel."""
    net = Network(5, 4, 2, is_symmetric=True)
    net.add("Conv2D", kernel=(2, 2, 2, 3), activation="relu", ends=(0.0, 255 * 2.0**-6))
    tensors = {tensor.name: tensor for tensor in net.tensors}
    kernel = tensors["conv2d2/kernel"]
    high = 127 * 2.0 ** np.float32([-5, -6, -7])
    low, values = np.float32(-high), np.clip(kernel.values, -high, high)
    net.tensors = [
        _ranged(tensors["quantizelayer1/output"], np.float32(-1), np.float32(127 * 2.0**-7)),
        QatTensor(kernel.name, "weight", values, low, np.float32(high), kernel.spec),
        *(t for t in net.tensors if t.name.startswith("conv2d2") and t is not kernel),
    ]
    return net.model()


def _ranged(tensor: QatTensor, low: np.float32, high: np.float32) -> QatTensor:
    return QatTensor(tensor.name, tensor.role, None, low, high, tensor.spec)
