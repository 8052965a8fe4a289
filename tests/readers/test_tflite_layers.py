"""TFLite files of one operation each: all are read, and what no layer computes is a cut point."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.errors import FileFormatError, QmathError
from qmath.integer.api import program_of
from qmath.integer.program import TableStep
from reference import odd_tflite
from reference.flatbuffers import encoded


def test_each_is_run_cut_or_refused(tmp_path: Path) -> None:
    came: Counter[str] = Counter()
    for number, entry in enumerate(odd_tflite.written()):
        path = tmp_path / f"{number}.tflite"
        path.write_bytes(next(iter(entry.files.values())))
        try:
            model = qmath.load(path)
        except FileFormatError as error:
            assert str(path) in str(error)
            came["refused"] += 1
            continue
        try:
            came["cut" if program_of(model).cuts else "run"] += 1
        except QmathError as error:
            assert "order of its layers" in str(error) or "shape" in str(error)
            came["not run"] += 1
    assert came["run"] > 50
    assert came["cut"] > 50
    assert came["refused"] == 3
    assert came["not run"] < 20


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("RELU", None, lambda x: np.maximum(x, 0)),
        ("RELU6", None, lambda x: np.clip(x, 0, 60)),
        ("LEAKY_RELU", {"alpha": 0.5}, lambda x: np.where(x < 0, np.floor(x * 0.5 + 0.5), x)),
    ],
)
def test_an_activation_by_itself(tmp_path: Path, name: str, options: Any, expected: Any) -> None:
    """On a scale of 0.1, so that 6 is 60; of a leaky ReLU ties go up."""
    path = tmp_path / "m.tflite"
    path.write_bytes(
        encoded(odd_tflite.model(name, (1, 1, 1, 255), shape=(1, 1, 1, 255), options=options))
    )
    x = np.arange(-127, 128, dtype=np.float32).reshape(1, 1, 1, 255) * np.float32(0.1)
    run = qmath.run(path, x, profile="tflite")
    made = run.integers["model/layer/output"].astype(np.int64) - 128
    wanted = expected(np.arange(-127, 128)).astype(np.int64)
    assert np.array_equal(made.reshape(-1), wanted)


@pytest.mark.parametrize(("zero_point", "is_width"), [(-8, 1), (7, 1), (-9, 0), (8, 0)])
def test_a_width_has_to_hold_the_zero_point(tmp_path: Path, zero_point: int, is_width: int) -> None:
    """Clamps to 4 bits that leave zero out are no width: they stay operations of their own."""
    path = tmp_path / "m.tflite"
    path.write_bytes(encoded(odd_tflite.clamps("INT8", 7, 0.1, zero_point)))
    program = program_of(qmath.load(path))
    clamps = [step for step in program.steps if isinstance(step, TableStep)]
    assert [step.kernel for step in clamps] == ["MAXIMUM", "MINIMUM"] * (1 - is_width)
    assert {step.params.num_bits for step in program.quantized} == {4 if is_width else 8, 8}


def test_integers_without_a_meaning_are_not_taken_for_floats(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    beyond = {"scale": np.float32([1]), "zero_point": np.int64([500])}
    path.write_bytes(encoded(odd_tflite.model("RELU", (1, 4, 4, 2), made={"quantization": beyond})))
    assert [cut.class_name for cut in program_of(qmath.load(path)).cuts] == ["RELU"]


@pytest.mark.parametrize(("activation", "high"), [(1, 127), (3, 60)])
def test_an_average_with_an_activation(tmp_path: Path, activation: int, high: int) -> None:
    """It is rounded, then clamped: two steps on one scale, which the profiles compute."""
    window = {"stride_w": 2, "stride_h": 2, "filter_width": 2, "filter_height": 2, "padding": 1}
    path = tmp_path / "m.tflite"
    options = window | {"fused_activation_function": activation}
    path.write_bytes(encoded(odd_tflite.model("AVERAGE_POOL_2D", (1, 2, 2, 2), options=options)))
    q = np.random.default_rng(3).integers(-128, 128, (9, 4, 4, 2))
    run = qmath.run(path, q.astype(np.float32) * np.float32(0.1), profile="tflite")
    mean = q.reshape(9, 2, 2, 2, 2, 2).sum((2, 4)) / 4
    wanted = np.clip(np.trunc(mean + np.copysign(0.5, mean)), 0, high)
    (real,) = run.outputs.values()
    assert np.array_equal(np.rint(real / np.float32(0.1)), wanted)
    assert (wanted == 0).any()


def test_a_tanh_that_the_kernels_leave_out_is_not_computed(tmp_path: Path) -> None:
    """TFLite's kernels for integers ignore it, and no converter writes it."""
    options = {"stride_w": 1, "stride_h": 1, "fused_activation_function": 4}
    kernel = np.ones((3, 1, 1, 2), np.int8)
    path = tmp_path / "m.tflite"
    path.write_bytes(encoded(odd_tflite.model("CONV_2D", (1, 4, 4, 3), kernel, options=options)))
    assert [cut.class_name for cut in program_of(qmath.load(path)).cuts] == ["activation_4"]
