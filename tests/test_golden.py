"""qmath against what TensorFlow once returned: no TensorFlow needed, every bit counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import qmath
from tests.helpers import assert_same_bits, assert_same_state, read_npz

REFERENCE = Path(__file__).parent.parent / "reference"
SAMPLES = ("question", "integer4", "default8", "nbit4")


def golden(name):
    with np.load(REFERENCE / "golden" / f"{name}.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def fake_quant():
    return golden("fake_quant")


@pytest.fixture(scope="module")
def quantizers():
    return golden("quantizers")


@pytest.fixture(scope="module")
def samples():
    return golden("samples")


@pytest.mark.parametrize("num_bits", range(2, 17))
@pytest.mark.parametrize("family", ["args", "vars", "per_channel"])
def test_fake_quant(fake_quant, family, num_bits):
    suffix = "vars_per_channel" if family == "per_channel" else family
    forward = getattr(qmath, f"fake_quant_with_min_max_{suffix}")
    backward = getattr(qmath, f"fake_quant_with_min_max_{suffix}_gradient")
    cases = fake_quant["cases"]
    cases = cases[(cases["family"] == family) & (cases["num_bits"] == num_bits)]
    assert cases.size
    for case in cases:
        size, channels = int(case["size"]), int(case["channels"])
        elements = slice(case["start"], case["start"] + size)
        bounds = slice(case["range_start"], case["range_start"] + channels)
        shape, range_shape = (size,), ()
        if family == "per_channel":
            shape, range_shape = (size // channels, channels), (channels,)
        inputs, gradients, outputs, gradient_inputs = (
            fake_quant[name][elements].reshape(shape)
            for name in ("inputs", "gradients", "outputs", "gradient_inputs")
        )
        low, high, gradient_min, gradient_max = (
            fake_quant[name][bounds].reshape(range_shape)
            for name in ("min", "max", "gradient_min", "gradient_max")
        )
        settings = (low, high, num_bits, bool(case["narrow_range"]))
        assert_same_bits(forward(inputs, *settings), outputs, case)
        actual = backward(gradients, inputs, *settings)
        if family == "args":
            assert_same_bits(actual, gradient_inputs, case)
        else:
            assert_same_bits(actual.backprops_wrt_input, gradient_inputs, case)
            assert_same_bits(actual.backprop_wrt_min, gradient_min, case)
            assert_same_bits(actual.backprop_wrt_max, gradient_max, case)


def test_quantizers(quantizers):
    sequences = json.loads(bytes(quantizers["sequences"]))
    assert {sequence["quantizer"] for sequence in sequences} == {
        name for name in qmath.__all__ if name.endswith("Quantizer")
    }
    for number, sequence in enumerate(sequences):
        quantizer = getattr(qmath, sequence["quantizer"])(**sequence["config"])
        state = quantizer.build(sequence["shape"])
        for step, training in enumerate(sequence["training"]):
            assert_same_state(state, {key: quantizers[f"{number}/{key}"][step] for key in state})
            outputs = quantizer(quantizers[f"{number}/inputs"][step], training, state)
            assert_same_bits(outputs, quantizers[f"{number}/outputs"][step], (sequence, step))
        assert_same_state(state, {key: quantizers[f"{number}/{key}"][-1] for key in state})
        assert bool(state) == (f"{number}/min_var" in quantizers)


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_kernels_become_tensorflows(samples, sample):
    """With the file alone: the settings of these kernels need no option."""
    pytest.importorskip("h5py")
    tensors = qmath.load(REFERENCE / "samples" / f"{sample}.h5").tensors
    names = {
        name.partition("/")[2]
        for name in samples
        if name.startswith(f"{sample}/") and not name.endswith((".min", ".max"))
    }
    names.remove("predictions")
    assert names == {name for name, tensor in tensors.items() if tensor.role == "weight"}
    for name in names:
        quantized = tensors[name].quantize()
        assert_same_bits(quantized.dequantize(), samples[f"{sample}/{name}"], name)
        assert_same_bits(tensors[name].min, samples[f"{sample}/{name}.min"], name)
        assert_same_bits(tensors[name].max, samples[f"{sample}/{name}.max"], name)
        half = 2 ** (quantized.num_bits - 1)
        assert quantized.num_bits == (8 if sample == "default8" else 4)
        assert -half <= quantized.values.min()
        assert quantized.values.max() <= half - 1


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_predictions_are_above_95_percent(samples, sample):
    labels = read_npz(REFERENCE / "samples" / "digits_test.npz")["labels"]
    assert (samples[f"{sample}/predictions"].argmax(-1) == labels).mean() > 0.95
