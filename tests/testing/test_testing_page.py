"""docs/testing.md: its examples are compiled and run as they stand there, and can fail."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.S))
QMATH = f"{sys.executable} -m qmath"
PROFILE = """
import hypothesis
generate = hypothesis.Phase.generate
hypothesis.settings.register_profile(
    "page", derandomize=True, database=None, deadline=None, max_examples=60, phases=[generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("page")
"""


@pytest.fixture
def place(tmp_path):
    """Return a folder with the page's files."""
    for name, text in {**FILES, "conftest.py": PROFILE}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(command, place, status=0):
    """Run a line of the shell; return what it says."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = ["bash", "-o", "pipefail", "-c", command.replace("qmath ", f"{QMATH} ")]
    found = subprocess.run(
        line, cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == status, found.stdout + found.stderr
    return found.stdout


def needs(tool):
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")


def commands(word):
    """Return the command lines of the page that begin with a word."""
    found = [" ".join(line.split()) for line in re.findall(rf"`({word} [^`]*)`", PAGE)]
    assert found
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_examples_are_short(name):
    assert len([line for line in FILES[name].splitlines() if line]) <= 10


def passes(name, place):
    return "1 passed" in run(f"{sys.executable} -m pytest -q -p no:cacheprovider {name}", place)


def test_numpy(place):
    assert passes("test_numpy.py", place)
    wrong = FILES["test_numpy.py"].replace('c["addend"] >> c["shift"]', 'c["addend"] >> 30')
    (place / "test_numpy.py").write_text(wrong)
    said = run(f"{sys.executable} -m pytest -q -p no:cacheprovider test_numpy.py", place, 1)
    assert re.search(r"AssertionError: \d+ of \d+ integers differ", said)
    assert "steps from a rounding tie" in said


@pytest.mark.once
def test_c(place):
    needs("gcc")
    (build,) = commands("gcc")
    run(build, place)
    assert passes("test_c.py", place)
    wrong = FILES["quantize.c"].replace("floorf((fminf", "nearbyintf(-0.5f + (fminf")
    (place / "quantize.c").write_text(wrong)
    run(build, place)
    said = run(f"{sys.executable} -m pytest -q -p no:cacheprovider test_c.py", place, 1)
    assert "differ" in said


@pytest.mark.once
def test_verilog(place):
    needs("iverilog")
    (build,) = commands("iverilog")
    pipe = next(line for line in commands("qmath vectors") if "vvp" in line)
    run(build, place)
    assert run(pipe, place).startswith("equal: 10,000 results of 10,000 cases")
    (place / "requantize.v").write_text(FILES["requantize.v"].replace("scaled + zero", "scaled"))
    run(build, place)
    said = run(pipe.replace("vectors requantize", "vectors requantize --bits 4"), place, 1)
    shown = PAGE[PAGE.index("5,148 of") :].partition("```")[0]
    parts = [part for part in re.split(r"…|\n", shown) if part.strip(" )")]
    assert len(parts) >= 3
    assert [part for part in parts if part.strip() not in said] == []


@pytest.mark.once
def test_rust(place):
    needs("rustc")
    (build,) = commands("rustc")
    pipe = next(line for line in commands("qmath vectors") if "./requantize" in line)
    run(build, place)
    assert run(pipe, place).startswith("equal: 10,000 results of 10,000 cases")


def test_every_op_profile_and_strategy_is_named():
    from qmath import testing
    from qmath.testing.arithmetic import PROFILES
    from qmath.testing.pipe.settings import OPS

    names = [*OPS, *PROFILES, *(name for name in testing.__all__ if name[0].islower())]
    others = {"check_exporter", "sample_models", "make_layer"}
    assert [name for name in names if f"`{name}" not in PAGE and name not in others] == []
