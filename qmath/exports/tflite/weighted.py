"""Convolutions and dense layers as TFLite's operators, with the integers of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.containers.tflite.schema import ACTIVATIONS, PADDINGS
from qmath.exports.tflite.graph import GraphBuilder, Grid, Tensor
from qmath.exports.tflite.moves import UnsupportedError, padded, padding_of, reshaped
from qmath.integer.profiles.tflite_kernels import Kernel
from qmath.integer.program import Linear

__all__ = ["Call", "Weight", "apply", "ordered", "weighted"]

Array = NDArray[Any]

# Versions for int8 and for int16 activations. Kernels for packed weights are found by type:
# TensorFlow's newer versions of them are unknown to the reference kernels.
_VERSIONS = {"CONV_2D": (3, 4), "DEPTHWISE_CONV_2D": (3, 5), "TRANSPOSE_CONV": (3, 4),
             "FULLY_CONNECTED": (4, 7)}  # fmt: skip
_PER_CHANNEL_DENSE = 12
_MOST_BITS = 8
_KEEPS_AXES = 5  # of dense layers
# Which types of packed weights an operator's kernels take, narrowest first.
_PACKED = {"CONV_2D": (4,), "DEPTHWISE_CONV_2D": (4,), "FULLY_CONNECTED": (2, 4),
           "TRANSPOSE_CONV": ()}  # fmt: skip
# The axes of a kernel in TFLite's order, and which of these is the output channels'.
_ORDERS = {"CONV_2D": (3, 0, 1, 2), "TRANSPOSE_CONV": (2, 0, 1, 3), "FULLY_CONNECTED": (1, 0)}


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight in the file.

    Attributes
    ----------
    tensor : Tensor
    flipped : tuple of int
        Output channels whose integers have the other sign, as batch normalization's factor is
        negative there.
    dead : tuple of int
        Output channels that batch normalization multiplies by zero, whose integers are zero here.
    """

    tensor: Tensor
    flipped: tuple[int, ...]
    dead: tuple[int, ...]


def weighted(
    builder: GraphBuilder,
    x: Tensor,
    name: str,
    linear: Linear,
    kernel: Kernel,
    activation: int,
    narrowest: int,
) -> tuple[Tensor, Weight]:
    """Write an operation with weights; return its result and its weights.

    Parameters
    ----------
    builder : GraphBuilder
    x : Tensor
    name : str
        What the result's name begins with.
    linear : Linear
    kernel : Kernel
    activation : int
        The fused one's number.
    narrowest : int
        How few bits a weight may be packed to: 2, 4 or 8.
    """
    if kernel.weight_bits > _MOST_BITS:
        why = ", as a range that is not symmetric takes one more" if kernel.weight_bits == 9 else ""
        raise UnsupportedError(
            f"the {kernel.weight_bits} bits of {kernel.weights}{why}: weights have {_MOST_BITS} at "
            "most"
        )
    assert kernel.weight_scale is not None
    wide = x.kind == "INT16"
    weight, bias = _constants(builder, linear, kernel, narrowest, "INT64" if wide else "INT32")
    version = _VERSIONS[kernel.op][wide]
    if kernel.op == "FULLY_CONNECTED" and np.ndim(kernel.weight_scale):
        version = _PER_CHANNEL_DENSE
    grid = Grid(kernel.output.scale, kernel.output.zero_point)
    call = Call(kernel.op, weight.tensor, bias, version, grid, activation)
    return apply(builder, x, name, linear, call), weight


@dataclass(frozen=True, eq=False)
class Call:
    """An operator with weights: which one, its constants, and its result's grid."""

    op: str
    weight: Tensor
    bias: Tensor
    version: int
    grid: Grid | None = None
    activation: int = ACTIVATIONS["NONE"]


