"""From a layer's Keras config and its input's shape to the operation it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer import ops
from qmath.integer.budget import Budget, check_size
from qmath.integer.program import Linear, Shape
from qmath.layers import LAYERS
from qmath.model import Node

Array = NDArray[Any]

DISAGREES = "the config and the weights are of different models, or one was edited"


def rank_of(class_name: str) -> int | None:
    """Return how many spatial axes a layer of a class works on, ``None`` where any will do."""
    digit = re.search(r"([123])D", class_name)
    return int(digit[1]) if digit else None


def misfit(node: Node, shape: Shape, wanted: str) -> QmathError:
    """Return the error that a layer's input is not of a shape that it takes."""
    held = ", ".join(map(str, shape))
    return QmathError(
        f"{node.name}: this {node.class_name} takes {wanted}, and its input is of shape ({held}); "
        f"{DISAGREES}"
    )


def weighted(node: Node, shape: Shape, kernel: Array) -> Linear:
    """Return the operation of a layer with a kernel, its weights being `kernel`."""
    _check_channels_last(node)
    axes = LAYERS[node.class_name].axes
    _check_kernel(node, shape, kernel.shape, axes)
    if axes == "IO":
        return Linear("dense", _dense, (*shape[:-1], kernel.shape[-1]), kernel)
    if axes == "HWOI":
        return _conv2d_transpose(node, shape, kernel)
    one_dimensional = "H" not in axes
    if one_dimensional:
        shape, kernel = (1, *shape), kernel[np.newaxis]
    strides, dilation = _pair(node, "strides"), _pair(node, "dilation_rate")
    size = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:2], dilation, strict=True)]
    pads = _pads(node, shape, size, strides)
    _check_padded(node, shape, pads)
    depthwise = "M" in axes
    channels = kernel.shape[2] * kernel.shape[3] if depthwise else kernel.shape[3]
    out = (*_windows(shape, size, strides, pads), channels)
    function = ops.depthwise_conv2d if depthwise else ops.conv2d
    attributes: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": dilation}
    if one_dimensional:
        return Linear(
            "conv2d", partial(_conv1d, **attributes), out[1:], kernel, attributes=attributes
        )
    kind = "depthwise_conv2d" if depthwise else "conv2d"
    return Linear(kind, partial(function, **attributes), out, kernel, attributes=attributes)


