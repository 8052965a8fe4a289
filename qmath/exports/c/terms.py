"""Terms of sums, and moves, in C: the kernel of an operation, and what it has to know."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle
from qmath.exports.c.functions import Body, struct
from qmath.exports.c.source import braces
from qmath.exports.c.tensors import Names
from qmath.integer.program import Linear, MoveStep, Program, Requantize, Shape, Term
from qmath.kernels.quantized_tensor import QuantizedTensor

__all__ = ["Kernels", "Operand", "Place", "has_wide_values"]

_MOST_AXES = 4
_KERNELS = {
    "conv2d": "qm_conv", "conv3d": "qm_conv", "dense": "qm_conv",
    "depthwise_conv2d": "qm_depthwise", "conv2d_transpose": "qm_conv_transpose",
}  # fmt: skip
_MOVES = ("pad", "crop", "upsample", "broadcast", "permute", "reshape")


class Operand(NamedTuple):
    """Integers in the arena: the initializer of their ``qm_tensor``, and their shape."""

    tensor: str
    shape: Shape


class Place(NamedTuple):
    """What a kernel is called with: the initializer of its ``qm_term``, and the output's shape."""

    term: str
    shape: Shape


def has_wide_values(program: Program) -> bool:
    """Return whether what is multiplied by weights, or a weight, needs more than 16 bits."""
    return any(
        _is_wide(term)
        for step in program.steps
        if isinstance(step, Requantize)
        for term in step.value.terms
    )


def _is_wide(term: Term) -> bool:
    limits = np.iinfo(np.int16)
    low, high = term.params.limits
    is_sum = low < limits.min or high > limits.max
    for op in term.ops:
        if op.weights is not None and op.weights.size:
            beyond = op.weights.min() < limits.min or op.weights.max() > limits.max
            if is_sum or beyond:
                return True
        is_sum = is_sum or op.kind not in _MOVES
    return False