def apply(builder: GraphBuilder, x: Tensor, name: str, linear: Linear, call: Call) -> Tensor:
    """Write an operator with weights: of a signal in one row."""
    options: dict[str, Any] = {"fused_activation_function": call.activation}
    inputs, version = [x, call.weight, call.bias], call.version
    shape = (x.shape[0], *linear.shape)
    if call.op == "FULLY_CONNECTED":
        if len(shape) > 2:
            options["keep_num_dims"] = True
            version = max(version, _KEEPS_AXES)
        y = builder.tensor(f"{name}/{call.op}", shape, x.kind, call.grid)
        return builder.op(call.op, inputs, y, version, **options)
    if len(shape) == 3:
        inputs[0] = x = reshaped(builder, x, name, (1, *x.shape[1:]))
        shape = (shape[0], 1, *shape[1:])
    y = builder.tensor(f"{name}/{call.op}", shape, x.kind, call.grid)
    if call.op == "TRANSPOSE_CONV":
        size = builder.constant(f"{name}/size", "INT32", shape)
        inputs = [size, call.weight, x, call.bias]
        options |= _transposed(linear)
    else:
        inputs[0], window = _convolution(builder, x, name, linear)
        options |= window
    if call.op == "DEPTHWISE_CONV_2D":
        options["depth_multiplier"] = shape[-1] // x.shape[-1]
    builder.op(call.op, inputs, y, version, **options)
    return reshaped(builder, y, name, linear.shape)


def _constants(
    builder: GraphBuilder, linear: Linear, kernel: Kernel, narrowest: int, bias_kind: str
) -> tuple[Weight, Tensor]:
    """Add weights and bias."""
    assert kernel.weight_scale is not None
    assert kernel.weight_sign is not None
    assert kernel.bias is not None
    values, axis = ordered(
        np.asarray(linear.weights), kernel.op, linear.attributes.get("dilation", (1, 1))
    )
    sign = np.asarray(kernel.weight_sign, np.int8)
    values = values * (sign.reshape(-1, *(1,) * (values.ndim - 1 - axis)) if sign.ndim else sign)
    packed = [n for n in _PACKED[kernel.op] if narrowest <= n >= kernel.weight_bits]
    kind = f"INT{min(packed, default=8)}"
    scales: Array = kernel.weight_scale
    tensor = builder.constant(kernel.weights, kind, values, scales=scales, axis=axis)
    channels = linear.shape[-1]
    bias = builder.constant(
        f"{kernel.name}/bias", bias_kind, np.broadcast_to(kernel.bias, (channels,)),
        scales=np.asarray(kernel.inputs[0].scale * scales, np.float32),
    )  # fmt: skip
    signs = np.broadcast_to(kernel.weight_sign, (channels,))
    flipped, dead = (tuple(np.flatnonzero(signs == sign).tolist()) for sign in (-1, 0))
    return Weight(tensor, flipped, dead), bias


def ordered(weights: Array, op: str, dilation: Sequence[int] = (1, 1)) -> tuple[Array, int]:
    """Return weights in TFLite's order, and the axis of their output channels."""
    if op == "DEPTHWISE_CONV_2D":
        return weights.reshape(1, *weights.shape[:2], -1), 3
    arranged = weights.transpose(_ORDERS[op])
    return (_spread(arranged, dilation) if op == "TRANSPOSE_CONV" else arranged), 0


def _spread(weights: Array, dilation: Sequence[int]) -> Array:
    """Return a kernel with the zeros of its dilation, which TFLite does not know."""
    if tuple(dilation) == (1, 1):
        return weights
    size = [(n - 1) * d + 1 for n, d in zip(weights.shape[1:3], dilation, strict=True)]
    spread = np.zeros((weights.shape[0], *size, weights.shape[3]), weights.dtype)
    spread[:, :: dilation[0], :: dilation[1]] = weights
    return spread


def _convolution(
    builder: GraphBuilder, x: Tensor, name: str, linear: Linear
) -> tuple[Tensor, dict[str, Any]]:
    """Return the input, padded where TFLite's two ways are others, and the window's options."""
    geometry, (height, width) = linear.attributes, np.asarray(linear.weights).shape[:2]
    strides, dilation, pads = (geometry[key] for key in ("strides", "dilation", "pads"))
    window = [(n - 1) * d + 1 for n, d in zip((height, width), dilation, strict=True)]
    padding = padding_of(x.shape[1:3], window, strides, pads)
    if padding is None:
        x, padding = padded(builder, x, name, pads), PADDINGS["VALID"]
    return x, {
        "padding": padding, "stride_h": int(strides[0]), "stride_w": int(strides[1]),
        "dilation_h_factor": int(dilation[0]), "dilation_w_factor": int(dilation[1]),
    }  # fmt: skip


def _transposed(linear: Linear) -> dict[str, Any]:
    strides, crops = linear.attributes["strides"], linear.attributes["crops"]
    is_same = any(map(any, crops))
    return {
        "padding": PADDINGS["SAME" if is_same else "VALID"],
        "stride_h": int(strides[0]), "stride_w": int(strides[1]),
    }  # fmt: skip
