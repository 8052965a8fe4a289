"""What ``qmath run -o`` writes of a program that a runtime computes in other steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import qmath
from qmath.cli.written import Written, written
from qmath.integer.executor import planned
from qmath.integer.profiles.tflite import Tflite
from tests.helpers import read_npz
from tests.integer.test_converter import DATA, joined, layer, program


def test_steps_that_a_runtime_does_not_have_are_not_written(tmp_path: Path) -> None:
    made = program(layer("a"), joined("c", "q", "a"))
    output = tmp_path / "out.npz"
    names = [step.name for step in made.steps]
    to = Written(output, made, planned(made, Tflite()), DATA, {}, names, {}, overwrite=False)
    assert to.quantized == ["q", "c"]
    with written(to, None) as sink:
        qmath.run(made, DATA, profile="tflite", keep=to.kept, sink=sink)
    whole = qmath.run(made, DATA, profile="tflite")
    found = read_npz(output)
    assert list(found) == ["output/c", *whole.integers]
    for name, x in (whole.integers | {"output/c": whole.outputs["c"]}).items():
        assert found[name].dtype == x.dtype
        np.testing.assert_array_equal(found[name], x)
