"""TFLite's operations as Keras's layers: functions of each value, and the table of all rules.

A rule adds layers, or says why none is the same: the operation is a cut point then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from qmath.containers.tflite.file import Operation
from qmath.readers.tflite import tensors
from qmath.readers.tflite.moves import MOVES
from qmath.readers.tflite.network import Network, Rule
from qmath.readers.tflite.spans import SPANS
from qmath.readers.tflite.sums import SUMS
from qmath.readers.tflite.weighted import WEIGHTED

__all__ = ["LAYERS", "UNKNOWN"]

UNKNOWN: Mapping[str, str] = {
    "ARG_MAX": "its result is the index of a value, which is no quantized tensor",
    "BATCH_MATMUL": "it multiplies matrices of which both are computed, or one for each example",
    "L2_NORMALIZATION": "it divides by a root of a sum of squares",
    "LOG_SOFTMAX": "it is no sum, product or table",
    "RSQRT": "TFLite computes it by Newton's method in fixed point",
    "SQUARED_DIFFERENCE": "it squares a difference that nothing rounds",
}
"""Why operations without a rule are cut points, where there is more to say than that."""


def _quantize(net: Network, operation: Operation, name: str) -> bool:
    x = operation.inputs[0]
    if x not in net.made_by:
        return False
    net.add(name, "QuantizeLayer", [x])
    is_input = x in net.file.inputs
    net.end(operation, name, "output", "input" if is_input else "output")
    return f"{name}/output" in net.tensors


def _dequantize(net: Network, operation: Operation, name: str) -> bool:
    x, constant = operation.inputs[0], net.constant(operation, 0)
    if constant is not None and constant.data is not None:
        if constant.data.dtype.kind == "f":
            net.set_constant(operation.outputs[0], constant.data.astype(np.float32))
            return True
        q = constant.quantization
        if q is None or q.scale.size != 1:
            return False
        shifted = constant.data.astype(np.int64) - q.zero_point
        net.set_constant(operation.outputs[0], shifted.astype(np.float32) * q.scale)
        return True
    if x not in net.made_by:
        return False
    net.made_by[operation.outputs[0]] = net.add(name, "Activation", [x], {"activation": "linear"})
    return True


def _prelu(net: Network, operation: Operation, name: str) -> bool | str:
    x, slopes = operation.inputs[0], net.constant(operation, 1)
    if x not in net.made_by or slopes is None or slopes.data is None:
        return "its slopes are computed"
    shape = net.shape(x)
    own = (1,) * (len(shape) - len(slopes.shape)) + slopes.shape
    if len(own) > len(shape) and own[0] == 1:
        own = own[1:]
    if len(own) != len(shape) or any(n not in (1, m) for n, m in zip(own, shape, strict=True)):
        return "its slopes are not of a shape that the examples have"
    if slopes.data.dtype.kind == "f":
        net.hold(tensors.constant(f"{name}/alpha", slopes, lambda a: a.reshape(own)))
    else:
        q = slopes.quantization
        if q is None or q.scale.size != 1 or not q.scale[0] or slopes.type not in tensors.WIDTHS:
            return "its slopes have no scale"
        net.hold(tensors.weight(f"{name}/alpha", slopes, lambda a: a.reshape(own), None))
    shared = [axis for axis, n in enumerate(own, 1) if n == 1]
    net.add(name, "PReLU", [x], {"shared_axes": shared, "kernel": operation.name})
    net.end(operation, name, "output")
    return True


def _layer(
    class_name: str, config: Mapping[str, Any], net: Network, operation: Operation, name: str
) -> bool | str:
    """Add an activation that is an operation of its own."""
    x = operation.inputs[0]
    own = dict(config)
    if operation.name == "SOFTMAX" and operation.options["beta"] != 1:
        return "its beta is not 1"
    if operation.name == "GELU" and operation.options["approximate"]:
        return "it is the approximation by a hyperbolic tangent"
    if operation.name == "LEAKY_RELU":
        own = {"alpha": operation.options["alpha"]}
        if not math.isfinite(own["alpha"]):
            return False
    if x not in net.made_by:
        return False
    if net.is_integer(operation.outputs[0]):
        own["kernel"] = operation.name
    net.add(name, class_name, [x], own)
    which = "post_activation" if class_name == "Activation" else "output"
    net.end(operation, name, which)
    return True


def _function(name: str, **config: Any) -> Rule:
    return partial(_layer, "Activation", {"activation": name, **config})


LAYERS: Mapping[str, Rule] = {
    **WEIGHTED,
    **SUMS,
    **MOVES,
    **SPANS,
    "QUANTIZE": _quantize,
    "DEQUANTIZE": _dequantize,
    "PRELU": _prelu,
    "RELU": partial(_layer, "ReLU", {}),
    "RELU6": partial(_layer, "ReLU", {"max_value": 6.0}),
    "RELU_0_TO_1": partial(_layer, "ReLU", {"max_value": 1.0}),
    "RELU_N1_TO_1": _function("tflite.clip", low=-1.0, high=1.0),
    "LEAKY_RELU": partial(_layer, "LeakyReLU", {}),
    "ELU": partial(_layer, "ELU", {}),
    "ABS": _function("tflite.abs"),
    "EXP": _function("exponential"),
    "GELU": _function("gelu"),
    "HARD_SWISH": _function("hard_swish"),
    "LOG": _function("tflite.log"),
    "LOGISTIC": _function("sigmoid"),
    "NEG": _function("tflite.negative"),
    "SOFTMAX": _function("softmax"),
    "SQRT": _function("tflite.sqrt"),
    "SQUARE": _function("tflite.square"),
    "TANH": _function("tanh"),
}
