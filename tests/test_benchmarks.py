"""The benchmarks' own machinery, on tensors too small to say anything about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qmath
from benchmarks import (
    __main__,
    allocator,
    datasets,
    growth,
    inference,
    job,
    kernels,
    measure,
    parts,
    peers,
    plots,
    processes,
    results,
    start,
    tables,
)


def nothing(_share: float, _text: str) -> None:
    pass


@pytest.fixture
def one_thread() -> Iterator[measure.Options]:
    yield measure.Options(quick=True, threads=1, rounds=2)
    qmath.set_num_threads(None)


def test_a_file_and_a_folder_are_copied_again_and_again(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for source in (tmp_path / "model.h5", folder / "checkpoint"):
        source.write_text("it")
    for source in (tmp_path / "model.h5", folder):
        for _ in range(3):
            processes.run(job.commands("model", source, None)["cp"])
    assert (tmp_path / "copy of model.h5").read_text() == "it"
    assert [file.name for file in (tmp_path / "copy of checkpoint").rglob("*")] == ["checkpoint"]


def test_the_documentation_shows_the_results_that_are_kept() -> None:
    root = Path(__file__).parents[1]
    found = results.read(root / "benchmarks" / "results.json")
    assert __main__.text(found, "summary") in (root / "docs" / "benchmarks.md").read_text("utf-8")


def test_candidates_take_turns_and_the_first_round_is_dropped() -> None:
    calls: list[str] = []
    candidates = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert measure.take_turns(candidates, 2) == {"a": [3, 5], "b": [4, 6]}
    assert calls == list("ababab")


def test_a_slow_candidate_sits_out_the_last_rounds() -> None:
    calls: list[str] = []
    candidates = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = measure.take_turns(candidates, {"a": 3, "b": 1}, warm_up=0)
    assert {name: len(samples) for name, samples in found.items()} == {"a": 3, "b": 1}
    assert calls == list("abaa")


@pytest.mark.parametrize(("rounds", "kept"), [(0, [1]), (1, [2]), (2, [2, 3])])
def test_commands_take_turns_after_a_round_that_fills_the_cache(
    monkeypatch: pytest.MonkeyPatch, rounds: int, kept: list[int]
) -> None:
    calls: list[str] = []
    shares: list[float] = []

    def run(command: list[str]) -> processes.Cost:
        calls.extend(command)
        return processes.Cost(calls.count(command[0]), 1.0)

    monkeypatch.setattr(processes, "run", run)
    found = processes.interleaved(
        {"a": ["a"], "b": ["b"]}, rounds, lambda share, _text: shares.append(share)
    )
    assert calls == ["a", "b"] * max(kept)
    assert {(of.fastest, of.slowest) for of in found.values()} == {(min(kept), max(kept))}
    assert shares == [i / len(calls) for i in range(len(calls))]


def test_kernels_are_measured_by_all_peers_that_are_there(
    monkeypatch: pytest.MonkeyPatch, one_thread: measure.Options
) -> None:
    monkeypatch.setattr(kernels, "shapes", lambda _quick: [(4, 6)])
    monkeypatch.setattr(kernels, "_SAMPLE", 0.0)
    monkeypatch.setattr(kernels, "missing", lambda: list(peers.LIBRARIES))
    rows = list(kernels.measure(one_thread, nothing))
    assert [(row["operation"], row["per"]) for row in rows] == [
        (operation, of) for of in ("tensor", "channel") for operation in kernels.OPERATIONS
    ]
    for row in rows:
        expected = ["memcpy", "qmath", "qmath, out="]
        expected += ["naive NumPy"] * (row["operation"] != "gradient")
        assert list(row["times_qmath"]) == list(row["microseconds"]) == expected
        assert row["times_qmath"][kernels.OURS] == 1
    lines = kernels.full(rows).splitlines()[2:]
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1


# In a process of its own: what other tests have freed in this one would be handed out as well.
PAGE_FAULTS = """
import ctypes, resource
from benchmarks import allocator

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def touch():
    "Return the page faults of writing to a new array."
    size = 40 << 20
    before = faults()
    array = library.malloc(size)
    ctypes.memset(array, 1, size)
    library.free(array)
    return faults() - before

allocator.settle()
touch()
fresh = touch()
with allocator.keeping():
    touch()
    kept = touch()
