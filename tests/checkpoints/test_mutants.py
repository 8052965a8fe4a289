"""Damaged files are read right, refused, or (without a checksum) give other sane data."""

from __future__ import annotations

import os
import sys
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


def test_isolated() -> None:
    """The outcome is the same in a process of its own."""
    here, _ = mutate.run("whole.h5", 10, SEED)
    there, violations = mutate.run("whole.h5", 10, SEED, isolate=True)
    assert (there, violations) == (here, [])


def test_mutants_follow_from_the_seed(tmp_path: Path) -> None:
    def made(numbers: range, seed: int) -> list[bytes]:
        found = mutate.mutants("model.keras, sealed", numbers, seed, tmp_path / "now")
        return [mutant.path.read_bytes()[100:] for _, mutant in found]

    assert made(range(3), 1)[2] == made(range(2, 3), 1)[0] != made(range(2, 3), 2)[0]


def failing(
    monkeypatch: pytest.MonkeyPatch, how: object, isolate: bool = False
) -> tuple[dict[str, int], list[str]]:
    monkeypatch.setattr(mutate, "HANG", 1)
    monkeypatch.setattr(mutate, "judge", how)
    return mutate.run("checkpoint", 3, SEED, isolate)


def test_crashes_hangs_and_exceptions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(9))

    def judge(*_: object) -> tuple[str, str]:
        return ("right", "") if next(calls) else os.abort()  # type: ignore[return-value]

    counts, violations = failing(monkeypatch, judge, isolate=True)
    assert counts["violation"] == 3  # each process begins anew, with a crash
    assert "crash" in violations[0]
    counts, violations = failing(monkeypatch, lambda *_: __import__("time").sleep(9), True)
    assert violations == [f"checkpoint {i}: hang" for i in range(3)]


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
