"""What moves values, and pools them: operations of one tensor, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qmath.exports.onnx import windows
from qmath.exports.onnx.graph import GraphBuilder, Value
from qmath.integer.program import Linear

__all__ = ["moved", "pooled", "unsqueezed"]


def unsqueezed(builder: GraphBuilder, x: Value, layer: str, rank: int) -> Value:
    """Add the axes that a value lacks after the batch, as Keras does."""
    count = rank - len(x.shape)
    if not count:
        return x
    axes = builder.constant(f"{layer}/axes", np.arange(1, count + 1), "INT64")
    return builder.layer("Unsqueeze", [x, axes], layer, (1,) * count + x.shape)


def pooled(
    builder: GraphBuilder, x: Value, layer: str, kind: str, attributes: Any, shape: Sequence[int]
) -> Value:
    """Write a pool, whose `kind` is ``"Average"`` or ``"Max"``."""
    x = builder.channels_first(x)
    if attributes.get("global"):
        kept = (1,) * (len(x.shape) - 1) + x.shape[-1:]
        made = builder.layer(f"Global{kind}Pool", [x], layer, kept)
        if tuple(shape) == kept:
            return made
        return _reshaped(builder, replace(made, channels_first=False), layer, shape)
    given = windows.of_pool(kind, attributes, x)
    return builder.layer(f"{kind}Pool", [x], layer, shape, **given)


def moved(builder: GraphBuilder, x: Value, layer: str, linear: Linear) -> Value:
    """Write an operation that moves values, or adds zeros, of the layer of this name."""
    attributes = linear.attributes
    if linear.kind == "reshape":
        return _reshaped(builder, builder.channels_last(x), layer, linear.shape)
    if linear.kind == "broadcast":
        x = unsqueezed(builder, builder.channels_last(x), layer, len(linear.shape))
        repeats = builder.constant(f"{layer}/repeats", [1, *attributes["size"]], "INT64")
        return builder.layer("Tile", [x, repeats], layer, linear.shape)
    if linear.kind == "permute":
        x = builder.channels_last(x)
        return builder.layer("Transpose", [x], layer, linear.shape, perm=attributes["axes"])
    x = builder.channels_first(x)
    if linear.kind in ("pad", "crop"):
        ends = attributes.get("pads") or [(-a, -b) for a, b in attributes["crops"]]
        *spatial, channels = ends
        pads = windows.begins_and_ends([(0, 0), channels, *spatial])
        name = builder.constant(f"{layer}/pads", pads, "INT64")
        return builder.layer("Pad", [x, name], layer, linear.shape)
    scales = builder.constant(f"{layer}/scales", [1, 1, *attributes["size"]])
    # Of no meaning here, but QONNX's tools want a name for it.
    region = builder.constant(f"{layer}/roi", np.zeros(0))
    given = windows.of_resize(linear)
    return builder.layer("Resize", [x, region, scales], layer, linear.shape, **given)


def _reshaped(builder: GraphBuilder, x: Value, layer: str, shape: Sequence[int]) -> Value:
    target = builder.constant(f"{layer}/shape", [0, *shape], "INT64")
    return builder.layer("Reshape", [x, target], layer, shape)