print(fresh, kept, touch())
"""


@pytest.mark.skipif(not allocator.available(), reason="glibc's own interface")
def test_memory_that_is_freed_is_handed_out_again_only_while_it_is_kept() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    fresh, kept, again = map(int, run.stdout.split())
    assert kept < fresh // 10
    assert again > fresh // 2


def test_growth_is_measured_along_each_curve(
    monkeypatch: pytest.MonkeyPatch, one_thread: measure.Options
) -> None:
    monkeypatch.setitem(growth.LARGEST, "quick", 2**17)
    rows = list(growth.measure(one_thread, nothing))
    assert {row["of"] for row in rows} == set(growth.CURVES)
    assert all(row["bytes"] > 0 for row in rows)
    assert growth.summary(rows).count("\n") == 1 + len(growth.CURVES)


def test_data_sets_are_measured_at_each_size(
    monkeypatch: pytest.MonkeyPatch, one_thread: measure.Options
) -> None:
    monkeypatch.setitem(datasets.SIZES, "quick", (20, 150))
    rows = list(datasets.measure(one_thread._replace(rounds=1), nothing))
    assert [(row["of"], row["images"]) for row in rows] == [
        (verb, size) for size in (20, 150) for verb in ("run", "run -o", "diff")
    ]
    assert all(row[name] > 0 for row in rows for name in ("microseconds", "alone", "mebibytes"))
    assert datasets.summary(rows).count("\n") == 1 + len(rows)


def test_imports_are_measured(monkeypatch: pytest.MonkeyPatch, one_thread: measure.Options) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(qmath.__file__).parents[1]))
    monkeypatch.setattr(start, "skipped", lambda: ["tensorflow", "tensorflow_model_optimization"])
    rows = list(start.measure(one_thread._replace(rounds=1), nothing))
    assert [row["import"] for row in rows] == ["numpy", "qmath", "qmath, its kernels used"]
    assert start.full(rows).splitlines()[2].split("|")[4].strip() == "1.0"


RESULTS = {
    "about": {
        "date": "2026-01-31", "cpu": "a CPU", "threads": 1, "clock": "wall", "quick": False,
        "versions": {"python": "3.11.7", "numpy": "2.4.0", "tensorflow": "2.21.0"},
    },
    "parts": {
        "kernels": {
            "rounds": 9,
            "skipped": ["PyTorch"],
            "rows": [
                {
                    "operation": operation, "per": per, "shape": [size // 64, 64], "elements": size,
                    "microseconds": {
                        "memcpy": [5.0, 4.0, 6.0],
                        "qmath, out=": [10.0, 9.0, 11.0],
                        "TensorFlow": [25.0, 24.0, 26.0],
                    },
                    "times_qmath": {"memcpy": 0.5, "qmath, out=": 1.0, "TensorFlow": 2.5},
                }
                for size in (1 << 10, 1 << 20)
                for per in ("tensor", "channel")
                for operation in ("fake_quant", "int8")
            ],
        },
        "job": {
            "rounds": 5,
            "skipped": [],
            "rows": [
                {
                    "model": "big", "container": "model.h5", "mebibytes": 1088.0,
                    "qmath": {"seconds": 2.0, "fastest": 1.9, "slowest": 2.1, "mebibytes": 100.0},
                    "tensorflow": {
                        "seconds": 25.0, "fastest": 24.0, "slowest": 26.0, "mebibytes": 2000.0,
                    },
                    "cp": {"seconds": 0.5, "fastest": 0.5, "slowest": 0.5, "mebibytes": 2.0},
                },
                {
                    "model": "default8", "container": "default8.h5", "mebibytes": 0.1,
                    "qmath": {"seconds": 0.5, "fastest": 0.5, "slowest": 0.5, "mebibytes": 50.0},
                    "cp": {"seconds": 0.002, "fastest": 0.0, "slowest": 0.0, "mebibytes": 2.0},
                },
            ],
        },
        "inference": {"rounds": 9, "skipped": list(inference.CANDIDATES), "rows": []},
    },
}  # fmt: skip


def cells(text: str, first: str) -> list[str]:
    """Return the cells of the row of a table that begins with a text."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ratios_of_the_job_are_theirs_by_ours() -> None:
    text = job.summary(RESULTS["parts"]["job"]["rows"])
    assert cells(text, "big, model.h5")[1:] == [
        "1,088.0", "2 s", "100", "25 s", "2,000", "12", "5.0%", "4.0",
    ]  # fmt: skip
    assert cells(text, "default8, default8.h5")[4:] == ["-", "-", "-", "-", "250"]


