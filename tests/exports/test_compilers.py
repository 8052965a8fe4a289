"""The comparison of runtimes, ``reference.compilers``, tells what is equal from what is not."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import qmath
from reference.compilers import ABSENT, cell, compared, outputs_of, work
from tests.exports.qdq_networks import of_width
from tests.exports.test_onnx import images, names, written


def test_a_runtime_runs_in_a_process_of_its_own():
    pytest.importorskip("onnxruntime", reason="no wheel of onnxruntime for this Python")
    network = of_width(4, True)
    data, inputs = written(network, weights="int8"), images(network)
    given = {names(data)["inputs"][name]: x for name, x in inputs.items()}
    found = outputs_of("ONNX Runtime, optimizer off", data, given)
    expected = list(qmath.run(network, inputs, profile="exact").outputs.values())
    assert cell(compared(found, expected)) == "exact"


def test_what_is_not_installed_is_said(monkeypatch, tmp_path):
    np.savez(tmp_path / "inputs.npz", x=np.zeros(1))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SystemExit):
        work("OpenVINO", tmp_path)
    assert cell(compared(f"{ABSENT}: No module named 'openvino'", [np.zeros(1)])) == ABSENT


def test_differences_are_counted():
    expected = [np.array([[1.0, 2.0], [4.0, 3.0]])]
    noise = [expected[0] + 1e-7]
    other = [np.array([[1.0, 2.0], [2.0, 3.0]])]
    assert cell(compared([expected[0].copy()], expected)) == "exact"
    assert cell(compared(noise, expected)) == "but for noise"
    assert cell(compared(other, expected)) == "1 of 4, by up to 50.0%; answers 1 of 2"
    assert cell(compared("it crashed", expected)) == "fails"
