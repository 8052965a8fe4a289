"""One small quantized model for each class of layer, of any width: what `reference.models` lacks.

In each, the layer lies between two quantized layers, and its own output is quantized. The layers
are annotated one by one, because TFMOT's schemes know few of these classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reference import models

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot

__all__ = ["LAYERS", "NEED_INTEGERS", "Case", "LayerConfig", "around", "build", "numbers"]

keras = tf.keras
layers = keras.layers
quantizers = tfmot.quantization.keras.quantizers
SIGNAL, IMAGE, VOLUME = (9, 6), (8, 7, 4), (5, 4, 6, 3)


class LayerConfig(models.config):
    """Quantize some weights of a layer, by the paths of its attributes, and what it returns.

    Parameters
    ----------
    weights : sequence of str
    bits : int
        Of the weights.
    per_axis, rounds : bool
        Whether weights have a range for each channel, and whether the output is quantized.
    activation_bits : int, optional
        Of the output; default: as many as of the weights.
    """

    def __init__(
        self,
        weights: Sequence[str] = (),
        bits: int = 8,
        per_axis: bool = False,
        rounds: bool = True,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__(list(weights), [], rounds)
        self.weight_quantizer = quantizers.LastValueQuantizer(
            num_bits=bits, per_axis=per_axis, symmetric=True, narrow_range=True
        )
        self.activation_quantizer = quantizers.MovingAverageQuantizer(
            num_bits=activation_bits or bits, per_axis=False, symmetric=False, narrow_range=False
        )
        self._given = {
            "weights": list(weights), "bits": bits, "per_axis": per_axis, "rounds": rounds,
            "activation_bits": activation_bits,
        }  # fmt: skip

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        """Pair each weight with its quantizer."""
        return [(_get(layer, path), self.weight_quantizer) for path in self.weight_attrs]

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Put the fake-quantized weights in the weights' places."""
        for path, weight in zip(self.weight_attrs, quantize_weights, strict=True):
            owner, _, name = path.rpartition(".")
            setattr(_get(layer, owner) if owner else layer, name, weight)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return self._given


def _get(owner: Any, path: str) -> Any:
    for name in path.split("."):
        owner = getattr(owner, name)
    return owner


@dataclass(frozen=True)
class Case:
    """A layer under test: the shapes of its inputs, and which of its weights are quantized."""

    make: Callable[[], Any]
    shapes: tuple[tuple[int, ...], ...]
    weights: tuple[str, ...] = ()  # paths of attributes
    per_axis: bool = False  # whether TFMOT can quantize its weights so
    then: tuple[Callable[[], Any], ...] = ()  # layers that TFMOT quantizes together with it
    is_wrapped: bool = True  # whether TFMOT can wrap it
    reads_numbers: bool = False  # whether it looks up whole numbers, which are not quantized


def _case(
    make: Callable[[], Any], *shapes: tuple[int, ...], weights: str = "", per_axis: bool = False
) -> Case:
    return Case(make, shapes, tuple(weights.split()), per_axis)


