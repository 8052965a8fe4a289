"""Small TFLite files as the converter writes them, with what TFLite's kernels make of them.

``python -m reference.tflite_files`` writes ``golden/tflite/``, once: of each model the file, and an
``.npz`` with inputs and all int8 tensors that the reference kernels and the default ones compute,
unsigned, by the tensor's index in the file. TFLite runs no 4-bit depthwise convolution in its
reference kernels, so that there the file is alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reference import models, samples, tflite  # before TensorFlow: they set the environment

# isort: split
import tensorflow as tf

__all__ = ["FOLDER", "every_operation", "write"]

FOLDER = Path(__file__).parent / "golden" / "tflite"
EXAMPLES = 4
layers = tf.keras.layers


def every_operation() -> Any:
    """Return a small model of every operation that TFLite computes in integers."""
    image = x = layers.Input((9, 8, 3), name="image")
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    x = layers.Add()([x, layers.BatchNormalization()(layers.Conv2D(4, 1)(y))])
    y = layers.Conv2D(4, (1, 3), dilation_rate=2, padding="same")(x)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.ZeroPadding2D(((1, 0), (1, 2)))(x)
    x = layers.MaxPooling2D(3, strides=1, padding="same")(x)
    x = layers.Concatenate()([layers.Conv2D(3, 3, padding="same")(x), layers.Conv2D(2, 1)(x)])
    x = layers.AveragePooling2D(2, strides=1, padding="same")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="valid")(x)
    x = layers.LeakyReLU(0.2)(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x)
    x = layers.UpSampling2D(2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(5)(layers.Dense(6, activation="relu")(x))
    return tf.keras.Model(image, x, name="every")


def _built(name: str) -> Any:
    if name != "every_operation":
        return samples.load(name)
    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(1)
    model = models.default8(every_operation())
    models.randomize(model)
    return tflite.trained(model)


def write(name: str) -> None:
    """Write a model's file, and what its kernels compute."""
    model = _built(name)
    content = tflite.convert(model, 1)
    (FOLDER / f"{name}.tflite").write_bytes(content)
    if name == "nbit4":
        return
    file = tflite.read(content)
    shape = model.input_shape[1:]
    inputs = np.random.default_rng(7).normal(0, 1, (EXAMPLES, *shape)).astype(np.float32)
    arrays = {"inputs": inputs}
    for resolver in ("reference", "default"):
        made = [tflite.run(file, {"x": x[None]}, resolver) for x in inputs]  # type: ignore[arg-type]
        for index in made[0]:
            arrays[f"{resolver}/{index}"] = np.concatenate([run[index] for run in made])
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in ("default8", "nbit4", "every_operation"):
        write(each)