class Kernels:
    """Writes the kernels' parameters into the body of a function."""

    def __init__(
        self,
        bundle: Bundle,
        names: Names,
        views: Mapping[str, str],
        operand: Callable[[str], Operand],
    ) -> None:
        self._bundle, self._names, self._views, self._operand = bundle, names, views, operand

    def move(self, body: Body, step: MoveStep) -> Place:
        """Return the kernel of a step that moves integers."""
        operand = self._operand(step.source)
        attributes = dict(step.attributes)
        kind = attributes.pop("kind")
        if kind in ("pool_max", "pool_min"):
            is_least = kind == "pool_min"
            window = _window(operand.shape, step.shape, attributes)
            given = {"window": window, "end": step.params.limits[is_least]}
            of = body.static("qm_extreme", struct({**given, "sign": -1 if is_least else 1}), kind)
            # A global one has the input's channels, whatever shape its result is given.
            shape = operand.shape[-1:] if attributes.get("global") else step.shape
            return Place(_term("qm_pool_extreme", operand, of), shape)
        if kind == "reshape":
            return self.same(operand, step.shape)
        return self._moved(body, kind, operand, step.shape, attributes, step.name)

    def same(self, operand: Operand, shape: Shape) -> Place:
        """Return the kernel that leaves integers as they are."""
        return Place(_term("qm_same", operand, "NULL"), shape)

    def linear(self, body: Body, op: Linear, operand: Operand, step: str) -> Place:
        """Return the kernel of an operation on accumulators."""
        before = operand.shape
        if op.kind == "pool_sum":
            of = body.static("qm_window", _window(before, op.shape, op.attributes), "window")
            return Place(_term("qm_pool_sum", operand, of), op.shape)
        if op.kind == "bilinear":
            given = {"shape": braces(before), "factor": braces(op.attributes["size"])}
            of = body.static("qm_bilinear_of", struct(given), "upsampling")
            return Place(_term("qm_bilinear", operand, of), op.shape)
        if op.factor is not None:
            return self._product(body, op, operand, step)
        if op.weights is None:
            return self._moved(body, op.kind, operand, op.shape, op.attributes, step)
        of = body.static("qm_convolution", self._convolution(body, op, before), "convolution")
        kernel = "qm_pointwise" if _is_pointwise(op, before) else _KERNELS[op.kind]
        return Place(_term(kernel, operand, of), op.shape)

    def _convolution(self, body: Body, op: Linear, before: Shape) -> str:
        assert op.weights is not None
        depth = _struct_of_depth(1, 1, 1, 1, 1, 0, 0)
        if op.kind == "dense":
            rows = math.prod(before[:-1])
            pointwise = {"strides": (1, 1), "pads": ((0, 0), (0, 0))}
            window = _window((rows, before[-1]), (rows, op.shape[-1]), pointwise, (1, 1))
        elif op.kind == "conv3d":
            given = {key: op.attributes[key] for key in ("strides", "dilation", "pads")}
            plane = {key: values[1:] for key, values in given.items()}
            window = _window(before[1:], op.shape[1:], plane, op.weights.shape[1:3])
            stride, dilation, pads = (values[0] for values in given.values())
            depth = _struct_of_depth(
                before[0], op.shape[0], len(op.weights), stride, dilation, pads[0],
                self._distances(op)["D"],
            )  # fmt: skip
        else:
            window = _window(before, op.shape, op.attributes, op.weights.shape[:2])
        return struct({"window": window, "weights": self._weights(body, op), "depth": depth})

    def _weights(self, body: Body, op: Linear) -> str:
        """Return where an operation finds its weights in the exported array."""
        assert op.weights is not None
        record = self._bundle.tensors[op.name]
        assert isinstance(record, QuantizedTensor)
        # Along the axes of the model's own order, of which W of one dimension is the second of HW.
        own = self._bundle.manifest["tensors"][op.name]["source_layout"]
        distances = self._distances(op)
        letters = own.rjust(4, "-")[-4:]
        strides = [distances.get(letter, 0) for letter in letters]
        depth = op.weights.shape[-1 if op.kind == "conv2d_transpose" else -2]
        points = zero = self._names[f"{op.name}.zero_point"]
        if not record.zero_point.ndim:
            points = body.static("int32_t", braces([zero.upper()]), "zero_point", True)
        count, first = record.zero_point.size, 0
        if count > 1 and not record.zero_point.any():  # as symmetric weights have
            points, count = zero, 1
        if "part" in op.attributes:
            axis, start, step = op.attributes["part"]
            first = start * distances[axis]
            strides[letters.index(axis)] *= step
            if count > 1 and axis == letters[-1]:
                points, count = f"{zero} + {start}", 1
        return struct({
            "integers": f"&{self._views[op.name]}",
            "stride": braces(strides),
            "depth": depth,
            "zero_point": points,
            "zero_points": count,
            "first": first,
        })  # fmt: skip

    def _distances(self, op: Linear) -> dict[str, int]:
        """Return how far apart neighbours along each axis of an operation's weights are."""
        layout = self._bundle.manifest["tensors"][op.name]["layout"]
        record = self._bundle.tensors[op.name]
        assert isinstance(record, QuantizedTensor)
        shape = record.values.shape
        return {letter: math.prod(shape[i + 1 :]) for i, letter in enumerate(layout)}

    def _moved(
        self,
        body: Body,
        kind: str,
        operand: Operand,
        after: Shape,
        attributes: Mapping[str, Any],
        step: str,
    ) -> Place:
        """Return the kernel of a padding, a crop, a repetition or a permutation."""
        before = (1,) * (len(after) - len(operand.shape)) + operand.shape
        _check_axes(step, before)
        ones = [1] * (_MOST_AXES - len(before))
        zeros = [0] * len(ones)
        if kind == "permute":
            strides = [math.prod(before[axis:]) for axis in attributes["axes"][1:]]
            lists = {"shape": [*ones, *after], "a": [*zeros, *strides], "b": [0] * _MOST_AXES}
            of = body.static("qm_strides", struct(_braced(lists)), "strides")
            return Place(_term("qm_permute", operand, of), after)
        first, factors = [0] * len(before), [1] * len(before)
        if kind == "pad":
            first = [int(ends[0]) for ends in attributes["pads"]]
        elif kind == "crop":
            first = [-int(ends[0]) for ends in attributes["crops"]]
        else:
            factors[: len(attributes["size"])] = attributes["size"]
        lists = {
            "out": [*ones, *after], "in": [*ones, *before], "before": [*zeros, *first],
            "factor": [*ones, *factors],
        }  # fmt: skip
        of = body.static("qm_placement", struct(_braced(lists)), "placement")
        return Place(_term("qm_place", operand, of), after)

    def _product(self, body: Body, op: Linear, operand: Operand, step: str) -> Place:
        """Return the kernel of a product, in which either tensor may repeat along an axis."""
        assert op.factor is not None
        _check_axes(step, op.shape)
        lists = {"shape": [1] * (_MOST_AXES - len(op.shape)) + list(op.shape)}
        for name, shape in (("a", operand.shape), ("b", op.factor.shape)):
            shape = (1,) * (_MOST_AXES - len(shape)) + shape
            strides = [math.prod(shape[axis + 1 :]) for axis in range(_MOST_AXES)]
            lists[name] = [0 if n == 1 else s for n, s in zip(shape, strides, strict=True)]
        factor = self._operand(op.factor.source).tensor
        given = {"strides": struct(_braced(lists)), "factor": factor}
        of = body.local("qm_product", struct(given), "product")
        return Place(_term("qm_multiply", operand, of), op.shape)


