"""Layers that Keras computes with several operators: each from its config and its weights.

A function here takes what writes operators on float32, the call of a layer and its inputs, and
returns its result without an activation. The integer model computes the same (see
`qmath.integer.lowering.float_layers`), and has checked the settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.exports.tflite import moves
from qmath.exports.tflite.floats import Floats
from qmath.exports.tflite.graph import Grid, Tensor
from qmath.integer.lowering.float_layers.layer import Call
from qmath.integer.lowering.float_layers.products import terms_of

__all__ = ["KERAS_LAYERS"]

Array = NDArray[Any]
_KEEPS_AXES = 5  # version of a dense layer of several axes
_TINY = 1e-12  # what Keras adds to no length of a vector


def _transposed(to: Floats, x: Tensor, name: str, axes: Sequence[int]) -> Tensor:
    shape = [x.shape[axis] for axis in axes]
    return moves.move(to.builder, x, name, "permute", tuple(shape[1:]), {"axes": tuple(axes)})


def _reduced(to: Floats, op: str, x: Tensor, name: str, axes: Sequence[int]) -> Tensor:
    constant = to.builder.constant(f"{name}/axes", "INT32", axes)
    shape = [1 if i in axes else n for i, n in enumerate(x.shape)]
    return to.op(op, [x, constant], name, shape, keep_dims=True)


def _dense(to: Floats, x: Tensor, name: str, weights: Array) -> Tensor:
    """Multiply the last axis by a matrix of inputs and outputs."""
    held = to.builder.constant(f"{name}/kernel", "FLOAT32", weights.T)
    bias = to.builder.constant(f"{name}/zeros", "FLOAT32", np.zeros(weights.shape[1]))
    shape = (*x.shape[:-1], weights.shape[1])
    return to.op("FULLY_CONNECTED", [x, held, bias], name, shape, _KEEPS_AXES, keep_num_dims=True)


def _normalized(
    to: Floats, call: Call, x: Tensor, axes: Sequence[int], scaled: Sequence[int]
) -> Tensor:
    name, gamma, beta = call.node.name, call.weight("gamma"), call.weight("beta")
    mean = _reduced(to, "MEAN", x, name, axes)
    centred = to.op("SUB", [x, mean], name, x.shape)
    square = to.op("MUL", [centred, centred], name, x.shape)
    variance = _reduced(to, "MEAN", square, f"{name}/variance", axes)
    epsilon = np.asarray(call.config.get("epsilon", 1e-3))
    moved = to.constant_op("ADD", variance, epsilon, f"{name}/variance")
    inverse = to.op("RSQRT", [moved], name, moved.shape)
    y = to.op("MUL", [centred, inverse], name, x.shape)
    if gamma is not None:
        y = to.constant_op("MUL", y, gamma.reshape(scaled), f"{name}/gamma")
    return y if beta is None else to.constant_op("ADD", y, beta.reshape(scaled), f"{name}/beta")


def _layer_normalization(to: Floats, call: Call, xs: Sequence[Tensor]) -> Tensor:
    (x,), given = xs, call.config.get("axis", -1)
    axes = sorted(a % len(x.shape) for a in (given if isinstance(given, list) else [given]))
    scaled = [n if i in axes else 1 for i, n in enumerate(x.shape)][1:]
    return _normalized(to, call, x, axes, scaled)


def _group_normalization(to: Floats, call: Call, xs: Sequence[Tensor]) -> Tensor:
    (x,), groups = xs, call.config.get("groups", 32)
    *outer, channels = x.shape[1:]
    groups = channels if groups == -1 else groups
    rows, own = math.prod(outer), channels // groups
    split = moves.reshaped(to.builder, x, f"{call.node.name}/split", (rows, groups, own))
    y = _normalized(to, call, split, (1, 3), (groups, own))
    return moves.reshaped(to.builder, y, call.node.name, x.shape[1:])


def _embedding(to: Floats, call: Call, xs: Sequence[Tensor]) -> Tensor:
    """Look rows up among the integers of training; among floats where a row has its own scale."""
    (x,), name = xs, call.node.name
    held, grid = _rows(to, call)
    index = to.builder.tensor(f"{name}/index", x.shape, "INT32")
    to.builder.op("CAST", [x], index)
    y = to.builder.tensor(f"{name}/GATHER", (*x.shape, held.shape[1]), held.kind, grid)
    return to.real(to.builder.op("GATHER", [held, index], y, 1 if grid is None else 2, axis=0))


def _rows(to: Floats, call: Call) -> tuple[Tensor, Grid | None]:
    name = f"{call.node.layer}/embeddings"
    q = to.bundle.weights.get(name)
    rows = call.weights["embeddings"]
    if q is not None and q.scale.size == 1:
        relative = q.values.astype(np.int32) - q.zero_point
        if relative.min(initial=0) >= -128 and relative.max(initial=0) <= 127:
            grid = Grid(np.float32(q.scale.item()), 0)
            return to.builder.constant(name, "INT8", relative, grid=grid), grid
    return to.builder.constant(name, "FLOAT32", rows), None


def _einsum_dense(to: Floats, call: Call, xs: Sequence[Tensor]) -> Tensor:
    """Multiply matrices: the letters that are summed up last, then those of the kernel's own."""
    (x,), kernel, bias = xs, call.weight("kernel"), call.weight("bias")
    assert kernel is not None
    found = terms_of(call.config["equation"], len(x.shape), kernel.ndim)
    assert found is not None
    of_x, of_w, of_y = found
    if {*of_x} & {*of_w} & {*of_y}:
        raise moves.UnsupportedError("an EinsumDense with weights of its own for each position")
    name, summed = call.node.name, [c for c in of_x if c in of_w]
    kept, own = [c for c in of_x if c not in of_w], [c for c in of_w if c not in of_x]
    lengths = dict(zip(of_x + of_w, x.shape + kernel.shape, strict=True))
    shape = [lengths[c] for c in kept[1:] + own]
    wide = math.prod(lengths[c] for c in summed)
    matrix = kernel.transpose([of_w.index(c) for c in summed + own]).reshape(wide, -1)
    y = _transposed(to, x, name, [of_x.index(c) for c in kept + summed])
    y = moves.reshaped(to.builder, y, f"{name}/rows", (*y.shape[1 : len(kept)], wide))
    y = moves.reshaped(to.builder, _dense(to, y, name, matrix), name, shape)
    y = _transposed(to, y, f"{name}/y", [(kept + own).index(c) for c in of_y])
    return y if bias is None else to.constant_op("ADD", y, bias, f"{name}/bias")


