"""The benchmarks' own machinery, on tensors too small to say anything about speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qmath
from benchmarks import kernels, measure, peers, processes, results


def test_candidates_take_turns_and_the_first_round_is_dropped() -> None:
    calls: list[str] = []
    candidates = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert measure.take_turns(candidates, 2) == {"a": [3, 5], "b": [4, 6]}
    assert calls == list("ababab")


@pytest.mark.parametrize(("rounds", "kept"), [(0, [1]), (1, [2]), (2, [2, 3])])
def test_commands_take_turns_after_a_round_that_fills_the_cache(
    monkeypatch: pytest.MonkeyPatch, rounds: int, kept: list[int]
) -> None:
    calls: list[str] = []

    def run(command: list[str]) -> processes.Cost:
        calls.extend(command)
        return processes.Cost(calls.count(command[0]), 1.0)

    monkeypatch.setattr(processes, "run", run)
    found = processes.interleaved({"a": ["a"], "b": ["b"]}, rounds)
    assert calls == ["a", "b"] * max(kept)
    assert {(of.fastest, of.slowest) for of in found.values()} == {(min(kept), max(kept))}


def test_kernels_are_measured_and_written_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernels, "shapes", lambda _quick: [(4, 6)])
    monkeypatch.setattr(kernels, "_SECONDS", 0.0)
    without = {name: run for name, run in peers.PEERS.items() if name not in peers.LIBRARIES}
    monkeypatch.setattr(kernels, "PEERS", without)
    try:
        rows = list(kernels.measure(True, 1, 2, lambda _text: None))
    finally:
        qmath.set_num_threads(None)
    assert {row["case"] for row in rows} == {
        f"{operation}, per {of}" for operation in kernels.OPERATIONS for of in ("tensor", "channel")
    }
    assert all(row["to_memcpy"] > 0 for row in rows)
    lines = results.table(rows).splitlines()
    assert len(lines) == 2 + 10
    assert len({line.count("|") for line in lines}) == 1
    results.write_json(rows, tmp_path / "rows.json", threads=1)
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["rows"] == rows
    assert written["about"]["threads"] == 1
