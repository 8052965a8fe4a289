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
    assert came["not run"] < 10


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
