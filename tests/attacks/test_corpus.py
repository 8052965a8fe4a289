"""The corpus of files that take every branch of a reader: each is read, or refused, as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reference import corpus, odd_configs, odd_files

KINDS = ("checkpoint", "hdf5", "other", "saved_model", "tflite", "zip")


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_of_each(tmp_path: Path, kind: str) -> None:
    found = [entry for entry in corpus.entries() if entry.kind == kind]
    assert found
    came = {}
    for entry in found:
        folder = tmp_path / entry.name
        folder.mkdir()
        came[entry.name] = corpus.outcome(entry, folder)
    assert came == {entry.name: entry.outcome for entry in found}


def test_it_is_small_and_holds_all_kinds() -> None:
    assert {path.name for path in corpus.FOLDER.glob("*.xz")} == {f"{k}.tar.xz" for k in KINDS}
    assert sum(path.stat().st_size for path in corpus.FOLDER.iterdir()) < 3 << 19
    outcomes = [entry.outcome for entry in corpus.entries()]
    assert outcomes.count("read") > 20
    assert outcomes.count("FileFormatError") > 20


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "reference.corpus", *words)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    root = str(corpus.ROOT)
    measured = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}  # by itself alone
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": root} | measured,
        check=False,
    )


@pytest.mark.once
@pytest.mark.slow
def test_it_takes_the_branches() -> None:
    done = command("--measure")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.once
@pytest.mark.slow
def test_a_corpus_of_less_fails(tmp_path: Path) -> None:
    corpus.write(list(corpus.entries())[:5], tmp_path)
    done = command("--folder", str(tmp_path), "--measure")
    assert done.returncode == 1, done.stdout + done.stderr
    for _, _, why in corpus.LEFT_OUT:
        assert why in done.stdout


# In a process of its own: coverage is measured in this one, perhaps.
TWICE = """
from itertools import islice
from reference import corpus
made = corpus.Corpus()
for entry in islice(corpus.entries(), 20):
    made.take(entry)
    made.take(entry._replace(files=entry.files | {"beside": b""}))
print(len(made.met), len(made.kept))
"""


@pytest.mark.once
@pytest.mark.slow
def test_what_takes_no_new_branch_is_not_kept() -> None:
    done = run("-c", TWICE)
    assert done.returncode == 0, done.stderr
    met, kept = map(int, done.stdout.split())
    assert met == 40
    assert 10 < kept <= 20


def test_the_fewest_take_all_branches() -> None:
    first, second, both = (corpus.Entry({name: b""}, name) for name in "abc")
    one, other = ("file", 1, 2), ("file", 1, 3)
    made = corpus.Corpus()
    made.all = {one, other}
    made.kept = {first.name: (first, {one}), second.name: (second, {other})}
    assert made.fewest() == [first, second]
    made.kept[both.name] = both, {one, other}
    assert made.fewest() == [both]


@pytest.mark.nightly
def test_a_corpus_made_anew(tmp_path: Path) -> None:
    """Only what adds a branch is kept."""
    done = command("--grow", "0", "--folder", str(tmp_path / "corpus"))
    assert done.returncode == 0, done.stdout + done.stderr
    kept = list(corpus.entries(tmp_path / "corpus"))
    assert 150 < len(kept) < 600
    assert all(entry.outcome for entry in kept)


def test_odd_files_are_the_same_each_time() -> None:
    first, second = (
        [entry.name for written in (odd_configs, odd_files) for entry in written.written()]
        for _ in range(2)
    )
    assert len(first) > 100
    assert first == second
