"""The sample models, live in TFMOT: what its wrappers compute is what qmath reads and returns."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from tests.helpers import assert_same_bits, read_npz

pytest.importorskip("tensorflow_model_optimization")
from reference import samples

NAMES = tuple(samples.RECIPES)


@pytest.fixture(scope="module", params=NAMES)
def sample(request):
    """Return a sample's name, live model, and the same file as qmath reads it."""
    return (
        request.param,
        samples.load(request.param),
        qmath.load(samples.SAMPLES / f"{request.param}.h5"),
    )


def live_kernels(model):
    """Return each quantized weight's name, quantizer, and value after fake quantization."""
    return {
        f"{wrapper.layer.name}/{wrapper._weight_name(weight.name)}": (
            quantizer,
            quantizer(weight, False, weights=state).numpy(),
        )
        for wrapper in model.layers
        for weight, quantizer, state in getattr(wrapper, "_weight_vars", [])
    }


def test_every_kernel(sample):
    _, model, loaded = sample
    kernels = live_kernels(model)
    assert kernels.keys() == {
        name for name, tensor in loaded.tensors.items() if tensor.role == "weight"
    }
    for name, (quantizer, expected) in kernels.items():
        tensor = loaded.tensors[name]
        assert_same_bits(tensor.quantize().dequantize(), expected, name)
        assert tensor.spec.num_bits == quantizer.num_bits
        assert tensor.spec.narrow_range == quantizer.narrow_range
        assert tensor.spec.per_axis == quantizer.per_axis


def test_the_wrapper_uses_that_kernel(sample):
    """A forward pass puts the fake-quantized kernel into the inner layer: look there."""
    _, model, loaded = sample
    model(np.zeros((1, 8, 8, 1), np.float32), training=False)
    seen = 0
    for name, tensor in loaded.tensors.items():
        if tensor.role == "weight":
            layer, weight = name.split("/")
            used = getattr(model.get_layer(f"quant_{layer}").layer, weight)
            assert_same_bits(tensor.quantize().dequantize(), used.numpy(), name)
            seen += 1
    assert seen == len(live_kernels(model))


def test_from_keras_agrees_with_the_file(sample):
    _, model, loaded = sample
    live = qmath.from_keras(model)
    assert list(live.tensors) == list(loaded.tensors)
    for name, tensor in loaded.tensors.items():
        other = live.tensors[name]
        assert other.role == tensor.role, name
        for field in ("values", "min", "max"):
            expected = getattr(tensor, field)
            if expected is None:
                assert getattr(other, field) is None, (name, field)
            else:
                assert_same_bits(getattr(other, field), expected, (name, field))
        for field in ("quantizer", "num_bits", "per_axis", "symmetric", "narrow_range", "op"):
            expected = getattr(tensor.spec, field)
            if expected is not None:  # a live model knows at least what the file tells
                assert getattr(other.spec, field) == expected, (name, field)
    assert live.graph == loaded.graph


def test_from_keras_knows_every_setting(sample):
    _, model, _ = sample
    for tensor in qmath.from_keras(model).tensors.values():
        assert tensor.spec.is_complete == (tensor.role != "float"), tensor.name


def test_settings_pasted_by_the_user_make_activations_known():
    """What the saved config leaves out can be said in the training script's words."""
    averaging = qmath.MovingAverageQuantizer(
        num_bits=4, per_axis=False, symmetric=False, narrow_range=False
    )
    loaded = qmath.load(
        samples.SAMPLES / "question.h5", quantizers={"MyConfig.activation": averaging}
    )
    for name in ("conv1/post_activation", "dw1/post_activation"):
        assert loaded.tensors[name].spec.num_bits == 4


def test_the_live_model_reproduces_the_golden_predictions():
    golden = read_npz(samples.SAMPLES.parent / "golden" / "samples.npz")
    digits = read_npz(samples.SAMPLES / "digits_test.npz")
    for name in NAMES:
        predictions = samples.load(name)(digits["images"], training=False).numpy()
        # Rounding ties apart (the sums' order depends on the CPU), one tolerance for all.
        close = np.isclose(predictions, golden[f"{name}/predictions"], atol=1e-3)
        assert close.mean() > 0.95, name
        assert (predictions.argmax(-1) == digits["labels"]).mean() > 0.95, name
