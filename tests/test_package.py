"""What is published: the wheel and the source archive, built from the clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import qmath

ROOT = Path(__file__).parents[1]
VERSION = qmath.__version__


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both, as `hatchling build` leaves them."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=ROOT, env=os.environ | {"SOURCE_DATE_EPOCH": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def metadata(built: Path) -> Message:
    with zipfile.ZipFile(built / f"qmath_tfmot-{VERSION}-py3-none-any.whl") as wheel:
        return Parser().parsestr(
            wheel.read(f"qmath_tfmot-{VERSION}.dist-info/METADATA").decode("utf-8")
        )


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(built / f"qmath_tfmot-{VERSION}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "qmath"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tracked.returncode:
        pytest.skip("not a clone")
    assert names == {*tracked.stdout.split()}
    assert {"qmath/py.typed", "qmath/cli/results.schema.json"} <= names


def test_the_source_archive_holds_what_tests_and_pages_need(built: Path) -> None:
    with tarfile.open(built / f"qmath_tfmot-{VERSION}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "qmath/__init__.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md",
        "docs/conf.py", "docs/tutorial.md", "docs/_static/site.css", "tests/test_package.py",
        "reference/samples/question.h5", "benchmarks/results.json",
    } <= names  # fmt: skip


def test_the_metadata(built: Path) -> None:
    found = metadata(built)
    assert (found["Name"], found["Version"]) == ("qmath-tfmot", VERSION)
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload() == (ROOT / "README.md").read_text("utf-8")
    needed = [line for line in found.get_all("Requires-Dist") or () if "extra ==" not in line]
    assert needed == ["numpy>=1.26"]
    assert {"cli", "docs", "onnx", "testing", "tflite"} <= {
        *(found.get_all("Provides-Extra") or ())
    }


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    (first, *_) = re.findall(r"^## \[(.*?)\] - \d{4}-\d{2}-\d{2}$", text, re.MULTILINE)
    assert first == VERSION
    section = text.split("\n## ")[1]
    parts = re.findall(r"^### (.*)$", section, re.MULTILINE)
    assert parts == ["Added", "Changed", "Fixed"]
    assert "docs/upgrading.md" in section


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200
