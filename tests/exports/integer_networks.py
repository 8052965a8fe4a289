"""Networks that an integer graph has a form of, small enough to be compiled by a C++ compiler."""

from __future__ import annotations

from qmath import QatModel
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
