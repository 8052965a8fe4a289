"""docs/plugins.md: its package is built, installed and run as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.S))


def test_the_format_is_short():
    assert len(FILES["qmath_vhdl.py"].splitlines()) <= 40


def test_the_package_of_the_page(tmp_path):
    for tool in ("pip", "hatchling", "h5py", "click"):
        pytest.importorskip(tool)
    source, place, output = tmp_path / "source", tmp_path / "installed", tmp_path / "rom.vhd"
    source.mkdir()
    for name, text in FILES.items():
        (source / name).write_text(text)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}

    def python(*arguments):
        run = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=source, env=environment, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    python("pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target",
           str(place), str(source))  # fmt: skip
    model = str(ROOT / "reference" / "samples" / "question.h5")
    python("qmath", "export", model, "-o", str(output), "--option", "package=rom", "--unsigned")
    assert output.read_text().startswith("package rom is\n")
    assert "equal" in python("qmath", "verify", model, str(output))
    assert "1 passed" in python("pytest", "-q", "-p", "no:cacheprovider", "test_vhdl.py")
    if shutil.which("ghdl"):
        subprocess.run(["ghdl", "-a", output], cwd=tmp_path, check=True)
