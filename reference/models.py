"""Quantized models to compare with: every kind of layer, every width, none of them trained.

Their weights are random from fixed seeds, and their ranges and batch statistics are those of
smooth random images, which a few forward passes with ``training=True`` collect: what matters is
that every integer is in use, not what the models predict. They are built on demand, in seconds;
nothing of them is committed. ``python -m reference.models FOLDER [NAME …]`` writes ``.h5`` files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.quantization.keras import quant_ops
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_configs,
    default_8bit_quantize_registry,
)
from tensorflow_model_optimization.python.core.quantization.keras.experimental import default_n_bit
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)

__all__ = ["MODELS", "build", "calibrate", "data", "images", "leaves", "randomize", "save"]

CALIBRATION_BATCHES, CALIBRATION_BATCH = 4, 8

keras = tf.keras
layers = keras.layers
Float32Array = NDArray[np.float32]

annotate = tfmot.quantization.keras.quantize_annotate_layer
no_op = default_8bit_quantize_configs.NoOpQuantizeConfig
conv_config = default_8bit_quantize_registry.Default8BitConvQuantizeConfig
config = default_8bit_quantize_registry.Default8BitQuantizeConfig


def output_config() -> Any:
    """Return the config that quantizes what a layer returns, to 8 bits."""
    return config([], [], True)


def images(shape: Sequence[int], count: int, seed: int = 0) -> Float32Array:
    """Return smooth random images, or signals, with values from about -1 to 1.

    Parameters
    ----------
    shape : sequence of int
        Of one image, channels last.
    count : int
    seed : int, optional
    """
    rng = np.random.default_rng([seed, count, *shape])
    x = rng.normal(size=(count, *shape))
    for axis in range(1, x.ndim - 1):
        for _ in range(2):  # a box of 3, twice
            x = x + np.roll(x, 1, axis) + np.roll(x, -1, axis)
    return (0.4 * x / x.std()).astype(np.float32)


# ---- the models, before quantization


def mobilenetv2() -> Any:
    """Return Keras's own MobileNetV2, the smallest it offers."""
    return keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)


def residual() -> Any:
    """Return a residual network: sums of sums, dead channels, others that gamma switches off."""
    image = x = layers.Input((32, 32, 3), name="image")
    x = _conv_bn(x, 16, 3, 1)
    x = layers.ReLU()(x)
    for filters, strides in ((16, 1), (24, 2), (32, 2)):
        shortcut = x if strides == 1 else _conv_bn(x, filters, 1, strides)
        x = layers.ReLU()(_conv_bn(x, filters, 3, strides))
        x = _conv_bn(x, filters, 3, 1)
        x = layers.ReLU()(layers.Add()([shortcut, x]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, activation="softmax")(x), name="residual")


def _conv_bn(x: Any, filters: int, kernel: int, strides: int) -> Any:
    x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization()(x)


def blocks() -> Any:
    """Return a small MobileNet: three inverted residual blocks, one with a sum."""
    image = x = layers.Input((32, 32, 3), name="image")
    x = layers.ReLU(6.0)(_conv_bn(x, 16, 3, 2))
    for filters, strides in ((16, 1), (24, 2), (24, 1)):
        y = layers.ReLU(6.0)(_conv_bn(x, 4 * x.shape[-1], 1, 1))
        y = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(y)
        y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
        y = _conv_bn(y, filters, 1, 1)
        x = layers.Add()([x, y]) if strides == 1 and x.shape == y.shape else y
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Softmax()(layers.Dense(10)(x)), name="blocks")


