"""Damaged files are read right, refused, or (without a checksum) give other sane data."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

if not hasattr(os, "fork") or sys.platform != "linux":
    pytest.skip("the fuzzer needs Linux", allow_module_level=True)

from reference import mutate

SEED = 0


@pytest.mark.parametrize("container", mutate.CONTAINERS)
def test_a_few_mutants(container: str) -> None:
    counts, violations = mutate.run(container, 25, SEED)
    assert violations == []
    assert counts.total() == 25
    assert counts["refused"]


def test_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome is the same in a process of its own."""
    monkeypatch.setattr(mutate, "HANG", 60)
    monkeypatch.setattr(mutate, "ISOLATED_HANG", 60)
    here, _ = mutate.run("whole.h5", 10, SEED)
    there, violations = mutate.run("whole.h5", 10, SEED, isolate=True)
    assert (there, violations) == (here, [])


def test_mutants_follow_from_the_seed(tmp_path: Path) -> None:
    def made(numbers: range, seed: int) -> list[bytes]:
        found = mutate.mutants("model.keras, sealed", numbers, seed, tmp_path / "now")
        return [mutant.path.read_bytes()[100:] for _, mutant in found]

    assert made(range(3), 1)[2] == made(range(2, 3), 1)[0] != made(range(2, 3), 2)[0]


@pytest.mark.slow
def test_crashes_and_hangs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutate, "judge", lambda *_: os.abort())
    counts, violations = mutate.run("checkpoint", 3, SEED, isolate=True)
    assert counts == {"violation": 3}  # each process begins anew
    assert all("crash" in violation for violation in violations)
    monkeypatch.setattr(mutate, "PATIENCE", 1)
    monkeypatch.setattr(mutate, "judge", lambda *_: time.sleep(60))
    assert mutate.run("checkpoint", 2, SEED, isolate=True)[1] == [
        f"checkpoint {i}: hang" for i in range(2)
    ]


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda x: x, "right"),
        (lambda x: x + 1, "other"),
        (lambda x: x * np.float32("nan"), "violation"),
        (lambda x: x[:-1], "violation"),
    ],
)
def test_judgement(monkeypatch: pytest.MonkeyPatch, change: object, outcome: str) -> None:
    source = mutate.CONTAINERS["whole.h5"].sources[0]
    model = mutate.qmath.load(source.path)
    wanted = mutate.content(model)
    changed = {
        name: (role, change(values) if name == "d/kernel" else values, *ends)  # type: ignore[operator]
        for name, (role, values, *ends) in wanted.items()
    }
    monkeypatch.setattr(mutate, "content", lambda _: changed)
    assert mutate.judge(source, wanted, False, False)[0] == outcome
    if outcome == "other":
        assert mutate.judge(source, wanted, True, False)[0] == "violation"


def test_an_exception_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutate, "content", lambda _: 1 / 0)
    source = mutate.CONTAINERS["whole.h5"].sources[0]
    outcome, why = mutate.judge(source, {}, False, False)
    assert outcome == "violation"
    assert "ZeroDivisionError" in why


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutate.main(["--count", "3", "--container", "checkpoint", "--seed", "1"]) == 0
    assert "│ checkpoint" in capsys.readouterr().out
