"""TensorFlow-backed twins of qmath's core: the same signatures, NumPy arrays in and out.

Importing this module imports TensorFlow, on the CPU and with one intra-op thread: the sums in the
gradients' ``backprop_wrt_min`` and ``backprop_wrt_max`` depend on the thread count (from about
45,000 elements), and with one thread their order is fixed. Nothing is checked or translated here:
TensorFlow's errors surface as they are, and where TensorFlow aborts the process (per-channel
inputs of rank 0, eagerly), so does its twin.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # TFMOT knows only Keras 2
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port
from tensorflow_model_optimization.python.core.quantization.keras import quantizers
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantizers,
)
from tensorflow_model_optimization.python.core.quantization.keras.experimental import (
    default_n_bit,
)

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.get_logger().setLevel("ERROR")  # a fuzzer retraces: tf.function need not warn about it

__all__ = [
    "ONEDNN",
    "AllValuesQuantizer",
    "Default8BitConvTransposeWeightsQuantizer",
    "Default8BitConvWeightsQuantizer",
    "DefaultNBitConvTransposeWeightsQuantizer",
    "DefaultNBitConvWeightsQuantizer",
    "FakeQuantWithMinMaxVarsGradient",
    "FakeQuantWithMinMaxVarsPerChannelGradient",
    "FixedQuantizer",
    "LastValueQuantizer",
    "MovingAverageQuantizer",
    "NoQuantizer",
    "QuantizeAndDequantizeV4Gradient",
    "QuantizeV2",
    "TwinQuantizer",
    "dequantize",
    "fake_quant_with_min_max_args",
    "fake_quant_with_min_max_args_gradient",
    "fake_quant_with_min_max_vars",
    "fake_quant_with_min_max_vars_gradient",
    "fake_quant_with_min_max_vars_per_channel",
    "fake_quant_with_min_max_vars_per_channel_gradient",
    "quantize",
    "quantize_and_dequantize",
    "quantize_and_dequantize_v2",
    "quantize_and_dequantize_v2_gradient",
    "twin",
]

Float32Array = NDArray[np.float32]

# Whether TensorFlow hands ops to oneDNN: by TF_ENABLE_ONEDNN_OPTS, else by the processor.
ONEDNN = bool(_pywrap_util_port.IsMklEnabled())
State = dict[str, Float32Array]


class FakeQuantWithMinMaxVarsGradient(NamedTuple):
    """TensorFlow's three outputs, under TensorFlow's field names."""

    backprops_wrt_input: Float32Array
    backprop_wrt_min: Float32Array
    backprop_wrt_max: Float32Array


class FakeQuantWithMinMaxVarsPerChannelGradient(NamedTuple):
    """TensorFlow's three outputs, under TensorFlow's field names."""

    backprops_wrt_input: Float32Array
    backprop_wrt_min: Float32Array
    backprop_wrt_max: Float32Array


class QuantizeAndDequantizeV4Gradient(NamedTuple):
    """TensorFlow's three outputs, under TensorFlow's field names."""

    input_backprop: Float32Array
    input_min_backprop: Float32Array
    input_max_backprop: Float32Array


def fake_quant_with_min_max_args(
    inputs: ArrayLike,
    min: float = -6,
    max: float = 6,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
) -> Float32Array:
    """Call the TensorFlow op of this name."""
    return _numpy(
        tf.quantization.fake_quant_with_min_max_args(
            inputs, float(min), float(max), num_bits, narrow_range, name
        )
    )


def fake_quant_with_min_max_args_gradient(
    gradients: ArrayLike,
    inputs: ArrayLike,
    min: float = -6,
    max: float = 6,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
) -> Float32Array:
    """Call the TensorFlow op of this name."""
    return _numpy(
        tf.quantization.fake_quant_with_min_max_args_gradient(
            gradients, inputs, float(min), float(max), num_bits, narrow_range, name
        )
    )


def fake_quant_with_min_max_vars(
    inputs: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
) -> Float32Array:
    """Call the TensorFlow op of this name."""
    return _numpy(
        tf.quantization.fake_quant_with_min_max_vars(inputs, min, max, num_bits, narrow_range, name)
    )


def fake_quant_with_min_max_vars_gradient(
    gradients: ArrayLike,
    inputs: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
) -> FakeQuantWithMinMaxVarsGradient:
    """Call the TensorFlow op of this name."""
    outputs = tf.quantization.fake_quant_with_min_max_vars_gradient(
        gradients, inputs, min, max, num_bits, narrow_range, name
    )
    return FakeQuantWithMinMaxVarsGradient(*map(_numpy, outputs))


def fake_quant_with_min_max_vars_per_channel(
    inputs: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
) -> Float32Array:
    """Call the TensorFlow op of this name."""
    return _numpy(
        tf.quantization.fake_quant_with_min_max_vars_per_channel(
            inputs, min, max, num_bits, narrow_range, name
        )
    )


def fake_quant_with_min_max_vars_per_channel_gradient(
    gradients: ArrayLike,
    inputs: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: int = 8,
    narrow_range: bool = False,
    name: str | None = None,
) -> FakeQuantWithMinMaxVarsPerChannelGradient:
    """Call the TensorFlow op of this name."""
    outputs = tf.quantization.fake_quant_with_min_max_vars_per_channel_gradient(
        gradients, inputs, min, max, num_bits, narrow_range, name
    )
    return FakeQuantWithMinMaxVarsPerChannelGradient(*map(_numpy, outputs))


def quantize_and_dequantize_v2(
    input: ArrayLike,
    input_min: ArrayLike,
    input_max: ArrayLike,
    signed_input: bool = True,
    num_bits: int = 8,
    range_given: bool = False,
    round_mode: str = "HALF_TO_EVEN",
    name: str | None = None,
    narrow_range: bool = False,
    axis: int | None = None,
) -> Float32Array:
    """Call the TensorFlow function of this name; where it cannot be called, the raw V3 op."""
    tensor = tf.convert_to_tensor(input, tf.float32)
    if range_given and axis is not None:
        return _numpy(
            tf.raw_ops.QuantizeAndDequantizeV3(
                input=tensor, input_min=input_min, input_max=input_max, num_bits=num_bits,
                signed_input=signed_input, range_given=True, narrow_range=narrow_range, axis=axis,
            )
        )  # fmt: skip
    return _numpy(
        tf.quantization.quantize_and_dequantize_v2(
            tensor, input_min, input_max, signed_input, num_bits, range_given, round_mode, name,
            narrow_range, axis,
        )
    )  # fmt: skip


def quantize_and_dequantize_v2_gradient(
    gradients: ArrayLike,
    input: ArrayLike,
    input_min: ArrayLike,
    input_max: ArrayLike,
    axis: int | None = None,
    name: str | None = None,
) -> QuantizeAndDequantizeV4Gradient:
    """Call the raw TensorFlow op that is the function's gradient."""
    outputs = tf.raw_ops.QuantizeAndDequantizeV4Grad(
        gradients=gradients, input=input, input_min=input_min, input_max=input_max,
        axis=-1 if axis is None else axis, name=name,
    )  # fmt: skip
    return QuantizeAndDequantizeV4Gradient(*map(_numpy, outputs))


