"""The system's C compiler, as strict as exported sources have to stand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler cc")


def compiled(folder: Path, *sources: Path, options: tuple[str, ...] = ()) -> Path:
    """Compile the sources, or all of a folder, and return the program, which lies beside it."""
    program = folder.with_name(folder.name + "_program")
    files = sources or sorted(folder.glob("*.c"))
    command = ["cc", *STRICT, *options, f"-I{folder}", *files, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert not done.stderr
    return program


def run(program: Path) -> tuple[int, str]:
    """Return a program's exit status and output."""
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout


def self_check(folder: Path) -> str:
    """Return what an exported folder's self-check says, which passes; skip without a compiler."""
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler cc")
    status, said = run(compiled(folder, options=("-O1",)))
    assert status == 0
    return said
