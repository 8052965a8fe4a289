"""Networks of public architectures, narrow and shallow, trained for some steps by TFMOT's defaults.

Of each are its kinds of blocks, few of each kind. Images are scikit-learn's handwritten digits,
whose bundled copy the samples use, enlarged to 16 × 16; signals and spectra are smooth and random.
Classes TFMOT's registry lacks (gates, GRU, attention) have a config of their own around them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import models, samples

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot

__all__ = ["NETWORKS", "build", "data"]

keras = tf.keras
layers = keras.layers
Array = NDArray[np.float32]
IMAGE, SIGNAL, SPECTRUM, VECTOR = (16, 16, 1), (48, 2), (24, 10, 1), (40,)
STEPS, BATCH, CLASSES = 24, 32, 10


def _rounded(layer: Any, *weights: str) -> Any:
    """Return a layer whose output, and these of its weights, are quantized to 8 bits."""
    return models.annotate(layer, models.config(list(weights), [], True))


def _conv(x: Any, filters: int, size: Any = 3, strides: int = 1, act: Any = 6.0) -> Any:
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    return _activated(layers.BatchNormalization(momentum=0.8)(x), act)


def _depthwise(x: Any, strides: int = 1, size: Any = 3, act: Any = 6.0) -> Any:
    x = layers.DepthwiseConv2D(size, strides, padding="same", use_bias=False)(x)
    return _activated(layers.BatchNormalization(momentum=0.8)(x), act)


def _activated(x: Any, act: Any) -> Any:
    if act == "hard_swish":  # as Keras writes it: x · relu6(x + 3) / 6
        gate = _rounded(layers.Rescaling(1 / 6))(layers.ReLU(6.0)(_shifted(x)))
        return _rounded(layers.Multiply())([x, gate])
    if act == "none":
        return x
    return layers.ReLU(None if act == "relu" else act)(x)


def _shifted(x: Any) -> Any:
    return _rounded(layers.Rescaling(1.0, 3.0))(x)


def _inverted(x: Any, width: int, filters: int, strides: int, act: Any, gate: bool = False) -> Any:
    """Return an inverted residual block, with squeeze and excitation if `gate`."""
    y = _depthwise(_conv(x, width, 1, act=act), strides, act=act)
    if gate:
        z = layers.GlobalAveragePooling2D(keepdims=True)(y)
        z = layers.Conv2D(4, 1, activation="relu")(z)
        z = layers.Conv2D(width, 1)(z)
        z = _rounded(layers.Rescaling(1 / 6))(layers.ReLU(6.0)(_shifted(z)))
        y = _rounded(layers.Multiply())([y, z])
    y = _conv(y, filters, 1, act="none")
    return layers.Add()([x, y]) if x.shape == y.shape else y


def _classified(x: Any, activation: str | None = "softmax") -> Any:
    return layers.Dense(CLASSES, activation=activation)(layers.GlobalAveragePooling2D()(x))


def _image() -> Any:
    return layers.Input(IMAGE, name="image")


def mobilenet_v1(width: int = 8) -> Any:
    """Return depthwise separable blocks: MobileNetV1, as of the MLPerf Tiny wake words."""
    image = _image()
    x = _conv(image, width, strides=2)
    for filters, strides in ((2 * width, 1), (2 * width, 2), (3 * width, 1)):
        x = _conv(_depthwise(x, strides), filters, 1)
    return keras.Model(image, _classified(x))


def _of_blocks(act: Any, gate: bool, stem: str = "relu") -> Any:
    image = _image()
    x = _conv(image, 8, strides=2, act=act if act == "hard_swish" else stem)
    x = _inverted(x, 16, 8, 1, act, gate)
    x = _inverted(x, 24, 12, 2, act, gate)
    x = _inverted(x, 24, 12, 1, act, gate)
    return keras.Model(image, _classified(_conv(x, 24, 1, act=act)))


def resnet8() -> Any:
    """Return ResNet-8, as of the MLPerf Tiny image classification."""
    image = _image()
    x = _conv(image, 8, act="relu")
    for filters, strides in ((8, 1), (12, 2), (16, 2)):
        y = _conv(_conv(x, filters, strides=strides, act="relu"), filters, act="none")
        if strides > 1:
            x = layers.Conv2D(filters, 1, strides, padding="same")(x)
        x = layers.Activation("relu")(layers.Add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(4)(x))
    return keras.Model(image, layers.Dense(CLASSES, activation="softmax")(x))


def ds_cnn() -> Any:
    """Return DS-CNN, as of the MLPerf Tiny keyword spotting."""
    spectrum = layers.Input(SPECTRUM, name="spectrum")
    x = layers.Dropout(0.2)(_conv(spectrum, 12, (10, 4), 2, act="relu"))
    for _ in range(2):
        x = _conv(_depthwise(x, act="relu"), 12, 1, act="relu")
    x = layers.AveragePooling2D((12, 5))(layers.Dropout(0.4)(x))
    return keras.Model(spectrum, layers.Dense(CLASSES, activation="softmax")(layers.Flatten()(x)))


def dense_autoencoder() -> Any:
    """Return dense layers around a bottleneck, as of the MLPerf Tiny anomaly detection."""
    vector = x = layers.Input(VECTOR, name="vector")
    for units in (24, 24, 8, 24, 24):
        x = layers.Dense(units)(x)
        x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.8)(x))
    return keras.Model(vector, layers.Dense(VECTOR[0])(x))


def squeezenet() -> Any:
    """Return fire modules: a squeezing convolution, and two beside each other."""
    image = _image()
    x = layers.MaxPooling2D(3, 2)(layers.Conv2D(8, 3, activation="relu")(image))
    for squeeze, expand in ((4, 8), (6, 12)):
        x = layers.Conv2D(squeeze, 1, activation="relu")(x)
        x = layers.Concatenate()(
            [layers.Conv2D(expand, size, padding="same", activation="relu")(x) for size in (1, 3)]
        )
    x = layers.Conv2D(CLASSES, 1, activation="relu")(layers.Dropout(0.5)(x))
    return keras.Model(image, layers.Softmax()(layers.GlobalAveragePooling2D()(x)))


def unet(transposed: bool, interpolation: str = "nearest") -> Any:
    """Return an encoder and a decoder with skip connections."""
    image = _image()
    skips = [_conv(image, 6, act="relu")]
    for filters in (8, 12):
        skips.append(_conv(layers.MaxPooling2D(2)(skips[-1]), filters, act="relu"))
    x = skips.pop()
    for filters in (8, 6):
        if transposed:
            x = layers.Conv2DTranspose(filters, 2, 2, "same")(x)
        else:
            x = layers.UpSampling2D(2, interpolation=interpolation)(x)
        x = _conv(layers.Concatenate()([x, skips.pop()]), filters, act="relu")
    return keras.Model(image, layers.Conv2D(1, 1, activation="sigmoid")(x))


def yolo() -> Any:
    """Return a detector with two outputs of different sizes, LeakyReLU and a route back up."""
    image = _image()

    def block(x: Any, filters: int) -> Any:
        return layers.LeakyReLU(0.1)(_conv(x, filters, act="none"))

    near = block(layers.MaxPooling2D(2)(block(image, 6)), 8)
    far = block(layers.MaxPooling2D(2)(near), 12)
    back = layers.UpSampling2D(2)(block(far, 8))
    joined = block(layers.Concatenate()([back, near]), 8)
    outputs = [layers.Conv2D(14, 1, name=name)(x) for name, x in (("far", far), ("near", joined))]
    return keras.Model(image, outputs)


def conv_autoencoder() -> Any:
    """Return convolutions down and transposed ones up."""
    image = _image()
    x = layers.Conv2D(8, 3, 2, "same", activation="relu")(image)
    x = layers.Conv2D(12, 3, 2, "same", activation="relu")(x)
    x = layers.Conv2DTranspose(8, 3, 2, "same", activation="relu")(x)
    x = layers.Conv2DTranspose(6, 3, 2, "same", activation="relu")(x)
    return keras.Model(image, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x))


def crnn() -> Any:
    """Return convolutions, and a GRU over the columns that they give."""
    image = _image()
    x = layers.MaxPooling2D(2)(_conv(image, 8, act="relu"))
    x = layers.Reshape((8, 64))(layers.Permute((2, 1, 3))(x))
    x = layers.Dense(12, activation="relu")(x)
    x = _rounded(layers.GRU(8, return_sequences=True))(x)
    return keras.Model(image, layers.Dense(CLASSES + 1, activation="softmax")(x))


def ecg() -> Any:
    """Return convolutions of a signal, and attention over what they give."""
    signal = layers.Input(SIGNAL, name="signal")
    x = signal
    for filters in (8, 12):
        x = _rounded(layers.Conv1D(filters, 5, 2, padding="same", activation="relu"), "kernel")(x)
    query = layers.Dense(8)(x)
    y = _rounded(layers.Attention())([query, layers.Dense(8)(x)])
    y = layers.GlobalAveragePooling1D()(_rounded(layers.LayerNormalization())(y))
    return keras.Model(signal, layers.Dense(5, activation="softmax")(y))


NETWORKS: dict[str, Callable[[], Any]] = {
    "dense_autoencoder": dense_autoencoder,
    "ds_cnn": ds_cnn,
    "conv_autoencoder": conv_autoencoder,
    "squeezenet": squeezenet,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v1_quarter": functools.partial(mobilenet_v1, 4),
    "resnet8": resnet8,
    "mobilenet_v2": functools.partial(_of_blocks, 6.0, False, 6.0),
    "mobilenet_v3_minimalistic": functools.partial(_of_blocks, "relu", False),
    "mobilenet_v3": functools.partial(_of_blocks, "hard_swish", True),
    "efficientnet_lite": functools.partial(_of_blocks, 6.0, False, "relu"),
    "unet_transposed": functools.partial(unet, True),
    "unet_upsampling": functools.partial(unet, False),
    "unet_bilinear": functools.partial(unet, False, "bilinear"),
    "yolo": yolo,
    "crnn": crnn,
    "ecg": ecg,
}


@functools.cache
def _digits() -> tuple[Array, NDArray[Any]]:
    held = samples.digits()
    images = np.asarray(held.train_images, np.float32).reshape(-1, 8, 8, 1)
    return images.repeat(2, 1).repeat(2, 2), np.asarray(held.train_labels)


def _drawn(model: Any, count: int, seed: int = 1) -> dict[str, Array]:
    """Return digits, or smooth random data, for the input of a model."""
    (name,), shape = model.input_names, model.input_shape[1:]
    if shape == IMAGE:
        images, _ = _digits()
        return {name: images[_chosen(count, seed)]}
    return {name: models.images(shape, count, seed)}


def _chosen(count: int, seed: int) -> NDArray[Any]:
    return np.random.default_rng([seed, count]).integers(0, len(_digits()[0]), count)


def _targets(model: Any, x: Array, seed: int) -> list[Array]:
    """Return what a model is to learn: labels, its input, or a fixed function of that."""
    found = []
    for shape in (output.shape[1:] for output in model.outputs):
        if shape == x.shape[1:]:
            y = x
        elif x.shape[1:] == IMAGE and shape == (CLASSES,):
            y = np.eye(CLASSES)[_digits()[1][_chosen(len(x), seed)]]
        else:
            flat = x.reshape(len(x), -1)
            matrix = np.random.default_rng(1).normal(size=(flat.shape[1], int(np.prod(shape))))
            y = 0.5 + 0.5 * np.tanh(flat @ matrix / flat.shape[1] ** 0.5)
        found.append(np.asarray(y, np.float32).reshape(len(x), *shape))
    return found


def build(name: str) -> Any:
    """Return a network, quantized by TFMOT's defaults and trained for some steps."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(5)
    with tfmot.quantization.keras.quantize_scope():  # of the layers that are annotated
        model = models.default8(NETWORKS[name]())
    model.compile(keras.optimizers.legacy.Adam(3e-3), "mse")
    (x,) = _drawn(model, STEPS * BATCH, 7).values()
    model.fit(x, _targets(model, x, 7), BATCH, verbose=0)
    models.calibrate(model, _drawn)
    return model


def data(name: str, count: int) -> dict[str, Array]:
    """Return data of a network's input that it was not trained with."""
    raw = NETWORKS[name]()
    return _drawn(raw, count, 1000)
