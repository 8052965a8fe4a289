"""TFLite files through TOSA's converter and its reference model, where they are installed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from qmath import QatModel, load
from qmath.exports.bundle import quantize_model
from qmath.exports.tflite.exporter import Tflite
from reference import consumers, tosa
from tests.exports import networks

pytest.importorskip("flatbuffers", reason="the extra tflite is not installed")
needs_model = pytest.mark.skipif(
    not tosa.can_run(), reason="tosa-converter-for-tflite or tosa-tools is not installed"
)
NETWORKS = ("images", "branches", "signals", "combinations", "convolutions")


def network(name: str, bits: int = 8) -> QatModel:
    if not hasattr(networks, name):
        pytest.importorskip("h5py")
        return load(Path("reference/samples") / f"{name}.h5")
    model: QatModel = getattr(networks, name)(bits=bits, weight_bits=bits, is_symmetric=True)
    return model


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("name", ["default8", "nbit4", *NETWORKS, "functions"])
def test_the_converter_takes_every_operator(name: str, weights: str):
    pytest.importorskip("tosa_converter_for_tflite", reason="the converter is not installed")
    file = io.BytesIO()
    Tflite(io="int8", weights=weights).write(quantize_model(network(name, 4)), file)
    found = tosa.operators(file.getvalue())
    assert {operator.partition(".")[0] for operator in found} == {"tosa"}
    assert found["tosa.rescale"] >= 1


@needs_model
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["default8", *NETWORKS])
def test_the_reference_model_computes_what_is_predicted(name: str, bits: int):
    if (name, bits) == ("images", 8):
        pytest.skip("of a table's index, the converter's CAST takes the zero point away")
    count = consumers.compared(quantize_model(network(name, bits)), "tosa", 4, io="int8")
    assert count.integers > 500
    assert count.steps == {}  # what is quantized from float32 does not saturate there


def test_one_rounding_and_two():
    """Up to a shift of 31 TOSA rounds half up; above, it adds a half of 31 bits with the sign."""
    one, half = np.int64(1), 1 << 30
    ends = np.array([-half - 1, -half, half - 1, half])
    once = tosa.apply_scale_32(ends, one, np.int64(31))
    twice = tosa.apply_scale_32(ends, one, np.int64(32))
    np.testing.assert_array_equal(once, [-1, 0, 0, 1])
    np.testing.assert_array_equal(twice, [-1, 0, 0, 1])
