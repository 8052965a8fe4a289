"""Archives whose arrays grow side by side."""

import io
import tracemalloc

import numpy as np
import pytest

from qmath.errors import QmathError
from qmath.exports.arrays.growing import GrowingNpz, Shaped
from qmath.exports.arrays.npz import write_arrays

RNG = np.random.default_rng(0)
ARRAYS = {
    "a/b": RNG.integers(0, 256, (7, 3, 2)).astype(np.uint8),
    "constants": np.arange(5),
    "none": np.zeros((0, 4), np.float32),
    "é": RNG.normal(size=(7, 5)).astype(np.float32),
}
GROWING = ("a/b", "é")


def begun(file):
    return GrowingNpz(
        file,
        [(n, Shaped(x.dtype, x.shape) if n in GROWING else x) for n, x in ARRAYS.items()],
    )


def rows(start, stop):
    return {name: ARRAYS[name][start:stop] for name in GROWING}


def expected():
    file = io.BytesIO()
    write_arrays(file, ARRAYS.items())
    return file.getvalue()


def test_the_file_is_that_of_the_whole_arrays():
    file = io.BytesIO()
    grown = begun(file)
    for start in range(0, 7, 3):
        grown.write(rows(start, start + 3))
    grown.finish()
    assert file.getvalue() == expected()


def test_it_goes_on_from_a_file(tmp_path):
    with open(tmp_path / "x", "w+b") as file:
        grown = begun(file)
        grown.write(rows(0, 2))
        state = grown.state()
        grown.write(rows(2, 5))  # and the process is killed
    with open(tmp_path / "x", "r+b") as file:
        grown = begun(file)
        grown.restore(state)
        for start, stop in ((2, 3), (3, 7)):
            grown.write(rows(start, stop))
        grown.finish()
    assert (tmp_path / "x").read_bytes() == expected()
    with open(tmp_path / "x", "r+b") as file:
        file.seek(file.read().index(b"\x93NUMPY") + 128)  # a row of the first array
        file.write(bytes(4))
        with pytest.raises(QmathError, match="the rows of a/b that were written are not there"):
            begun(file).restore(state)


def test_what_does_not_fit_is_refused():
    for wrong in (
        {"other": np.zeros(1)},
        {"é": np.zeros((1, 5))},
        {"é": np.zeros((1, 4), np.float32)},
        {"é": np.zeros((8, 5), np.float32)},
    ):
        with pytest.raises(QmathError, match="do not fit"):
            begun(io.BytesIO()).write(wrong)
    grown = begun(io.BytesIO())
    grown.write(rows(0, 6))
    with pytest.raises(QmathError, match="a/b: 36 of 42 bytes"):
        grown.finish()
    with pytest.raises(QmathError, match="rename the layer"):
        GrowingNpz(io.BytesIO(), [("a", np.zeros(1)), ("a", np.zeros(1))])


def test_large_members_have_the_fields_of_zip64(monkeypatch):
    monkeypatch.setattr("qmath.exports.arrays.npz._LARGEST", 100)
    file = io.BytesIO()
    grown = begun(file)
    grown.write(rows(0, 7))
    grown.finish()
    assert file.getvalue() == expected()


def test_memory_does_not_grow_with_the_rows(tmp_path):
    part = np.zeros((1000, 100), np.float32)
    with open(tmp_path / "x.npz", "wb") as file:
        tracemalloc.start()
        grown = GrowingNpz(file, [("x", Shaped(part.dtype, (50_000, 100)))])
        for _ in range(50):
            grown.write({"x": part})
        grown.finish()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2 * part.nbytes
    assert np.load(tmp_path / "x.npz")["x"].shape == (50_000, 100)
