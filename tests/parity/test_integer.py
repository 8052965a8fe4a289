"""The integer model against TensorFlow: every fake-quantized tensor, teacher-forced."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest

import qmath
from qmath.errors import QmathError
from qmath.integer.comparison import compare, integers_of_dump
from qmath.integer.executor import Executor
from qmath.integer.lowering.lower import lower
from qmath.integer.profiles.exact import Exact
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import FloatStep
from tests.helpers import assert_same_bits

pytest.importorskip("tensorflow_model_optimization")
from reference import compare as comparison
from reference import models, samples
from reference.dump import load

SAMPLES = tuple(samples.RECIPES)
WIDTHS = {
    "w2a2": (2, 2),
    "w3a5": (3, 5),
    "w4a4": (4, 4),
    "w4a8": (4, 8),
    "w12a12": (12, 12),
    "w16a16": (16, 16),
}
# Everything else lowers to integers from end to end.
ISLANDS = {
    "question": {"dense"},
    "every_layer": {"relu_apart"},  # TFMOT quantizes no convolution that a ReLU layer follows
    # What it averages has a scale for each place; the tanh is taken of a sum that is not rounded.
    "lazy": {"global_average_pooling2d", "tanh"},
}
LAYERS = {
    "Conv2D", "Conv1D", "DepthwiseConv2D", "Conv2DTranspose", "Dense", "BatchNormalization",
    "ReLU", "LeakyReLU", "Activation", "Softmax", "Add", "Subtract", "Concatenate",
    "AveragePooling1D", "AveragePooling2D", "MaxPooling1D", "MaxPooling2D",
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "ZeroPadding1D",
    "ZeroPadding2D", "UpSampling1D", "UpSampling2D", "Flatten", "Reshape", "Permute", "Dropout",
    "SpatialDropout1D", "QuantizeLayer", "InputLayer",
}  # fmt: skip


@functools.cache
def case(name):
    """Return a model that TensorFlow ran on a few images; each is built once."""
    return comparison.case(name, {"mobilenetv2": 2}.get(name, 32 if name in SAMPLES else 4))


@pytest.mark.parametrize("profile", [Exact(), Integer()], ids=lambda profile: profile.name)
@pytest.mark.parametrize("name", comparison.CASES)
def test_every_difference_is_nearer_to_a_tie_than_float32_noise(name, profile):
    of = case(name)
    found = compare(of.program, of.inputs, profile, of.integers)
    assert [layer for layer in found.layers if not layer.explained] == []
    assert sum(layer.elements for layer in found.layers) == sum(
        array.size for array in of.integers.values()
    )
    differing = sum(layer.teacher_forced for layer in found.layers)
    widest = max(params.num_bits for params in Executor(of.program).quant_params.values())
    assert differing <= {12: 40, 16: 400}.get(widest, 4)
    if widest <= 4:  # 4-bit ties are 16 times as rare as 8-bit ones: here there are none
        assert differing == 0


@pytest.mark.parametrize("name", comparison.CASES)
def test_every_quantized_tensor_is_compared(name):
    of = case(name)
    steps = {step.name for step in of.program.steps if not isinstance(step, FloatStep)}
    moved = {step.name for step in of.program.steps if "/" not in step.name}
    dumped = {tensor for tensor in of.dump if not tensor.startswith("outputs/")}
    assert steps - moved == dumped == set(of.integers)


@pytest.mark.parametrize("name", comparison.CASES)
def test_float_layers_are_those_that_training_left(name):
    assert set(case(name).program.float_layers) == ISLANDS.get(name, set())


def test_every_kind_of_layer_is_there():
    found = {
        node.class_name
        for name in models.MODELS
        for node in qmath.from_keras(case(name).model).graph.nodes
    }
    assert found >= LAYERS
    every = qmath.from_keras(case("every_layer").model).graph.nodes
    assert {node.config["padding"] for node in every if "Pooling2D" in node.class_name} == {
        "same",
        "valid",
    }
    assert "depthwise_conv2d" in {node.name for node in every}  # of the SeparableConv2D


@pytest.mark.parametrize("name", WIDTHS)
def test_widths_are_as_named_and_the_ranges_realistic(name):
    of = case(name)
    weight, activation = WIDTHS[name]
    for tensor in qmath.from_keras(of.model).tensors.values():
        if tensor.role != "float":
            assert tensor.spec.num_bits == (weight if tensor.role == "weight" else activation)
    for tensor, integers in of.integers.items():
        used = len(np.unique(integers))
        assert used > 0.3 * min(2**activation, integers.size / 8), tensor


@pytest.mark.parametrize("name", models.MODELS)
def test_the_saved_file_gives_the_same_program(name, tmp_path):
    of = case(name)
    of.model.save(tmp_path / "model.h5", include_optimizer=False)
    loaded, live = qmath.load(tmp_path / "model.h5"), qmath.from_keras(of.model)
    assert loaded.graph == live.graph
    assert list(loaded.tensors) == list(live.tensors)
    inputs = {key: array[:1] for key, array in of.inputs.items()}
    results = [Executor(program).run(inputs) for program in (lower(loaded), of.program)]
    assert results[0].keys() == results[1].keys()
    for step, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][step], step)


def test_models_are_the_same_every_time(tmp_path):
    path = models.save("w4a4", tmp_path)
    for saved, built in zip(load(path).weights, case("w4a4").model.weights, strict=True):
        np.testing.assert_array_equal(saved.numpy(), built.numpy(), saved.name)


@pytest.mark.parametrize("profile", [Exact(), Integer()], ids=lambda profile: profile.name)
def test_digits_are_predicted_one_by_one_as_tensorflow_does(profile):
    """Free-running from the images on: nothing of TensorFlow's in between."""
    data = samples.digits()
    predictions = samples.load("integer4")(data.test_images, training=False).numpy()
    program = lower(qmath.load(samples.SAMPLES / "integer4.h5", quantizers=own_settings()))
    assert not program.float_layers
    results = Executor(program, profile).run({"image": data.test_images})
    (output,) = program.outputs
    assert (results[output].argmax(-1) == predictions.argmax(-1)).all()
    params = program.step(output).params
    real = (results[output].astype(np.int32) - params.zero_point).astype(np.float32)
    assert_same_bits(real * np.float32(params.scale), predictions)
    assert (predictions.argmax(-1) == data.test_labels).mean() > 0.95


