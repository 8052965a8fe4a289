"""Hostile HDF5 files: refused with one error, or read right, within bounded memory and time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from qmath.readers.loading import load
from tests.attacks.hdf5_files import ATTACKS, READ
from tests.attacks.jail import judge
from tests.readers.builders import kernel, one_layer


@pytest.mark.parametrize("isolate", [False, True], ids=["here", "isolated"])
@pytest.mark.parametrize("name", ATTACKS)
def test_attack(tmp_path: Path, name: str, isolate: bool) -> None:
    build, message = ATTACKS[name]
    path, config = tmp_path / "model.h5", tmp_path / "config.json"
    build(path)
    outcome, said = judge(path, config if config.exists() else None, isolate=isolate)
    # Values are read, and refused, when the integers are made.
    wanted = "QmathError" if name == "kernel_of_nan" else "FileFormatError"
    assert outcome == wanted, said
    assert re.search(message, said)


@pytest.mark.parametrize("isolate", [False, True], ids=["here", "isolated"])
@pytest.mark.parametrize("name", READ)
def test_what_is_read_right(tmp_path: Path, name: str, isolate: bool) -> None:
    path = tmp_path / "model.h5"
    READ[name](path)
    outcome, said = judge(path, isolate=isolate)
    assert (outcome, json.loads(said)[0]) == ("read", ["d/kernel"])
    values = np.asarray(load(path).tensors["d/kernel"].values)
    assert values.tobytes() == next(iter(kernel().values())).tobytes()
    assert name != "code_in_a_lambda" or "Lambda layers carry Python code" in said


def test_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    content = one_layer(path).read_bytes()
    for size in range(0, len(content), len(content) // 12):
        path.write_bytes(content[:size])
        assert judge(path).outcome == "FileFormatError", size
