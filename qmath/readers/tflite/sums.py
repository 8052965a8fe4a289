"""TFLite's operations on several values without weights: sums, products, pools, reductions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.containers.tflite.file import Operation, Tensor
from qmath.readers.tflite import moves, tensors
from qmath.readers.tflite.moves import Move, reshaped
from qmath.readers.tflite.network import Network, Rule
from qmath.readers.tflite.weighted import is_possible, window

__all__ = ["SUMS"]

Array = NDArray[Any]


def _finished(net: Network, operation: Operation, name: str) -> bool:
    """End an operation without weights, with the activation that is fused to it."""
    activation = net.fused(operation)
    if activation != "linear":
        name = net.add(f"{name}/activation", "Activation", [name], {"activation": activation})
    net.end(operation, name, "output")
    return True


def _joined(class_name: str, net: Network, operation: Operation, name: str) -> bool | str:
    if len(operation.inputs) < 2:
        return False
    if any(i not in net.made_by for i in operation.inputs):
        return _with_constant(class_name, net, operation, name)
    config = {}
    if class_name == "Concatenate":
        config = {"axis": operation.options["axis"]}
        rank = len(net.shape(operation.outputs[0])) + 1
        if config["axis"] in (0, -rank) or not -rank <= config["axis"] < rank:
            return False
    if class_name in ("Concatenate", "Maximum", "Minimum"):
        indexes = (*operation.inputs, *operation.outputs)
        if not net.same_integers(indexes):
            return moves.OTHER_GRID
    net.add(name, class_name, operation.inputs, config)
    return _finished(net, operation, name)


def _with_constant(class_name: str, net: Network, operation: Operation, name: str) -> bool | str:
    """Add a sum, product or extreme of a tensor and a constant."""
    places = [i for i, index in enumerate(operation.inputs) if index in net.made_by]
    if len(operation.inputs) != 2 or len(places) != 1:
        return "it joins constants with what is computed"
    (place,) = places
    x, constant = operation.inputs[place], net.constant(operation, 1 - place)
    if constant is None:
        return "one of its inputs is neither computed nor a constant"
    values = _values(constant)
    shape = net.shape(x)
    if values is None or net.shape(operation.outputs[0]) != shape:
        return "it repeats its input over its constant"
    if class_name == "Concatenate":
        return "it joins constants with what is computed"
    if class_name in ("Maximum", "Minimum"):
        return _bounded(class_name, net, operation, name, x, constant, values)
    spread = _within(values, shape)
    if spread is None:
        return "its constant is not of a shape that the examples have"
    if net.is_integer(x):
        if constant.quantization is None or constant.type != net.file.tensors[x].type:
            return "its constant has no scale"
        net.hold(tensors.weight(f"{name}/constant", constant, partial(_shaped, spread.shape), None))
    config: dict[str, Any] = {"kernel": operation.name, "is_first": place == 1}
    sign = -1.0 if class_name == "Subtract" else 1.0
    if class_name == "Multiply":
        config |= {"scale": spread.tolist(), "offset": 0.0}
    elif place == 1:  # the constant minus the tensor, or plus it
        config |= {"scale": sign, "offset": spread.tolist()}
    else:
        config |= {"scale": 1.0, "offset": (sign * spread).tolist()}
    net.add(name, "Rescaling", [x], config)
    return _finished(net, operation, name)


def _bounded(
    class_name: str, net: Network, operation: Operation, name: str, x: int, constant: Tensor,
    values: Array,
) -> bool | str:  # fmt: skip
    if values.size != 1:
        return "its constant has several values"
    if net.is_integer(x) and net.meaning(constant) != net.meaning(net.file.tensors[x]):
        return moves.OTHER_GRID
    if not net.same_integers((x, *operation.outputs)):
        return moves.OTHER_GRID
    end = float(values.reshape(()))
    if not math.isfinite(end):
        return "its constant is not finite"
    most = float(np.finfo(np.float32).max)
    low, high = (end, most) if class_name == "Maximum" else (-most, end)
    kernel = operation.name if net.is_integer(x) else ""
    config = {"activation": "tflite.clip", "low": low, "high": high, "kernel": kernel}
    net.add(name, "Activation", [x], config)
    net.end(operation, name, "post_activation")
    return True


def _values(constant: Tensor) -> Array | None:
    """Return the real values of a constant of one scale, or of floats."""
    assert constant.data is not None
    q = constant.quantization
    if constant.type in tensors.WIDTHS:
        if q is None or q.scale.size != 1 or not q.scale[0]:
            return None
        shifted = constant.data.astype(np.int64) - q.zero_point[0]
        return np.asarray(shifted.astype(np.float32) * q.scale[0])
    return constant.data.astype(np.float32) if constant.data.dtype.kind == "f" else None


def _within(values: Array, shape: tuple[int, ...]) -> Array | None:
    """Return values without the axis of the examples, if they broadcast against one of these."""
    if values.ndim == len(shape) + 1 and values.shape[0] == 1:
        values = values[0]
    while values.ndim and values.shape[0] == 1:
        values = values[0]
    if values.ndim > len(shape):
        return None
    pairs = zip(values.shape[::-1], shape[::-1], strict=False)
    return values if all(n in (1, m) for n, m in pairs) else None


def _shaped(shape: tuple[int, ...], array: Array) -> Array:
    return array.reshape(shape)


def _pool(class_name: str, net: Network, operation: Operation, name: str) -> bool:
    x, options = operation.inputs[0], operation.options
    config = window(operation) | {"pool_size": [options["filter_height"], options["filter_width"]]}
    if x not in net.made_by or not is_possible(config) or len(net.shape(x)) != 3:
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


def _reduced(class_name: str, net: Network, operation: Operation, name: str) -> bool | str:
    """Add a mean, a sum or an extreme over some axes, as a pool over all but the channels."""
    x, axes = operation.inputs[0], net.numbers(operation, 1)
    if not moves.is_ready(net, operation) or axes is None:
        return moves.UNKNOWN
    shape, rank = net.shape(x), len(net.shape(x)) + 1
    if not axes or any(not -rank <= axis < rank for axis in axes):
        return moves.UNKNOWN
    over = sorted({axis % rank for axis in axes})
    if over[0] == 0:
        return moves.BATCH
    is_extreme = class_name == "GlobalMaxPooling"
    if is_extreme and not net.same_integers((x, *operation.outputs)):
        return moves.OTHER_GRID
    source, keeps = net.made_by[x], bool(operation.options["keep_dims"])
    is_plain = rank in (3, 4) and over == list(range(1, rank - 1))
    if not is_plain:
        source, keeps = _as_lines(net, name, source, shape, over), False
    if operation.name == "REDUCE_MIN":
        source = _negative(net, f"{name}/mirrored", source, x, is_mirrored=True)
    pool = f"{name}/max" if operation.name == "REDUCE_MIN" else name
    count = math.prod(shape[axis - 1] for axis in over)
    if operation.name == "SUM":
        pool = f"{name}/mean"
    net.add(pool, f"{class_name}{rank - 2 if is_plain else 1}D", [source], {"keepdims": keeps})
    if operation.name == "REDUCE_MIN":
        _negative(net, name, pool, x, is_mirrored=False)
    elif operation.name == "SUM":
        net.add(name, "Rescaling", [pool], {"scale": float(count), "offset": 0.0})
    if not is_extreme:
        net.end(operation, name, "output")
    net.made_by[operation.outputs[0]] = name
    if not is_plain:
        out = net.shape(operation.outputs[0])
        kept = [n for axis, n in enumerate(shape, 1) if axis not in over]
        if math.prod(out) != math.prod(kept):
            return moves.UNKNOWN
        net.made_by[operation.outputs[0]] = moves.add_moves(
            net, f"{name}/shaped", name, [reshaped(out)]
        )
    return True


def _as_lines(net: Network, name: str, source: str, shape: tuple[int, ...], over: list[int]) -> str:
    """Add the layers that put the axes to reduce first, as one, and the others last, as one."""
    kept = [axis for axis in range(1, len(shape) + 1) if axis not in over]
    order = [*over, *kept]
    count = math.prod(shape[axis - 1] for axis in over)
    found = [Move("Permute", {"dims": order}, ())] * (order != sorted(order))
    found.append(reshaped((count, math.prod(shape[axis - 1] for axis in kept))))
    return moves.add_moves(net, f"{name}/lines", source, found)


def _negative(net: Network, name: str, source: str, x: int, *, is_mirrored: bool) -> str:
    """Add a change of sign, of integers to those of the mirrored zero point and back."""
    net.add(name, "Activation", [source], {"activation": "tflite.negative"})
    found = tensors.activation(
        f"{name}/post_activation", net.file.tensors[x], "output", None, is_mirrored=is_mirrored
    )
    if found is not None:
        net.hold(found)
    return name


def _bilinear(net: Network, operation: Operation, name: str) -> bool | str:
    x, options = operation.inputs[0], operation.options
    before, out = net.shape(x), net.shape(operation.outputs[0])
    if not moves.is_ready(net, operation) or len(before) != 3 or len(out) != 3:
        return moves.UNKNOWN
    if options["align_corners"] or not options["half_pixel_centers"]:
        return "its corners are aligned, or its pixels are no squares: qmath has half_pixel_centers"
    factors = [b // a for a, b in zip(before, out, strict=True)]
    if any(b % a for a, b in zip(before, out, strict=True)) or factors[2] != 1:
        return "it changes the size by a broken factor"
    if net.is_integer(x) and any(f & (f - 1) for f in factors):
        return "its factor is no power of 2, so that TFLite rounds its weights"
    if not net.same_integers((x, *operation.outputs)):
        return moves.OTHER_GRID
    net.add(name, "UpSampling2D", [x], {"size": factors[:2], "interpolation": "bilinear"})
    net.end(operation, name, "output")
    return True


SUMS: Mapping[str, Rule] = {
    "ADD": partial(_joined, "Add"),
    "SUB": partial(_joined, "Subtract"),
    "MUL": partial(_joined, "Multiply"),
    "MAXIMUM": partial(_joined, "Maximum"),
    "MINIMUM": partial(_joined, "Minimum"),
    "CONCATENATION": partial(_joined, "Concatenate"),
    "AVERAGE_POOL_2D": partial(_pool, "AveragePooling2D"),
    "MAX_POOL_2D": partial(_pool, "MaxPooling2D"),
    "MEAN": partial(_reduced, "GlobalAveragePooling"),
    "SUM": partial(_reduced, "GlobalAveragePooling"),
    "REDUCE_MAX": partial(_reduced, "GlobalMaxPooling"),
    "REDUCE_MIN": partial(_reduced, "GlobalMaxPooling"),
    "RESIZE_BILINEAR": _bilinear,
}
