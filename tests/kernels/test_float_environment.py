"""Whatever floating-point environment other libraries leave: equal bits, or an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exports.compiling import needs_compiler
from tests.kernels.float_results import SOURCE

ROOT = Path(__file__).parents[2]
ROUNDING = "QmathError: this thread does not round floats to the nearest"
FLUSHING = "this thread takes subnormals for zero"


def python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return done.stdout


def results(environment: str, library: Path | str = "") -> dict[str, str]:
    return json.loads(python("-m", "tests.kernels.float_results", environment, str(library)))


@pytest.fixture(scope="module")
def plain() -> dict[str, str]:
    found = results("plain")
    assert sum(": " not in result for result in found.values()) > 150
    return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    source, built = folder / "environment.c", folder / "environment.so"
    source.write_text(SOURCE, encoding="utf-8")
    command = ["cc", "-shared", "-fPIC", "-O0", str(source), "-o", str(built), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this compiler has no access to the floating-point unit: {done.stderr[:200]}")
    return built


def test_exceptions_that_numpy_is_told_to_raise(plain: dict[str, str]) -> None:
    assert results("seterr") == plain


@needs_compiler
def test_subnormals_that_count_as_zero(plain: dict[str, str], library: Path) -> None:
    found = results("flush_to_zero", library)
    assert found.keys() == plain.keys()
    refused = [name for name, result in found.items() if FLUSHING in result]
    assert {name.split()[0] for name in refused} == {"recover", "softmax", "float"}
    ordinary = {name for name in plain if name.startswith("float 1.0 1.0 ")}
    assert len(ordinary) == 13
    assert ordinary.isdisjoint(refused)
    for name in plain.keys() - {*refused}:
        # In the text of an error a subnormal is printed as it is taken.
        assert found[name].split(":")[0] == plain[name].split(":")[0], name


@needs_compiler
def test_other_rounding_modes_are_refused(plain: dict[str, str], library: Path) -> None:
    for mode in ("down", "up", "toward_zero"):
        found = results(mode, library)
        assert found.keys() == plain.keys()
        assert {result[: len(ROUNDING)] for result in found.values()} == {ROUNDING}, mode


@needs_compiler
@pytest.mark.parametrize("mode", ["flush_to_zero", "up"])
def test_what_is_kept_from_call_to_call(mode: str, plain: dict[str, str], library: Path) -> None:
    assert results(f"after {mode}", library) == plain


@needs_compiler
@pytest.mark.parametrize("mode", ["down", "up", "toward_zero"])
def test_no_constant_is_computed_in_another_mode(mode: str, library: Path, tmp_path: Path) -> None:
    code = (
        f"import ctypes, numpy; unit = ctypes.CDLL({str(library)!r}); unit.{mode}()\n"
        "import qmath\n"
        "try: qmath.quantize\n"
        "except qmath.QmathError as error: print(error)\n"
        "unit.to_nearest(); print(qmath.quantize([0.3], -1.0, 0.75, 3).values)"
    )
    # The compiler folds constants in that mode, too; nothing compiled before is used, or kept.
    first, second = python("-B", "-X", f"pycache_prefix={tmp_path}", "-c", code).splitlines()
    assert f"QmathError: {first}".startswith(ROUNDING)
    assert second == "[1]"
