"""SavedModels that TensorFlow writes now, against `tf.train.load_checkpoint`, Keras and .h5."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import tensorflow as tf

import qmath
from qmath.containers.lazy_array import LazyArray
from qmath.model import QatModel
from reference import models, samples
from tests.helpers import assert_same_bits


def examples(names: Iterable[str]) -> list[Any]:
    """Leave to the nights the models that differ from another one by their widths alone."""
    repeated = ("w3a5", "w4a4", "w4a8", "w12a12")
    return [
        pytest.param(name, marks=pytest.mark.nightly) if name in repeated else name
        for name in names
    ]


# TensorFlow cannot save quantized Conv2DTranspose layers, only export them.
EXPORTED = examples(name for name in models.MODELS if name != "mobilenetv2")
SAVED = examples(["residual", "reduction", "nested", "w2a2", "w3a5", "w12a12", "w16a16"])
FIELDS = ("num_bits", "narrow_range", "per_axis", "op")
TRAINING = ("quantizer", "symmetric")


def assert_same_tensors(saved: QatModel, model: Any, fields: tuple[str, ...]) -> int:
    """Assert what a live model holds; return how many tensors are quantized."""
    live = qmath.from_keras(model)
    assert set(saved.tensors) == set(live.tensors)
    count = 0
    for name, tensor in live.tensors.items():
        mine = saved.tensors[name]
        assert mine.role == tensor.role
        for part in ("values", "min", "max"):
            one, other = getattr(mine, part), getattr(tensor, part)
            assert (one is None) == (other is None), (name, part)
            if one is not None:
                assert_same_bits(one, other, (name, part))
        if tensor.role != "float":
            count += 1
            for field in fields:
                assert getattr(mine.spec, field) == getattr(tensor.spec, field), (name, field)
                assert field == "op" or mine.provenance[field] == "graph"
    return count


def assert_same_as_tensorflow(folder: Path, saved: QatModel) -> None:
    """Assert that all values are those that TensorFlow reads."""
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    for tensor in saved.tensors.values():
        if isinstance(tensor.values, LazyArray):
            assert_same_bits(tensor.values, reader.get_tensor(tensor.values.path))


def assert_same_integers(saved: QatModel, whole: QatModel, data: Any) -> None:
    """Assert that both compute the same."""
    assert saved.graph is not None, saved.notes
    found, expected = qmath.run(saved, data), qmath.run(whole, data)
    assert list(found.outputs) == list(expected.outputs)
    for name, values in expected.outputs.items():
        assert found.outputs[name].tobytes() == values.tobytes(), name
    for name, values in expected.integers.items():
        np.testing.assert_array_equal(found.integers[name], values, name)


def inputs(model: Any, count: int = 3) -> Any:
    data = models.data(model, count)
    return data if len(data) > 1 else next(iter(data.values()))


@pytest.mark.parametrize("name", EXPORTED)
def test_exported(tmp_path: Path, name: str) -> None:
    model = models.build(name)
    model.export(str(tmp_path / "saved"))
    saved = qmath.load(tmp_path / "saved")
    assert assert_same_tensors(saved, model, FIELDS)
    assert_same_as_tensorflow(tmp_path / "saved", saved)
    assert_same_integers(saved, qmath.from_keras(model), inputs(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
def test_saved_with_and_without_the_config(tmp_path: Path, name: str) -> None:
    model = models.build(name)
    model.save(tmp_path / "model.h5", include_optimizer=False)
    whole = qmath.load(tmp_path / "model.h5")
    model.save(str(tmp_path / "keras"), save_format="tf")
    tf.saved_model.save(model, str(tmp_path / "tf"))
    for kind in ("keras", "tf"):
        saved = qmath.load(tmp_path / kind)
        assert assert_same_tensors(saved, model, FIELDS + TRAINING)
        assert_same_as_tensorflow(tmp_path / kind, saved)
        assert_same_integers(saved, whole, inputs(model))
        if kind == "keras":
            assert list(saved.tensors) == list(whole.tensors)


@pytest.mark.slow
def test_every_op_of_mobilenetv2(tmp_path: Path) -> None:
    model = models.build("mobilenetv2")
    model.export(str(tmp_path / "saved"))
    saved = qmath.load(tmp_path / "saved")
    assert assert_same_tensors(saved, model, FIELDS) == 118
    assert_same_integers(saved, qmath.from_keras(model), inputs(model, 1))


@pytest.mark.parametrize("name", samples.RECIPES)
def test_samples(tmp_path: Path, name: str) -> None:
    model = samples.load(name)
    model.save(str(tmp_path / "saved"), save_format="tf")
    saved = qmath.load(tmp_path / "saved")
    assert assert_same_tensors(saved, model, FIELDS + TRAINING)
    with np.load(samples.SAMPLES / "digits_test.npz") as digits:
        assert_same_integers(saved, qmath.from_keras(model), digits["images"][:20])
