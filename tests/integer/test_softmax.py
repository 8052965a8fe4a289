"""A softmax whose input and output are quantized, in integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath
from qmath import QatModel
from qmath.exports.bundle import quantize_model
from qmath.inspection.report import inspect
from qmath.integer import softmax
from qmath.integer.api import element, program_of
from qmath.integer.program import QuantParams, SoftmaxStep
from qmath.verification.check import verify
from tests.exports.compiling import self_check
from tests.exports.networks import Network

SHAPE = (4, 3, 5)


def network(axis: Any = -1, *, ends: tuple[float, float] = (0.0, 1.0), bits: int = 8,
            rounded: bool = True) -> QatModel:  # fmt: skip
    """Return input → conv → softmax → conv; the input of the softmax is quantized, or not."""
    net = Network(*SHAPE, bits=bits)
    net.add("Conv2D", kernel=(1, 1, 5, 5), ends=(-6.3, 6.9) if rounded else None)
    name = net.add("Softmax", axis=axis, ends=ends)
    return net.model(name, net.add("Conv2D", kernel=(1, 1, 5, 2), ends=(-3.0, 3.0)))


def data(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.0, 1.5, (count, *SHAPE)).astype(np.float32)


def step_of(of: QatModel) -> SoftmaxStep:
    (step,) = [step for step in program_of(of).steps if isinstance(step, SoftmaxStep)]
    return step


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("axis", [-1, 1, [2]])
def test_the_integer_form_is_within_its_bound_of_the_real_result(axis: Any, bits: int) -> None:
    of = network(axis, bits=bits)
    step = step_of(of)
    found = qmath.run(of, data(), profile="integer")
    assert not found.program.float_layers
    read = found.program.quant_params[step.source]
    reals = (found.integers[step.source].astype(np.float64) - read.zero_point) * read.scale
    y = softmax.of_reals(reals, step.axis) / step.params.scale + step.params.zero_point
    # What is rounded is within the bound of `y`, so the integer is within half a step more.
    distance = np.abs(found.integers[step.name] - np.clip(y, step.params.low, step.params.high))
    assert distance.max() <= 0.5 + step.error
    assert step.error < (1e-5 if bits <= 8 else 2e-3)
    assert np.unique(found.integers[step.name]).size > min(2**bits / 2, 40)
    exact = qmath.run(of, data(), profile="exact").integers[step.name]
    wrong = exact != found.integers[step.name]
    tie = np.abs(y - np.floor(y) - 0.5)
    assert tie[wrong].max(initial=0) < 1e-4 * 2 ** max(bits - 8, 0)
    assert wrong.sum() < (5 if bits <= 8 else 0.02 * wrong.size)


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=9), st.floats(1e-4, 8.0),
    st.sampled_from([1 / 255, 0.3, 1.0, 3.0, 1e-4, 2.0**-20]),
)  # fmt: skip
def test_no_integers_leave_the_bound(q: list[int], scale: float, made: float) -> None:
    read = QuantParams(float(np.float32(scale)), 128, 0, 255, 8, -1.0, 1.0)
    # All of the result's width is there, so that nothing is clamped.
    params = QuantParams(float(np.float32(made)), 0, 0, 1 << 24, 25, 0.0, 1.0)
    step = softmax.softmax_step("y", "x", read, np.exp, -1, params, (len(q),))
    x = np.array([q], np.float32) - 128
    found = softmax.in_integers(step, x).astype(np.float64)
    y = softmax.of_reals(x.astype(np.float64) * read.scale, -1) / params.scale
    assert step.multiplier < 1 << 31
    assert np.abs(found - y).max() <= 0.5 + step.error


def test_the_greatest_sums_do_not_overflow() -> None:
    read = QuantParams(1e-6, 0, 0, 255, 8, 0.0, 1.0)
    params = QuantParams(1 / 255, 0, 0, 255, 8, 0.0, 1.0)
    step = softmax.softmax_step("y", "x", read, np.exp, -1, params, (100_000,))
    found = softmax.in_integers(step, np.zeros((1, 100_000), np.float32))
    assert (found == 0).all()
    single = softmax.softmax_step("y", "x", read, np.exp, -1, params, (1,))
    assert softmax.in_integers(single, np.zeros((1, 1), np.float32)).tolist() == [[255.0]]


def test_without_quantizers_it_is_float() -> None:
    for of, remedy in (
        (network(rounded=False), "quantize its input, the output of conv2d2"),
        (network(ends=(0.0, 1e-9)), "give its quantizer a wider range than [0, 1e-09]"),
    ):
        assert remedy in program_of(of).float_layers["softmax3"]
        assert not any(isinstance(step, SoftmaxStep) for step in program_of(of).steps)
    net = Network(*SHAPE)
    net.add("Softmax")
    net.add("Conv2D", kernel=(1, 1, 5, 2), ends=(-3.0, 3.0))
    assert "quantize its output, or" in program_of(net.model()).float_layers["softmax2"]
    assert inspect(network()).verdict.integer_only
    (advice,) = [item for item in inspect(net.model()).warnings if item.where == "softmax2"]
    assert "get_output_quantizers" in advice.remedy


def test_a_comparison_and_an_element_know_it() -> None:
    of = network(bits=16)
    found = qmath.diff(of, data(200), profile="integer", against="exact")
    (layer,) = [layer for layer in found.layers if layer.name == "softmax3/output"]
    assert layer.teacher_forced > 0  # at 16 bits, float32 decides some
    assert layer.explained
    assert layer.near_ties == layer.teacher_forced
    index = layer.differences[0].index
    at = f"softmax3/output[{','.join(map(str, index))}]"
    explained = element(of, data(200), at)
    assert explained.integers["integer"] == layer.differences[0].value
    assert explained.integers["exact"] == layer.differences[0].reference
    worse = qmath.run(of, data(), profile="exact").integers
    worse["softmax3/output"] = worse["softmax3/output"] ^ 8
    broken = qmath.diff(of, data(), against=worse)
    (layer,) = [layer for layer in broken.layers if layer.name == "softmax3/output"]
    assert not layer.explained


def test_the_manifest_and_directed_vectors_hold_it() -> None:
    bundle = quantize_model(network(1), vectors=2)
    (entry,) = [s for s in bundle.manifest["program"]["steps"] if s["kind"] == "softmax"]
    step = step_of(network(1))
    assert entry["op"] == {
        "kind": "softmax", "axis": -3, "multiplier": step.multiplier, "shift": step.shift,
    }  # fmt: skip
    assert entry["error"] == step.error
    table = bundle.constants["softmax3/output.exponentials"]
    np.testing.assert_array_equal(table, step.exponentials)
    assert table[0] == 1 << 30
    held = bundle.directed["softmax3/output"]
    assert held.purposes["every integer"] > 200


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("axis", [-1, 1])
def test_the_exported_c_computes_it(axis: int, bits: int, tmp_path: Path) -> None:
    of = network(axis, bits=bits)
    for format in ("npz", "mem", "c"):
        out = tmp_path / f"out.{format}"
        qmath.export(of, out, format=format, vectors=4)
        assert verify(of, out, format=format).ok
    assert self_check(tmp_path / "out.c").startswith("ok:")
    header = (tmp_path / "out.c" / "model.h").read_text()
    assert "yours to compute" not in header


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_network_computes_it(axis: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = Network(*SHAPE)
    name = net.add("Softmax", axis=axis, ends=(0.0, 1.0))
    of = net.model(name)
    qmath.export(of, tmp_path / "out.onnx")
    assert verify(of, tmp_path / "out.onnx").ok
    options = onnxruntime.SessionOptions()  # its optimizer has a softmax of 8 bits of its own
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), options)
    (made,) = session.run(None, {session.get_inputs()[0].name: data()})
    result = qmath.run(of, data(), profile="exact")
    assert any(isinstance(step, SoftmaxStep) for step in result.program.steps)
    difference = np.abs(made - result.outputs[f"{name}/output"]) * 255
    assert difference.max() < 1.5
    assert (difference > 0.5).mean() < 0.01