LAYERS: dict[str, Case] = {
    "Cropping1D": _case(lambda: layers.Cropping1D((1, 2)), SIGNAL),
    "Cropping2D": _case(lambda: layers.Cropping2D(((1, 0), (2, 1))), IMAGE),
    "Cropping3D": _case(lambda: layers.Cropping3D((1, 0, 2)), VOLUME),
    "ZeroPadding3D": _case(lambda: layers.ZeroPadding3D(((1, 0), (2, 1), (0, 0))), VOLUME),
    "UpSampling3D": _case(lambda: layers.UpSampling3D((2, 1, 3)), VOLUME),
    "RepeatVector": _case(lambda: layers.RepeatVector(3), (6,)),
    "SpatialDropout3D": _case(lambda: layers.SpatialDropout3D(0.1), VOLUME),
    "Multiply": _case(layers.Multiply, IMAGE, IMAGE),
    "Multiply a gate": _case(layers.Multiply, IMAGE, (1, 1, 4)),
    "Multiply a vector": _case(layers.Multiply, IMAGE, (4,)),
    "Multiply a mask": _case(layers.Multiply, (8, 1, 4), (8, 7, 1), IMAGE),
    "Maximum": _case(layers.Maximum, IMAGE, IMAGE),
    "Maximum of three": _case(layers.Maximum, SIGNAL, (1, 6), SIGNAL),
    "Minimum": _case(layers.Minimum, IMAGE, (8, 1, 4)),
    "Average": _case(layers.Average, IMAGE, IMAGE),
    "Average of three": _case(layers.Average, SIGNAL, (6,), SIGNAL),
    "Add that broadcasts": _case(layers.Add, IMAGE, (1, 1, 4), (7, 1)),
    "Subtract that broadcasts": _case(layers.Subtract, (1, 7, 4), IMAGE),
    "Average pool of volumes": _case(
        lambda: layers.AveragePooling3D((2, 3, 2), (1, 2, 2), "same"), VOLUME
    ),
    "Average pool of whole windows": _case(lambda: layers.AveragePooling3D(2), VOLUME),
    "GlobalAveragePooling3D": _case(layers.GlobalAveragePooling3D, VOLUME),
    "Max pool of volumes": _case(
        lambda: layers.MaxPooling3D((2, 3, 2), (1, 2, 2), "same"), VOLUME
    ),
    "GlobalMaxPooling3D": _case(lambda: layers.GlobalMaxPooling3D(keepdims=True), VOLUME),
    "Rescaling": _case(lambda: layers.Rescaling(1.7, -0.3), IMAGE),
    "Rescaling by channel": _case(lambda: layers.Rescaling([1.0, 2.0, -0.5, 0.3], 0.1), IMAGE),
    "Normalization": _case(
        lambda: layers.Normalization(mean=[0.1, 0.2, -0.3, 0.0], variance=[1.1, 0.5, 2.0, 0.1]),
        IMAGE,
    ),
    "Normalization of rows": _case(lambda: layers.Normalization(axis=1), IMAGE),
    "Normalization, inverted": _case(
        lambda: layers.Normalization(axis=None, mean=0.2, variance=1.3, invert=True), SIGNAL
    ),
    "DepthwiseConv1D": _case(
        lambda: layers.DepthwiseConv1D(3, 2, padding="same"), SIGNAL, weights="depthwise_kernel"
    ),
    "DepthwiseConv1D, multiplied": _case(
        lambda: layers.DepthwiseConv1D(2, depth_multiplier=2, dilation_rate=2, activation="relu"),
        SIGNAL, weights="depthwise_kernel",
    ),
    "Conv2DTranspose with output padding": _case(
        lambda: layers.Conv2DTranspose(5, 3, 2, "same", output_padding=1), IMAGE, weights="kernel",
        per_axis=True,
    ),
    "Conv2DTranspose, valid, with output padding": _case(
        lambda: layers.Conv2DTranspose(5, (2, 3), 3, output_padding=(1, 0)), IMAGE,
        weights="kernel", per_axis=True,
    ),
    "Conv2DTranspose with dilation": _case(
        lambda: layers.Conv2DTranspose(5, 3, padding="same", dilation_rate=2), IMAGE,
        weights="kernel", per_axis=True,
    ),
    "Conv2DTranspose, valid, with dilation": _case(
        lambda: layers.Conv2DTranspose(5, (3, 2), dilation_rate=3, activation="relu"), IMAGE,
        weights="kernel", per_axis=True,
    ),
    "Conv1DTranspose": _case(
        lambda: layers.Conv1DTranspose(5, 3, 2, "same", activation="relu"), SIGNAL,
        weights="kernel",
    ),
    "Conv1DTranspose, valid, with output padding": _case(
        lambda: layers.Conv1DTranspose(4, 2, 3, output_padding=1), SIGNAL, weights="kernel"
    ),
    "CenterCrop": _case(lambda: layers.CenterCrop(5, 4), IMAGE),
    "Resizing, nearest": _case(
        lambda: layers.Resizing(16, 21, interpolation="nearest"), IMAGE
    ),
    "Resizing, bilinear": _case(lambda: layers.Resizing(16, 7), IMAGE),
    "Conv3D": _case(
        lambda: layers.Conv3D(4, (3, 2, 3), (1, 2, 2), "same", activation="relu"), VOLUME,
        weights="kernel",
    ),
    "Conv3D with dilation": _case(
        lambda: layers.Conv3D(4, (2, 2, 3), dilation_rate=(2, 1, 2)), VOLUME, weights="kernel"
    ),
    "Conv3D of groups": _case(
        lambda: layers.Conv3D(6, 2, groups=3, use_bias=False), VOLUME, weights="kernel"
    ),
    **{
        f"UpSampling2D, bilinear, by {size}": _case(
            functools.partial(layers.UpSampling2D, size, interpolation="bilinear"), IMAGE
        )
        for size in (2, 3, (1, 4), (5, 2))
    },
    "SeparableConv2D": _case(
        lambda: layers.SeparableConv2D(5, (3, 2), 2, "same", activation="relu"), IMAGE,
        weights="depthwise_kernel pointwise_kernel", per_axis=True,
    ),
    "SeparableConv2D, multiplied": _case(
        lambda: layers.SeparableConv2D(5, 2, dilation_rate=2, depth_multiplier=3), IMAGE,
        weights="depthwise_kernel pointwise_kernel", per_axis=True,
    ),
    "SeparableConv1D": _case(
        lambda: layers.SeparableConv1D(4, 3, padding="same", depth_multiplier=2), SIGNAL,
        weights="depthwise_kernel pointwise_kernel",
    ),
    "ReLU to 3": _case(lambda: layers.ReLU(0.4), IMAGE),
    "ReLU with slope and limit": _case(lambda: layers.ReLU(0.3, negative_slope=0.2), IMAGE),
    "ReLU with threshold": _case(lambda: layers.ReLU(threshold=0.15), IMAGE),
    "ReLU with all": _case(lambda: layers.ReLU(0.7, 0.25, 0.1), IMAGE),
    "ThresholdedReLU": _case(lambda: layers.ThresholdedReLU(0.2), IMAGE),
    "PReLU": _case(layers.PReLU, IMAGE),
    "PReLU by channel": _case(lambda: layers.PReLU(shared_axes=[1, 2]), IMAGE),
    "PReLU, quantized": _case(lambda: layers.PReLU(shared_axes=[1]), SIGNAL, weights="alpha"),
    "ELU": _case(lambda: layers.ELU(0.7), IMAGE),
    "Softmax": _case(layers.Softmax, IMAGE),
    "Softmax of rows": _case(lambda: layers.Softmax(axis=1), IMAGE),
    "BatchNormalization of rows": _case(lambda: layers.BatchNormalization(axis=1), IMAGE),
    "BatchNormalization of columns": _case(lambda: layers.BatchNormalization(axis=-2), IMAGE),
    "ZeroPadding2D, channels first": _case(
        lambda: layers.ZeroPadding2D(((1, 0), (2, 1)), data_format="channels_first"), IMAGE
    ),
    "Cropping2D, channels first": _case(
        lambda: layers.Cropping2D(((1, 0), (2, 0)), data_format="channels_first"), IMAGE
    ),
    "UpSampling2D, channels first": _case(
        lambda: layers.UpSampling2D((2, 3), data_format="channels_first"), IMAGE
    ),
    "Flatten, channels first": _case(
        lambda: layers.Flatten(data_format="channels_first"), IMAGE
    ),
    "GlobalAveragePooling2D, channels first": _case(
        lambda: layers.GlobalAveragePooling2D(data_format="channels_first"), IMAGE
    ),
    "GlobalMaxPooling2D, channels first": _case(
        lambda: layers.GlobalMaxPooling2D("channels_first", keepdims=True), IMAGE
    ),
    **{
        f"Activation {name}": _case(functools.partial(layers.Activation, name), IMAGE)
        for name in ("elu", "exponential", "gelu", "hard_sigmoid", "mish", "selu", "sigmoid",
                     "silu", "softmax", "softplus", "softsign", "swish", "tanh")
    },
}  # fmt: skip