def test_a_summary_is_printed_from_a_file_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    results.write(RESULTS, path)
    assert results.read(path) == RESULTS
    arguments = ["--table", str(path)]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        plot = None
    else:
        plot = tmp_path / "results.svg"
        arguments += ["--plot", str(plot)]
    assert __main__.main(arguments) == 0
    text = capsys.readouterr().out
    header = next(line for line in text.splitlines() if "TensorFlow, 1 k" in line)
    assert [cell.strip() for cell in header.split("|")[2:-1]] == [
        "TensorFlow, 1 k", "1 M", "in memcpys",
    ]  # fmt: skip
    assert cells(text, "int8, per channel")[1:] == ["2.5", "2.5", "2.0"]
    assert "Not available, so left out: PyTorch." in text
    assert "Nothing to compare." in text
    if plot:
        drawn = plot.read_bytes()
        assert b"<svg" in drawn
        plots.draw(RESULTS, plot)
        assert plot.read_bytes() == drawn


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 0}', '{"format": 2, "parts": {}}'])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"results\.json: no results"):
        results.read(path)


def test_one_command_measures_and_writes_and_a_failing_part_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[float] = []

    def run(name: str, *, progress: measure.Progress, **_settings: object) -> dict[str, object]:
        progress(0.5, "half")
        found.append(len(found))
        if name == "growth":
            raise RuntimeError("growth: no room")
        return RESULTS["parts"][name]

    monkeypatch.setattr(parts, "run", run)
    monkeypatch.setattr(parts, "equal_threads", lambda _threads: None)
    path = tmp_path / "results.json"
    assert __main__.main(["kernels", "growth", "job", "--json", str(path)]) == 1
    out, err = capsys.readouterr()
    assert "### Kernels" in out
    assert "growth: no room" in err
    written = json.loads(path.read_text())
    assert list(written["parts"]) == ["kernels", "job"]
    assert written["about"]["threads"] == 1
    assert written["about"]["versions"]["numpy"]


def test_a_part_runs_in_a_process_of_its_own_and_its_failure_is_told() -> None:
    shares: list[float] = []
    settings = {"quick": True, "threads": 1, "clock": "wall"}
    found = parts.run(
        "packing", rounds=2, progress=lambda share, _text: shares.append(share), **settings
    )
    assert [row["num_bits"] for row in found["rows"]] == [2, 4, 8, 12]
    assert (found["rounds"], found["skipped"]) == (2, [])
    assert shares == [0, 0.25, 0.5, 0.75]
    with pytest.raises(RuntimeError, match=r"(?s)^tables: .*no attribute 'ROUNDS'"):
        parts.run("tables", rounds=None, progress=nothing, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernel"], "no benchmark kernel; there are kernels, start"),
        (["--threads", "0"], "1 or more"),
        (["--rounds", "0"], "1 or more"),
        (["--plot", "plot.pdf"], "plot.pdf: .svg or .png"),
    ],
)
def test_what_cannot_be_measured_or_drawn_is_refused_first(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        __main__.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5e-8, "0.05 µs"), (9.996e-4, "1 ms"), (0.0123, "12.3 ms"), (2, "2 s"), (4321.5, "4,322 s")],
)
def test_times_are_told_in_three_digits(seconds: float, text: str) -> None:
    assert tables.time_text(seconds) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(None, "-"), (0.256, "0.26"), (1.04, "1.0"), (9.96, "10"), (1234, "1,234")]
)
def test_ratios_are_told_in_two_digits(ratio: float | None, text: str) -> None:
    assert tables.faster(ratio) == text


@pytest.mark.parametrize(
    ("elements", "text"), [(90, "90"), (1 << 10, "1 k"), (11520, "11.2 k"), (1 << 26, "64 M")]
)
def test_sizes_are_told_in_binary_thousands(elements: int, text: str) -> None:
    assert tables.size_text(elements) == text


def test_a_table_is_as_wide_as_its_header() -> None:
    assert tables.markdown(["a", "b"], [["long", "1"]]) == (
        "| a    |   b |\n|------|----:|\n| long |   1 |"
    )
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        tables.markdown(["a", "b"], [["alone"]])