def quantize_and_dequantize(input: ArrayLike, *arguments: Any, **settings: Any) -> Float32Array:
    """Call the TensorFlow function of this name, which is deprecated."""
    tensor = tf.convert_to_tensor(input, tf.float32)
    return _numpy(tf.quantization.quantize_and_dequantize(tensor, *arguments, **settings))


class QuantizeV2(NamedTuple):
    """What `quantize` returns."""

    output: NDArray[Any]
    output_min: Float32Array
    output_max: Float32Array


def quantize(
    input: ArrayLike,
    min_range: ArrayLike,
    max_range: ArrayLike,
    T: str,  # noqa: N803 - TensorFlow's own name
    mode: str = "MIN_COMBINED",
    round_mode: str = "HALF_AWAY_FROM_ZERO",
    name: str | None = None,
    narrow_range: bool = False,
    axis: int | None = None,
    ensure_minimum_range: float = 0.01,
) -> QuantizeV2:
    """Call ``tf.quantization.quantize``, with or without oneDNN as this process has it."""
    outputs = tf.quantization.quantize(
        tf.convert_to_tensor(input, tf.float32), min_range, max_range, getattr(tf, T), mode,
        round_mode, name, narrow_range, axis, ensure_minimum_range,
    )  # fmt: skip
    integers = outputs[0].numpy()
    return QuantizeV2(np.asarray(integers).view(T.removeprefix("q")), *map(_numpy, outputs[1:]))


def dequantize(
    input: NDArray[Any],
    min_range: ArrayLike,
    max_range: ArrayLike,
    *arguments: Any,
    **settings: Any,
) -> Float32Array:
    """Call ``tf.quantization.dequantize`` of int8, uint8, int16, uint16 or int32."""
    tensor = tf.bitcast(input, getattr(tf, f"q{input.dtype}"))
    return _numpy(tf.quantization.dequantize(tensor, min_range, max_range, *arguments, **settings))


def _numpy(tensor: Any) -> Float32Array:
    """Copy a tensor out of TensorFlow; rank 0 stays an array, which can be written in place."""
    copy = tensor.numpy()
    return copy if isinstance(copy, np.ndarray) else np.array(copy, dtype=np.float32)


