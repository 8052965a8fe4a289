"""Every verb takes the directory of a SavedModel."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("google.protobuf")
pytest.importorskip("google_crc32c")

from tests.cli.running import run

MODEL = (
    Path(__file__).parents[2] / "reference" / "golden" / "saved_models" / "tf2.21" / "functional"
)
SAVED = MODEL / "exported"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npy"
    np.save(path, np.random.default_rng(0).uniform(0, 3.5, (4, 6, 6, 2)).astype(np.float32))
    return path


def test_inspect_shows_the_graph_as_evidence() -> None:
    shown = run("inspect", SAVED).stdout
    assert "integer-only: yes" in shown
    assert "graph" in shown


def test_export_and_verify(tmp_path: Path) -> None:
    out, expected = tmp_path / "out.npz", tmp_path / "expected.npz"
    assert run("export", SAVED, "-o", out).exit_code == 0
    assert run("export", MODEL / "whole.h5", "-o", expected).exit_code == 0
    with np.load(out) as found, np.load(expected) as wanted:
        assert set(found) == set(wanted)
        for name in set(found) - {"manifest"}:
            np.testing.assert_array_equal(found[name], wanted[name])
    assert run("verify", SAVED, out).exit_code == 0


@pytest.mark.parametrize("verb", ["run", "diff"])
def test_run_and_diff(verb: str, data: Path) -> None:
    result = run(verb, SAVED, data)
    assert result.exit_code == 0
    assert result.stdout == run(verb, MODEL / "whole.h5", data).stdout
