"""Write models that Keras 3 itself quantized: ``python -m reference.keras3``.

``reference/golden/keras3/int8.keras`` and ``int4.keras`` hold one layer of each class that qmath
passes on, and ``expected.npz`` what Keras makes of them: the integers (``<mode>/<tensor>``) and the
real values that its layers compute with (``<mode>/<tensor>.real``). Needs Keras 3, which comes with
TensorFlow.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.pop("TF_USE_LEGACY_KERAS", None)
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from keras.src.quantizers.quantization_config import Int4QuantizationConfig

FOLDER = Path(__file__).parent / "golden" / "keras3"
# Equation, output shape and bias: scales along one axis, two, and two in another order.
EINSUMS = {
    "one": ("abc,cd->abd", (None, 3), "d"),
    "two": ("abc,cde->abde", (None, 3, 2), None),
    "turned": ("abc,dce->abed", (None, 3, 2), "d"),
}


def build() -> Any:
    """Return a float model with random weights."""
    keras.utils.set_random_seed(1)
    flow = layers.Input((3,), dtype="int32", name="words")
    embedded = layers.Embedding(7, 5, name="embedding")(flow)
    outputs = [
        layers.EinsumDense(equation, shape, bias_axes=bias, name=name)(embedded)
        for name, (equation, shape, bias) in EINSUMS.items()
    ]
    x = layers.Dense(4, activation="relu", name="dense")(layers.Flatten(name="flatten")(embedded))
    outputs.append(layers.Dense(3, use_bias=False, name="head")(x))
    return keras.Model(flow, outputs)


def real(layer: Any) -> np.ndarray:
    """Return a quantized layer's weight as Keras dequantizes it when it is called."""
    if isinstance(layer, layers.Embedding):
        return np.asarray(layer(np.arange(layer.input_dim)))
    if isinstance(layer, layers.Dense):
        scale = layer.kernel_scale
    elif layer.quantization_mode == "int4":
        return np.asarray(keras.ops.divide(matrix(layer).astype("float32"), layer.kernel_scale))
    else:
        scale = layer._adjust_scale_for_dequant(layer.kernel_scale)
    return np.asarray(keras.ops.divide(keras.ops.cast(layer.kernel, "float32"), scale))


def matrix(layer: Any) -> np.ndarray:
    """Return the unpacked integers of a 4-bit EinsumDense."""
    columns = layer._int4_unpacked_column_size
    return np.asarray(keras.quantizers.unpack_int4(layer._kernel, columns, axis=-1))


def integers(layer: Any) -> np.ndarray:
    """Return a quantized layer's integers, unpacked by Keras."""
    if isinstance(layer, layers.EinsumDense) and layer.quantization_mode == "int4":
        return matrix(layer)
    return np.asarray(layer.embeddings if isinstance(layer, layers.Embedding) else layer.kernel)


def main() -> None:
    """Write the files, which are golden: once, and never again."""
    FOLDER.mkdir(exist_ok=True)
    expected: dict[str, np.ndarray] = {}
    for mode, how in (
        ("int8", {"mode": "int8"}),
        ("int4", {"config": Int4QuantizationConfig(block_size=-1)}),
    ):
        model = build()
        for layer in model.layers:
            if layer.weights:
                layer.quantize(how.get("mode", "int4"), config=how.get("config"))
                weight = "embeddings" if isinstance(layer, layers.Embedding) else "kernel"
                expected[f"{mode}/{layer.name}/{weight}"] = integers(layer)
                expected[f"{mode}/{layer.name}/{weight}.real"] = real(layer)
        model.save(FOLDER / f"{mode}.keras")
    np.savez_compressed(FOLDER / "expected.npz", **expected)
    print(f"{FOLDER}: {len(expected) // 2} tensors")


if __name__ == "__main__":
    main()
