"""TFLite's operations as Keras's layers: one function each, ``False`` where none is the same."""

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
from qmath.readers.tflite.network import Network

__all__ = ["LAYERS"]

Array = NDArray[Any]
# Adds what an operation is, and says whether it is a layer of qmath's.
Rule = Callable[[Network, Operation, str], bool]


def _padding(operation: Operation) -> str:
    return "same" if operation.options["padding"] == PADDINGS["SAME"] else "valid"


def _window(operation: Operation) -> dict[str, Any]:
    options = operation.options
    config: dict[str, Any] = {
        "strides": [options["stride_h"], options["stride_w"]],
        "padding": _padding(operation),
    }
    if "dilation_h_factor" in options:
        config["dilation_rate"] = [options["dilation_h_factor"], options["dilation_w_factor"]]
    return config


def _is_possible(config: Mapping[str, Any]) -> bool:
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
        channels = weights.shape[3 if operation.name == "DEPTHWISE_CONV_2D" else 0]
        if bias is None or bias.shape != (channels,) or bias.type not in (
            "FLOAT32", "FLOAT16", "INT32", "INT64",
        ):  # fmt: skip
            return None
    return weights


def _conv(net: Network, operation: Operation, name: str) -> bool:
    weights = _has_weights(net, operation, 4)
    x = operation.inputs[0]
    config = _window(operation)
    if weights is None or x not in net.made_by or not _is_possible(config):
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
    config = _window(operation) | {"activation": net.fused(operation)}
    if weights is None or x not in net.made_by or not _is_possible(config):
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
        config["groups"] = channels
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
    x, config = operation.inputs[2], _window(operation)
    out, size = net.shape(operation.outputs[0]), weights.shape[1:3]
    if not _is_possible(config) or len(net.shape(x)) != 3 or len(out) != 3:
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


def _finished(net: Network, operation: Operation, name: str) -> bool:
    """End an operation without weights, with the activation that is fused to it."""
    activation = net.fused(operation)
    if activation != "linear":
        name = net.add(f"{name}/activation", "Activation", [name], {"activation": activation})
    net.end(operation, name, "output")
    return True


def _joined(class_name: str, net: Network, operation: Operation, name: str) -> bool:
    if len(operation.inputs) < 2 or any(i not in net.made_by for i in operation.inputs):
        return False
    config = {}
    if class_name == "Concatenate":
        config = {"axis": operation.options["axis"]}
        rank = len(net.shape(operation.outputs[0])) + 1
        if config["axis"] in (0, -rank) or not -rank <= config["axis"] < rank:
            return False
    if class_name in ("Concatenate", "Maximum", "Minimum"):
        indexes = (*operation.inputs, *operation.outputs)
        if not net.same_integers(indexes):
            return False
    net.add(name, class_name, operation.inputs, config)
    return _finished(net, operation, name)


def _pool(class_name: str, net: Network, operation: Operation, name: str) -> bool:
    x, options = operation.inputs[0], operation.options
    config = _window(operation) | {"pool_size": [options["filter_height"], options["filter_width"]]}
    if x not in net.made_by or not _is_possible(config) or len(net.shape(x)) != 3:
        return False
    if not net.same_integers((x, *operation.outputs)):
        return False
    net.add(name, class_name, [x], config)
    is_maximum, is_plain = class_name == "MaxPooling2D", net.fused(operation) == "linear"
    if is_maximum and is_plain:
        net.made_by[operation.outputs[0]] = name
        return True
    if not is_maximum and not is_plain:  # an average is rounded before it is clamped
        net.end(operation, name, "output")
    return _finished(net, operation, name)


def _global(class_name: str, net: Network, operation: Operation, name: str) -> bool:
    x, axes = operation.inputs[0], net.numbers(operation, 1)
    if x not in net.made_by or axes is None:
        return False
    rank = len(net.shape(x)) + 1
    if rank not in (3, 4) or sorted(a % rank for a in axes) != list(range(1, rank - 1)):
        return False
    is_average = class_name == "GlobalAveragePooling"
    if not is_average and not net.same_integers((x, *operation.outputs)):
        return False
    config = {"keepdims": bool(operation.options["keep_dims"])}
    net.add(name, f"{class_name}{rank - 2}D", [x], config)
    if is_average:
        net.end(operation, name, "output")
    else:
        net.made_by[operation.outputs[0]] = name
    return True


def _moved(
    net: Network, operation: Operation, name: str, class_name: str, config: Mapping[str, Any]
) -> bool:
    """Add what only moves values, if the integers mean the same before and after."""
    x = operation.inputs[0]
    if not net.same_integers((x, *operation.outputs)):
        return False
    net.made_by[operation.outputs[0]] = net.add(name, class_name, [x], config)
    return True


def _reshape(net: Network, operation: Operation, name: str) -> bool:
    x, out = operation.inputs[0], net.file.tensors[operation.outputs[0]].shape
    if x not in net.made_by or len(out) < 2 or not all(out):
        return False
    before = net.file.tensors[x].shape
    if math.prod(before[1:]) != math.prod(out[1:]):
        return False
    return _moved(net, operation, name, "Reshape", {"target_shape": list(out[1:])})


