"""From a layer's Keras config and its input's shape to the operation it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer import ops
from qmath.integer.budget import Budget, check_size
from qmath.integer.lowering import activations
from qmath.integer.lowering.cuts import UnsupportedError
from qmath.integer.program import Factor, Linear, Shape
from qmath.layers import LAYERS
from qmath.model import Node

Array = NDArray[Any]

DISAGREES = "the config and the weights are of different models, or one was edited"
_CONVOLUTIONS: Mapping[str, Callable[..., Array]] = {
    "conv2d": ops.conv2d, "conv3d": ops.conv3d, "depthwise_conv2d": ops.depthwise_conv2d,
}  # fmt: skip


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


def weighted(node: Node, shape: Shape, kernel: Array, name: str = "") -> Linear:
    """Return the operation of a layer with a kernel, its weights being `kernel`.

    `name` is the kernel's, where the layer has two.
    """
    weight = name.rpartition("/")[2] or LAYERS[node.class_name].kernel
    axes = LAYERS[node.class_name].kernels[weight]
    _check_kernel(node, shape, kernel.shape, axes, weight)
    if weight == LAYERS[node.class_name].then:
        node = replace(node, config={})  # its window is one point
    if axes == "IO":
        return Linear("dense", _dense, (*shape[:-1], kernel.shape[-1]), kernel)
    if axes == "HWOI":
        return _conv2d_transpose(node, shape, kernel)
    one_dimensional = "H" not in axes
    if one_dimensional:
        shape, kernel = (1, *shape), kernel[np.newaxis]
    if axes == "WOI":
        return _of_one_row(_conv2d_transpose(node, shape, kernel))
    strides, dilation = of_axes(node, "strides"), of_axes(node, "dilation_rate")
    size = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:-2], dilation, strict=True)]
    pads = _pads(node, shape, size, strides)
    _check_padded(node, shape, pads)
    channels = kernel.shape[-2] * kernel.shape[-1] if "M" in axes else kernel.shape[-1]
    out = (*_windows(shape, size, strides, pads), channels)
    attributes: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": dilation}
    kind = "depthwise_conv2d" if "M" in axes else "conv3d" if "D" in axes else "conv2d"
    function: Callable[..., Array] = partial(_CONVOLUTIONS[kind], **attributes)
    if one_dimensional:
        function, out = partial(_of_signals, function), out[1:]
    if kind != "depthwise_conv2d" and shape[-1] > kernel.shape[-2]:
        attributes["groups"] = shape[-1] // kernel.shape[-2]
    return Linear(kind, function, out, kernel, attributes=attributes)


def _check_kernel(node: Node, shape: Shape, kernel: Shape, axes: str, weight: str) -> None:
    """Raise unless a kernel takes an input of this shape, in whole groups of channels."""
    if len(kernel) != len(axes):
        raise QmathError(
            f"{node.layer}/{weight}: it has the shape {kernel}, and that "
            f"of a {node.class_name} has {len(axes)} axes; {DISAGREES}"
        )
    depth = kernel[axes.index("I")]
    implied = max(shape[-1] // depth, 1) if axes in ("WIO", "HWIO", "DHWIO") else 1
    groups = 1 if "M" in axes else node.config.get("groups", implied)
    if shape[-1] != depth * groups or (groups > 1 and kernel[-1] % groups):
        raise misfit(node, shape, f"{depth * groups} channels by its kernel of shape {kernel}")


def _check_padded(node: Node, shape: Shape, pads: ops.Pads) -> None:
    check_size(node.name, (*(n + sum(p) for n, p in zip(shape, pads, strict=False)), shape[-1]))


def _dense(x: Array, kernel: Array) -> Array:
    return np.asarray(x @ kernel)


def _of_signals(function: Callable[[Array, Array], Array], x: Array, kernel: Array) -> Array:
    return function(x[:, np.newaxis], kernel)[:, 0]


def _of_one_row(linear: Linear) -> Linear:
    """Return an operation on images of one row as one on signals."""
    return replace(linear, apply=partial(_of_signals, linear.apply), shape=linear.shape[1:])


def _conv2d_transpose(node: Node, shape: Shape, kernel: Array) -> Linear:
    strides, dilation = of_axes(node, "strides"), of_axes(node, "dilation_rate")
    if dilation != (1, 1) and node.class_name == "Conv1DTranspose":
        raise UnsupportedError(
            node.name, f"TensorFlow's CPU kernels compute no dilation of it, {dilation[1:]}",
            "let its dilation_rate be 1",
        )  # fmt: skip
    if dilation != (1, 1) and strides != (1, 1):
        raise UnsupportedError(
            node.name,
            f"TensorFlow leaves out its strides {strides} where its dilation is {dilation}",
            "let one of them be 1",
        )
    size = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:2], dilation, strict=True)]
    out = transposed_size(node, shape, size, strides)
    is_same = node.config["padding"] == "same"
    crops = ops.same_pads(out, size, strides) if is_same else ((0, 0), (0, 0))
    attributes: dict[str, Any] = {"strides": strides, "crops": crops, "size": out}
    if dilation != (1, 1):
        attributes["dilation"] = dilation
    return Linear(
        "conv2d_transpose", partial(ops.conv2d_transpose, **attributes), (*out, kernel.shape[2]),
        kernel, attributes=attributes,
    )  # fmt: skip


def transposed_size(node: Node, shape: Shape, size: Sequence[int], strides: Sequence[int]) -> Shape:
    """Return the length of each spatial axis, as Keras's ``deconv_output_length`` computes it."""
    is_same = node.config["padding"] == "same"
    axes = list(zip(shape, size, strides, strict=False))
    if node.config.get("output_padding") is None:
        return tuple(n * s + (0 if is_same else max(k - s, 0)) for n, k, s in axes)
    added = of_axes(node, "output_padding")
    if node.class_name == "Conv1DTranspose":
        added = (0, *added[1:])
    out = tuple(
        (n - 1) * s + k - (k // 2 * 2 if is_same else 0) + more
        for (n, k, s), more in zip(axes, added, strict=True)
    )
    for n, (before, k, s) in zip(out, axes, strict=True):
        if -(-(n if is_same else n - k + 1) // s) != before:
            raise QmathError(
                f"{node.name}: no convolution of an output of {out} gives an input of "
                f"{shape[:-1]}, so that TensorFlow refuses this {node.class_name}; its "
                f"output_padding is {added}"
            )
    return out


def average_pool(node: Node, shape: Shape, budget: Budget) -> tuple[Linear, Array]:
    """Return the summing operation of an average pool, and what its sums are divided by."""
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
    return linear, counts if len(out) > 2 else counts[0]


def max_pool(node: Node, shape: Shape) -> tuple[Any, Shape, dict[str, Any]]:
    """Return ``apply(x, fill)`` of a maximum pool, its output's shape, and its attributes."""
    if LAYERS[node.class_name].kind == "global_max":
        keep = bool(node.config.get("keepdims", False))
        out = (*(1,) * (len(shape) - 1), shape[-1]) if keep else shape[-1:]
        axes = tuple(range(1, len(shape)))
        return partial(_max, axes=axes, keep=keep), out, {"global": True}
    _, size, strides, pads, out = _pool_geometry(node, shape)
    attributes: dict[str, Any] = {"size": size, "strides": strides, "pads": pads}
    return partial(_pool, _=None, reduce=np.maximum, **attributes), out, attributes


def is_volume(attributes: Mapping[str, Any]) -> bool:
    """Whether a pool's windows have three axes."""
    return len(attributes.get("size", ())) == 3


def in_planes(shape: Shape, attributes: Mapping[str, Any]) -> list[tuple[Shape, dict[str, Any]]]:
    """Return a pool of three axes as pools of two, and the reshapes before each.

    First depth and height are pooled, each column being a channel, then the width.

    Returns
    -------
    list of (tuple of int, dict)
        The shape after each operation, and the attributes of a pool, none for a reshape.
    """
    depth, height, width, channels = shape
    size, strides, pads = (tuple(attributes[key]) for key in ("size", "strides", "pads"))
    first = {"size": size[:2], "strides": strides[:2], "pads": pads[:2]}
    second = {"size": (1, size[2]), "strides": (1, strides[2]), "pads": ((0, 0), pads[2])}
    rows = _windows((depth, height), size[:2], strides[:2], pads[:2])
    (columns,) = _windows((width,), size[2:], strides[2:], pads[2:])
    stacked = math.prod(rows)
    return [
        ((depth, height, width * channels), {}),
        ((*rows, width * channels), first),
        ((stacked, width, channels), {}),
        ((stacked, columns, channels), second),
        ((*rows, columns, channels), {}),
    ]


def plane_sum(shape: Shape, attributes: Mapping[str, Any]) -> Linear:
    """Return one operation of a pool in planes that sums up."""
    if not attributes:
        return reshape(shape)
    function = partial(_pool, reduce=np.add, fill=0.0, **attributes)
    gain = math.prod(attributes["size"])
    return Linear("pool_sum", function, shape, gain=gain, attributes=attributes)


def plane_maximum(shape: Shape, attributes: Mapping[str, Any]) -> Callable[..., Array]:
    """Return ``apply(x, fill)`` of one operation of a pool in planes that takes the greatest."""
    if not attributes:
        return partial(_reshape, shape=shape)
    return partial(_pool, _=None, reduce=np.maximum, **attributes)


def extreme(is_minimum: bool, shape: Shape, count: int) -> tuple[Any, dict[str, Any]]:
    """Return ``apply(x)`` of the least or greatest of stacked tensors, and its attributes.

    The `count` tensors are stacked as rows, which are pooled as a signal of that many steps.
    """
    reduce = np.minimum if is_minimum else np.maximum
    kind = "pool_min" if is_minimum else "pool_max"
    return partial(_of_rows, reduce=reduce, shape=shape), {
        "kind": kind,
        "global": True,
        "rows": count,
    }


def _of_rows(x: Array, reduce: Any, shape: Shape) -> Array:
    return np.asarray(reduce.reduce(x, axis=1).reshape(len(x), *shape))


def move(node: Node, shape: Shape) -> Linear:
    """Return the operation of a layer that moves values, or adds zeros."""
    return _MOVES[LAYERS[node.class_name].kind](node, shape)


def _reshape_layer(node: Node, shape: Shape) -> Linear:
    if node.class_name == "Flatten":
        return reshape((math.prod(shape),))
    if node.class_name == "SeparableConvExpand":
        return reshape((1, *shape))
    if node.class_name == "SeparableConvSqueeze":
        if shape[0] != 1:
            raise misfit(node, shape, "a first axis of length 1")
        return reshape(shape[1:])
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
    return Linear("permute", partial(transpose, axes=axes), out, attributes={"axes": axes})


def _pad(node: Node, shape: Shape) -> Linear:
    return zero_pad(_ends(node, "padding", shape), shape)


def _crop(node: Node, shape: Shape) -> Linear:
    if node.class_name == "CenterCrop":
        return crop((*_around_center(node, shape), (0, 0)), shape)
    return crop((*_ends(node, "cropping", shape), (0, 0)), shape)


def crop(crops: ops.Pads, shape: Shape) -> Linear:
    """Return the operation that cuts both ends of every axis."""
    out = tuple(n - sum(ends) for n, ends in zip(shape, crops, strict=True))
    part = (slice(None), *(slice(e[0], n - e[1]) for e, n in zip(crops, shape, strict=True)))
    return Linear("crop", partial(_part, part=part), out, attributes={"crops": crops})


def _around_center(node: Node, shape: Shape) -> ops.Pads:
    sizes = (node.config["height"], node.config["width"])
    spare = [n - size for n, size in zip(shape, sizes, strict=False)]
    if min(spare) < 0:
        raise UnsupportedError(
            node.name, f"its input of {shape[:2]} is smaller than {sizes}, so that it interpolates",
            "crop to a size within its input's",
        )  # fmt: skip
    return tuple((n // 2, n - n // 2) for n in spare)


def _ends(node: Node, key: str, shape: Shape) -> ops.Pads:
    """Return how much a layer adds or cuts at both ends of each spatial axis."""
    widths = node.config[key]
    if node.class_name.endswith("1D") and not isinstance(widths, int):
        widths = [widths]
    items = [widths] * (len(shape) - 1) if isinstance(widths, int) else widths
    return tuple((item, item) if isinstance(item, int) else tuple(item) for item in items)


def _upsample(node: Node, shape: Shape) -> Linear:
    config = node.config
    if node.class_name == "RepeatVector":
        if len(shape) != 1:
            raise misfit(node, shape, "one axis")
        return broadcast(shape, (config["n"], *shape))
    default = "bilinear" if node.class_name == "Resizing" else "nearest"
    interpolation = config.get("interpolation", default)
    if interpolation not in ("nearest", "bilinear"):
        raise UnsupportedError(
            node.name, f"it interpolates ({interpolation!r})", "use 'nearest' or 'bilinear'"
        )
    factors = _factors(node, shape) if node.class_name == "Resizing" else _listed(config["size"])
    factors *= (len(shape) - 1) // len(factors)
    out = (*(n * factor for n, factor in zip(shape, factors, strict=False)), shape[-1])
    attributes = {"size": factors}
    if interpolation == "nearest":
        return Linear("upsample", partial(_repeat, factors=factors), out, attributes=attributes)
    gain = math.prod(map(ops.bilinear_steps, factors))
    return Linear("bilinear", partial(_bilinear, factors=factors), out, None, "", gain, attributes)


def _factors(node: Node, shape: Shape) -> Shape:
    """Return by how much a Resizing multiplies height and width."""
    sizes = (node.config["height"], node.config["width"])
    is_cropped = node.config.get("crop_to_aspect_ratio")
    if is_cropped or any(size % n for size, n in zip(sizes, shape, strict=False)):
        raise UnsupportedError(
            node.name,
            f"it resizes {shape[:2]} to {sizes}" + (
                " and crops" if is_cropped else ", no whole multiple"
            ),
            "resize by whole factors, pool, or resize the data before the network",
        )  # fmt: skip
    return tuple(size // n for size, n in zip(sizes, shape, strict=False))


def broadcast(shape: Shape, to: Shape) -> Linear:
    """Return the operation that repeats values along axes of length 1, or that a shape lacks."""
    whole = (1,) * (len(to) - len(shape)) + shape
    size = tuple(n // before for n, before in zip(to, whole, strict=True))
    return Linear(
        "broadcast", partial(_broadcast, whole=whole, to=to), to, attributes={"size": size}
    )


_MOVES: Mapping[str, Callable[[Node, Shape], Linear]] = {
    "reshape": _reshape_layer, "permute": _permute, "pad": _pad, "crop": _crop,
    "upsample": _upsample,
}  # fmt: skip


def reshape(shape: Shape) -> Linear:
    """Return the operation that gives each example the shape `shape`."""
    return Linear("reshape", partial(_reshape, shape=shape), shape)


def zero_pad(pads: Sequence[tuple[int, ...]], shape: Shape) -> Linear:
    """Return the operation that adds zeros around each example."""
    full = tuple((p[0], p[1]) for p in pads) + ((0, 0),) * (len(shape) - len(pads))
    out = tuple(n + sum(p) for n, p in zip(shape, full, strict=True))
    return Linear("pad", partial(_padded, pads=full), out, attributes={"pads": full})


def product(shape: Shape, factor: Factor) -> Linear:
    """Return the operation that multiplies by another tensor's integers, which may broadcast."""
    out = np.broadcast_shapes(shape, factor.shape)
    return Linear("multiply", activations.product, out, factor=factor)


def transpose(x: Array, _: Array | None = None, *, axes: Shape) -> Array:
    """Return the examples with their axes, counted with the first, in this order."""
    return np.asarray(x.transpose(axes))


def _reshape(x: Array, _: Array | None = None, *, shape: Shape, fill: float = 0.0) -> Array:  # noqa: ARG001
    return x.reshape(len(x), *shape)


def _part(x: Array, _: Array | None = None, *, part: tuple[slice, ...]) -> Array:
    return x[part]


def _padded(x: Array, _: Array | None = None, *, pads: ops.Pads) -> Array:
    return ops.pad(x, pads)


def _broadcast(x: Array, _: Array | None = None, *, whole: Shape, to: Shape) -> Array:
    return np.broadcast_to(x.reshape(len(x), *whole), (len(x), *to))


def _repeat(x: Array, _: Array | None = None, *, factors: Sequence[int]) -> Array:
    for axis, factor in enumerate(factors, 1):
        x = x.repeat(factor, axis)
    return x


def _bilinear(x: Array, _: Array | None = None, *, factors: Sequence[int]) -> Array:
    return ops.bilinear(x, factors)


def _sum(x: Array, _: Array | None, axes: Shape, keep: bool) -> Array:
    return np.asarray(x.sum(axis=axes, keepdims=keep))


def _max(x: Array, fill: float, axes: Shape, keep: bool) -> Array:  # noqa: ARG001
    return np.asarray(x.max(axis=axes, keepdims=keep))


def _pool(x: Array, _: Array | None, fill: float, **geometry: Any) -> Array:
    if x.ndim == 3:
        return ops.pool(x[:, np.newaxis], fill=fill, **geometry)[:, 0]
    if x.ndim == 5:
        reduce = geometry.pop("reduce")
        for shape, plane in in_planes(x.shape[1:], geometry):
            x = x.reshape(len(x), *shape) if not plane else ops.pool(x, reduce, fill=fill, **plane)
        return x
    return ops.pool(x, fill=fill, **geometry)


def _pool_geometry(node: Node, shape: Shape) -> tuple[Shape, Shape, Shape, ops.Pads, Shape]:
    one_dimensional = node.class_name.endswith("1D")
    size = of_axes(node, "pool_size")
    strides = of_axes(node, "strides") if node.config.get("strides") is not None else size
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
        raise UnsupportedError(node.name, f"its padding is {padding!r}", "use 'same' or 'valid'")
    if padding == "same":
        return ops.same_pads(shape[: len(size)], size, strides)
    if padding == "causal":
        return ((0, 0), (size[1] - 1, 0))
    return ((0, 0),) * len(size)


def of_axes(node: Node, key: str) -> Shape:
    """Return a setting of each spatial axis: two or three; of one dimension, it is the second."""
    values, rank = _listed(node.config.get(key, 1)), rank_of(node.class_name) or 2
    if rank == 1:
        return (1, values[0])
    return values if len(values) == rank else values[:1] * rank


def _listed(value: Any) -> Shape:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