def _dot(to: Floats, call: Call, xs: Sequence[Tensor]) -> Tensor:
    axes, name = call.config["axes"], call.node.name
    pair = axes if isinstance(axes, list) else [axes, axes]
    parts = []
    for number, (x, axis) in enumerate(zip(xs, pair, strict=True)):
        place, part = axis % len(x.shape), f"{name}/input{number}"
        if call.config.get("normalize"):
            square = to.op("MUL", [x, x], part, x.shape)
            length = _reduced(to, "SUM", square, part, [place])
            length = to.constant_op("MAXIMUM", length, np.asarray(_TINY), part)
            inverse = to.op("RSQRT", [length], part, length.shape)
            x = to.op("MUL", [x, inverse], part, x.shape)
        rest = [i for i in range(1, len(x.shape)) if i != place]
        moved = _transposed(to, x, part, [0, *rest, place])
        parts.append((moved.shape[1:-1], moves.reshaped(
            to.builder, moved, part, (math.prod(moved.shape[1:-1]), moved.shape[-1]))
        ))  # fmt: skip
    (rows, p), (columns, q) = parts
    y = _product(to, p, q, name, adj_y=True)
    return moves.reshaped(to.builder, y, name, (*rows, *columns) or (1,))


def _product(to: Floats, p: Tensor, q: Tensor, name: str, *, adj_y: bool) -> Tensor:
    shape = (*p.shape[:-1], q.shape[-2 if adj_y else -1])
    return to.op("BATCH_MATMUL", [p, q], name, shape, adj_x=False, adj_y=adj_y)


def _softmax(to: Floats, x: Tensor, name: str) -> Tensor:
    return to.op("SOFTMAX", [x], name, x.shape, beta=1.0)


def _attention(to: Floats, call: Call, xs: Sequence[Tensor]) -> Tensor:
    query, value, key = (*xs, xs[1])[:3]
    name, scale = call.node.name, call.weight("scale")
    scores = _product(to, query, key, f"{name}/scores", adj_y=True)
    if scale is not None:
        scores = to.constant_op("MUL", scores, scale, f"{name}/scale")
    return _product(to, _softmax(to, scores, name), value, name, adj_y=False)


def _multi_head_attention(to: Floats, call: Call, xs: Sequence[Tensor]) -> Tensor:
    name = call.node.name

    def heads(x: Tensor, which: str) -> Tensor:
        """Return what a projection makes, its heads before the rows."""
        part = call.within(f"{which}/", {})
        kernel, bias, own = part.weight("kernel"), part.weight("bias"), f"{name}/{which}"
        assert kernel is not None
        y = _dense(to, x, own, kernel.reshape(len(kernel), -1))
        y = y if bias is None else to.constant_op("ADD", y, bias.reshape(-1), own)
        y = moves.reshaped(to.builder, y, own, (x.shape[1], *kernel.shape[1:]))
        return _transposed(to, y, own, (0, 2, 1, 3))

    query, key, value = (
        heads(x, which)
        for x, which in zip((xs[0], xs[1], xs[1]), ("query", "key", "value"), strict=True)
    )
    factor = 1 / math.sqrt(float(call.config.get("key_dim", query.shape[-1])))
    query = to.constant_op("MUL", query, np.asarray(factor), f"{name}/query")
    scores = _softmax(to, _product(to, query, key, f"{name}/scores", adj_y=True), name)
    mixed = _transposed(to, _product(to, scores, value, name, adj_y=False), name, (0, 2, 1, 3))
    part = call.within("attention_output/", {})
    kernel, bias = part.weight("kernel"), part.weight("bias")
    assert kernel is not None
    wide = math.prod(kernel.shape[:2])
    mixed = moves.reshaped(to.builder, mixed, name, (mixed.shape[1], wide))
    y = _dense(to, mixed, f"{name}/attention_output", kernel.reshape(wide, -1))
    return y if bias is None else to.constant_op("ADD", y, bias, f"{name}/attention_output")


KERAS_LAYERS: Mapping[str, Callable[[Floats, Call, Sequence[Tensor]], Tensor]] = {
    "Attention": _attention,
    "Dot": _dot,
    "EinsumDense": _einsum_dense,
    "Embedding": _embedding,
    "GroupNormalization": _group_normalization,
    "LayerNormalization": _layer_normalization,
    "MultiHeadAttention": _multi_head_attention,
}
"""By class; those without (recurrent ones) have no operators here."""