def _check_kernel(node: Node, shape: Shape, kernel: Shape, axes: str) -> None:
    """Raise unless a kernel takes an input of this shape, in whole groups of channels."""
    if len(kernel) != len(axes):
        raise QmathError(
            f"{node.layer}/{LAYERS[node.class_name].kernel}: it has the shape {kernel}, and that "
            f"of a {node.class_name} has {len(axes)} axes; {DISAGREES}"
        )
    depth = kernel[axes.index("I")]
    implied = max(shape[-1] // depth, 1) if axes in ("WIO", "HWIO") else 1
    groups = 1 if "M" in axes else node.config.get("groups", implied)
    if shape[-1] != depth * groups or (groups > 1 and kernel[-1] % groups):
        raise misfit(node, shape, f"{depth * groups} channels by its kernel of shape {kernel}")


def _check_padded(node: Node, shape: Shape, pads: ops.Pads) -> None:
    check_size(node.name, (*(n + sum(p) for n, p in zip(shape, pads, strict=False)), shape[-1]))


def _dense(x: Array, kernel: Array) -> Array:
    return np.asarray(x @ kernel)


def _conv1d(x: Array, kernel: Array, **attributes: Any) -> Array:
    return ops.conv2d(x[:, np.newaxis], kernel, **attributes)[:, 0]


def _conv2d_transpose(node: Node, shape: Shape, kernel: Array) -> Linear:
    strides, size = _pair(node, "strides"), kernel.shape[:2]
    if _pair(node, "dilation_rate") != (1, 1) or node.config.get("output_padding") is not None:
        raise QmathError(
            f"{node.name}: Conv2DTranspose with dilation or output_padding is not supported"
        )
    if node.config["padding"] == "same":
        out = tuple(n * s for n, s in zip(shape, strides, strict=False))
        crops = ops.same_pads(out, size, strides)
    else:
        out = tuple(n * s + max(k - s, 0) for n, s, k in zip(shape, strides, size, strict=False))
        crops = ((0, 0), (0, 0))
    attributes: dict[str, Any] = {"strides": strides, "crops": crops, "size": out}
    return Linear(
        "conv2d_transpose", partial(ops.conv2d_transpose, **attributes), (*out, kernel.shape[2]),
        kernel, attributes=attributes,
    )  # fmt: skip


def average_pool(node: Node, shape: Shape, budget: Budget) -> tuple[Linear, Array]:
    """Return the summing operation of an average pool, and what its sums are divided by."""
    _check_channels_last(node)
    if LAYERS[node.class_name].kind == "global_average":
        axes = tuple(range(1, len(shape)))
        keep = bool(node.config.get("keepdims", False))
        out = (*(1,) * (len(shape) - 1), shape[-1]) if keep else shape[-1:]
        count = math.prod(shape[:-1])
        function = partial(_sum, axes=axes, keep=keep)
        return Linear(
            "pool_sum", function, out, gain=count, attributes={"global": True}
        ), np.float64(count)
    spatial, size, strides, pads, out = _pool_geometry(node, shape)
    budget.spend_constant(node.name, out[:-1])
    counts = ops.pool_counts(spatial, size, strides, pads)
    function = partial(_pool, reduce=np.add, size=size, strides=strides, pads=pads, fill=0.0)
    attributes: dict[str, Any] = {"size": size, "strides": strides, "pads": pads}
    linear = Linear("pool_sum", function, out, gain=math.prod(size), attributes=attributes)
    return linear, counts if len(out) == 3 else counts[0]


def max_pool(node: Node, shape: Shape) -> tuple[Any, Shape, dict[str, Any]]:
    """Return ``apply(x, fill)`` of a maximum pool, its output's shape, and its attributes."""
    _check_channels_last(node)
    if LAYERS[node.class_name].kind == "global_max":
        keep = bool(node.config.get("keepdims", False))
        out = (*(1,) * (len(shape) - 1), shape[-1]) if keep else shape[-1:]
        axes = tuple(range(1, len(shape)))
        return partial(_max, axes=axes, keep=keep), out, {"global": True}
    _, size, strides, pads, out = _pool_geometry(node, shape)
    attributes: dict[str, Any] = {"size": size, "strides": strides, "pads": pads}
    return partial(_pool, _=None, reduce=np.maximum, **attributes), out, attributes


def move(node: Node, shape: Shape) -> Linear:
    """Return the operation of a layer that moves values, or adds zeros."""
    _check_channels_last(node)
    return _MOVES[LAYERS[node.class_name].kind](node, shape)


def _reshape_layer(node: Node, shape: Shape) -> Linear:
    if node.class_name == "Flatten":
        return reshape((math.prod(shape),))
    target = [int(n) for n in node.config["target_shape"]]
    if -1 in target:
        target[target.index(-1)] = math.prod(shape) // -math.prod(target)
    if math.prod(target) != math.prod(shape):
        raise misfit(node, shape, f"what fills the shape {node.config['target_shape']}")
    return reshape(tuple(target))


def _permute(node: Node, shape: Shape) -> Linear:
    axes = (0, *node.config["dims"])
    if len(axes) != len(shape) + 1:
        raise misfit(node, shape, f"{len(axes) - 1} axes")
    out = tuple(shape[axis - 1] for axis in axes[1:])
    return Linear("permute", lambda x, _=None: x.transpose(axes), out, attributes={"axes": axes})


def _pad(node: Node, shape: Shape) -> Linear:
    padding = node.config["padding"]
    items = [padding] * (len(shape) - 1) if isinstance(padding, int) else padding
    pads = tuple((p, p) if isinstance(p, int) else tuple(p) for p in items)
    if node.class_name == "ZeroPadding1D":
        pads = (tuple(padding) if not isinstance(padding, int) else (padding, padding),)
    return zero_pad(pads, shape)


def _upsample(node: Node, shape: Shape) -> Linear:
    config = node.config
    if config.get("interpolation", "nearest") != "nearest":
        raise QmathError(
            f"{node.name}: UpSampling2D with {config['interpolation']!r} interpolation "
            "is not supported; use 'nearest'"
        )
    factors = _listed(config["size"])
    if node.class_name == "UpSampling2D" and len(factors) == 1:
        factors *= 2
    if node.class_name == "UpSampling1D":
        return Linear(
            "upsample", lambda x, _=None: x.repeat(factors[0], 1),
            (shape[0] * factors[0], shape[1]), attributes={"size": factors},
        )  # fmt: skip
    out = (shape[0] * factors[0], shape[1] * factors[1], shape[2])
    return Linear(
        "upsample", lambda x, _=None: ops.upsample(x, factors), out, attributes={"size": factors}
    )


_MOVES: Mapping[str, Callable[[Node, Shape], Linear]] = {
    "reshape": _reshape_layer, "permute": _permute, "pad": _pad, "upsample": _upsample,
}  # fmt: skip


def reshape(shape: Shape) -> Linear:
    """Return the operation that gives each example the shape `shape`."""
    return Linear("reshape", lambda x, _=None: x.reshape(len(x), *shape), shape)


def zero_pad(pads: Sequence[tuple[int, ...]], shape: Shape) -> Linear:
    """Return the operation that adds zeros around each example."""
    full = tuple((p[0], p[1]) for p in pads) + ((0, 0),) * (len(shape) - len(pads))
    out = tuple(n + sum(p) for n, p in zip(shape, full, strict=True))
    return Linear("pad", lambda x, _=None: ops.pad(x, full), out, attributes={"pads": full})


def _sum(x: Array, _: Array | None, axes: Shape, keep: bool) -> Array:
    return np.asarray(x.sum(axis=axes, keepdims=keep))


def _max(x: Array, fill: float, axes: Shape, keep: bool) -> Array:  # noqa: ARG001
    return np.asarray(x.max(axis=axes, keepdims=keep))


def _pool(x: Array, _: Array | None, fill: float, **geometry: Any) -> Array:
    if x.ndim == 3:
        return ops.pool(x[:, np.newaxis], fill=fill, **geometry)[:, 0]
    return ops.pool(x, fill=fill, **geometry)


def _pool_geometry(node: Node, shape: Shape) -> tuple[Shape, Shape, Shape, ops.Pads, Shape]:
    one_dimensional = node.class_name.endswith("1D")
    size = _pair(node, "pool_size")
    strides = _pair(node, "strides") if node.config.get("strides") is not None else size
    spatial = (1, *shape) if one_dimensional else shape
    pads = _pads(node, spatial, size, strides)
    _check_padded(node, spatial, pads)
    out = (*_windows(spatial, size, strides, pads), shape[-1])
    return spatial, size, strides, pads, out[1:] if one_dimensional else out


def _windows(shape: Shape, size: Sequence[int], strides: Sequence[int], pads: ops.Pads) -> Shape:
    return tuple(
        (n + sum(p) - k) // s + 1 for n, p, k, s in zip(shape, pads, size, strides, strict=False)
    )


def _pads(node: Node, shape: Shape, size: Sequence[int], strides: Sequence[int]) -> ops.Pads:
    padding = node.config.get("padding", "valid")
    if padding not in ("same", "causal", "valid"):
        raise QmathError(f"{node.name}: the padding {padding!r} is not supported")
    if padding == "same":
        return ops.same_pads(shape[:2], size, strides)
    if padding == "causal":
        return ((0, 0), (size[1] - 1, 0))
    return ((0, 0), (0, 0))


def _pair(node: Node, key: str) -> Shape:
    """Return a spatial setting as two numbers; a one-dimensional layer's is the second."""
    values = _listed(node.config.get(key, 1))
    if node.class_name.endswith("1D"):
        return (1, values[0])
    return values if len(values) == 2 else (values[0], values[0])


def _listed(value: Any) -> Shape:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _check_channels_last(node: Node) -> None:
    if node.config.get("data_format", "channels_last") not in ("channels_last", None):
        raise QmathError(f"{node.name}: data_format 'channels_first' is not supported")
