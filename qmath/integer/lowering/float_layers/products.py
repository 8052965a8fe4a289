"""Products along axes that a config names, and rows that are looked up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qmath.errors import QmathError
from qmath.integer.budget import check_size
from qmath.integer.lowering.float_layers.layer import Call, Computation, Float64Array
from qmath.integer.program import Shape

__all__ = ["dot", "einsum_dense", "embedding", "terms_of"]

_LETTERS = "zyxwvutsr"  # that a config's own equation seldom has


def einsum_dense(call: Call) -> Computation | None:
    """Return Keras's EinsumDense without its activation."""
    (shape,), kernel, bias = call.shapes, call.weight("kernel"), call.weight("bias")
    equation = call.config.get("equation")
    if kernel is None or not isinstance(equation, str):
        return None
    terms = terms_of(equation, len(shape) + 1, kernel.ndim)
    if terms is None:
        return None
    x, w, y = terms
    lengths: dict[str, int] = dict(zip(x[1:], shape, strict=True))
    for letter, length in zip(w, kernel.shape, strict=True):
        if lengths.setdefault(letter, length) != length:
            raise QmathError(
                f"{call.node.name}: its kernel {kernel.shape} and its input {shape} do not fit the "
                f"equation {equation!r}; the file is damaged, save the model again"
            )
    if not set(y[1:]) <= set(lengths):
        return None
    made = tuple(lengths[letter] for letter in y[1:])
    check_size(call.node.name, made)
    shift = 0.0 if bias is None else bias

    def apply(x_: Float64Array) -> Float64Array:
        return np.asarray(np.einsum(f"{x},{w}->{y}", x_, kernel, optimize=True) + shift)

    return Computation(apply, made)


def terms_of(equation: str, rank: int, kernel_rank: int) -> tuple[str, str, str] | None:
    """Return the letters of the input, of the kernel and of the output, the batch being first."""
    left, arrow, y = equation.replace(" ", "").partition("->")
    x, comma, w = left.partition(",")
    if not arrow or not comma or "," in w:
        return None
    if "..." in x:
        unused = [c for c in _LETTERS if c not in equation]
        x = x.replace("...", "".join(unused)[: rank - (len(x) - 3)])
        y = y.replace("...", "".join(unused)[: rank - (len(left.partition(",")[0]) - 3)])
    is_plain = all(term.isalpha() and len({*term}) == len(term) for term in (x, w, y))
    if not is_plain or len(x) != rank or len(w) != kernel_rank or x[0] != y[0] or x[0] in w:
        return None
    return x, w, y


def dot(call: Call) -> Computation | None:
    """Return Keras's Dot of two inputs."""
    if len(call.shapes) != 2:
        return None
    axes = call.config.get("axes")
    pair = axes if isinstance(axes, list) and len(axes) == 2 else [axes, axes]
    if not all(type(axis) is int for axis in pair):
        return None
    a, b = (axis % (len(s) + 1) for axis, s in zip(pair, call.shapes, strict=True))
    first, second = call.shapes
    if 0 in (a, b) or first[a - 1] != second[b - 1]:
        return None
    x = "n" + _LETTERS[: len(first)]
    y = "n" + _LETTERS[len(first) : len(first) + len(second)]
    y = y[:b] + x[a] + y[b + 1 :]
    rest = "".join(c for c in x[1:] + y[1:] if c != x[a])
    lengths: Mapping[str, int] = dict(zip(x[1:] + y[1:], first + second, strict=True))
    made: Shape = tuple(lengths[c] for c in rest) or (1,)
    check_size(call.node.name, made)
    normalize = bool(call.config.get("normalize"))

    def apply(p: Float64Array, q: Float64Array) -> Float64Array:
        if normalize:
            p, q = _unit(p, a), _unit(q, b)
        product = np.einsum(f"{x},{y}->n{rest}", p, q, optimize=True)
        return np.asarray(product.reshape(len(p), *made))

    return Computation(apply, made)


def _unit(x: Float64Array, axis: int) -> Float64Array:
    return np.asarray(x / np.sqrt(np.maximum(np.square(x).sum(axis, keepdims=True), 1e-12)))


def embedding(call: Call) -> Computation | None:
    """Return Keras's Embedding: rows by number, which a float is cut to."""
    (shape,), rows, name = call.shapes, call.weight("embeddings"), call.node.name
    if rows is None or rows.ndim != 2:
        return None
    made = (*shape, rows.shape[1])
    check_size(name, made)

    def apply(x: Any) -> Float64Array:
        index = np.asarray(x).astype(np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(rows):
            raise QmathError(
                f"{name}: it looks up the rows {index.min()} to {index.max()}, and has "
                f"{len(rows)}; give whole numbers below that"
            )
        return np.asarray(rows[index])

    return Computation(apply, made)