def every_layer() -> Any:
    """Return every kind of layer that TFMOT quantizes by itself, where its scheme allows it."""
    image = x = layers.Input((24, 20, 3), name="image")
    x = layers.ZeroPadding2D(((1, 0), (2, 1)))(x)
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="conv_relu")(x)
    x = layers.SeparableConv2D(12, 3, depth_multiplier=2, padding="same", activation="relu")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(x)
    x = layers.ReLU(6.0, name="relu6")(layers.BatchNormalization()(x))
    x = layers.Concatenate()(
        [
            layers.AveragePooling2D(3, strides=1, padding="same", name="average_same")(x),
            layers.MaxPooling2D(3, strides=1, padding="same", name="max_same")(x),
        ]
    )
    x = layers.MaxPooling2D(2, name="max_valid")(x)
    x = layers.Conv2D(8, (3, 2), dilation_rate=2, padding="same", use_bias=False)(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(6, 2, strides=(1, 2), padding="valid")(x)
    x = layers.LeakyReLU(0.2)(x)
    x = layers.Conv2D(8, 3, groups=2, padding="same", name="grouped")(x)
    x = layers.Conv2D(8, 1, name="relu_apart")(x)
    x = layers.ReLU()(x)
    x = layers.UpSampling2D((2, 1))(x)
    y = layers.Conv2D(8, 3, strides=(1, 1), padding="same", name="linear")(x)
    x = layers.Dropout(0.3)(layers.Add()([x, y]))
    x = layers.AveragePooling2D((3, 2), strides=2, padding="valid", name="average_valid")(x)
    x = layers.Permute((2, 3, 1))(x)
    x = layers.Reshape((-1, x.shape[1]))(x)
    x = layers.SpatialDropout1D(0.1)(x)
    pooled = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(3, activation="relu", name="dense_of_rows")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(24, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Dense(16)(x))
    x = layers.Concatenate(name="of_sums")([x, pooled])
    outputs = [
        layers.Softmax()(layers.Dense(10)(x)),
        layers.Dense(3, activation="sigmoid")(x),
        layers.Dense(3, activation="tanh")(x),
    ]
    return keras.Model(image, outputs, name="every_layer")


def annotated() -> Any:
    """Return layers that TFMOT quantizes only on request, and batch normalization anywhere."""
    kernel = config(["kernel"], ["activation"], False)
    signal = x = layers.Input((48, 6), name="signal")
    x = annotate(layers.BatchNormalization(name="bn_first"), output_config())(x)
    x = annotate(layers.Conv1D(12, 5, padding="causal", activation="relu"), kernel)(x)
    x = annotate(layers.BatchNormalization(name="bn_after_relu"), output_config())(x)
    x = annotate(layers.ZeroPadding1D(2), no_op())(x)
    x = annotate(layers.Conv1D(12, 3, strides=2, name="strided"), kernel)(x)
    x = annotate(layers.Activation("tanh", name="tanh"), output_config())(x)
    x = annotate(layers.MaxPooling1D(2), no_op())(x)
    x = annotate(layers.UpSampling1D(2), no_op())(x)
    y = annotate(layers.Conv1D(12, 3, padding="same", dilation_rate=2, name="dilated"), kernel)(x)
    y = annotate(layers.Activation("sigmoid", name="sigmoid"), output_config())(y)
    x = annotate(layers.Concatenate(axis=1), output_config())([x, y])
    x = annotate(layers.AveragePooling1D(2, padding="same"), output_config())(x)
    x = annotate(layers.BatchNormalization(name="bn_after_pool"), output_config())(x)
    z = annotate(layers.MaxPooling1D(3, strides=1, padding="same"), no_op())(x)
    z = annotate(layers.Subtract(), output_config())([z, x])
    x = annotate(layers.Add(), no_op())([x, z, x])
    x = annotate(layers.BatchNormalization(name="bn_after_add"), no_op())(x)
    x = annotate(layers.ReLU(negative_slope=0.1, name="leaky"), output_config())(x)
    x = annotate(layers.Reshape((6, 4, 12)), no_op())(x)
    x = annotate(
        layers.Conv2DTranspose(8, 3, strides=2, name="transposed"), config(["kernel"], [], False)
    )(x)
    x = annotate(layers.BatchNormalization(name="bn_after_transposed"), output_config())(x)
    x = annotate(layers.GlobalMaxPooling2D(), no_op())(x)
    x = annotate(layers.Dense(16, activation="relu"), kernel)(x)
    x = annotate(layers.BatchNormalization(name="bn_after_dense"), output_config())(x)
    x = annotate(layers.Dense(5, activation="softmax"), kernel)(x)
    x = annotate(layers.Reshape((5, 1)), output_config())(x)
    return keras.Model(signal, x, name="annotated")


def lazy() -> Any:
    """Return layers between which nothing is rounded: sums of products go through all kinds."""
    silent = config(["kernel"], [], False)  # what leaves the layer is not quantized
    depthwise = conv_config(["depthwise_kernel"], [], False)

    def normalized(x: Any) -> Any:
        return annotate(layers.BatchNormalization(), no_op())(x)

    def rounded(x: Any, name: str) -> Any:
        return annotate(layers.Reshape(x.shape[1:], name=name), output_config())(x)

    image = layers.Input((16, 12, 4), name="image")
    x = annotate(layers.Conv2D(8, 3, padding="same"), conv_config(["kernel"], [], False))(image)
    y = annotate(
        layers.DepthwiseConv2D(3, depth_multiplier=2, dilation_rate=2, padding="same"), depthwise
    )(image)
    joined = annotate(layers.Concatenate(), no_op())([x, y])
    summed = annotate(layers.Add(), no_op())([normalized(x), y])
    x = annotate(layers.AveragePooling2D(3, 2, padding="same"), no_op())(joined)
    pooled = rounded(normalized(x), "average")
    x = annotate(layers.LeakyReLU(0.3), no_op())(normalized(summed))
    sloped = rounded(x, "leaky")
    x = annotate(layers.ZeroPadding2D((1, 2)), no_op())(summed)
    x = annotate(layers.ReLU(1.5), output_config())(normalized(x))
    x = annotate(layers.Conv2DTranspose(6, (2, 3), strides=(3, 2)), silent)(x)
    x = annotate(layers.UpSampling2D(2), no_op())(normalized(x))
    scattered = rounded(x, "scattered")
    x = annotate(layers.Permute((2, 3, 1)), no_op())(summed)
    permuted = rounded(normalized(x), "permuted")
    x = annotate(layers.Flatten(), no_op())(annotate(layers.MaxPooling2D(2), no_op())(sloped))
    x = normalized(annotate(layers.Dense(24), silent)(x))
    x = annotate(layers.Reshape((2, 3, 4)), no_op())(x)
    x = annotate(layers.GlobalAveragePooling2D(keepdims=True), no_op())(normalized(x))
    outputs = [pooled, scattered, permuted, rounded(x, "mean")]
    x = annotate(layers.Flatten(), no_op())(pooled)
    x = annotate(layers.Dense(6, activation="linear"), silent)(x)
    outputs.append(annotate(layers.Activation("tanh", name="tanh"), output_config())(x))
    return keras.Model(image, outputs, name="lazy")


def nested() -> Any:
    """Return a model with a model inside, called twice, and a layer shared by two places."""
    quantize = tfmot.quantization.keras.quantize_model
    patch = x = layers.Input((12, 12, 8), name="patch")
    x = layers.ReLU(6.0)(_conv_bn(x, 8, 3, 1))
    inner = keras.Model(patch, layers.Conv2D(8, 1, name="project")(x), name="inner")
    head = keras.Sequential(
        [
            layers.Input((12, 12, 8), name="features"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, name="scores"),
        ],
        name="head",
    )
    inner, head = quantize(inner), quantize(head)
    shared = tfmot.quantization.keras.QuantizeWrapperV2(
        layers.Conv2D(8, 3, padding="same", activation="relu", name="shared"),
        conv_config(["kernel"], ["activation"], False),
    )
    added = tfmot.quantization.keras.QuantizeWrapperV2(layers.Add(name="sum"), output_config())
    left = layers.Input((12, 12, 8), name="left")
    right = layers.Input((12, 12, 8), name="right")
    # The first call of `shared` and of `inner` lies deeper in the graph than the second one.
    far = shared(inner(left))
    near = inner(far)
    integers = QuantizeLayer(
        tfmot.quantization.keras.quantizers.AllValuesQuantizer(
            num_bits=8, per_axis=False, symmetric=False, narrow_range=False
        ),
        name="quantize_right",
    )
    outputs = [head(added([near, shared(integers(right))])), far]
    return keras.Model([left, right], outputs, name="nested")


# ---- quantization and ranges


def reduction() -> Any:
    """Build an Inception-like block: TFMOT quantizes after the concatenation, not before."""
    image = layers.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
    left = layers.ReLU()(layers.BatchNormalization()(x))
    right = layers.AveragePooling2D(2, 1, padding="same")(image)
    return keras.Model(image, layers.Concatenate()([left, right]), name="reduction")


def default8(model: Any) -> Any:
    """Quantize by TFMOT's defaults."""
    return tfmot.quantization.keras.quantize_model(model)


def by_annotation(model: Any) -> Any:
    """Quantize as the layers are annotated."""
    with tfmot.quantization.keras.quantize_scope():
        return tfmot.quantization.keras.quantize_apply(model)


def as_it_is(model: Any) -> Any:
    """Return a model that was built of quantized parts."""
    return model


def n_bit(weight: int, activation: int) -> Callable[[Any], Any]:
    """Return what quantizes by TFMOT's experimental scheme to these widths."""

    def quantize(model: Any) -> Any:
        scheme = default_n_bit.default_n_bit_quantize_scheme.DefaultNBitQuantizeScheme(
            num_bits_weight=weight, num_bits_activation=activation
        )
        annotated_model = tfmot.quantization.keras.quantize_annotate_model(model)
        return tfmot.quantization.keras.quantize_apply(annotated_model, scheme)

    return quantize


MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "mobilenetv2": (mobilenetv2, default8),
    "residual": (residual, default8),
    "every_layer": (every_layer, default8),
    "annotated": (annotated, by_annotation),
    "lazy": (lazy, by_annotation),
    "reduction": (reduction, default8),
    "nested": (nested, as_it_is),
    **{
        f"w{w}a{a}": (blocks, n_bit(w, a))
        for w, a in ((2, 2), (3, 5), (4, 4), (4, 8), (12, 12), (16, 16))
    },
}


