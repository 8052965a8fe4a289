"""Weights whose integers come from the values that the forward pass uses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath
from qmath import QatModel
from qmath.readers.architecture.config import LayerFacts
from qmath.readers.records import StoredTensor
from qmath.readers.settings.recovered import NotRecoveredError, recovered
from qmath.readers.settings.resolve import resolve
from tests.helpers import assert_same_bits

LAYER = LayerFacts("d", "quant_d", "quant_d", "Dense")
KERNEL = StoredTensor(LAYER, "kernel", np.float32([[0.3]]))


def lattice(bits, channels, seed, scale):
    """Return integers that reach the lowest of the width, and what they stand for."""
    integers = np.random.default_rng(seed).integers(
        -(2 ** (bits - 1)), 2 ** (bits - 1), (9, channels)
    )
    integers[0], integers[1] = -(2 ** (bits - 1)), 1 - 2 ** (bits - 1)
    return integers, integers.astype(np.float32) * np.float32(scale)


@given(
    st.integers(2, 16), st.integers(1, 4), st.integers(0, 99), st.floats(2**-20, 2**10, width=32)
)
def test_the_integers_are_those_of_the_values(bits, channels, seed, scale):
    scales = np.float32(scale) * np.float32([1, 1.7, 0.01, 3])[:channels]
    integers, values = lattice(bits, channels, seed, scales)
    item = recovered(KERNEL, values, "values say", bits)
    tensors, notes = resolve([item])
    tensor = tensors["d/kernel"]
    assert notes == []
    assert (tensor.spec.num_bits, tensor.provenance["num_bits"]) == (
        bits,
        "recovered from the values",
    )
    for signed in (True, False):
        q = tensor.quantize(signed=signed)
        np.testing.assert_array_equal(q.values.astype(int) - q.zero_point, integers)
        assert_same_bits(q.dequantize(), values)
    assert tensor.quantize(signed=False).values.min() == 0


@pytest.mark.parametrize("format", ["npz", "safetensors", "bin", "c", "mem"])
@pytest.mark.parametrize("signed", [True, False])
def test_an_export_of_them_is_verified(tmp_path, format, signed):
    _, values = lattice(5, 3, 0, [0.1, 0.017, 3])
    tensors, _ = resolve([recovered(KERNEL, values, "values say")])
    model = QatModel(tensors)
    bundle = qmath.export(model, tmp_path / "o", format=format, signed=signed)
    assert_same_bits(bundle.tensors["d/kernel"].dequantize(), values)
    assert qmath.verify(model, tmp_path / "o", format=format).ok
    values[2, 1] += np.float32(0.017)
    tensors, _ = resolve([recovered(KERNEL, values, "values say")])
    assert not qmath.verify(QatModel(tensors), tmp_path / "o", format=format).ok


def test_other_values_have_no_integers():
    values = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    with pytest.raises(NotRecoveredError, match="d/kernel: its quantizer returns values that are"):
        recovered(KERNEL, values, "values say")


def test_integers_of_one_sign_use_the_whole_width():
    values = np.arange(256, dtype=np.float32) * np.float32(0.1)
    item = recovered(KERNEL, values, "values say", 8)
    assert_same_bits(item.recovered.dequantize(), values)
    assert (item.recovered.values.min(), item.recovered.values.max()) == (-128, 127)
    assert (item.recovered.zero_point, item.min) == (-128, 0)
    centred = np.arange(-128, 128, dtype=np.float32) * np.float32(0.1)
    columns = np.stack([values, -values, centred], axis=1)
    item = recovered(KERNEL, columns, "values say", 8)
    assert_same_bits(item.recovered.dequantize() + np.float32(0), columns + np.float32(0))