# What is computed in float where its inputs are not rounded.
# fmt: off
NEED_INTEGERS = frozenset(
    name
    for name in LAYERS
    if name.startswith((
        "Multiply", "Activation", "ELU", "ReLU with threshold", "ReLU with all", "Thresholded",
        "DepthwiseConv1D", "Conv1DTranspose", "Conv2DTranspose", "Conv3D", "Separable", "Softmax",
    )) and name != "Activation hard_sigmoid"
)
# fmt: on


def build(name: str, bits: int = 8, per_axis: bool = False, is_rounded: bool = True) -> Any:
    """Return a model with a layer of `LAYERS`, live, with random weights and realistic ranges.

    Parameters
    ----------
    name : str
    bits : int, optional
        Of all weights and activations.
    per_axis : bool, optional
        Whether the layer's weights have a range for each channel.
    is_rounded : bool, optional
        Whether each of the layer's inputs is quantized; else they are sums of products.
    """
    return around(LAYERS[name], (bits, bits), per_axis, is_rounded)


def around(case: Case, bits: tuple[int, int], per_axis: bool, is_rounded: bool = True) -> Any:
    """Return a model around a layer, as `build` does.

    Parameters
    ----------
    case : Case
    bits : tuple of int
        Of the weights, and of the activations.
    per_axis, is_rounded : bool
        As of `build`.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    inputs = [layers.Input(shape, name=f"input{i}") for i, shape in enumerate(case.shapes)]
    before = inputs if case.reads_numbers else _before(inputs, bits, is_rounded)
    layer = case.make()
    layer._name = "layer"
    if case.is_wrapped:
        layer = models.annotate(
            layer, LayerConfig(case.weights, bits[0], per_axis, activation_bits=bits[1])
        )
        x = layer(before[0] if len(before) == 1 else before)
    else:
        x = layer(*before)
    x = models.annotate(
        layers.Dense(3, name="after"), LayerConfig(["kernel"], bits[0], activation_bits=bits[1])
    )(x)
    with tfmot.quantization.keras.quantize_scope({"LayerConfig": LayerConfig}):
        model = tfmot.quantization.keras.quantize_apply(keras.Model(inputs, x, name="model"))
    models.randomize(model)
    models.calibrate(model, numbers if case.reads_numbers else models.data)
    return model


def numbers(model: Any, count: int, seed: int = 1) -> dict[str, Any]:
    """Return whole numbers from 0 to 11 for each input of a model, by the inputs' names."""
    rng = np.random.default_rng([seed, count])
    return {
        name: rng.integers(0, 12, (count, *tensor.shape[1:])).astype(np.float32)
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
    }


def _before(inputs: Sequence[Any], bits: tuple[int, int], is_rounded: bool) -> list[Any]:
    """Return the inputs, quantized and each through a dense layer."""
    annotate, (of_weights, of_values) = models.annotate, bits
    made = []
    for i, x in enumerate(inputs):
        x = annotate(layers.Dropout(0.1, name=f"rounded{i}"), LayerConfig(bits=of_values))(x)
        x = annotate(
            layers.Dense(x.shape[-1], name=f"before{i}"),
            LayerConfig(["kernel"], of_weights, rounds=False),
        )(x)
        # TFMOT would take the dense layer's quantizer for a ReLU's that follows it directly.
        config = LayerConfig(bits=of_values, rounds=is_rounded)
        made.append(annotate(layers.Dropout(0.1, name=f"between{i}"), config)(x))
    return made
