"""JSON that asks for far more memory than it has bytes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qmath.containers.bounded_json import MAX_BYTES, MAX_VALUES, parse_json, parse_long_json
from qmath.errors import FileFormatError


@pytest.mark.parametrize(
    "text",
    ["[" + "[]," * 500_000 + "0]", "[" + "{}," * 500_000 + "0]", b"[" + b"1," * 500_000 + b"0]"],
)
def test_more_values_than_a_model_has(text: str | bytes) -> None:
    with pytest.raises(FileFormatError, match=r"file: the JSON holds .* values in"):
        parse_json(text, "file")


def test_a_longer_text() -> None:
    text = '"' + "a" * MAX_BYTES + '"'
    with pytest.raises(FileFormatError, match=r"file: .* bytes of JSON are more than"):
        parse_json(text, "file")
    assert len(parse_long_json(text, "file", "export again")) == MAX_BYTES


def test_what_qmath_writes_may_be_denser() -> None:
    text = "[" + "0, " * MAX_VALUES * 2 + "0]"
    assert len(parse_long_json(text, "file", "export again")) == 2 * MAX_VALUES + 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound the address space")
@pytest.mark.parametrize("function", ["parse_json", "parse_long_json"])
def test_brackets_take_no_memory(function: str) -> None:
    code = f"""
import resource
from qmath.containers.bounded_json import {function}
text = b"[" * (132 << 20)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (124 << 20),) * 2)
{function}(text, "file", "again")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "qmath.errors.FileFormatError: file: " in run.stderr
