"""Layers one by one, of TFMOT's classes and of others, against TensorFlow, teacher-forced."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import qmath
from qmath.integer.comparison import compare, integers_of_dump
from qmath.integer.lowering.lower import lower
from qmath.integer.profiles.exact import Exact
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import sources

pytest.importorskip("tensorflow_model_optimization")
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tf_keras.src.saving import serialization_lib

from reference import layer_models, models
from reference.dump import dump, inputs_of
from reference.forward import graph_of_saved_model

CASES = [
    (name, bits, per_axis)
    for name, case in layer_models.LAYERS.items()
    for bits in (8, 4)
    for per_axis in ((False, True) if case.per_axis else (False,))
]


@functools.cache
def case(name, bits, per_axis, is_rounded=True):
    """Return a model's program, data and TensorFlow's integers; each is built once."""
    model = layer_models.build(name, bits, per_axis, is_rounded)
    inputs = inputs_of(model, models.data(model, 8))
    program = lower(qmath.from_keras(model))
    return program, inputs, integers_of_dump(program, dump(model, inputs))


def assert_explained(program, inputs, integers, profile):
    """Check every integer; those that differ are nearer to a tie than TensorFlow's own noise."""
    layers = compare(program, inputs, profile, integers).layers
    assert {layer.name for layer in layers} == set(integers)
    assert [layer for layer in layers if not layer.explained] == []
    assert sum(layer.teacher_forced for layer in layers) <= 3


@pytest.mark.parametrize("profile", [Exact(), Integer()], ids=lambda profile: profile.name)
@pytest.mark.parametrize(("name", "bits", "per_axis"), CASES)
def test_a_layer_of_quantized_inputs(name, bits, per_axis, profile):
    program, inputs, integers = case(name, bits, per_axis)
    assert not program.float_layers
    assert_explained(program, inputs, integers, profile)
    used = np.unique(integers["layer/output"]).size
    assert used > min(0.08 * 2**bits, integers["layer/output"].size / 16)


@pytest.mark.parametrize("name", layer_models.LAYERS)
def test_a_layer_of_unrounded_sums(name):
    program, inputs, integers = case(name, 8, False, False)
    needs_integers = name in layer_models.NEED_INTEGERS
    assert set(program.float_layers) == ({"layer"} if needs_integers else set())
    if needs_integers:  # what a float step computes may differ near a tie, where noise is unknown
        layers = compare(program, inputs, Exact(), integers).layers
        assert max(layer.largest for layer in layers) <= 1
        assert sum(layer.teacher_forced for layer in layers) <= 3
    else:
        assert_explained(program, inputs, integers, Exact())


@pytest.fixture(scope="module")
def separable():
    """Return a model of TFMOT's defaults with layers that it computes in two dimensions."""
    layers = tf.keras.layers
    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(3)
    signal = x = layers.Input((16, 4), name="signal")
    x = layers.SeparableConv1D(6, 3, padding="same", activation="relu", name="first")(x)
    x = layers.SeparableConv1D(5, 3, 2, depth_multiplier=2, use_bias=False, name="second")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(3)(layers.GlobalAveragePooling1D()(x))
    with serialization_lib.SafeModeScope(safe_mode=False):  # TFMOT copies its Lambda layers
        model = tfmot.quantization.keras.quantize_model(tf.keras.Model(signal, x))
    models.randomize(model)
    models.calibrate(model)
    return model


def test_separable_convolutions_of_signals(separable):
    inputs = inputs_of(separable, models.data(separable, 8))
    model = qmath.from_keras(separable)
    program = lower(model)
    assert not program.float_layers
    assert {node.class_name for node in model.graph.nodes} >= {
        "DepthwiseConv2D", "Conv2D", "SeparableConvExpand", "SeparableConvSqueeze",
    }  # fmt: skip
    integers = integers_of_dump(program, dump(separable, inputs))
    for profile in (Exact(), Integer()):
        assert_explained(program, inputs, integers, profile)


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_saved_separable_convolutions_have_no_lambda_layers(separable, tmp_path, ending):
    path = tmp_path / f"model{ending}"
    separable.save(path)
    loaded = qmath.load(path)
    assert not any("Lambda" in note for note in loaded.notes)
    inputs = inputs_of(separable, models.data(separable, 3))
    expected = qmath.run(qmath.from_keras(separable), inputs, profile="exact").integers
    found = qmath.run(loaded, inputs, profile="exact").integers
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], name)


@pytest.mark.parametrize(
    "name",
    ["Cropping1D", "Maximum of three", "RepeatVector", "UpSampling3D",
     *(pytest.param(name, marks=pytest.mark.nightly) for name in (
         "Average of three", "Cropping3D", "Minimum", "Multiply a mask", "Multiply a vector",
         "ZeroPadding3D",
     ))],
)  # fmt: skip
def test_ops_alone_tell_the_layer(name, tmp_path):
    model = layer_models.build(name)
    model.export(tmp_path / "saved")
    found, live = (lower(m) for m in (qmath.load(tmp_path / "saved"), qmath.from_keras(model)))
    steps, expected = (
        {step.name: (type(step), sources(step), step.shape) for step in program.steps}
        for program in (found, live)
    )
    assert steps == expected
    inputs = inputs_of(model, models.data(model, 3))
    ran, whole = (qmath.run(program, inputs, profile="exact") for program in (found, live))
    for tensor, array in whole.integers.items():
        np.testing.assert_array_equal(ran.integers[tensor], array, tensor)


def test_the_sign_of_an_exported_slope_is_the_variables_own(tmp_path):
    """A PReLU multiplies by the negative of its weight, which is what the graph's op reads."""
    model = layer_models.build("PReLU, quantized")
    model.export(tmp_path / "saved")
    expected = qmath.from_keras(model).tensors["layer/alpha"].quantize()
    tensor = qmath.load(tmp_path / "saved").tensors["layer/alpha"]
    assert tensor.spec.narrow_range
    np.testing.assert_array_equal(tensor.quantize().values, expected.values)
    kernels = graph_of_saved_model(tmp_path / "saved").kernels()
    np.testing.assert_array_equal(kernels["layer/alpha"], expected.dequantize())
