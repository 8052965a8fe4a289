"""Quantizers as users write them, each with arithmetic that no range in a file tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reference import models  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot

__all__ = [
    "CenteredInTraining",
    "CenteredKernel",
    "Clip",
    "ConstantArgs",
    "ConstantPerChannel",
    "ConstantRange",
    "DoReFa",
    "FixedScale",
    "HalfRange",
    "LearnedStep",
    "PowerOfTwo",
    "Shrunk",
]

keras = tf.keras
quantizers = tfmot.quantization.keras.quantizers
Variables = Mapping[str, Any]


class Own(quantizers.Quantizer):
    """Keeps no variables and tells nothing."""

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:  # noqa: ARG002
        """Make no variables."""
        return {}

    def get_config(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


class Clip(Own):
    """Clips and does not round, as the quantizer of TFMOT's integration test."""

    def __call__(self, inputs: Any, training: Any, weights: Variables, **_: Any) -> Any:  # noqa: ARG002
        """Clip to [-1, 1]."""
        return keras.backend.clip(inputs, -1.0, 1.0)


class ConstantRange(Own):
    """TensorFlow's op between constant ends."""

    def __call__(self, inputs: Any, training: Any, weights: Variables, **_: Any) -> Any:  # noqa: ARG002
        """Round to 3 bits in [-1, 1]."""
        return tf.quantization.fake_quant_with_min_max_vars(inputs, -1.0, 1.0, num_bits=3)


class ConstantPerChannel(Own):
    """The op of one range for each channel, with constant ends."""

    def __call__(self, inputs: Any, training: Any, weights: Variables, **_: Any) -> Any:  # noqa: ARG002
        """Round to 4 bits in ranges that grow with the channel."""
        ends = tf.constant([0.25 + 0.125 * i for i in range(inputs.shape[-1])])
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(
            inputs, -ends, ends, num_bits=4
        )


class ConstantArgs(Own):
    """The op whose ends are attributes."""

    def __call__(self, inputs: Any, training: Any, weights: Variables, **_: Any) -> Any:  # noqa: ARG002
        """Round to 5 bits in [-0.75, 0.75]."""
        return tf.quantization.fake_quant_with_min_max_args(inputs, -0.75, 0.75, num_bits=5)


class FixedScale(Own):
    """``round(x * S) / S``, with an `S` that is no power of two: rounded twice in float32."""

    def __call__(self, inputs: Any, training: Any, weights: Variables, **_: Any) -> Any:  # noqa: ARG002
        """Round to tenths."""
        return tf.round(inputs * 10.0) / 10.0


class DoReFa(Own):
    """DoReFa-Net's weights: ``2 * round(w * N) / N - 1``, of weights squeezed into [0, 1]."""

    def __call__(self, inputs: Any, training: Any, weights: Variables, **_: Any) -> Any:  # noqa: ARG002
        """Round to 4 bits."""
        squeezed = tf.tanh(inputs)
        unit = squeezed / (2 * tf.reduce_max(tf.abs(squeezed))) + 0.5
        return 2 * (tf.round(unit * 15.0) / 15.0) - 1


class LearnedStep(Own):
    """LSQ: a trained scale and no range."""

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:  # noqa: ARG002
        """Make the scale."""
        start = keras.initializers.Constant(0.07)
        return {"scale": layer.add_weight(f"{name}_scale", initializer=start)}

    def __call__(self, inputs: Any, training: Any, weights: Variables, **_: Any) -> Any:  # noqa: ARG002
        """Round to 4 bits."""
        scale = weights["scale"]
        return tf.round(tf.clip_by_value(inputs / scale, -8.0, 7.0)) * scale


class Ranged(quantizers.LastValueQuantizer):
    """A subclass of TFMOT's quantizer, 8 bits per tensor; it tells nothing of itself."""

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=False, symmetric=True, narrow_range=False)

    def get_config(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


class PowerOfTwo(Ranged):
    """Moves the stored range to a power of two each time it quantizes."""

    def __call__(self, inputs: Any, training: Any, weights: Variables, **options: Any) -> Any:
        """Quantize in the wider range."""
        if training:
            super().__call__(inputs, training, weights, **options)
        end = 2.0 ** tf.math.ceil(tf.math.log(-weights["min_var"]) / tf.math.log(2.0))
        return tf.quantization.fake_quant_with_min_max_vars(inputs, -end, end * 127 / 128)


class HalfRange(Ranged):
    """Quantizes in half of the stored range: the ends are exact in float32."""

    def __call__(self, inputs: Any, training: Any, weights: Variables, **options: Any) -> Any:
        """Clip what is outside."""
        if training:
            super().__call__(inputs, training, weights, **options)
        low, high = weights["min_var"] * 0.5, weights["max_var"] * 0.5
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high)


class CenteredKernel(Ranged):
    """Quantizes a computed kernel: the weights without their mean."""

    def __call__(self, inputs: Any, training: Any, weights: Variables, **options: Any) -> Any:
        """Quantize what is centered."""
        return super().__call__(inputs - tf.reduce_mean(inputs), training, weights, **options)


class CenteredInTraining(Ranged):
    """Takes its range from a computed kernel, and quantizes the stored one in inference."""

    def __call__(self, inputs: Any, training: Any, weights: Variables, **options: Any) -> Any:
        """Center while training."""
        x = inputs - tf.reduce_mean(inputs) if training else inputs
        return super().__call__(x, training, weights, **options)


class Shrunk(Own):
    """A percentile's range, computed in each call from variables: extremes, and a part of them."""

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:  # noqa: ARG002
        """Make the extremes and the part."""
        constants = {"min": -0.6, "max": 0.55, "percentile": 0.9}
        return {
            f"{key}_var": layer.add_weight(
                f"{name}_{key}", initializer=keras.initializers.Constant(value), trainable=False
            )
            for key, value in constants.items()
        }

    def __call__(self, inputs: Any, training: Any, weights: Variables, **_: Any) -> Any:  # noqa: ARG002
        """Round to 6 bits in a part of the extremes."""
        ends = [weights[f"{key}_var"] * weights["percentile_var"] for key in ("min", "max")]
        return tf.quantization.fake_quant_with_min_max_vars(inputs, *ends, num_bits=6)
