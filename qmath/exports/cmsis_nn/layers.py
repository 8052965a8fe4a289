"""The layers of an integer model that CMSIS-NN's convolutions and dense layers compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.profiles.tflite import Tflite
from qmath.integer.profiles.tflite_kernels import Kernel
from qmath.integer.profiles.tflite_parts import Part, parts
from qmath.integer.program import (
    CutStep,
    FloatStep,
    Linear,
    Program,
    QuantizeStep,
    Requantize,
    Shape,
    SoftmaxStep,
    Step,
)

__all__ = ["CmsisNnArithmetic", "Layer", "layers"]

Array = NDArray[Any]
_KINDS = {"CONV_2D": "conv", "DEPTHWISE_CONV_2D": "dw_conv", "FULLY_CONNECTED": "fc"}


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of a CMSIS-NN function.

    Attributes
    ----------
    name : str
        The step that it computes; of several parts of a step, with its weights' name.
    kind : {"conv", "dw_conv", "fc"}
    is_s4 : bool
        Whether it takes packed weights of 4 bits.
    kernel : Kernel
        TFLite's numbers.
    weights : ndarray of int8
        In the order of CMSIS-NN: OHWI, 1HWC, or OI.
    bias, multiplier, shift : ndarray of int32
        Of each output channel; of a dense layer with one scale, the latter two are one.
    in_shape, out_shape : tuple of int
        Height, width, channels; of a dense layer rows, 1, features.
    size, stride, dilation, pad : tuple of int
        Height and width.
    source : str
        The step that makes its input.
    step : str
        The step that it computes, or a part of it.
    region : tuple of slice
        The part of the step's output, without the batch.
    """

    name: str
    kind: str
    is_s4: bool
    kernel: Kernel
    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    multiplier: NDArray[np.int32]
    shift: NDArray[np.int32]
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    size: Shape
    stride: Shape
    dilation: Shape
    pad: Shape
    source: str
    step: str
    region: tuple[slice, ...]


class CmsisNnArithmetic(Tflite):
    """What CMSIS-NN computes: as TFLite's reference kernels, but for dense layers.

    These are rounded from 31-bit multipliers like all others, where TFLite rounds once, from
    float64.
    """

    name = "cmsis-nn"

    def _weighted(self, kernel: Kernel, x: NDArray[np.int64]) -> Array:
        return self._scaled(kernel, x)


def layers(program: Program) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers that CMSIS-NN computes, and why it does not compute other steps."""
    shapes = dict(program.inputs) | {step.name: step.shape for step in program.steps}
    found: list[Layer] = []
    others: dict[str, str] = {}
    for step in program.steps:
        if isinstance(step, Requantize):
            try:
                of_step = parts(step)
            except QmathError as error:
                others[step.name] = str(error).removeprefix(f"{step.name}: ")
                continue
            for part in of_step:
                name = step.name
                if len(of_step) > 1 and part.kernels[0].weights:
                    name = f"{step.name}/{part.kernels[0].weights}"
                made = _layer(name, step, part, shapes)
                if isinstance(made, Layer):
                    found.append(made)
                else:
                    others[name] = made
        elif not isinstance(step, QuantizeStep):
            others[step.name] = _reason(step)
    return found, others


def _reason(step: Step) -> str:
    """Say why a step that does not round a sum is none of CMSIS-NN's layers."""
    if isinstance(step, CutStep):
        reason = f" because {step.reason}" if step.reason else ""
        return f"a cut point: qmath cannot compute this {step.class_name}{reason}"
    if isinstance(step, SoftmaxStep):
        return "a softmax by qmath's own arithmetic"
    return "in float32" if isinstance(step, FloatStep) else "moves integers, or looks them up"


def _layer(name: str, step: Requantize, part: Part, shapes: Mapping[str, Shape]) -> Layer | str:
    """Return a part as a layer, or why it is none."""
    kernel, term = part.kernels[0], part.terms[0]
    if kernel.op not in _KINDS:
        return f"TFLite's {' and '.join(k.op for k in part.kernels)}, which is none of these layers"
    if any(move.kind != "reshape" for move in part.moves):
        return f"its values are moved ({part.moves[0].kind}) before they are rounded"
    if kernel.weight_bits > 8:
        return f"its weights need {kernel.weight_bits} bits, and CMSIS-NN takes 8"
    for params in (term.params, step.params):
        if params.num_bits > 8:
            return f"activations of {params.num_bits} bits, and these functions take 8"
    linear = term.ops[0]
    weights, kind = _ordered(linear, kernel), _KINDS[kernel.op]
    (multiplier,), (shift,) = kernel.multipliers, kernel.shifts
    channels = linear.shape[-1]
    per_channel: Shape = () if kind == "fc" and not multiplier.ndim else (channels,)
    before, geometry = shapes[term.source], linear.attributes
    if kind == "fc":
        rows = math.prod(before[:-1])
        in_shape, out_shape = (rows, 1, before[-1]), (rows, 1, channels)
        is_s4 = not per_channel
    else:
        in_shape, out_shape = _spatial(before), _spatial(linear.shape)
        is_s4 = _has_s4(kind, weights, in_shape[-1], geometry)
    assert linear.weights is not None
    assert kernel.bias is not None
    return Layer(
        name,
        kind,
        is_s4 and kernel.weight_bits <= 4,
        kernel,
        weights,
        np.broadcast_to(kernel.bias, (channels,)).astype(np.int32),
        np.broadcast_to(multiplier, per_channel).astype(np.int32),
        np.broadcast_to(shift, per_channel).astype(np.int32),
        in_shape,
        out_shape,
        (1, 1) if kind == "fc" else linear.weights.shape[:2],
        geometry.get("strides", (1, 1)),
        geometry.get("dilation", (1, 1)),
        tuple(ends[0] for ends in geometry.get("pads", ((0, 0), (0, 0)))),
        term.source,
        step.name,
        part.region,
    )


def _has_s4(kind: str, weights: Array, inputs: int, geometry: Mapping[str, Any]) -> bool:
    """Whether CMSIS-NN computes a convolution from packed weights, and correctly."""
    if kind == "conv":
        return bool(weights.shape[-1] == inputs)  # it has no groups
    # Of an odd number of channels its general kernel reads wrong nibbles (CMSIS-NN 3.6.1); the
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
        ordered = np.moveaxis(weights * sign, -1, 0)
    return np.ascontiguousarray(ordered.astype(np.int8))
