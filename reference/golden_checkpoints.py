"""Write small TensorFlow checkpoints: ``python -m reference.golden_checkpoints``.

They are written once, to ``reference/golden/checkpoints``, and never regenerated: an existing one
is not overwritten. What they hold is in ``reference/golden/README.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import ml_dtypes
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from reference.golden import GOLDEN
from reference.samples import load
from reference.zoo_models import WeightsConfig, last_value

CHECKPOINTS = GOLDEN / "checkpoints"
SEED = 7
NUMBERS = (
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip

keras = tf.keras
Arrays = dict[str, np.ndarray]


class TwoCellsConfig(WeightsConfig):
    """Quantize the kernels of both cells of a stacked RNN, whose variables have one name."""

    weights: ClassVar = {
        "cell.cells.0.kernel": last_value(4),
        "cell.cells.1.kernel": last_value(7),
    }


def save(prefix: Path, tensors: dict[str, Any], slices: dict[str, str] | None = None) -> None:
    """Write tensors as TensorFlow's ``SaveV2`` op does, without an object graph.

    Keys of `slices` are those of `tensors`, its values as the op takes them. What follows ``@`` in
    a key tells parts of one tensor from each other.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[key.partition("@")[0] for key in tensors],
        shape_and_slices=[(slices or {}).get(key, "") for key in tensors],
        tensors=[tf.convert_to_tensor(value) for value in tensors.values()],
    )


def kinds(folder: Path) -> Arrays:
    """Write one tensor of every type: those that are read, and those that are not."""
    generator = np.random.default_rng(SEED)
    tensors: dict[str, Any] = {}
    for name in NUMBERS:
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        raw = generator.integers(0, 256, (2, 3, dtype.itemsize), np.uint8)
        tensors[name] = (raw & 1 if name == "bool" else raw).view(dtype)[..., 0]
    tensors["scalar"], tensors["empty"] = np.float32(0.1), np.zeros((0, 3), np.float32)
    expected = {name: np.asarray(value) for name, value in tensors.items()}
    expected["bfloat16"] = expected["bfloat16"].astype(np.float32)
    tensors["string"] = b"text"
    tensors["complex64"] = np.complex64([1, 2j])
    for name in ("float8_e5m2", "float8_e4m3fn", "int4"):
        tensors[name] = np.ones(2, getattr(ml_dtypes, name))
    tensors["variant"] = tf.raw_ops.EmptyTensorList(
        element_shape=[2], max_num_elements=1, element_dtype=tf.float32
    )
    tensors["qint8"] = tf.bitcast(tf.constant([1], tf.int8), tf.qint8)
    save(folder / "ckpt", tensors)
    return {f"kinds/{name}": value for name, value in expected.items()}


def slices(folder: Path) -> Arrays:
    """Write three shards, over which two tensors are spread in slices, and merge them."""
    generator = np.random.default_rng(SEED)
    long = generator.integers(-99, 99, 9_001, np.int8)
    cube = generator.integers(-9, 9, (3, 4, 5), np.int16)
    whole = generator.normal(size=(2, 2)).astype(np.float32)
    parts = [
        ({"long": long[:64], "cube": cube[:, :1]}, {"long": "9001 0,64", "cube": "3 4 5 -:0,1:-"}),
        (
            {"long": long[64:], "cube": cube[:2, 1:, :2], "whole": whole},
            {"long": "9001 64,8937", "cube": "3 4 5 0,2:1,3:0,2"},
        ),
        (
            {"cube": cube[2:, 1:, :2], "cube@2": cube[:, 1:, 2:]},
            {"cube": "3 4 5 2,1:1,3:0,2", "cube@2": "3 4 5 -:1,3:2,3"},
        ),
    ]
    for number, (tensors, places) in enumerate(parts):
        save(folder / f"part{number}", tensors, places)
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(folder / f"part{number}") for number in range(len(parts))],
        destination_prefix=str(folder / "ckpt"),
    )
    return {"slices/long": long, "slices/cube": cube, "slices/whole": whole}


def v1(folder: Path) -> Arrays:
    """Write the single file of TensorFlow 1."""
    tf.raw_ops.Save(
        filename=str(folder / "model.ckpt"), tensor_names=["v"], data=[tf.constant([1.0, 2.0])]
    )
    return {}


def question(folder: Path) -> Arrays:
    """Write the weights of a sample model."""
    load("question").save_weights(str(folder / "ckpt"))
    return {}


def stacked(folder: Path) -> Arrays:
    """Write a model whose quantized kernels have one name, with its optimizer."""
    keras.utils.set_random_seed(SEED)
    cells = [keras.layers.SimpleRNNCell(3), keras.layers.SimpleRNNCell(2)]
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    model = keras.Sequential(
        [
            keras.layers.Input((4, 2)),
            annotate(keras.layers.RNN(cells, name="rnn"), TwoCellsConfig()),
            keras.layers.Dense(1, name="head"),
        ]
    )
    with tfmot.quantization.keras.quantize_scope({"TwoCellsConfig": TwoCellsConfig}):
        model = tfmot.quantization.keras.quantize_apply(model)
    model.compile("adam", "mse")
    generator = np.random.default_rng(SEED)
    for _ in range(2):
        model.train_on_batch(generator.normal(size=(3, 4, 2)), np.ones((3, 1)))
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(folder / "ckpt"))
    expected: Arrays = {}
    for weight, _, state in model.layers[1]._weight_vars:
        name = f"stacked/{weight.name.partition(':')[0]}"
        expected[name] = weight.numpy()
        expected[f"{name}.min"], expected[f"{name}.max"] = (
            state[end].numpy() for end in ("min_var", "max_var")
        )
    return expected


CHECKPOINT_KINDS: dict[str, Callable[[Path], Arrays]] = {
    function.__name__: function for function in (kinds, slices, v1, question, stacked)
}


def main() -> None:
    """Write what is not there yet, and the values that TensorFlow gave it."""
    expected: Arrays = {}
    for name, write in CHECKPOINT_KINDS.items():
        folder = CHECKPOINTS / name
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        expected |= write(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {size} bytes in {len(list(folder.iterdir()))} files")
    if expected:
        np.savez_compressed(CHECKPOINTS / "expected.npz", **expected)


if __name__ == "__main__":
    main()