def build(name: str) -> Any:
    """Return a model of this name, live, with random weights and realistic ranges."""
    keras.backend.clear_session()  # else the layers' names depend on what came before
    keras.utils.set_random_seed(1)
    network, quantize = MODELS[name]
    model = quantize(network())
    randomize(model)
    calibrate(model)
    return model


def data(model: Any, count: int, seed: int = 1) -> dict[str, Float32Array]:
    """Return images for each input of a model, by the inputs' names."""
    return {
        name: images(tensor.shape[1:], count, 10 * seed + i)
        for i, (name, tensor) in enumerate(zip(model.input_names, model.inputs, strict=True))
    }


def save(name: str, folder: str | Path) -> Path:
    """Build a model, write it to ``FOLDER/NAME.h5`` and return that path."""
    path = Path(folder) / f"{name}.h5"
    build(name).save(path, include_optimizer=False)
    return path


def randomize(model: Any) -> None:
    """Give what Keras starts at 0 or 1 random values: biases, gammas of both signs, betas."""
    rng = np.random.default_rng(2)
    for weight in model.weights:
        kind = weight.name.rpartition("/")[2].removesuffix(":0")
        if kind == "gamma":
            weight.assign(rng.uniform(-1.5, 1.5, weight.shape))
        elif kind in ("bias", "beta", "alpha"):
            weight.assign(rng.normal(0, 0.2, weight.shape))
        if model.name == "residual" and kind in ("gamma", "kernel"):
            switched_off = 0 if kind == "gamma" else -1
            weight[..., switched_off].assign(tf.zeros(weight.shape[:-1]))


