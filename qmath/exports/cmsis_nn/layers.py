"""The layers of an integer model that CMSIS-NN's functions compute, found in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.exports.cmsis_nn.records import Layer, Pool, Sum, Weighted, Window
from qmath.integer.profiles.tflite_kernels import Kernel, quantization
from qmath.integer.profiles.tflite_parts import Part, parts
from qmath.integer.program import (
    CutStep,
    FloatStep,
    Linear,
    MoveStep,
    Program,
    QuantizeStep,
    QuantParams,
    Requantize,
    Shape,
    SoftmaxStep,
    Step,
)

__all__ = ["layers"]

Array = NDArray[Any]
Shapes = Mapping[str, Shape]
_KINDS = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "dw_conv",
    "FULLY_CONNECTED": "fc",
    "TRANSPOSE_CONV": "transpose_conv",
}


def layers(program: Program) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers that CMSIS-NN computes, and why it does not compute other steps."""
    shapes = dict(program.inputs) | {step.name: step.shape for step in program.steps}
    found: list[Layer] = []
    others: dict[str, str] = {}
    for step in program.steps:
        if isinstance(step, QuantizeStep):
            continue
        try:
            for name, made in _made(step, shapes):
                if isinstance(made, Layer):
                    found.append(made)
                else:
                    others[name] = made
        except QmathError as error:
            others[step.name] = str(error).removeprefix(f"{step.name}: ")
    return found, others


def _made(step: Step, shapes: Shapes) -> Iterator[tuple[str, Layer | str]]:
    """Yield of each part of a step its name, and the layer, or why it is none."""
    if isinstance(step, Requantize):
        names: set[str] = set()
        of_step = parts(step)
        for number, part in enumerate(of_step):
            name = step.name
            if len(of_step) > 1:
                name = f"{step.name}/{part.kernels[0].weights or number}"
            name = f"{name}/{number}" if name in names else name
            names.add(name)
            yield name, _layer(name, step, part, shapes)
    elif isinstance(step, MoveStep) and step.attributes.get("kind") == "pool_max":
        yield step.name, _max_pool(step, shapes)
    else:
        yield step.name, _reason(step)


def _reason(step: Step) -> str:
    """Say why a step that does not round a sum is none of CMSIS-NN's layers."""
    if isinstance(step, CutStep):
        reason = f" because {step.reason}" if step.reason else ""
        return f"a cut point: qmath cannot compute this {step.class_name}{reason}"
    if isinstance(step, SoftmaxStep):
        return "a softmax by qmath's own arithmetic"
    return "in float32" if isinstance(step, FloatStep) else "moves integers, or looks them up"


def _layer(name: str, step: Requantize, part: Part, shapes: Shapes) -> Layer | str:
    """Return a part as a layer, or why it is none."""
    kernel = part.kernels[0]
    if kernel.weight_bits > 8:
        return f"its weights need {kernel.weight_bits} bits, and CMSIS-NN takes 8"
    wide = _too_wide(step.params, *(term.params for term in part.terms))
    if wide:
        return wide
    if kernel.op == "ADD":
        return _sum(name, step, part)
    if kernel.op == "AVERAGE_POOL_2D":
        return _average_pool(name, step, part, shapes)
    if kernel.op not in _KINDS:
        return f"TFLite's {' and '.join(k.op for k in part.kernels)}, which is none of these layers"
    if any(move.kind != "reshape" for move in part.moves):
        return f"its values are moved ({part.moves[0].kind}) before they are rounded"
    return _weighted(name, step, part, shapes)


def _too_wide(*params: QuantParams) -> str:
    """Say which activations do not fit, if any."""
    widest = max(p.num_bits for p in params)
    return f"activations of {widest} bits, and these functions take 8" if widest > 8 else ""


def _sum(name: str, step: Requantize, part: Part) -> Sum | str:
    """Return a sum, or why it is none."""
    for term in part.terms:
        moved = [op.kind for op in term.ops if op.kind != "reshape"]
        if moved:
            return f"{term.source} is moved ({moved[0]}) before it is added"
    kernel, sources = part.kernels[0], tuple(term.source for term in part.terms)
    shape = 1, 1, math.prod(span.stop - span.start for span in part.region)
    return Sum(
        name, "add", sources, step.name, part.region, kernel.inputs, kernel.output, shape, shape,
        kernel,
    )  # fmt: skip


def _average_pool(name: str, step: Requantize, part: Part, shapes: Shapes) -> Pool:
    """Return an average pool that is no mean of all."""
    (pool, rescaling), (term,) = part.kernels, part.terms
    linear = term.ops[0]
    window = _window(linear.attributes)
    return Pool(
        name, "avgpool", (term.source,), step.name, part.region, pool.inputs, rescaling.output,
        _spatial(shapes[term.source]), _spatial(linear.shape), window, rescaling,
    )  # fmt: skip


