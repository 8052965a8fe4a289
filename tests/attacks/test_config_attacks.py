"""Configs with a field or two changed: whatever is asked of the file, the answer is qmath's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import qmath
from qmath.errors import MissingExtraError, QmathError
from tests.readers.builders import SAMPLES

Layers = list[dict[str, Any]]
Change = Callable[[Layers], object]

FORMATS = ("npz", "safetensors", "bin", "h5", "mem", "c", "cmsis-nn", "onnx", "qonnx", "tflite")
IMAGES = np.zeros((2, 8, 8, 1), np.float32)


def inner(class_name: str, **fields: Any) -> Change:
    """Change the config of the first wrapped layer of a class."""

    def change(layers: Layers) -> None:
        wrapped = (layer["config"].get("layer", {}) for layer in layers)
        next(x for x in wrapped if x.get("class_name") == class_name)["config"].update(fields)

    return change


def outer(number: int, **fields: Any) -> Change:
    """Change the config of a layer as the model knows it."""
    return lambda layers: layers[number]["config"].update(fields)


def copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def moved_config(layers: Layers) -> None:
    layers[2]["config"]["layer"] = copied(layers[3]["config"]["layer"])


def nested_wrapper(layers: Layers) -> None:
    layers[2]["config"]["layer"] = copied(layers[2])


def quantizer(**fields: Any) -> Change:
    return lambda layers: layers[1]["config"]["quantizer"]["config"].update(fields)


HUGE = [None, 1 << 20, 1 << 20, 1]
# What the error says at load, or None where the lowering, or nothing, refuses it.
CASES: list[tuple[str, Change, str | None]] = [
    ("question", quantizer(symmetric="x"), "quantize_layer: symmetric of its"),
    ("question", quantizer(num_bits=[8]), "quantize_layer: num_bits of its"),
    ("question", quantizer(narrow_range=float("nan")), "quantize_layer: narrow_range of its"),
    ("default8", outer(0, batch_input_shape=[None, 16, 16, 1]), None),
    ("default8", outer(0, batch_input_shape=[None, 8, 8]), None),
    ("default8", outer(0, batch_input_shape=[None, 8, 8, 3]), None),
    ("default8", outer(0, batch_input_shape=[None, 1, 1, 1]), None),
    ("default8", outer(0, batch_input_shape=[None, 4096, 4096, 1]), None),
    ("default8", outer(0, batch_input_shape=[None, [8], 8, 1]), "image: batch_input_shape of this"),
    ("default8", outer(0, batch_input_shape=HUGE), "image: batch_input_shape of this InputLayer"),
    ("default8", outer(0, batch_input_shape="8"), "image: batch_input_shape of this InputLayer"),
    ("nbit4", inner("Conv2D", dilation_rate=[10**30] * 2), "conv1: dilation_rate of this Conv2D"),
    ("nbit4", inner("Conv2D", dilation_rate=float("nan")), "conv1: dilation_rate of this Conv2D"),
    ("nbit4", inner("Conv2D", dilation_rate=[4, 4]), None),
    ("nbit4", inner("Conv2D", strides=[2**63] * 2), "conv1: strides of this Conv2D is"),
    ("nbit4", inner("Conv2D", strides=[2**16] * 2), None),
    ("nbit4", inner("Conv2D", padding=["same"]), "conv1: padding of this Conv2D is"),
    ("nbit4", inner("Conv2D", filters=7), "conv1/kernel has the shape"),
    ("nbit4", inner("Conv2D", kernel_size=[1, 3]), "conv1/kernel has the shape"),
    ("nbit4", inner("Conv2D", groups=2), None),
    ("nbit4", inner("Conv2D", activation=["relu"]), "conv1: activation of this Conv2D"),
    ("default8", inner("Dense", units=-1), "dense: units of this Dense is -1"),
    ("default8", lambda layers: layers.insert(0, copied(layers[1])), "more than one layer"),
    ("default8", lambda layers: layers.append(copied(layers[-1])), "more than one layer"),
    ("default8", moved_config, None),
    ("default8", nested_wrapper, None),
]  # fmt: skip


def edited(folder: Path, sample: str, change: Change) -> Path:
    """Copy a sample, and change its config."""
    path = folder / "model.h5"
    shutil.copy(SAMPLES / f"{sample}.h5", path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config["config"]["layers"])
        del file.attrs["model_config"]
        file.attrs["model_config"] = json.dumps(config)
    return path


def verbs(path: Path, folder: Path) -> Iterator[Callable[[], object]]:
    """Yield all that can be asked of a file."""
    yield lambda: str(qmath.inspect(path))
    yield partial(qmath.run, path, IMAGES)
    yield partial(qmath.diff, path, IMAGES)
    for format in FORMATS:
        output = folder / format
        yield partial(qmath.export, path, output, format=format)
        if output.exists():
            yield partial(qmath.verify, path, output)


@pytest.mark.parametrize(("sample", "change", "words"), CASES, ids=map(str, range(len(CASES))))
def test_nothing_but_an_error_of_qmath(
    tmp_path: Path, sample: str, change: Change, words: str | None
) -> None:
    path = edited(tmp_path, sample, change)
    if words is not None:
        with pytest.raises(QmathError) as caught:
            qmath.load(path)
        assert str(path) in str(caught.value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    for verb in verbs(path, tmp_path):
        with suppress(QmathError, MissingExtraError):
            verb()


def test_layers_of_one_name_are_told(tmp_path: Path) -> None:
    """Their tensors are read; what needs the order of the layers says what is wrong with it."""
    path = edited(tmp_path, "default8", outer(-1, name="x"))
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].append({"class_name": "Dropout", "config": {"name": "x"}})
        config["config"]["layers"].append({"class_name": "Dropout", "config": {"name": "x"}})
        del file.attrs["model_config"]
        file.attrs["model_config"] = json.dumps(config)
    assert qmath.load(path).graph is None
    with pytest.raises(QmathError, match=r"order of its layers is not known \(two "):
        qmath.run(path, IMAGES)


def test_the_samples_themselves_are_read(tmp_path: Path) -> None:
    for sample in ("default8", "nbit4"):
        qmath.run(edited(tmp_path, sample, lambda _: None), IMAGES)
