"""``qmath recover`` as a user runs it."""

import numpy as np
import pytest

import qmath
from tests.cli.running import fails, run

F = np.float32


def save(path, **arrays):
    np.savez(path, **{name.replace("__", "/"): values for name, values in arrays.items()})
    return path


@pytest.fixture
def kernel():
    k = np.random.default_rng(0).integers(-8, 8, (3, 3, 2, 5))
    k[0, 0, 0] = -8, -8, 7, 7, -8
    k[..., 1] = 0
    k[..., 3] = k[..., 3] // 2 * 2
    return k.astype(F) * F([0.1, 1, 0.2, 0.3, 0.4])


def test_integers_scales_and_what_else_fits(tmp_path, kernel):
    path = save(tmp_path / "w.npz", conv1__kernel=kernel, labels=np.arange(3))
    result = run("recover", path, "--axis", -1, "--max-bits", 4, "-o", tmp_path / "o.npz")
    assert result.exit_code == 0
    title, row, dead, halved, skipped, written = result.stdout.splitlines()
    assert title.split() == ["tensor", "shape", "bits", "lattice", "zero", "points"]
    assert row.split("  ")[0] == "conv1/kernel"
    assert "(integers - zero_point) * scale, scale 0.1 … 0.6" in row
    assert row.rstrip().endswith("0 … 0  ambiguous")
    assert dead == "conv1/kernel: ambiguous in 1 channel (1), all zero"
    assert halved == (
        "conv1/kernel: ambiguous in 1 channel (3), multiples: integers times 2 (4 bits)"
    )
    assert skipped == "labels: skipped, as it is int64"
    assert written == f"{tmp_path / 'o.npz'}: integers of 1 array"
    with np.load(tmp_path / "o.npz") as arrays:
        integers, scale = arrays["conv1/kernel"], arrays["conv1/kernel.scale"]
        assert integers.dtype == np.int8
        assert scale.dtype == F
        zero_point = arrays["conv1/kernel.zero_point"]
        real = (integers.astype(np.int32) - zero_point).astype(np.float32) * scale
        np.testing.assert_array_equal(real, kernel)
        assert str(arrays["conv1/kernel.form"]) == "(integers - zero_point) * scale"
        assert len(arrays.files) == 4


def test_the_zero_point_is_added(tmp_path):
    path = tmp_path / "relu.npy"
    values = np.arange(16).astype(F) * F(0.4)
    np.save(path, values)
    for options, dtype, first in (
        (["--zero-point", -8], np.int8, -8),
        (["--zero-point", 0, "--unsigned"], np.uint8, 0),
    ):
        result = run(
            "recover", path, "--max-bits", 4, *options, "-o", tmp_path / "o.npz", "--overwrite"
        )
        assert result.exit_code == 0
        assert "unique" in result.stdout
        with np.load(tmp_path / "o.npz") as arrays:
            assert arrays["relu"].dtype == dtype
            assert arrays["relu"].tolist() == list(range(first, first + 16))
            assert arrays["relu.zero_point"] == first


def test_what_has_no_lattice_is_not_written(tmp_path, kernel):
    noise = F(np.random.default_rng(0).normal(size=(3, 20)))
    path = save(tmp_path / "w.npz", noise=noise, tensor=kernel[..., 0])
    result = run("recover", path, "--max-bits", 8, "-o", tmp_path / "o.npz")
    assert result.exit_code == 1
    assert "none that is exact: off by up to" in result.stdout
    assert "noise: if each channel has a scale of its own, give their axis" in result.stdout
    assert "tensor: ambiguous, multiples: integers times 2 (5 bits), " in result.stdout
    with np.load(tmp_path / "o.npz") as arrays:
        assert [name for name in arrays.files if "." not in name] == ["tensor"]
    per_channel = run("recover", path, "--max-bits", 8, "--axis", 0)
    assert per_channel.exit_code == 1
    assert "in 3 channels" in per_channel.stdout


def test_other_forms_and_negative_zeros(tmp_path):
    q = np.arange(16).astype(F)
    values = np.round(np.arange(-7, 8) * F(0.9) / 2) * F(0.3)
    assert np.signbit(values[values == 0]).any()
    divided = np.arange(-127, 128).astype(F) / F(100)
    path = save(tmp_path / "w.npz", dorefa=2 * (q / F(15)) - 1, divided=divided, lsq=values)
    result = run("recover", path, "--max-bits", 8)
    assert result.exit_code == 0
    assert "2 * (integers / scale) - 1, scale 15.0" in result.stdout
    assert "(integers - zero_point) / scale, scale 100.0" in result.stdout
    assert "lsq: 1 value is -0.0, which comes back as 0.0" in result.stdout


def test_many_channels_and_alternatives_are_counted(tmp_path):
    rows = [[1, 2**exponent + 1] for exponent in range(1, 9)]
    path = save(tmp_path / "w.npz", w=np.array(rows, F))
    result = run("recover", path, "--axis", 0, "--max-bits", 10)
    assert result.exit_code == 0
    assert "w: ambiguous in 4 further channels" in result.stdout
    assert "(3 bits), integers times 3 (4 bits), " in result.stdout
    assert ", …" in result.stdout


def test_one_call_is_the_python_function(tmp_path, kernel):
    np.save(tmp_path / "k.npy", kernel)
    run("recover", tmp_path / "k.npy", "--axis", 3, "-o", tmp_path / "o.npz")
    found = qmath.recover(kernel, axis=3)
    with np.load(tmp_path / "o.npz") as arrays:
        np.testing.assert_array_equal(arrays["k"], found.integers, strict=True)
        np.testing.assert_array_equal(arrays["k.scale"], found.scale, strict=True)


def test_bad_input_is_one_line(tmp_path):
    ones = np.ones(3, F)
    cases = {
        "nan": ({"a": F([1, np.nan])}, [], "a: the value at (1,) is nan"),
        "double": ({"a": np.array([0.1])}, [], "a: the value at (0,), 0.1, is no float32"),
        "integers": ({"a": np.arange(3)}, [], "holds no floats, but int64"),
        "empty": ({}, [], "holds no floats, but nothing"),
        "pickle": ({"a": np.array([{}], object)}, [], "is not an .npz or .npy of plain arrays"),
        "axis": ({"a": ones}, ["--axis", 1], "a: axis=1 of values of 1 dimensions"),
        "width": ({"a": ones}, ["--max-bits", 17], "17 is not in the range"),
        "zero": ({"a": ones}, ["--zero-point", -1, "--unsigned"], "a: zero_point=-1 is not in 0"),
        "clash": ({"a": ones, "a.scale": ones}, ["-o", tmp_path / "o"], "a.scale is an array"),
    }
    for name, (arrays, options, message) in cases.items():
        path = save(tmp_path / f"{name}.npz", **arrays)
        if name != "clash":
            assert message in fails("recover", path, *options)
        else:
            result = run("recover", path, *options)
            assert result.exit_code == 2
            assert message in result.stderr
    assert not (tmp_path / "o").exists()
    assert "there is no such file" in fails("recover", tmp_path / "missing.npz")
    assert "is an input itself" in fails(
        "recover", tmp_path / "nan.npz", "-o", tmp_path / "nan.npz", "--overwrite"
    )
    assert "exists" in fails("recover", tmp_path / "axis.npz", "-o", tmp_path / "zero.npz")