def _is_pointwise(op: Linear, before: Shape) -> bool:
    """Return whether each output reads all channels of the one input that has its place."""
    assert op.weights is not None
    if op.kind == "dense":
        return True
    return (
        op.kind in ("conv2d", "conv3d")
        and math.prod(op.weights.shape[:-2]) == 1
        and op.weights.shape[-2] == before[-1]
        and op.shape[:-1] == before[:-1]
        and not any(map(any, op.attributes["pads"]))
    )


def _term(kernel: str, operand: Operand, of: str) -> str:
    return braces((kernel, operand.tensor, of if of == "NULL" else f"&{of}"))


def _braced(lists: Mapping[str, Sequence[int]]) -> dict[str, str]:
    return {name: braces(values) for name, values in lists.items()}


def _check_axes(name: str, shape: Shape) -> None:
    if len(shape) > _MOST_AXES:
        raise OutputError(
            f"{name}: the C kernels know arrays of up to {_MOST_AXES} axes, and this one has "
            f"{len(shape)}; export with kernels=false"
        )


def _struct_of_depth(*values: int) -> str:
    names = ("in", "out", "kernel", "stride", "dilation", "pad", "weights")
    return struct(dict(zip(names, values, strict=True)))


def _window(
    before: Shape, after: Shape, attributes: Mapping[str, Any], kernel: Sequence[int] = ()
) -> str:
    """Return a ``qm_window``; what has one dimension has a height of 1."""
    if len(before) > 3:  # of a global pool: all positions are one column
        before = (math.prod(before[:-1]), 1, before[-1])
    in_shape = _spatial(before)
    if attributes.get("global"):
        kernel, strides, first = in_shape[:2], (1, 1), (0, 0)
        out_shape: Shape = (1, 1, in_shape[2])
    else:
        out_shape = _spatial(after)
        kernel = kernel or attributes["size"]
        strides = attributes["strides"]
        first = tuple(ends[0] for ends in attributes.get("pads", attributes.get("crops")))
    lists = {
        "in": in_shape,
        "out": out_shape,
        "kernel": kernel,
        "stride": strides,
        "dilation": attributes.get("dilation", (1, 1)),
        "pad": first,
    }
    return struct(_braced(lists))


def _spatial(shape: Shape) -> Shape:
    return (1,) * (3 - len(shape)) + tuple(shape)
