"""Every page's shell and Python code runs, in a folder where the files exist that it names.

The cells of the notebooks are run by the build of the site.
"""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath

ROOT = Path(__file__).parents[1]
PAGES = sorted(page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(
    r"^```(sh|python)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)

ELSEWHERE = {  # pages whose code other tests run
    "formats.md": "tests/exports/test_formats_page.py",
    "memories.md": "tests/exports/test_testbench.py",
    "plugins.md": "tests/testing/test_plugins_page.py",
    "testing.md": "tests/testing/test_testing_page.py",
    "tflite.md": "tests/exports/test_tflite.py",
    "vectors.md": "tests/integer/test_directed.py",
}

SKIPPED = {  # by page and first line: why nothing can run it here
    ("benchmarks.md", "python -m benchmarks --json"): "takes half an hour",
    ("code.md", "qmath export model.h5 -o net --format cmsis-nn"): "needs CMSIS-NN's sources",
    ("command-line.md", 'eval "$(_QMATH_COMPLETE'): "is for the start of three shells",
    ("command-line.md", "qmath run model.h5 'shards/*.npz' --labels"): "needs a Dask cluster",
    ("installing.md", "pip install '.[cli]'"): "installs; the README's commands do",
    ("integer-model.md", "def my(x)"): "needs such a layer; tests/integer/test_cuts.py",
    ("how-to/property-tests.md", "pip install 'qmath-tfmot[testing]'"): "installs",
    ("onnx.md", "import hls4ml"): "takes minutes of g++; tests/exports/test_hls4ml.py runs it",
    ("tutorial.md", "python3 -m venv .venv"): "installs; the README's commands do",
}

MODULES = {"onnx": "onnx", "onnxruntime": "onnxruntime", ".tflite": "flatbuffers"}  # by a sign
MODELS = {  # by the name that pages use: a sample
    "model.h5": "default8.h5",
    "a.h5": "nbit4.h5",
    "b.h5": "default8.h5",
    "own.h5": "question.h5",
}
DIFFERING = {"diff.md", "how-to/fpga.md", "tutorial.md"}  # where `qmath diff` shows differences
SAVED = ("saved_model", "b.keras")  # containers of which there is no sample: an .h5 stands for them


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Return language, code and shown output of a page's blocks, without those that are skipped."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    found = [(match[1], match[2], match[3] or "") for match in BLOCK.finditer(text)]
    return [block for block in found if not why_skipped(page, block[1])]


def why_skipped(page: str, code: str) -> str | None:
    reasons = [
        why for (name, start), why in SKIPPED.items() if name == page and code.startswith(start)
    ]
    return reasons[0] if reasons else None


def written_files(page: str) -> list[tuple[str, str]]:
    """Return name and text of the files that a page shows, named by their first line."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    found = re.findall(r"^```\w+\n(?:/\*|#) (\S+\.\w+)(?: \*/)?\n(.*?)^```$", text, re.M | re.S)
    return [(name, body) for name, body in found]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a reader: samples under the pages' names, and a clone's folders."""
    samples = ROOT / "reference" / "samples"
    for name, sample in MODELS.items():
        shutil.copy(samples / sample, tmp_path / name)
    for name in SAVED:
        shutil.copy(samples / "default8.h5", tmp_path / name)
    (tmp_path / "reference").symlink_to(ROOT / "reference", target_is_directory=True)
    with np.load(samples / "digits_test.npz") as digits:
        images, labels = digits["images"][:40], digits["labels"][:40]
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    (tmp_path / "shards").mkdir()
    for half in range(2):
        part = slice(half * 20, half * 20 + 20)
        np.savez(tmp_path / "shards" / f"{half}.npz", images=images[part], labels=labels[part])
    run = qmath.run(tmp_path / "model.h5", images)
    np.savez(tmp_path / "dump.npz", **run.integers)  # as of python -m reference.dump
    mine = run.integers["conv1/post_activation"].transpose(0, 3, 1, 2)
    np.savez(tmp_path / "mine.npz", **{"conv1/post_activation": mine})
    run.integers["conv1/post_activation"].tofile(tmp_path / "conv1.bin")
    run.integers["dense/post_activation"].tofile(tmp_path / "dense.bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def given(page: str) -> dict[str, Any]:
    """Return what a page's Python takes as given, and write what its shell does."""
    names: dict[str, Any] = {"np": np, "qmath": qmath}
    if page == "command-line.md":
        qmath.export("model.h5", "model.npz")
    if page == "recover.md":
        np.savez("weights.npz", kernel=np.float32([[-7, 3], [0, 8]]) * np.float32(0.1))
    if page in ("command-line.md", "diff.md"):
        with np.load("images.npz") as digits:
            names |= {"images": digits["images"], "labels": digits["labels"]}
        run = qmath.run("model.h5", names["images"])
        conv1 = run.integers["conv1/post_activation"]
        names |= {"batches": iter([names["images"]]), "conv1": conv1.transpose(0, 3, 1, 2)}
        names |= {"dense": run.integers["dense/post_activation"], "output": "{}"}
    return names


def run_shell(code: str, page: str) -> str:
    """Run a block as a script of bash whose first failure ends it; return what it prints."""
    differing = '|| [ "$1 $?" = "diff 1" ]' if page in DIFFERING else ""
    start = f"""set -eo pipefail
qmath() {{ "{sys.executable}" -m qmath "$@" {differing}; }}
python() {{ "{sys.executable}" "$@"; }}
"""
    code = code.replace(".venv/bin/qmath", "qmath")
    done = subprocess.run(
        ["bash", "-c", start + code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def run_python(code: str, names: dict[str, Any], page: str) -> None:
    """Run a block in the page's names; what a session shows has to come out."""
    if not code.startswith(">>>"):
        exec(compile(code, page, "exec"), names)
        return
    runner = doctest.DocTestRunner(verbose=False)
    session = doctest.DocTestParser().get_doctest(code, names, page, page, 0)
    said: list[str] = []
    runner.run(session, out=said.append, clear_globs=False)
    names |= session.globs
    assert not said, "".join(said)


def needs(code: str) -> None:
    """Skip where a tool or a package that a block uses is not installed."""
    for tool in ("cc", "iverilog", "jq"):
        if re.search(rf"^(?:.*\| )?{tool} ", code, re.MULTILINE) and not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    for sign, module in MODULES.items():
        if sign in code:
            pytest.importorskip(module)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE and blocks(page)])
def test_the_code_of_the_page_runs(page: str, place: Path) -> None:
    for name, text in written_files(page):
        (place / name).write_text(text, "utf-8")
    names = given(page)
    for language, code, shown in blocks(page):
        needs(code)
        if language == "sh":
            printed = run_shell(code, page)
            assert not {*shown.splitlines()} - {*printed.splitlines()}, (code, printed)
        else:
            run_python(code, names, page)


def test_nothing_is_skipped_or_run_elsewhere_that_is_not_there() -> None:
    for page, start in SKIPPED:
        text = (ROOT / "docs" / page).read_text("utf-8")
        assert any(match[2].startswith(start) for match in BLOCK.finditer(text)), (page, start)
    for page, test in ELSEWHERE.items():
        assert page in PAGES
        assert f"docs/{page}" in (ROOT / test).read_text("utf-8") or f'"{page}"' in (
            ROOT / test
        ).read_text("utf-8")


def test_every_name_is_in_the_reference() -> None:
    text = "".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    listed = {*re.findall(r"^\.\. auto\w+:: (?:[\w.]*\.)?(\w+)$", text, re.MULTILINE)}
    errors = {name for name in qmath.__all__ if name.endswith(("Error", "Warning"))}
    assert "errors" in listed
    assert not {*qmath.__all__} - listed - errors
    pytest.importorskip("hypothesis")
    assert not {*importlib.import_module("qmath.testing").__all__} - listed


LINK = re.compile(r"\]\(([^)\s#]*)(#[^)\s]*)?\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and Sphinx make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {f"#{re.sub(r'[^-_ 0-9a-z]', '', head.lower()).replace(' ', '-')}" for head in heads}


@pytest.mark.parametrize(
    "page",
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in LINK.findall(text):
        if "//" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or file.suffix != ".md" or anchor in anchors(file), target + anchor
