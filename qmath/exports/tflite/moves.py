"""What places values, or picks some of them, as TFLite's operators: the same on any grid.

A function here takes a builder, a tensor and the attributes of an operation of the program, and
returns the tensor that the operators make. All shapes of tensors hold the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qmath.containers.tflite.schema import PADDINGS
from qmath.exports.tflite.graph import GraphBuilder, Grid, Tensor
from qmath.integer import ops
from qmath.integer.program import Shape

__all__ = [
    "HOLDS",
    "LEAVES",
    "UnsupportedError",
    "aligned",
    "bilinear",
    "like",
    "move",
    "padded",
    "padding_of",
    "pool",
    "reduced",
    "reshaped",
    "version",
]

Attributes = Mapping[str, Any]
# An operator's version by the type that it takes: float32, int8, int16.
_VERSIONS = {"FLOAT32": 1, "INT8": 2, "INT16": 3, "UINT8": 2}
_MOST_AXES = 5  # of paddings and slices


HOLDS = "the formats onnx and c hold it"
LEAVES = "the formats onnx and c hold the integers around it, and leave it to whoever runs them"


class UnsupportedError(Exception):
    """TFLite has no form of an operation.

    Parameters
    ----------
    what : str
        Which; whoever knows the step adds its name.
    remedy : str
        Which format can hold it.
    """

    def __init__(self, what: str, remedy: str = HOLDS) -> None:
        super().__init__(what)
        self.remedy = remedy


def version(x: Tensor, wide: int = 3) -> int:
    """Return the version of most operators for a tensor's type; `wide` is that for int16."""
    return wide if x.kind == "INT16" else _VERSIONS[x.kind]


def like(builder: GraphBuilder, x: Tensor, name: str, shape: Sequence[int]) -> Tensor:
    """Add a tensor of another shape on the same grid."""
    return builder.tensor(name, shape, x.kind, x.grid)


def reshaped(builder: GraphBuilder, x: Tensor, name: str, shape: Sequence[int]) -> Tensor:
    """Give each example another shape; nothing is added if it has it."""
    target = (x.shape[0], *map(int, shape))
    if target == x.shape:
        return x
    constant = builder.constant(f"{name}/shape", "INT32", target)
    y = like(builder, x, f"{name}/reshaped", target)
    return builder.op("RESHAPE", [x, constant], y, new_shape=target)


def padded(builder: GraphBuilder, x: Tensor, name: str, pads: Sequence[Sequence[int]]) -> Tensor:
    """Add zeros around each example; `pads` may leave out the last axes."""
    full = [(0, 0), *map(tuple, pads), *[(0, 0)] * (len(x.shape) - 1 - len(pads))]
    if not any(map(any, full)):
        return x
    shape = [n + sum(ends) for n, ends in zip(x.shape, full, strict=True)]
    _check_axes(x, "padding")
    constant = builder.constant(f"{name}/paddings", "INT32", full)
    return builder.op("PAD", [x, constant], like(builder, x, f"{name}/padded", shape), version(x))


def move(
    builder: GraphBuilder, x: Tensor, name: str, kind: str, shape: Shape, attributes: Attributes
) -> Tensor:
    """Write an operation without weights that moves values: see `Linear.kind`."""
    if kind == "reshape":
        return reshaped(builder, x, name, shape)
    if kind == "pad":
        return padded(builder, x, name, attributes["pads"])
    found = _MOVES.get(kind)
    if found is None:
        raise UnsupportedError(f"a move of the kind {kind}")
    return found(builder, x, name, shape, attributes)


def _crop(
    builder: GraphBuilder, x: Tensor, name: str, shape: Shape, attributes: Attributes
) -> Tensor:
    _check_axes(x, "cropping")
    begin = [0, *(first for first, _ in attributes["crops"])]
    size = [x.shape[0], *shape]
    constants = [
        builder.constant(f"{name}/{which}", "INT32", values)
        for which, values in (("begin", begin), ("size", size))
    ]
    y = like(builder, x, f"{name}/cropped", size)
    return builder.op("SLICE", [x, *constants], y, version(x, 4))


def _permute(
    builder: GraphBuilder, x: Tensor, name: str, shape: Shape, attributes: Attributes
) -> Tensor:
    axes = builder.constant(f"{name}/axes", "INT32", attributes["axes"])
    y = like(builder, x, f"{name}/transposed", (x.shape[0], *shape))
    return builder.op("TRANSPOSE", [x, axes], y, version(x, 4))


def _upsample(
    builder: GraphBuilder, x: Tensor, name: str, shape: Shape, attributes: Attributes
) -> Tensor:
    factors, own = list(attributes["size"]), x.shape[1:]
    if len(own) == 2:  # a signal: one row
        factors, own = [1, *factors], (1, *own)
    if len(own) == 3:
        x = reshaped(builder, x, name, own)
        return reshaped(builder, _resized(builder, x, name, factors), name, shape)
    depth, height, width, channels = own
    x = reshaped(builder, x, name, (depth, height, width * channels))
    x = _resized(builder, x, name, factors[:2])
    rows = depth * height * math.prod(factors[:2])
    x = reshaped(builder, x, name, (rows, width, channels))
    return reshaped(builder, _resized(builder, x, name, (1, factors[2])), name, shape)