class TwinQuantizer:
    """A TFMOT quantizer that keeps its state in NumPy arrays, as qmath's quantizers do.

    Attributes
    ----------
    tfmot : Quantizer
        The quantizer that computes.
    """

    tfmot_class: ClassVar[type[Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.tfmot = self.tfmot_class(*args, **kwargs)
        self._variables: dict[str, tf.Variable] = {}
        self._graph_step: Any = None

    def build(self, tensor_shape: Any) -> State:
        """Return the initial state; empty where TFMOT returns None, having none."""
        layer = tf.keras.layers.Layer()
        variables = self.tfmot.build(tf.TensorShape(tensor_shape), "tensor", layer)
        return {name: _numpy(variable) for name, variable in (variables or {}).items()}

    def __call__(
        self,
        inputs: ArrayLike,
        training: bool,
        weights: Mapping[str, Float32Array],
        *,
        graph: bool = False,
    ) -> Float32Array:
        """Run one step of TFMOT's ``__call__`` and write the new state into `weights`.

        Parameters
        ----------
        inputs : array-like of float32
            The tensor to quantize.
        training : bool
            Whether the range is updated first.
        weights : mapping of str to ndarray
            The state that `build` gave; its arrays are updated in place, also when TensorFlow
            raises after the update.
        graph : bool
            Run under ``tf.function``, where Grappler may rewrite the arithmetic, not eagerly.
        """
        self._assign(weights or {})
        tensor = tf.convert_to_tensor(inputs)
        try:
            if graph:
                return _numpy(self._graph_step(tensor, bool(training)))
            return _numpy(self._step(tensor, training))
        finally:
            for name, variable in self._variables.items():
                weights[name][...] = variable.numpy()

    def get_config(self) -> dict[str, Any]:
        """Return TFMOT's config."""
        return dict(self.tfmot.get_config())

    def _assign(self, weights: Mapping[str, Float32Array]) -> None:
        shapes = {name: np.shape(value) for name, value in weights.items()}
        if shapes != {name: tuple(variable.shape) for name, variable in self._variables.items()}:
            self._variables = {
                name: tf.Variable(np.zeros(shape, np.float32)) for name, shape in shapes.items()
            }
            self._graph_step = None
        if self._graph_step is None:  # tracing is lazy, and its traces belong to these variables
            self._graph_step = tf.function(self._step)
        for name, value in weights.items():
            self._variables[name].assign(value)

    def _step(self, tensor: tf.Tensor, training: bool) -> tf.Tensor:
        return self.tfmot(tensor, training, weights=self._variables)


class LastValueQuantizer(TwinQuantizer):
    """Twin of the TFMOT class of this name."""

    tfmot_class = quantizers.LastValueQuantizer


class MovingAverageQuantizer(TwinQuantizer):
    """Twin of the TFMOT class of this name."""

    tfmot_class = quantizers.MovingAverageQuantizer


class AllValuesQuantizer(TwinQuantizer):
    """Twin of the TFMOT class of this name."""

    tfmot_class = quantizers.AllValuesQuantizer


class FixedQuantizer(TwinQuantizer):
    """Twin of the TFMOT class of this name."""

    tfmot_class = quantizers.FixedQuantizer


class NoQuantizer(TwinQuantizer):
    """Twin of the TFMOT class of this name."""

    tfmot_class = quantizers.NoQuantizer


class Default8BitConvWeightsQuantizer(TwinQuantizer):
    """Twin of the TFMOT class of this name."""

    tfmot_class = default_8bit_quantizers.Default8BitConvWeightsQuantizer


class Default8BitConvTransposeWeightsQuantizer(TwinQuantizer):
    """Twin of the TFMOT class of this name."""

    tfmot_class = default_8bit_quantizers.Default8BitConvTransposeWeightsQuantizer


class DefaultNBitConvWeightsQuantizer(TwinQuantizer):
    """Twin of the TFMOT class of this name."""

    tfmot_class = default_n_bit.default_n_bit_quantizers.DefaultNBitConvWeightsQuantizer


class DefaultNBitConvTransposeWeightsQuantizer(TwinQuantizer):
    """Twin of the TFMOT class of this name."""

    tfmot_class = default_n_bit.default_n_bit_quantizers.DefaultNBitConvTransposeWeightsQuantizer


def twin(quantizer: Any) -> TwinQuantizer:
    """Return the twin of a quantizer of qmath (or of TFMOT), by its class name and its config.

    Examples
    --------
    >>> import qmath
    >>> twin(qmath.FixedQuantizer(4, init_min=-1, init_max=1, narrow_range=True)).get_config()
    {'num_bits': 4, 'init_min': -1, 'init_max': 1, 'narrow_range': True}
    """
    name, config = type(quantizer).__name__, quantizer.get_config()
    if name.startswith("Default8Bit"):
        config = {}  # the conv variants' configs hold what their constructors do not take
    elif name.startswith("DefaultNBit"):
        config = {"num_bits_weight": config["num_bits"]}
    twin_class: type[TwinQuantizer] = globals()[name]
    return twin_class(**config)
