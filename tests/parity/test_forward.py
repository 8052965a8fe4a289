"""`reference.forward`: the kernels that ops read, in live models and in SavedModels."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from tests.helpers import assert_same_bits

tfmot = pytest.importorskip("tensorflow_model_optimization")

import tensorflow as tf  # noqa: E402

from reference import dump, judge_models, models, zoo_models  # noqa: E402

layers = tf.keras.layers
ZOO = ("functional", "conv1d", "nested", "gru", "kernel_bias", "separable", "conv2d_transpose")


def real(quantized):
    """Return what the integers stand for."""
    relative = quantized.values.astype(np.int32) - quantized.zero_point
    return relative.astype(np.float32) * quantized.scale


@pytest.mark.parametrize("name", ZOO)
def test_kernels_of_tfmots_own_quantizers_are_the_integers_values(name):
    model = zoo_models.build(name)
    weights = {k: t for k, t in qmath.from_keras(model).tensors.items() if t.role == "weight"}
    kernels = dump.kernels(model)
    assert weights
    assert weights.keys() <= kernels.keys()
    for key, tensor in weights.items():
        assert_same_bits(kernels[key], real(tensor.quantize()), key)


@pytest.mark.parametrize("name", ["power_of_two", "dorefa", "percentile", "power_of_two_bias"])
def test_kernels_of_other_quantizers_are_what_these_return(name):
    model = judge_models.build(name)
    kernels = dump.kernels(model)
    seen = 0
    for layer in model.layers:
        for weight, quantizer, state in getattr(layer, "_weight_vars", ()):
            leaf = weight.name.partition(":")[0].rpartition("/")[2]
            expected = quantizer(weight, False, weights=state).numpy()
            assert_same_bits(kernels[f"{layer.layer.name}/{leaf}"], expected, leaf)
            assert expected.tobytes() != weight.numpy().tobytes()
            seen += 1
    assert seen >= 2


def test_a_kernel_is_what_the_op_reads_and_not_what_the_quantizer_returned():
    model = judge_models.build("scaled_kernel")
    weight, quantizer, state = model.get_layer("quant_d1")._weight_vars[0]
    quantized = quantizer(weight, False, weights=state).numpy()
    assert_same_bits(dump.kernels(model)["d1/kernel"], quantized * np.float32(0.75))


@pytest.mark.parametrize("container", ["keras_saved", "tf_saved", "exported"])
@pytest.mark.parametrize("name", ["conv1d", "nested", "functional"])
def test_a_saved_model_says_what_the_live_model_says(tmp_path, name, container):
    model = zoo_models.build(name)
    zoo_models.CONTAINERS[container](model, str(tmp_path / "saved"))
    data = models.data(model, 3)
    live = judge_models.forward(model, data)
    saved = dump.forward(tmp_path / "saved", data)
    assert saved.keys() == live.keys()
    for key, array in saved.items():
        if key.startswith("outputs/"):  # of float sums, fused in another way
            np.testing.assert_allclose(array, live[key], rtol=1e-4, atol=1e-5)
        else:
            assert_same_bits(array, live[key], key)


class Twice(layers.Dense):
    """Reads its kernel as it is, and doubled."""

    def call(self, x):
        return x @ self.kernel + x @ (2 * self.kernel)


def test_a_kernel_that_is_read_in_two_ways_is_there_twice():
    model = tf.keras.Sequential([tf.keras.Input((4,)), Twice(3, name="twice")])
    kernel = model.get_layer("twice").kernel.numpy()
    kernels = dump.kernels(model)
    found = {kernels["twice/kernel"].tobytes(), kernels["twice/kernel#1"].tobytes()}
    assert found == {kernel.tobytes(), (2 * kernel).tobytes()}


def test_a_saved_model_without_the_signature_is_refused(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "empty"))
    with pytest.raises(dump.DumpError, match="has no signature serving_default; it holds none"):
        dump.forward(tmp_path / "empty")
