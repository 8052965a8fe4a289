"""Every verb lets another process read the model."""

from pathlib import Path

import pytest

from qmath.containers import isolation
from tests.cli.running import fails, run

SAMPLES = Path(__file__).parents[2] / "reference" / "samples"
MODEL = SAMPLES / "default8.h5"
DATA = SAMPLES / "digits_test.npz"


@pytest.mark.parametrize("verb", ["inspect", "export", "verify", "run", "diff"])
def test_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    out = tmp_path / "out.npz"
    run("export", MODEL, "-o", out)
    arguments = {"inspect": [], "export": ["-o", out, "--overwrite"], "verify": [out]}
    command = [verb, MODEL, *arguments.get(verb, [DATA])]
    expected = run(*command)
    content = out.read_bytes()
    isolated = run(*command, "--isolate")
    assert (isolated.stdout, isolated.exit_code) == (expected.stdout, expected.exit_code)
    assert out.read_bytes() == content
    monkeypatch.setattr(isolation, "spawn", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*command, "--isolate")


def test_errors_are_the_same(tmp_path: Path) -> None:
    broken = tmp_path / "broken.h5"
    broken.write_bytes(MODEL.read_bytes()[:5000])
    assert fails("inspect", broken, "--isolate") == fails("inspect", broken)
