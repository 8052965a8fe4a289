"""Damaged files are read right, refused, or (without a checksum) give other sane data."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

if not hasattr(os, "fork") or sys.platform != "linux":
    pytest.skip("the fuzzer needs Linux", allow_module_level=True)

from qmath.containers.protos import parse
from qmath.errors import QmathWarning
from reference import mutants, mutate, structures, verbs

SEED = 0
WHOLE = mutate.CONTAINERS["whole.h5"]


@pytest.mark.parametrize("container", mutate.CONTAINERS)
def test_a_few_models(container: str) -> None:
    counts, violations = mutate.run(container, 20, SEED)
    assert violations == []
    assert sum(counts[outcome] for outcome in mutate.OUTCOMES) == 20
    assert counts["refused"]


@pytest.mark.parametrize("container", [name for name in mutate.CONTAINERS if "," in name])
def test_a_few_verbs(container: str) -> None:
    counts, violations = mutate.run(container, 8, SEED, verbs=True)
    assert violations == []
    assert counts["right"] + counts["refused"] == 8


@pytest.mark.parametrize("name", verbs.VERBS)
def test_every_verb_takes_a_whole_model(name: str, tmp_path: Path) -> None:
    if "onnx" in name:
        pytest.importorskip("onnx")
    if "tflite" in name:
        pytest.importorskip("flatbuffers")
    model = mutate.qmath.load(mutants.LARGER)
    verbs.VERBS[name](np.random.default_rng(3), model, tmp_path)
    assert bool(list(tmp_path.iterdir())) == ("export" in name)


@pytest.mark.parametrize("container", mutate.OUTPUTS)
def test_a_few_outputs(container: str) -> None:
    if "onnx" in container:
        pytest.importorskip("onnx")
    if "tflite" in container:
        pytest.importorskip("flatbuffers")
    counts, violations = mutate.run(container, 8, SEED)
    assert violations == []
    assert counts["refused"] + counts["other"]


def test_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome is the same in a process of its own."""
    monkeypatch.setattr(mutate, "HANG", 60)
    monkeypatch.setattr(mutate, "ISOLATED_HANG", 60)
    here, _ = mutate.run("whole.h5", 10, SEED)
    there, violations = mutate.run("whole.h5", 10, SEED, isolate=True)
    assert (there, violations) == (here, [])


def test_mutants_follow_from_the_seed(tmp_path: Path) -> None:
    def made(numbers: range, seed: int) -> list[bytes]:
        found = mutate.mutants("model.keras, changed", numbers, seed, tmp_path / "now")
        return [mutant.path.read_bytes()[100:] for _, mutant in found]

    assert made(range(3), 1)[2] == made(range(2, 3), 1)[0] != made(range(2, 3), 2)[0]


@pytest.mark.slow
def test_crashes_and_hangs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutate, "judge", lambda *_: os.abort())
    counts, violations = mutate.run("checkpoint", 3, SEED, isolate=True)
    assert counts["violation"] == 3  # each process begins anew
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
    source = WHOLE.sources[0]
    wanted = mutate.content(mutate.qmath.load(source.path))
    changed = {
        name: (role, change(values) if name == "d/kernel" else values, *ends)  # type: ignore[operator]
        for name, (role, values, *ends) in wanted.items()
    }
    monkeypatch.setattr(mutate, "content", lambda _: changed)
    assert mutate.judge(source, wanted, WHOLE, False).outcome == outcome
    if outcome == "other":
        sealed = WHOLE._replace(has_checksum=True)
        assert mutate.judge(source, wanted, sealed, False).outcome == "violation"
    elif outcome == "violation":
        said = WHOLE._replace(is_sane=False)
        assert mutate.judge(source, wanted, said, False).outcome == "other"


def test_an_exception_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutate, "content", lambda _: 1 / 0)
    outcome, why, _ = mutate.judge(WHOLE.sources[0], {}, WHOLE, False)
    assert outcome == "violation"
    assert "ZeroDivisionError" in why


@pytest.mark.parametrize(
    ("warning", "outcome"), [(RuntimeWarning, "violation"), (QmathWarning, "right")]
)
def test_a_warning_from_the_depths_is_a_violation(warning: type[Warning], outcome: str) -> None:
    def call() -> mutate.Verdict:
        warnings.warn("overflow", warning, stacklevel=1)
        return mutate.Verdict("right")

    assert mutate.watched(call).outcome == outcome


def test_what_an_error_leaves_behind_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def leave(_: object, __: object, folder: Path) -> None:
        (folder / "out.npz").touch()
        raise mutate.qmath.QmathError("refused")

    monkeypatch.setattr(verbs, "VERBS", {"inspect": leave})
    monkeypatch.setattr(verbs, "BY_COMMAND", 0)
    with pytest.raises(verbs.LeftBehindError, match=r"out\.npz"):
        verbs.try_verb(np.random.default_rng(0), WHOLE.sources[0], tmp_path, False)


def test_it_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state.json"

    def counted(count: int, file: Path) -> dict[str, int]:
        words = ["--count", str(count), "--container", "checkpoint", "--state", str(file)]
        assert mutate.main(words) == 0
        assert "│ checkpoint" in capsys.readouterr().out
        held = json.loads(file.read_text())["containers"]["checkpoint"]
        assert held["next"] == count
        counts: dict[str, int] = held["counts"]
        return counts

    counted(3, state)
    assert counted(7, state) == counted(7, tmp_path / "other.json")
    with pytest.raises(SystemExit, match="counts mutants of"):
        mutate.main(["--count", "1", "--seed", "1", "--state", str(state)])


def test_changed_json_is_json_and_seldom_the_same() -> None:
    rng, text = np.random.default_rng(0), b'{"a": [1, {"b": "x", "c": 2.5}], "d": null}'
    changed = [structures.alter_json(rng, text) for _ in range(300)]
    assert sum(is_json(data) for data in changed) > 240
    assert sum(data == text for data in changed) < 30
    assert any(data.count(b'"a":') > text.count(b'"a":') for data in changed)  # a key twice


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def test_changed_messages_are_messages() -> None:
    path = mutants.CONTAINERS["exported"].sources[0].path / "saved_model.pb"
    rng, found = np.random.default_rng(0), set()
    for _ in range(50):
        saved = parse("SavedModel", path.read_bytes(), "")
        structures.alter_message(rng, saved)
        found.add(saved.SerializeToString())
        parse("SavedModel", saved.SerializeToString(), "")
    assert len(found) > 40


def test_a_mutant_that_cannot_be_made_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = WHOLE._replace(damage=lambda *_: 1 / 0)
    monkeypatch.setitem(mutate.CONTAINERS, "whole.h5", broken)
    with pytest.raises(RuntimeError, match=r"(?s)mutant 0 cannot be made.*ZeroDivision"):
        mutate.run("whole.h5", 1, SEED)
