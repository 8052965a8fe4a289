"""The layers of an integer model that CMSIS-NN computes: what their calls take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.integer.profiles.tflite_kernels import Kernel, Quantization
from qmath.integer.program import Shape

__all__ = ["Layer", "Pool", "Sum", "Weighted", "Window"]

Int32Array = NDArray[np.int32]
Spatial = tuple[int, int, int]


class Window(NamedTuple):
    """Height and width of a kernel or a pool, and of its steps."""

    size: Shape
    stride: Shape = (1, 1)
    pad: Shape = (0, 0)
    dilation: Shape = (1, 1)


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of a CMSIS-NN function.

    Attributes
    ----------
    name : str
        The step that it computes; of several parts of a step, with its weights' name or a number.
    kind : {"conv", "dw_conv", "transpose_conv", "fc", "avgpool", "max_pool", "add"}
    sources : tuple of str
        The steps that make its inputs.
    step : str
        The step that it computes, or a part of it.
    region : tuple of slice
        The part of the step's output, without the batch.
    inputs : tuple of Quantization
        As TFLite stores them.
    output : Quantization
        With the clamps of a fused activation as its ends.
    in_shape, out_shape : tuple of int
        Height, width, channels; of a dense layer rows, 1, features.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    step: str
    region: tuple[slice, ...]
    inputs: tuple[Quantization, ...]
    output: Quantization
    in_shape: Spatial
    out_shape: Spatial


@dataclass(frozen=True, eq=False)
class Weighted(Layer):
    """A convolution, or a dense layer.

    Attributes
    ----------
    key : str
        Name of the weights' tensor.
    weights : ndarray of int8
        In the order of CMSIS-NN: OHWI, 1HWC, or OI.
    is_s4 : bool
        Whether it takes packed weights of 4 bits.
    bias, multiplier, shift : ndarray of int32
        Of each output channel; of a dense layer with one scale, the latter two are one.
    window : Window
    """

    key: str
    weights: NDArray[np.int8]
    is_s4: bool
    bias: Int32Array
    multiplier: Int32Array
    shift: Int32Array
    window: Window


@dataclass(frozen=True, eq=False)
class Pool(Layer):
    """A pool; an average has its input's parameters, and is rescaled to its output's by `kernel`.

    Attributes
    ----------
    window : Window
    kernel : Kernel or None
        TFLite's ``QUANTIZE``.
    """

    window: Window
    kernel: Kernel | None = None


@dataclass(frozen=True, eq=False)
class Sum(Layer):
    """A sum of two tensors.

    Attributes
    ----------
    kernel : Kernel
        TFLite's ``ADD``.
    """

    kernel: Kernel
