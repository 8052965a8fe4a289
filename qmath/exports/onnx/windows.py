"""Windows in ONNX's words: kernels, strides and paddings of each spatial axis, and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qmath.exports.onnx.graph import Value
from qmath.integer.program import Linear

__all__ = ["begins_and_ends", "of_convolution", "of_pool", "of_resize", "of_transposed"]


def of_convolution(linear: Linear, x: Value) -> dict[str, Any]:
    """Return the attributes of a convolution."""
    kernel = np.asarray(linear.weights).shape
    depthwise = linear.kind == "depthwise_conv2d"
    return {
        "kernel_shape": last(kernel[:-2], x),
        "strides": last(linear.attributes["strides"], x),
        "dilations": last(linear.attributes["dilation"], x),
        "pads": of_pads(linear.attributes["pads"], x),
        "group": x.shape[-1] if depthwise else x.shape[-1] // kernel[-2],
    }


def of_transposed(linear: Linear, x: Value) -> dict[str, Any]:
    """Return the attributes of a transposed convolution."""
    strides, crops = linear.attributes["strides"], linear.attributes["crops"]
    kernel, size = np.asarray(linear.weights).shape[:2], linear.attributes["size"]
    dilation = linear.attributes.get("dilation", (1, 1))
    rows = (1,) * (len(size) + 1 - len(x.shape)) + x.shape  # of a signal one
    # Where the kernel is smaller than its steps, the rows after the last one are empty.
    missing = [
        out - ((n - 1) * s + (k - 1) * d + 1 - sum(c))
        for out, n, s, k, d, c in zip(size, rows, strides, kernel, dilation, crops, strict=False)
    ]
    spread = {"dilations": last(dilation, x)} if dilation != (1, 1) else {}
    return {
        "kernel_shape": last(kernel, x),
        **spread,
        "strides": last(strides, x),
        "pads": of_pads(crops, x),
        "output_padding": last(missing, x),
    }


def of_pool(kind: str, attributes: dict[str, Any], x: Value) -> dict[str, Any]:
    """Return the attributes of an ``AveragePool`` or a ``MaxPool``."""
    given: dict[str, Any] = {
        "kernel_shape": last(attributes["size"], x),
        "strides": last(attributes["strides"], x),
        "pads": of_pads(attributes["pads"], x),
    }
    return {**given, "count_include_pad": 0} if kind == "Average" else given


def of_resize(linear: Linear) -> dict[str, str]:
    """Return the attributes of an upsampling, by the pixels themselves or between them."""
    if linear.kind != "upsample":
        return {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }


def last(values: Sequence[int], x: Value) -> list[int]:
    """Return what is set for each spatial axis: a signal has one, the last."""
    return [int(n) for n in values[-(len(x.shape) - 1) :]]


def of_pads(pads: Sequence[Sequence[int]], x: Value) -> list[int]:
    """Return the paddings of each spatial axis, begins first."""
    return begins_and_ends(pads[-(len(x.shape) - 1) :])


def begins_and_ends(pads: Sequence[Sequence[int]]) -> list[int]:
    """Return all that is before each axis, then all that is after it."""
    return [int(pad[end]) for end in (0, 1) for pad in pads]
