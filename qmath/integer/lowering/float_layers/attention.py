"""Attention: values, weighted by how much their keys are like a query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qmath.integer.lowering.activations import softmax
from qmath.integer.lowering.float_layers.layer import Call, Computation, Float64Array

__all__ = ["additive_attention", "attention", "multi_head_attention"]

_PROJECTIONS = ("query", "key", "value")


def attention(call: Call) -> Computation | None:
    """Return Keras's Attention of a query, a value and, if there are three inputs, a key."""
    if (
        len(call.shapes) not in (2, 3)
        or any(len(shape) != 2 for shape in call.shapes)
        or call.config.get("score_mode", "dot") != "dot"
        or call.config.get("causal")
    ):
        return None
    query, value, key = (*call.shapes, call.shapes[-1])[:3]
    if query[1] != key[1] or key[0] != value[0]:
        return None
    scale = call.weight("scale")
    factor = 1.0 if scale is None else scale

    def apply(q: Float64Array, v: Float64Array, *others: Float64Array) -> Float64Array:
        k = others[0] if others else v
        return np.asarray(softmax(factor * (q @ k.transpose(0, 2, 1))) @ v)

    return Computation(apply, (query[0], value[1]))


def additive_attention(call: Call) -> Computation | None:
    """Return Keras's AdditiveAttention of a query, a value and, of three inputs, a key."""
    if (
        len(call.shapes) not in (2, 3)
        or any(len(shape) != 2 for shape in call.shapes)
        or call.config.get("causal")
    ):
        return None
    query, value, key = (*call.shapes, call.shapes[-1])[:3]
    if query[1] != key[1] or key[0] != value[0]:
        return None
    scale = call.weight("scale")
    factor = np.ones(query[1]) if scale is None else scale

    def apply(q: Float64Array, v: Float64Array, *others: Float64Array) -> Float64Array:
        k = others[0] if others else v
        scores = np.tanh(q[:, :, np.newaxis] + k[:, np.newaxis]) @ factor
        return np.asarray(softmax(scores) @ v)

    return Computation(apply, (query[0], value[1]))


def multi_head_attention(call: Call) -> Computation | None:
    """Return Keras's MultiHeadAttention over the one axis of a sequence; value and key are one."""
    same = len({*call.node.inputs[1:]}) == 1
    if len(call.shapes) not in (2, 3) or not same or any(len(s) != 2 for s in call.shapes):
        return None
    if call.config.get("attention_axes") not in (None, [1], 1):
        return None
    found = [_Projection.of(call, name) for name in (*_PROJECTIONS, "attention_output")]
    query, key, value, output = found
    if query is None or key is None or value is None or output is None:
        return None
    lengths = [shape[-1] for shape in (*call.shapes[:2], call.shapes[1])]
    if [len(part.kernel) for part in (query, key, value)] != lengths:
        return None
    factor = 1 / np.sqrt(float(call.config.get("key_dim", query.kernel.shape[-1])))

    def apply(q: Float64Array, v: Float64Array, *_: Float64Array) -> Float64Array:
        scores = (query(q, 1) * factor).transpose(0, 2, 1, 3) @ key(v, 1).transpose(0, 2, 3, 1)
        mixed = softmax(scores) @ value(v, 1).transpose(0, 2, 1, 3)
        return output(mixed.transpose(0, 2, 1, 3), 2)

    return Computation(apply, (call.shapes[0][0], output.kernel.shape[-1]))


@dataclass(frozen=True, eq=False)
class _Projection:
    """A dense layer of heads: the kernel has three axes."""

    kernel: Float64Array
    bias: Float64Array | float

    @classmethod
    def of(cls, call: Call, name: str) -> _Projection | None:
        """Return the projection of this name, if it is one."""
        part = call.within(f"{name}/", {})
        kernel, bias = part.weight("kernel"), part.weight("bias")
        if kernel is None or kernel.ndim != 3:
            return None
        return cls(kernel, 0.0 if bias is None else bias)

    def __call__(self, x: Float64Array, axes: int) -> Float64Array:
        """Multiply along the last axes of `x`, the first ones of the kernel."""
        return np.asarray(np.tensordot(x, self.kernel, axes) + self.bias)