def _pad(net: Network, operation: Operation, name: str) -> bool:
    x, pads = operation.inputs[0], net.numbers(operation, 1)
    if x not in net.made_by or pads is None:
        return False
    rank = len(net.shape(x)) + 1
    if rank not in (3, 4) or len(pads) != 2 * rank or any(not 0 <= n < 1 << 20 for n in pads):
        return False
    pairs = [pads[i : i + 2] for i in range(0, len(pads), 2)]
    if any(pairs[0]) or any(pairs[-1]):
        return False
    if operation.name == "PADV2":
        value, q = net.numbers(operation, 2), net.file.tensors[x].quantization
        if value is None or q is None or q.zero_point.size != 1 or value != [q.zero_point[0]]:
            return False
    config = {"padding": pairs[1:-1] if rank == 4 else pairs[1]}
    return _moved(net, operation, name, f"ZeroPadding{rank - 2}D", config)


def _upsample(net: Network, operation: Operation, name: str) -> bool:
    x, out = operation.inputs[0], net.shape(operation.outputs[0])
    if x not in net.made_by or len(net.shape(x)) != 3 or operation.options["align_corners"]:
        return False
    before = net.shape(x)
    if not all(before) or any(a % b for a, b in zip(out, before, strict=True)):
        return False
    size = [out[0] // before[0], out[1] // before[1]]
    return _moved(net, operation, name, "UpSampling2D", {"size": size, "interpolation": "nearest"})


def _transpose(net: Network, operation: Operation, name: str) -> bool:
    x, order = operation.inputs[0], net.numbers(operation, 1)
    if x not in net.made_by or order is None or order[:1] != [0]:
        return False
    if sorted(order) != list(range(len(net.shape(x)) + 1)):
        return False
    return _moved(net, operation, name, "Permute", {"dims": order[1:]})


def _slice(net: Network, operation: Operation, name: str) -> bool:
    x, options = operation.inputs[0], operation.options
    places = [net.numbers(operation, at) for at in (1, 2, 3)]
    if x not in net.made_by or None in places:
        return False
    begin, end, strides = (place or [] for place in places)
    shape = net.file.tensors[x].shape
    masks = ("ellipsis_mask", "new_axis_mask", "shrink_axis_mask", "offset")
    if len(shape) != 4 or {len(begin), len(end), len(strides)} != {4} or set(strides) != {1}:
        return False
    if any(options[mask] for mask in masks):
        return False
    crops = []
    for axis, length in enumerate(shape):
        first, last, _ = slice(begin[axis], end[axis]).indices(length)
        first = 0 if options["begin_mask"] >> axis & 1 else first
        last = length if options["end_mask"] >> axis & 1 else last
        crops.append([first, length - last])
    if (
        any(crops[0])
        or any(crops[3])
        or any(sum(ends) >= n for ends, n in zip(crops, shape, strict=True))
    ):
        return False
    return _moved(net, operation, name, "Cropping2D", {"cropping": crops[1:3]})


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


def _layer(
    class_name: str, config: Mapping[str, Any], net: Network, operation: Operation, name: str
) -> bool:
    """Add an activation that is an operation of its own."""
    x = operation.inputs[0]
    own = dict(config)
    if operation.name == "SOFTMAX" and operation.options["beta"] != 1:
        return False
    if operation.name == "GELU" and operation.options["approximate"]:
        return False
    if operation.name == "LEAKY_RELU":
        own = {"alpha": operation.options["alpha"]}
        if not math.isfinite(own["alpha"]):
            return False
    if x not in net.made_by:
        return False
    net.add(name, class_name, [x], own)
    which = "post_activation" if class_name == "Activation" else "output"
    net.end(operation, name, which)
    return True


LAYERS: Mapping[str, Rule] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": partial(_joined, "Add"),
    "SUB": partial(_joined, "Subtract"),
    "MUL": partial(_joined, "Multiply"),
    "MAXIMUM": partial(_joined, "Maximum"),
    "MINIMUM": partial(_joined, "Minimum"),
    "CONCATENATION": partial(_joined, "Concatenate"),
    "AVERAGE_POOL_2D": partial(_pool, "AveragePooling2D"),
    "MAX_POOL_2D": partial(_pool, "MaxPooling2D"),
    "MEAN": partial(_global, "GlobalAveragePooling"),
    "REDUCE_MAX": partial(_global, "GlobalMaxPooling"),
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "PAD": _pad,
    "PADV2": _pad,
    "RESIZE_NEAREST_NEIGHBOR": _upsample,
    "TRANSPOSE": _transpose,
    "STRIDED_SLICE": _slice,
    "QUANTIZE": _quantize,
    "DEQUANTIZE": _dequantize,
    "RELU": partial(_layer, "ReLU", {}),
    "RELU6": partial(_layer, "ReLU", {"max_value": 6.0}),
    "LEAKY_RELU": partial(_layer, "LeakyReLU", {}),
    "ELU": partial(_layer, "ELU", {}),
    "LOGISTIC": partial(_layer, "Activation", {"activation": "sigmoid"}),
    "TANH": partial(_layer, "Activation", {"activation": "tanh"}),
    "GELU": partial(_layer, "Activation", {"activation": "gelu"}),
    "SOFTMAX": partial(_layer, "Activation", {"activation": "softmax"}),
}
