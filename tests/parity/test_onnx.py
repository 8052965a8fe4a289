"""ONNX and QONNX files of trained models, run by their own runtimes: TensorFlow's integers."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

import qmath
from qmath.exports.bundle import quantize_model
from qmath.exports.onnx.qonnx import Qonnx
from qmath.integer.comparison import compare
from qmath.integer.profiles.exact import Exact
from qmath.integer.program import MoveStep, QuantizeStep
from tests.exports.test_onnx import names, written
from tests.exports.test_qonnx import execute, integers
from tests.parity.test_integer import case

pytest.importorskip("tensorflow_model_optimization")
pytest.importorskip("onnxruntime")
from reference import onnxruntime as reference
from reference import samples

FOLDED = ("default8", "annotated", "every_layer", "w4a8")


@pytest.mark.parametrize(
    ("name", "fold"),
    [(name, False) for name in reference.CASES] + [(name, True) for name in FOLDED],
)
def test_onnx_runtime_computes_the_profile_exact(name, fold):
    of = case(name)
    data = written(qmath.from_keras(of.model), fold=fold)
    found, outputs = reference.session_outputs(data, of.inputs, False, {})
    moved = {step.name for step in of.program.steps if isinstance(step, MoveStep)}
    assert found.keys() == of.integers.keys() - moved
    layers = compare(of.program, of.inputs, Exact(), found).layers
    widest = max(of.program.step(step).params.num_bits for step in found)
    assert sum(layer.teacher_forced for layer in layers) <= {12: 40, 16: 400}.get(widest, 4)
    for layer in layers:
        # Of an input, TensorFlow's own float32 arithmetic decides near a tie.
        is_input = isinstance(of.program.step(layer.name), QuantizeStep)
        assert layer.largest <= 1 if is_input else layer.explained, layer
    if name in samples.RECIPES:
        for step, array in found.items():
            np.testing.assert_array_equal(array, of.integers[step])
        np.testing.assert_allclose(outputs[0], of.dump["outputs/0"], rtol=1e-5)


@pytest.mark.parametrize("name", ["integer4", "nbit4", "annotated", "nested", "w2a2", "w3a5"])
def test_qonnx_computes_tensorflows_integers(name):
    of = case(name)
    model = qmath.from_keras(of.model)
    file = io.BytesIO()
    count = len(next(iter(of.inputs.values())))
    Qonnx(batch=count).write(quantize_model(model), file)
    data = file.getvalue()
    tensors = execute(data, of.inputs)
    found = integers(data, tensors, model)
    assert found
    for step, array in found.items():
        np.testing.assert_array_equal(array, of.integers[step])
    assert all(name in tensors for name in names(data)["outputs"])


def test_the_table_of_differences(tmp_path, capsys):
    path = tmp_path / "found.json"
    assert reference.main(["nbit4", "--images", "4", "--json", str(path)]) == 0
    header, _, *rows = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("|")
    )
    assert [row.split(" | ")[:4] for row in rows] == [
        ["| nbit4", "no", "5,416", "0"],
        ["| nbit4", "yes", "5,416", "0"],
    ]
    found = json.loads(path.read_text())
    assert len(found) == len(rows) * len(reference.SETTINGS)
    assert header.count("|") == 4 + len(reference.SETTINGS)
    assert [each["differing"] for each in found if each["setting"] == "off"] == [0, 0]