def own_settings():
    """Return the sample's settings in the words of its training script."""
    weights = qmath.LastValueQuantizer(
        num_bits=4, per_axis=False, symmetric=True, narrow_range=False
    )
    averaging = qmath.MovingAverageQuantizer(
        num_bits=4, per_axis=False, symmetric=False, narrow_range=False
    )
    return {
        "MyConfig.weights": weights,
        "MyWeightsConfig.weights": weights,
        "MyConfig.activation": averaging,
        "MyOutputConfig.output": averaging,
    }


class Askew(Exact):
    """The exact profile, with a mistake too small to see in most integers."""

    name = "askew"

    def requantize(self, step, sums, intervals):
        value = replace(step.value, offset=step.value.offset + 0.01 * step.params.scale)
        return super().requantize(replace(step, value=value), sums, intervals)


@pytest.mark.parametrize("profile", [Askew(), Integer(8)], ids=lambda profile: profile.name)
@pytest.mark.parametrize("name", ["default8", "residual", "w12a12"])
def test_a_small_mistake_is_not_explained_by_noise(name, profile):
    of = case(name)
    found = compare(of.program, of.inputs, profile, of.integers)
    assert any(not layer.explained for layer in found.layers)
    assert found.first is not None


def test_a_dump_of_another_model_is_refused():
    with pytest.raises(QmathError, match="was it made from this model"):
        integers_of_dump(case("default8").program, case("nbit4").dump)


def test_the_command(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    arguments = ["--models", "integer4", "w4a8", "--images", "2", "--json", str(path)]
    assert comparison.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | bits | integers | exact | integer |")
    assert lines[2].startswith("| integer4 | 4 | 2,708 | 0 | 0 |")
    assert {result["model"] for result in json.loads(path.read_text())} == {"integer4", "w4a8"}


def test_an_unexplained_difference_fails_the_command(monkeypatch, capsys):
    monkeypatch.setattr(comparison, "profiles", lambda: {"exact": Askew()})
    assert comparison.main(["--models", "default8"]) == 1
    assert "UNEXPLAINED" in capsys.readouterr().out
