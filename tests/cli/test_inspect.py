"""``qmath inspect`` on terminals of several widths, and what shells complete."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from rich.cells import cell_len
from rich.console import Console

import qmath
from qmath.cli.app import app
from qmath.cli.diff import _COLUMNS
from qmath.cli.inspect import same_cells
from qmath.cli.tables import tables
from qmath.inspection.cells import cells
from qmath.inspection.report import Row
from tests.cli.terminals import on_terminal

QUESTION = Path("reference/samples/question.h5")

needs_a_terminal = pytest.mark.skipif(
    sys.platform == "win32", reason="there are no pseudo-terminals"
)


@needs_a_terminal
@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_cell_is_shown_at_every_width(width: int) -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[a-z]", "", on_terminal(width, "inspect", QUESTION))
    lines = text.splitlines()
    rows = [row for row in qmath.inspect(QUESTION).rows if row.role != "float"]
    head = [line for line in lines if line.startswith("tensor ")]
    assert all(title in " ".join(head) for title in cells(rows[0]))
    table = lines[lines.index(head[0]) : next(i for i, s in enumerate(lines) if " float te" in s)]
    assert max(map(cell_len, table)) <= width
    words = " ".join(table).split()
    for row in rows:
        for cell in cells(row).values():
            assert set(cell.split()) <= set(words), cell
    assert len(head) == {80: 3, 100: 2, 120: 2, 200: 1}[width]


@pytest.mark.parametrize(("width", "parts"), [(60, 2), (80, 1), (100, 1)])
def test_the_table_of_diff_is_not_cut(width: int, parts: int) -> None:
    names = ("quantize_layer/output", "conv1/post_activation", "block_1/add")
    cells = ("368,640", "304", "1,236", "1", "2.7e-03", "7.6e-04")
    rows = [dict(zip(("tensor", *_COLUMNS), (name, *cells), strict=True)) for name in names]
    out = Console(width=width, file=io.StringIO())
    made = tables(rows, _COLUMNS, out)
    out.print(*made)
    words = out.file.getvalue().split()
    assert len(made) == parts
    assert {*names, *cells} <= set(words)
    assert set(" ".join(_COLUMNS).split()) <= set(words)


def test_what_every_row_of_a_long_table_says_is_said_once() -> None:
    row = cells(Row("conv/kernel", "weight", num_bits=8, provenance={"num_bits": "config"}))
    assert same_cells([row] * 3) == {}
    rows = [row | {"tensor": f"conv{i}/kernel", "used": f"{i}/255"} for i in range(20)]
    assert same_cells(rows) == {
        "role": "weight", "bits": "8", "learnt from": "config", "scheme": "float",
    }  # fmt: skip


SHELLS = {
    "bash": "source <(_QMATH_COMPLETE=bash_source qmath); COMP_WORDS=({line}); COMP_CWORD={last}; "
    "_qmath_completion qmath; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
    "fish": "_QMATH_COMPLETE=fish_source qmath | source; complete -C {quoted}",
    "zsh": "COMP_WORDS={quoted} COMP_CWORD={last} _QMATH_COMPLETE=zsh_complete qmath",
}
LINES = {
    "qmath export model.h5 --format qo": ["qonnx"],
    f"qmath run {QUESTION} data.npz --keep conv1/p": ["conv1/post_activation"],
    f"qmath export {QUESTION} --quantizer dw1/d": ["dw1/depthwise_kernel="],
    "qmath run there-is-none.h5 --keep conv1/k": [],
}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("line", LINES)
def test_shells_complete_formats_and_names(shell: str, line: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = tmp_path / "qmath"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qmath "$@"\n')
    command.chmod(0o755)
    script = SHELLS[shell].format(line=line, quoted=f"'{line}'", last=len(line.split()) - 1)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shell, "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [word for word in done.stdout.split() if word not in ("plain", "_")]
    assert found == LINES[line]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            f"run {QUESTION.with_name('default8.h5')} data.npz --keep",
            ["outputs", "quantize_layer/output", "conv1/post_activation", "relu6/output", "flatten",
             "dense/post_activation"],
        ),
        (f"run {QUESTION} data.npz --quantizer My", ["MyConfig.weights=", "MyConfig.activation="]),
        (f"export {QUESTION} -o model.c --option pack", ["packing="]),
        (f"export {QUESTION} --format npz --option pack", []),
        (f"inspect {QUESTION} --build xla", ["xla-cpu", "xla-cpu-nofma"]),
        (f"diff {QUESTION} data.npz --against tf", ["tf", "tflite", "tflm"]),  # files, first
    ],
)  # fmt: skip
def test_what_is_completed(line: str, words: list[str]) -> None:
    *given, last = line.split()
    if last.startswith("--"):
        given, last = [*given, last], ""
    items = ShellComplete(app, {}, "qmath", "_QMATH_COMPLETE").get_completions(given, last)
    assert [item.value for item in items] == words