def _max_pool(step: MoveStep, shapes: Shapes) -> Pool | str:
    """Return a maximum pool, or why it is none."""
    wide = _too_wide(step.params)
    if wide:
        return wide
    if "rows" in step.attributes:
        return "a maximum of tensors"
    before, after = shapes[step.source], step.shape
    if step.attributes.get("global"):
        inputs, outputs = (1, math.prod(before[:-1]), before[-1]), (1, 1, before[-1])
        window = Window(inputs[:2])
    else:
        inputs, outputs = _spatial(before), _spatial(after)
        window = _window(step.attributes)
    params = quantization(step.params, step.name)
    region = tuple(slice(0, n) for n in after)
    return Pool(
        step.name, "max_pool", (step.source,), step.name, region, (params,), params, inputs,
        outputs, window,
    )  # fmt: skip


def _window(attributes: Mapping[str, Any]) -> Window:
    return Window(attributes["size"], attributes["strides"], _first(attributes["pads"]))


def _first(ends: Any) -> Shape:
    return tuple(pair[0] for pair in ends)


def _weighted(name: str, step: Requantize, part: Part, shapes: Shapes) -> Weighted | str:
    """Return a convolution or a dense layer, or why it is none."""
    kernel, term = part.kernels[0], part.terms[0]
    linear, kind = term.ops[0], _KINDS[kernel.op]
    assert linear.weights is not None
    assert kernel.bias is not None
    weights, channels = _ordered(linear, kernel), linear.shape[-1]
    (multiplier,), (shift,) = kernel.multipliers, kernel.shifts
    before, geometry = shapes[term.source], linear.attributes
    per_channel: Shape = () if kind == "fc" and not multiplier.ndim else (channels,)
    if kind == "fc":
        rows = math.prod(before[:-1])
        in_shape, out_shape = (rows, 1, before[-1]), (rows, 1, channels)
        window = Window((1, 1))
    else:
        in_shape, out_shape = _spatial(before), _spatial(linear.shape)
        window = Window(
            linear.weights.shape[:2],
            geometry["strides"],
            _first(geometry["crops" if kind == "transpose_conv" else "pads"]),
            geometry.get("dilation", (1, 1)),
        )
    if kind == "transpose_conv" and not _is_covered(window, in_shape, out_shape):
        return "CMSIS-NN computes no transposed convolution of this geometry"
    has_s4 = not per_channel if kind == "fc" else _has_s4(kind, weights, in_shape[-1], geometry)
    return Weighted(
        name, kind, (term.source,), step.name, part.region, kernel.inputs, kernel.output, in_shape,
        out_shape, kernel.weights, weights, has_s4 and kernel.weight_bits <= 4,
        np.broadcast_to(kernel.bias, (channels,)).astype(np.int32),
        np.broadcast_to(multiplier, per_channel).astype(np.int32),
        np.broadcast_to(shift, per_channel).astype(np.int32),
        window,
    )  # fmt: skip


def _is_covered(window: Window, before: Shape, after: Shape) -> bool:
    """Whether CMSIS-NN's transposed convolution writes each output, and nothing else.

    It writes every row that its last input row does not reach, and none beyond the kernel.
    """
    if window.dilation != (1, 1) or window.stride[1] > max(window.size[1], window.stride[0]):
        return False  # it has no dilation; its buffer is too small for such strides
    ends = zip(before, after, *window[:3], strict=False)
    return all(
        pad < size and n * stride - pad <= out <= (n - 1) * stride + max(size, stride) - pad
        for n, out, size, stride, pad in ends
    )


def _has_s4(kind: str, weights: Array, inputs: int, geometry: Mapping[str, Any]) -> bool:
    """Whether CMSIS-NN computes a convolution from packed weights, and correctly."""
    if kind == "transpose_conv":
        return False
    if kind == "conv":
        return bool(weights.shape[-1] == inputs)  # it has no groups
    # Of an odd number of channels its general kernel reads wrong nibbles (CMSIS-NN 7.0.0); the
    # wrapper has another one for what is usual.
    is_usual = weights.shape[-1] == inputs and tuple(geometry["dilation"]) == (1, 1)
    return inputs % 2 == 0 or is_usual


def _spatial(shape: Shape) -> tuple[int, int, int]:
    """Return height, width and channels; of one dimension, the height is 1."""
    height, width, channels = (1,) * (3 - len(shape)) + tuple(shape)
    return height, width, channels


def _ordered(linear: Linear, kernel: Kernel) -> NDArray[np.int8]:
    """Return the weights with their sign in CMSIS-NN's order."""
    weights, sign = np.asarray(linear.weights), kernel.weight_sign
    if kernel.op == "DEPTHWISE_CONV_2D":
        ordered = weights.reshape(1, *weights.shape[:2], -1) * sign
    else:
        if kernel.op == "TRANSPOSE_CONV":
            weights = weights.swapaxes(2, 3)
        ordered = np.moveaxis(weights * sign, -1, 0)
    return np.ascontiguousarray(ordered.astype(np.int8))
