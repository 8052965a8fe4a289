"""Files of TensorFlow's converter as they are read: every integer, in four runtimes."""

from __future__ import annotations

import pytest

import qmath

pytest.importorskip("tensorflow")
pytest.importorskip("tflite_micro")
pytest.importorskip("ai_edge_litert")
from reference import tflite_reading


@pytest.fixture(scope="module", params=tflite_reading.CONVERTED, ids=lambda p: f"{p[0]}{p[1]}")
def deployed(request, tmp_path_factory):
    name, bits = request.param
    path = tmp_path_factory.mktemp(name) / "m.tflite"
    path.write_bytes(tflite_reading.converted(name, bits))
    return name, path


@pytest.mark.parametrize("runtime", tflite_reading.PROFILES)
def test_every_integer_of_a_file(deployed, runtime):
    name, path = deployed
    if name == "moves" and runtime == "tflite-micro":
        pytest.skip("tflite-micro lacks RELU_N1_TO_1")
    counts = tflite_reading.compared(path, runtime)
    if (name, runtime) == ("moves", "reference"):  # TFLite's reference SUM changes no scale
        counts = {step: n for step, n in counts.items() if not step.startswith("sum/")}
    assert sum(size for size, _ in counts.values()) > 500
    assert not {step: n for step, n in counts.items() if n[1]}


def test_weights_of_8_bits_with_activations_of_16(deployed):
    """The bias has 64 bits, and is exported with its scale."""
    name, path = deployed
    if name != "wide":
        pytest.skip("only this network is converted to both widths")
    model = qmath.load(path)
    (bias,) = (t for t in model.tensors.values() if t.stored and t.name.startswith("conv"))
    is_wide = any(t.spec.num_bits == 16 for t in model.tensors.values() if t.spec)
    assert bias.stored.num_bits == (64 if is_wide else 32)