def _resized(builder: GraphBuilder, x: Tensor, name: str, factors: Sequence[int]) -> Tensor:
    if tuple(factors) == (1, 1):
        return x
    batch, *own, channels = x.shape
    size = [n * factor for n, factor in zip(own, factors, strict=True)]
    constant = builder.constant(f"{name}/size", "INT32", size)
    y = like(builder, x, f"{name}/resized", (batch, *size, channels))
    # From the centers, as TensorFlow writes it: no index is near a whole number, where float32 may
    # miss it, and TOSA's converter takes the next row otherwise.
    return builder.op(
        "RESIZE_NEAREST_NEIGHBOR", [x, constant], y, version(x, 4), half_pixel_centers=True
    )


def bilinear(builder: GraphBuilder, x: Tensor, name: str, shape: Shape) -> Tensor:
    """Resize float images as TensorFlow does, with half-pixel centers."""
    size = builder.constant(f"{name}/size", "INT32", shape[:2])
    y = like(builder, x, f"{name}/resized", (x.shape[0], *shape))
    return builder.op("RESIZE_BILINEAR", [x, size], y, 3, half_pixel_centers=True)


def broadcast(
    builder: GraphBuilder, x: Tensor, name: str, shape: Shape, attributes: Attributes
) -> Tensor:
    """Repeat values along axes of length 1."""
    x = aligned(builder, x, name, len(shape))
    if not any(factor > 1 for factor in attributes["size"]):
        return x
    if len(shape) >= _MOST_AXES:
        raise UnsupportedError(f"repeating values along {len(shape)} axes")
    to = builder.constant(f"{name}/shape", "INT32", (x.shape[0], *shape))
    y = like(builder, x, f"{name}/repeated", (x.shape[0], *shape))
    return builder.op("BROADCAST_TO", [x, to], y, 2)


def aligned(builder: GraphBuilder, x: Tensor, name: str, rank: int) -> Tensor:
    """Add the axes of length 1 that each example lacks, after the batch."""
    return reshaped(builder, x, name, (1,) * (rank + 1 - len(x.shape)) + x.shape[1:])


_MOVES: Mapping[str, Callable[[GraphBuilder, Tensor, str, Shape, Attributes], Tensor]] = {
    "crop": _crop, "permute": _permute, "upsample": _upsample, "broadcast": broadcast,
}  # fmt: skip


def padding_of(
    size: Sequence[int], window: Sequence[int], strides: Sequence[int], pads: Sequence[Any]
) -> int | None:
    """Return the ``Padding`` that gives these paddings, ``None`` if neither does."""
    if not any(map(any, pads)):
        return PADDINGS["VALID"]
    is_same = tuple(map(tuple, pads)) == ops.same_pads(size, window, strides)
    return PADDINGS["SAME"] if is_same else None


def pool(
    builder: GraphBuilder, x: Tensor, name: str, op: str, shape: Shape, attributes: Attributes
) -> Tensor:
    """Write ``MAX_POOL_2D`` or ``AVERAGE_POOL_2D``, of a signal in one row."""
    own = x.shape[1:]
    out: Sequence[int] = shape if len(own) == 3 else (1, *shape)
    x = reshaped(builder, x, name, own if len(own) == 3 else (1, *own))
    size, strides, pads = (attributes[key] for key in ("size", "strides", "pads"))
    padding = padding_of(x.shape[1:3], size, strides, pads)
    assert padding is not None  # Keras's pools are padded in TensorFlow's two ways
    y = like(builder, x, f"{name}/pooled", (x.shape[0], *out))
    options = {
        "padding": padding, "stride_h": strides[0], "stride_w": strides[1],
        "filter_height": size[0], "filter_width": size[1],
    }  # fmt: skip
    return reshaped(builder, builder.op(op, [x], y, version(x), **options), name, shape)


def reduced(
    builder: GraphBuilder, x: Tensor, name: str, op: str, axes: Sequence[int], grid: Grid | None
) -> Tensor:
    """Write ``MEAN``, ``SUM``, ``REDUCE_MAX`` or ``REDUCE_MIN``; the result lacks the axes."""
    constant = builder.constant(f"{name}/axes", "INT32", axes)
    shape = [n for axis, n in enumerate(x.shape) if axis not in axes]
    y = builder.tensor(f"{name}/{op}", shape, x.kind, grid)
    return builder.op(op, [x, constant], y, version(x), keep_dims=False)


def _check_axes(x: Tensor, what: str) -> None:
    if len(x.shape) > _MOST_AXES:
        raise UnsupportedError(f"{what} of {len(x.shape) - 1} axes")
