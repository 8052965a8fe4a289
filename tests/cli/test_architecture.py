"""Every verb takes weights alone, with the architecture from another file."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.cli.running import fails, run

SAMPLES = Path(__file__).parents[2] / "reference" / "samples"
WHOLE = SAMPLES / "default8.h5"
DATA = SAMPLES / "digits_test.npz"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """What ``save_weights`` writes of a sample."""
    path = tmp_path / "weights.h5"
    with h5py.File(WHOLE) as whole, h5py.File(path, "w") as file:
        group = whole["model_weights"]
        for name in group:
            whole.copy(group[name], file, name)
        file.attrs["layer_names"] = group.attrs["layer_names"]
    return path


def test_export_and_verify(tmp_path: Path, weights: Path) -> None:
    out, expected = tmp_path / "out.npz", tmp_path / "expected.npz"
    assert run("export", weights, "-o", out, "--architecture", WHOLE).exit_code == 0
    assert run("export", WHOLE, "-o", expected).exit_code == 0
    with np.load(out) as found, np.load(expected) as wanted:
        assert set(found) == set(wanted)
        for name in set(found) - {"manifest"}:
            np.testing.assert_array_equal(found[name], wanted[name])
    assert run("verify", weights, out, "--architecture", WHOLE).exit_code == 0
    other = run("verify", WHOLE, out)
    assert other.exit_code == 1
    assert "source sha256" in other.stdout


def test_inspect(weights: Path) -> None:
    assert "weights 0/3 ready" in run("inspect", weights).stdout
    with_layers = run("inspect", weights, "--architecture", WHOLE).stdout
    assert with_layers.splitlines()[1:] == run("inspect", WHOLE).stdout.splitlines()[1:]


@pytest.mark.parametrize("verb", ["run", "diff"])
def test_run_and_diff(weights: Path, verb: str) -> None:
    assert "holds no layers" in fails(verb, weights, DATA)
    assert run(verb, weights, DATA, "--architecture", WHOLE).stdout == run(verb, WHOLE, DATA).stdout


def test_two_architectures(weights: Path) -> None:
    assert "holds its own architecture" in fails("inspect", WHOLE, "--architecture", WHOLE)
    other = fails("inspect", weights, "--architecture", SAMPLES / "question.h5")
    assert "quantizes bn in the former alone" in other
    assert "weights.h5" in other
    assert "question.h5" in other


def test_the_architecture_is_not_overwritten(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(WHOLE.read_bytes())
    said = fails("export", weights, "--architecture", path, "-o", path, "--overwrite")
    assert "model.npz" in said
    assert path.read_bytes() == WHOLE.read_bytes()
