"""Hostile HDF5 files: refused with one error, or read right, within bounded memory and time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from qmath.readers.loading import load
from tests.attacks.hdf5_files import ATTACKS, KERNEL, READ, replace
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
    wanted = "NanError" if name == "kernel_of_nan" else "FileFormatError"
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


@pytest.mark.parametrize("isolate", [False, True], ids=["here", "isolated"])
def test_weights_that_are_compressed_may_take_their_size(tmp_path: Path, isolate: bool) -> None:
    path = one_layer(tmp_path / "model.h5", None, kernel(shape=(1024, 1024)))
    values = np.repeat(np.linspace(-0.8, 0.7, 1 << 15, dtype=np.float32), 32).reshape(1024, 1024)
    with h5py.File(path, "r+") as file:
        replace(file, KERNEL, data=values, compression="gzip")
    with h5py.File(path) as file, h5py.File(tmp_path / "copy.h5", "w") as copy:
        for name in file:
            file.copy(name, copy)
        copy.attrs.update(file.attrs)
    copied = tmp_path / "copy.h5"
    outcome, said = judge(copied, isolate=isolate, declared=values.nbytes)
    assert outcome == "read", said
    assert np.asarray(load(copied).tensors["d/kernel"].values).tobytes() == values.tobytes()


def test_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    content = one_layer(path).read_bytes()
    for size in range(0, len(content), len(content) // 12):
        path.write_bytes(content[:size])
        assert judge(path).outcome == "FileFormatError", size
