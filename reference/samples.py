"""Train the sample models on scikit-learn's digits: ``python -m reference.samples [--only NAME]``.

Four small networks of the same layers, quantized in four ways, each written to
``reference/samples/NAME.h5`` as a user of TFMOT would save it: the whole model in one file, without
the optimizer. ``reference/samples/README.md`` says what each is for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_configs,
)
from tensorflow_model_optimization.python.core.quantization.keras.experimental import default_n_bit

__all__ = ["MyConfig", "MyOutputConfig", "MyWeightsConfig", "digits", "load"]

SAMPLES = Path(__file__).parent / "samples"
BATCH = 32
FLOAT_EPOCHS = 30
# The moving averages start at ±6 and forget 0.1 % of that a step: 6 * 0.999**11000 is 1e-4.
QAT_EPOCHS = 245

keras = tf.keras
quantizers = tfmot.quantization.keras.quantizers
annotate = tfmot.quantization.keras.quantize_annotate_layer


class MyWeightsConfig(tfmot.quantization.keras.QuantizeConfig):
    """Quantize a layer's kernel to 4 bits and nothing else."""

    def _kernel(self, layer: Any) -> str:
        return "depthwise_kernel" if hasattr(layer, "depthwise_kernel") else "kernel"

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        """Pair the kernel with its quantizer."""
        return [
            (
                getattr(layer, self._kernel(layer)),
                quantizers.LastValueQuantizer(
                    num_bits=4, symmetric=True, narrow_range=False, per_axis=False
                ),
            )
        ]

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        """Leave the activation float: batch normalization follows."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Put the fake-quantized kernel in the kernel's place."""
        setattr(layer, self._kernel(layer), quantize_weights[0])

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """Do nothing: there is none."""

    def get_output_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        """Leave the output float."""
        return []

    def get_config(self) -> dict[str, Any]:
        """Return nothing, as most do: the saved file does not say 4 bits."""
        return {}


class MyConfig(MyWeightsConfig):
    """Quantize a layer's kernel and its activation to 4 bits."""

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        """Pair the activation with its quantizer."""
        return [
            (
                layer.activation,
                quantizers.MovingAverageQuantizer(
                    num_bits=4, per_axis=False, symmetric=False, narrow_range=False
                ),
            )
        ]

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """Put the quantizing activation in the activation's place."""
        layer.activation = quantize_activations[0]


class MyOutputConfig(MyWeightsConfig):
    """Quantize a layer's output to 4 bits and nothing else."""

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        """Leave the weights alone: a ReLU has none."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Do nothing: there are none."""

    def get_output_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        """Quantize the one output."""
        return [
            quantizers.MovingAverageQuantizer(
                num_bits=4, per_axis=False, symmetric=False, narrow_range=False
            )
        ]


class Digits(NamedTuple):
    """The digits, 8x8 pixels from 0 to 1, split once and for all."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def digits() -> Digits:
    """Return scikit-learn's bundled digits as float32 images of shape (8, 8, 1)."""
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[..., np.newaxis]
    split = train_test_split(
        images, data.target.astype(np.int32), test_size=360, random_state=0, stratify=data.target
    )
    return Digits(split[0], split[2], split[1], split[3])


def load(name: str) -> Any:
    """Load a sample as a live Keras model."""
    with tfmot.quantization.keras.quantize_scope(custom_objects()):
        return keras.models.load_model(SAMPLES / f"{name}.h5", compile=False)


def custom_objects() -> dict[str, type]:
    """Return the classes that Keras must know to load the samples."""
    return {
        "MyConfig": MyConfig,
        "MyOutputConfig": MyOutputConfig,
        "MyWeightsConfig": MyWeightsConfig,
        "NoOpQuantizeConfig": default_8bit_quantize_configs.NoOpQuantizeConfig,
    }


