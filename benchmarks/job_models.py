"""The job's files and TensorFlow's side of it; ``benchmarks.job`` runs this in child processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["build", "integers", "write"]

LAYERS, UNITS = 17, 4096  # of the big model: 64 MiB of kernel a layer


def build(name: str) -> Any:
    """Return a quantized model as it is before training: ``mobilenetv2`` or ``big``."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot

    tf.keras.utils.set_random_seed(1)
    if name == "mobilenetv2":
        model = tf.keras.applications.MobileNetV2(weights=None)
    else:
        layers = [tf.keras.layers.Dense(UNITS, name=f"dense{i}") for i in range(LAYERS)]
        model = tf.keras.Sequential([tf.keras.layers.InputLayer(UNITS), *layers])
    return tfmot.quantization.keras.quantize_model(model)


def write(name: str, folder: str) -> None:
    """Write a model to the containers that the job reads, and its architecture."""
    model, path = build(name), Path(folder)
    for layer in model.layers:  # the ranges that a step of training sets
        for weight, quantizer, ranges in getattr(layer, "_weight_vars", ()):
            quantizer(weight, True, weights=ranges)
    (path / "architecture.json").write_text(model.to_json(), "utf-8")
    containers: dict[str, Callable[[str], object]] = {
        "model.h5": lambda to: model.save(to, include_optimizer=False),
        "checkpoint": lambda to: model.save_weights(f"{to}/ckpt"),
    }
    if name == "mobilenetv2":
        containers |= {
            "model.keras": lambda to: model.save(to),
            "model.weights.h5": lambda to: model.save_weights(to),
            "saved_model": lambda to: model.save(to, save_format="tf", include_optimizer=False),
        }
    for container, save in containers.items():
        save(str(path / container))


def integers(name: str, source: str, output: str) -> None:
    """Do the job in TensorFlow, as briefly as it goes: load, fake-quantize, divide, save.

    TFMOT fails to load a ``.keras`` file that it wrote, and weights of a model from JSON: for these
    the model has to be built by its code.
    """
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot

    path = Path(source)
    if path.name in ("model.keras", "model.weights.h5", "checkpoint"):
        model = build(name)
        model.load_weights(path / "ckpt" if path.is_dir() else path)
    else:
        with tfmot.quantization.keras.quantize_scope():
            model = tf.keras.models.load_model(path, compile=False)
    arrays = {}
    for layer in model.layers:
        for weight, quantizer, ranges in getattr(layer, "_weight_vars", ()):
            real = quantizer(weight, False, weights=ranges).numpy()
            low, high = (ranges[end].numpy() for end in ("min_var", "max_var"))
            scale = (high - low) / np.float32(2**quantizer.num_bits - 2)  # narrow, symmetric
            name = f"{layer.layer.name}/{weight.name.rpartition('/')[2].removesuffix(':0')}"
            arrays[name] = np.rint(real / scale).astype(np.int8)
            arrays[f"{name}.scale"] = scale
    np.savez(output, **arrays)


def compare(ours: str, theirs: str) -> None:
    """Raise unless all integers and scales of TensorFlow's file are in qmath's."""
    with np.load(ours) as mine, np.load(theirs) as expected:
        wrong = [name for name in expected if not np.array_equal(mine[name], expected[name])]
        if wrong or not expected.files:
            raise SystemExit(f"different: {wrong}")


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    {"write": write, "integers": integers, "compare": compare}[verb](*arguments)
