"""Equal inputs give equal bytes: with this Python and NumPy, and with others where there are some.

If a format is meant to change, write its digests anew:
``python -m tests.exports.exported_bytes > tests/exports/exported_bytes.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qmath.exports.registry import FORMATS

GOLDEN = Path(__file__).with_name("exported_bytes.json")
ROOT = Path(__file__).parents[2]
PROBE = "import sys, numpy; print(*sys.version_info[:2]); assert sys.version_info >= (3, 10)"


def run(python: str | Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    other = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [python, *arguments], cwd=ROOT, env=os.environ | other, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


def others() -> dict[str, str | Path]:
    """Return the other Pythons that have NumPy, by version."""
    here = "{} {}".format(*sys.version_info)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    named = [shutil.which(f"python3.{minor}") for minor in range(10, 20)]
    found: dict[str, str | Path] = {}
    for python in (*filter(None, named), *sorted(versions.glob("3.*/bin/python"))):
        probe = run(python, "-c", PROBE)
        if not probe.returncode and probe.stdout.strip() != here:
            found.setdefault(probe.stdout.strip(), python)
    return found


def assert_golden(python: str | Path) -> None:
    done = run(python, "-m", "tests.exports.exported_bytes")
    assert not done.returncode, done.stderr
    golden, found = json.loads(GOLDEN.read_text(encoding="utf-8")), json.loads(done.stdout)
    assert found.keys() == golden.keys() >= FORMATS.keys()
    written = {name for name, digest in found.items() if digest}
    assert written >= golden.keys() - {"h5", "onnx", "qonnx", "tflite"}  # which need packages
    assert {name: found[name] for name in written} == {name: golden[name] for name in written}


def test_every_format_has_the_bytes_that_it_had() -> None:
    assert_golden(sys.executable)


@pytest.mark.slow
def test_other_pythons_write_the_same_bytes() -> None:
    pythons = others()
    if not pythons:
        pytest.skip("no other Python from 3.10 on has NumPy here")
    for python in pythons.values():
        assert_golden(python)