def network(configs: dict[str, Any] | None = None) -> Any:
    """Build the float network, its layers named in `configs` annotated with their configs."""
    layers = [
        keras.layers.Conv2D(16, 3, padding="same", name="conv1"),
        keras.layers.DepthwiseConv2D(3, strides=2, padding="same", name="dw1"),
        keras.layers.BatchNormalization(name="bn"),
        keras.layers.ReLU(6.0, name="relu6"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(10, name="dense"),
    ]
    tensor = image = keras.layers.Input((8, 8, 1), name="image")
    for layer in layers:
        config = (configs or {}).get(layer.name)
        tensor = (annotate(layer, config) if config else layer)(tensor)
    return keras.Model(image, tensor, name="digits")


def question(trained: Any) -> Any:
    """Quantize the two convolutions by a config of one's own; the rest stays float."""
    model = network({"conv1": MyConfig(), "dw1": MyConfig()})
    model.set_weights(trained.get_weights())
    with tfmot.quantization.keras.quantize_scope(custom_objects()):
        return tfmot.quantization.keras.quantize_apply(model)


def integer4(trained: Any) -> Any:
    """Quantize everything to 4 bits, so that integers flow from the input to the output."""
    no_op = default_8bit_quantize_configs.NoOpQuantizeConfig
    model = network(
        {
            "conv1": MyConfig(),
            "dw1": MyWeightsConfig(),  # what leaves it is quantized after bn and relu6
            "bn": no_op(),
            "relu6": MyOutputConfig(),
            "flatten": no_op(),
            "dense": MyConfig(),
        }
    )
    model.set_weights(trained.get_weights())
    scheme = default_n_bit.default_n_bit_quantize_scheme.DefaultNBitQuantizeScheme(
        num_bits_weight=4, num_bits_activation=4
    )  # of it, only the 4-bit model input is used
    with tfmot.quantization.keras.quantize_scope(custom_objects()):
        return tfmot.quantization.keras.quantize_apply(model, scheme)


def default8(trained: Any) -> Any:
    """Quantize by TFMOT's defaults."""
    return tfmot.quantization.keras.quantize_model(trained)


def nbit4(trained: Any) -> Any:
    """Quantize by TFMOT's experimental n-bit scheme: 4-bit weights, 8-bit activations."""
    model = tfmot.quantization.keras.quantize_annotate_model(trained)
    scheme = default_n_bit.default_n_bit_quantize_scheme.DefaultNBitQuantizeScheme(
        num_bits_weight=4, num_bits_activation=8
    )
    return tfmot.quantization.keras.quantize_apply(model, scheme)


RECIPES: dict[str, Callable[[Any], Any]] = {
    "question": question,
    "integer4": integer4,
    "default8": default8,
    "nbit4": nbit4,
}


def fit(model: Any, data: Digits, epochs: int) -> float:
    """Train `model` and return its accuracy on the test images."""
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ["accuracy"],
    )
    model.fit(data.train_images, data.train_labels, BATCH, epochs, verbose=0)
    return float(model.evaluate(data.test_images, data.test_labels, verbose=0)[1])


def train(name: str, data: Digits) -> None:
    """Train one sample and save it."""
    keras.utils.set_random_seed(0)
    keras.backend.clear_session()  # else the names that Keras counts up depend on what came before
    trained = network()
    accuracy = fit(trained, data, FLOAT_EPOCHS)
    model = RECIPES[name](trained)
    quantized_accuracy = fit(model, data, QAT_EPOCHS)
    assert quantized_accuracy > 0.95, f"{name}: only {quantized_accuracy:.4f} after training"
    path = SAMPLES / f"{name}.h5"
    model.save(path, include_optimizer=False)
    print(
        f"{name}: {accuracy:.4f} float, {quantized_accuracy:.4f} quantized, "
        f"{path.stat().st_size:,} bytes",
        flush=True,
    )


def main() -> None:
    """Train the samples that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=RECIPES, help="train just this one")
    only = parser.parse_args().only
    tf.config.experimental.enable_op_determinism()
    SAMPLES.mkdir(exist_ok=True)
    data = digits()
    np.savez_compressed(
        SAMPLES / "digits_test.npz", images=data.test_images, labels=data.test_labels
    )
    for name in [only] if only else RECIPES:
        train(name, data)


if __name__ == "__main__":
    main()
