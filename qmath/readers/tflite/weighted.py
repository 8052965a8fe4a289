"""TFLite's operations with weights as Keras's layers; ``False`` where none is the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.containers.tflite.file import Operation, Tensor
from qmath.containers.tflite.schema import PADDINGS, WEIGHTS_FORMATS
from qmath.readers.tflite import tensors
from qmath.readers.tflite.network import Network, Rule

__all__ = ["WEIGHTED", "is_possible", "window"]

Array = NDArray[Any]

_CHANNELS = {"CONV_3D": 4, "DEPTHWISE_CONV_2D": 3}  # the axis of the output channels, else 0


def _padding(operation: Operation) -> str:
    return "same" if operation.options["padding"] == PADDINGS["SAME"] else "valid"


def window(operation: Operation) -> dict[str, Any]:
    """Return strides, padding and dilation in Keras's words."""
    options = operation.options
    config: dict[str, Any] = {
        "strides": [options["stride_h"], options["stride_w"]],
        "padding": _padding(operation),
    }
    if "dilation_h_factor" in options:
        config["dilation_rate"] = [options["dilation_h_factor"], options["dilation_w_factor"]]
    return config


def is_possible(config: Mapping[str, Any]) -> bool:
    """Whether strides and the like are positive numbers of a size that makes sense."""
    numbers = [n for value in config.values() if isinstance(value, list) for n in value]
    return all(0 < n < 1 << 20 for n in numbers)


def _hold_weighted(
    net: Network, operation: Operation, name: str, kernel: str,
    arranged: Callable[[Array], Array], axes: tuple[int, int], places: tuple[int, int] = (1, 2),
) -> bool:  # fmt: skip
    """Add weights and bias, if they are constants whose scales run along the output channels.

    `axes` are the file's axis and the layer's; `places` those of weights and bias in the inputs.
    """
    weights, bias = (net.constant(operation, place) for place in places)
    assert weights is not None
    assert weights.data is not None
    layer_axis = axes[1]
    q = weights.quantization
    if weights.type in tensors.WIDTHS:
        if q is None or not q.scale.all() or (q.scale.size > 1 and q.axis != axes[0]):
            return False
        net.hold(tensors.weight(f"{name}/{kernel}", weights, arranged, layer_axis))
    elif weights.data.dtype.kind == "f":
        net.hold(tensors.constant(f"{name}/{kernel}", weights, arranged))
    else:
        return False
    if bias is not None:
        net.hold(*tensors.bias(name, bias))
    return True


def _has_weights(net: Network, operation: Operation, rank: int) -> Tensor | None:
    """Return the weights of an operation, if they are a constant of that many axes.

    Its bias, if it has one, has to be a constant, too, with an element for each output channel.
    """
    weights = net.constant(operation, 1)
    if weights is None or weights.data is None or len(weights.shape) != rank:
        return None
    place = 3 if operation.name == "TRANSPOSE_CONV" else 2
    if len(operation.inputs) > place and operation.inputs[place] >= 0:
        bias = net.constant(operation, place)
        channels = weights.shape[_CHANNELS.get(operation.name, 0)]
        if bias is None or bias.shape != (channels,) or bias.type not in (
            "FLOAT32", "FLOAT16", "INT32", "INT64",
        ):  # fmt: skip
            return None
    return weights


