"""What Keras of two releases wrote, in every container, reads as what it held when it wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from reference.zoo import GOLDEN, READINGS, check, main

FOLDERS = sorted(path.parent for path in GOLDEN.rglob("expected.npz"))
# A checkpoint has no name for a model inside another.
RENAMED = {("nested", "checkpoint")}
# A range there can be an activation's or the output's, and a file without names tells it of none.
ASKED = {("lstm", reading) for reading in ("model.keras", "model.weights.h5+")}
# Keras cannot write two variables of one name.
UNWRITTEN = {("stacked_rnn", reading) for reading in ("whole.h5", "names.h5", "names.h5+")}
WRITTEN = [reading for reading in READINGS if not reading.endswith(("saved", "exported"))]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: "-".join(path.parts[-2:]))
@pytest.mark.parametrize("reading", WRITTEN)
def test_what_keras_wrote(folder: Path, reading: str) -> None:
    outcome = check(folder, reading)
    key = (folder.name, reading)
    expected = None if key in UNWRITTEN else "≈" if key in RENAMED else "?" if key in ASKED else "="
    assert (outcome and outcome.mark) == expected, outcome


def test_there_are_two_releases() -> None:
    assert {folder.parent.name for folder in FOLDERS} == {"tf2.13", "tf2.21"}


@pytest.mark.parametrize("part", ["kernel|values", "kernel|min", "bias|max"])
def test_a_bit_that_differs_is_told(
    tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "tf2.21" / "kernel_bias", folder)
    assert main([str(tmp_path), "--check"]) == 0
    with np.load(folder / "expected.npz") as arrays:
        content = dict(arrays)
    (key,) = (key for key in content if key.endswith(f"|d|{part}"))
    content[key] = np.nextafter(content[key], np.float32(9), dtype=np.float32)
    np.savez(folder / "expected.npz", **content)
    assert main([str(tmp_path), "--check"]) == 1
    assert f"lacks d/{part.partition('|')[0]}" in capsys.readouterr().out