def calibrate(model: Any, drawn: Callable[..., dict[str, Float32Array]] = data) -> None:
    """Set ranges and moving statistics to those of random images, or of what `drawn` returns."""
    normalizations = [getattr(layer, "layer", layer) for layer in leaves(model)]
    normalizations = [
        layer for layer in normalizations if isinstance(layer, layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in normalizations]
    for i in range(CALIBRATION_BATCHES):
        decay = 0.5 if i else 0.0
        for layer in normalizations:
            layer.momentum = decay
        with _moving_averages_forget(decay):
            model(drawn(model, CALIBRATION_BATCH, seed=100 + i), training=True)
    for layer, momentum in zip(normalizations, momenta, strict=True):
        layer.momentum = momentum


def leaves(model: Any) -> Iterator[Any]:
    """Yield the layers of a model and of the models inside it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer


@contextmanager
def _moving_averages_forget(decay: float) -> Iterator[None]:
    """Let TFMOT's moving averages follow in a few steps instead of thousands."""
    original = quant_ops.MovingAvgQuantize

    def quick(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "ema_decay": decay})

    quant_ops.MovingAvgQuantize = quick
    try:
        yield
    finally:
        quant_ops.MovingAvgQuantize = original


def main() -> None:
    """Write the models that the command line names, or all."""
    folder, *names = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names or MODELS:
        print(save(name, folder), flush=True)


if __name__ == "__main__":
    main()
