"""The rule of lowering for float layers, and the function of each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.lowering.builder import Builder
from qmath.integer.lowering.cuts import UnsupportedError
from qmath.integer.lowering.float_layers.attention import (
    additive_attention,
    attention,
    multi_head_attention,
)
from qmath.integer.lowering.float_layers.convolutions import conv3d_transpose, locally_connected
from qmath.integer.lowering.float_layers.layer import Call, Computation
from qmath.integer.lowering.float_layers.normalization import (
    group_normalization,
    layer_normalization,
    unit_normalization,
)
from qmath.integer.lowering.float_layers.products import dot, einsum_dense, embedding
from qmath.integer.lowering.float_layers.recurrent import bidirectional, of_cell, recurrent
from qmath.integer.lowering.values import Floats, Value
from qmath.layers import ends_with_activation
from qmath.model import Node

__all__ = ["FLOAT_LAYERS", "REMEDY", "float_layer"]

FLOAT_LAYERS: Mapping[str, Callable[[Call], Computation | None]] = {
    "LayerNormalization": layer_normalization,
    "GroupNormalization": group_normalization,
    "Embedding": embedding,
    "EinsumDense": einsum_dense,
    "Dot": dot,
    "SimpleRNN": recurrent,
    "GRU": recurrent,
    "LSTM": recurrent,
    "RNN": of_cell,
    "Bidirectional": bidirectional,
    "Conv3DTranspose": conv3d_transpose,
    "LocallyConnected1D": locally_connected,
    "LocallyConnected2D": locally_connected,
    "UnitNormalization": unit_normalization,
    "AdditiveAttention": additive_attention,
    "Attention": attention,
    "MultiHeadAttention": multi_head_attention,
}
REMEDY = (
    "qmath computes {0} in float32, with the values that its quantized weights stand for; quantize "
    "its output, and integers go on behind it, or use a layer with an integer form"
)


def float_layer(build: Builder, node: Node, values: Sequence[Value]) -> Floats:
    """Add a step in float32 for a layer.

    Raises
    ------
    UnsupportedError
        It has settings that are not known.
    """
    # Where a quantizer acts inside a layer, its floats are others.
    prefix = f"{node.layer}/"
    tensors = {t.name.removeprefix(prefix): t for t in build.within(node.layer)}
    inner = [name for name in tensors if name.endswith(("pre_activation", "post_activation"))]
    if inner and not ends_with_activation(node.class_name):
        raise UnsupportedError(
            node.name, f"quantizers act inside it ({', '.join(sorted(inner))})",
            "quantize its weights and its output only",
        )  # fmt: skip
    weights = {name: build.real(t) for name, t in tensors.items() if t.values is not None}
    call = Call(node, tuple(value.shape for value in values), weights)
    found = FLOAT_LAYERS[node.class_name](call)
    if found is None:
        raise UnsupportedError(
            node.name, "it has settings, inputs or weights that its float form does not have",
            f"use a plain {node.class_name}, as docs/integer-model.md lists",
        )  # fmt: skip
    return build.float_step(
        node, values, partial(_rounded, found), found.shape, REMEDY.format(node.class_name),
        constants=[array for array in weights.values() if array.size],
    )  # fmt: skip


def _rounded(computation: Computation, *parts: NDArray[Any]) -> NDArray[np.float32]:
    """Compute in float64, and round once."""
    return computation.apply(*(part.astype(np.float64) for part in parts)).astype(np.float32)