def _conv(net: Network, operation: Operation, name: str) -> bool:
    weights = _has_weights(net, operation, 4)
    x = operation.inputs[0]
    config = window(operation)
    if weights is None or x not in net.made_by or not is_possible(config):
        return False
    if len(net.shape(x)) != 3 or not weights.shape[3] or net.shape(x)[-1] % weights.shape[3]:
        return False
    arranged = partial(np.transpose, axes=(1, 2, 3, 0))
    if not _hold_weighted(net, operation, name, "kernel", arranged, (0, 3)):
        return False
    config |= {"groups": net.shape(x)[-1] // weights.shape[3], "activation": net.fused(operation)}
    net.add(name, "Conv2D", [x], config)
    net.end(operation, name, "post_activation", "activation")
    return True


def _depthwise(net: Network, operation: Operation, name: str) -> bool:
    weights = _has_weights(net, operation, 4)
    x = operation.inputs[0]
    config = window(operation) | {"activation": net.fused(operation)}
    if weights is None or x not in net.made_by or not is_possible(config):
        return False
    if len(net.shape(x)) != 3:
        return False
    channels, total = net.shape(x)[-1], weights.shape[3]
    if weights.shape[0] != 1 or not channels or total % channels:
        return False
    multiplier, q = total // channels, weights.quantization
    size = weights.shape[1:3]
    if multiplier > 1 and q is not None and q.scale.size > 1:
        # As groups: a depthwise kernel of Keras has no axis that these scales could run along.
        kernel, class_name, axis = "kernel", "Conv2D", 3
        shape: tuple[int, ...] = (*size, 1, total)
        config |= {"groups": channels, "kernel": operation.name}
    else:
        kernel, class_name, axis = "depthwise_kernel", "DepthwiseConv2D", 2
        shape = (*size, channels, multiplier)
        config["depth_multiplier"] = multiplier
    if not _hold_weighted(net, operation, name, kernel, lambda a: a.reshape(shape), (3, axis)):
        return False
    net.add(name, class_name, [x], config)
    net.end(operation, name, "post_activation", "activation")
    return True


def _transpose_conv(net: Network, operation: Operation, name: str) -> bool:
    weights = _has_weights(net, operation, 4)
    if weights is None or len(operation.inputs) < 3 or operation.inputs[2] not in net.made_by:
        return False
    x, config = operation.inputs[2], window(operation)
    out, size = net.shape(operation.outputs[0]), weights.shape[1:3]
    if not is_possible(config) or len(net.shape(x)) != 3 or len(out) != 3:
        return False
    is_same, added = config["padding"] == "same", []
    for n, k, s, wanted in zip(net.shape(x), size, config["strides"], out, strict=False):
        added.append(wanted - ((n - 1) * s + k - (k // 2 * 2 if is_same else 0)))
    default = [
        n * s + (0 if is_same else max(k - s, 0))
        for n, k, s in zip(net.shape(x), size, config["strides"], strict=False)
    ]
    if list(out[:2]) != default:
        if any(not 0 <= more < s for more, s in zip(added, config["strides"], strict=True)):
            return False
        config["output_padding"] = added
    arranged = partial(np.transpose, axes=(1, 2, 0, 3))
    if not _hold_weighted(net, operation, name, "kernel", arranged, (0, 2), (1, 3)):
        return False
    if not net.file.tensors[operation.inputs[0]].is_constant:
        config["is_dynamic"] = True
    net.add(name, "Conv2DTranspose", [x], config | {"activation": net.fused(operation)})
    net.end(operation, name, "post_activation", "activation")
    return True


def _fully_connected(net: Network, operation: Operation, name: str) -> bool:
    weights = _has_weights(net, operation, 2)
    x = operation.inputs[0]
    is_default = operation.options["weights_format"] == WEIGHTS_FORMATS["DEFAULT"]
    if weights is None or x not in net.made_by or not is_default:
        return False
    shape, length = net.shape(x), weights.shape[1]
    is_kept = operation.options["keep_num_dims"] or len(shape) == 1
    if not (shape and shape[-1] == length and is_kept) and math.prod(shape) != length:
        return False
    if not _hold_weighted(net, operation, name, "kernel", np.transpose, (0, 1)):
        return False
    source = net.made_by[x]
    if not is_kept:
        source = net.add(f"{name}/flatten", "Reshape", [x], {"target_shape": [length]})
    net.add(name, "Dense", [source], {"activation": net.fused(operation)})
    net.end(operation, name, "post_activation", "activation")
    return True


def _conv3d(net: Network, operation: Operation, name: str) -> bool:
    """Add a convolution of volumes, which TFLite computes of floats only."""
    weights, options = _has_weights(net, operation, 5), operation.options
    x = operation.inputs[0]
    axes = "dhw"
    config: dict[str, Any] = {
        "strides": [options[f"stride_{axis}"] for axis in axes],
        "dilation_rate": [options[f"dilation_{axis}_factor"] for axis in axes],
        "padding": _padding(operation),
        "activation": net.fused(operation),
    }
    if weights is None or x not in net.made_by or not is_possible(config):
        return False
    if len(net.shape(x)) != 4 or net.shape(x)[-1] != weights.shape[3]:
        return False
    if not _hold_weighted(net, operation, name, "kernel", np.asarray, (4, 4)):
        return False
    net.add(name, "Conv3D", [x], config)
    net.end(operation, name, "post_activation", "activation")
    return True


WEIGHTED: Mapping[str, Rule] = {
    "CONV_2D": _conv,
    "CONV_3D": _conv3d,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _fully_connected,
}
