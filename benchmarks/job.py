"""The job, from a file to integers in a file.

``qmath export`` against the shortest TensorFlow script that gets the same integers (which is
checked), and against ``cp`` of the file: MobileNetV2 in every container, and a checkpoint of more
than 1 GiB; quick, or without TensorFlow, a small sample. Each run is a process of its own; they
take turns. Memory is the kernel's count at its peak.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import processes
from benchmarks.measure import Options, Progress, Row
from benchmarks.tables import faster, markdown, time_text

__all__ = ["JOBS", "ROUNDS", "full", "measure", "skipped", "summary"]

ROUNDS = {"full": 3, "quick": 0}
# Containers of each model; of "+" the architecture comes from a file of its own.
JOBS = {
    "mobilenetv2": ("model.h5", "model.keras", "saved_model", "model.weights.h5+", "checkpoint+"),
    "big": ("model.h5", "checkpoint+"),
}
SAMPLE = Path(__file__).parents[1] / "reference" / "samples" / "default8.h5"
MODELS = [sys.executable, "-m", "benchmarks.job_models"]
QMATH = [sys.executable, "-c", "from qmath.cli import main; main()"]


def skipped() -> list[str]:
    """Return what needs a library that is not installed."""
    if _tensorflow():
        return []
    return ["tensorflow", *JOBS]


def _tensorflow() -> bool:
    """Whether models can be written, and the job be done the other way."""
    return all(map(importlib.util.find_spec, ("tensorflow", "tensorflow_model_optimization")))


def commands(model: str, source: Path, architecture: Path | None) -> dict[str, list[str]]:
    """Return what takes turns on one file of a model."""
    out = source.parent
    ours = [*QMATH, "export", str(source), "-o", str(out / "qmath.npz"), "--overwrite"]
    if architecture:
        ours += ["--architecture", str(architecture)]
    found = {"qmath": ours}
    if _tensorflow():
        found["tensorflow"] = [*MODELS, "integers", model, str(source), str(out / "tensorflow.npz")]
    contents = f"{source}/." if source.is_dir() else str(source)  # else the second copy goes inside
    return found | {"cp": ["cp", "-r", contents, str(out / f"copy of {source.name}")]}


def measure(options: Options, progress: Progress) -> Iterator[Row]:
    """Yield a row for each file of each model."""
    jobs = {"default8": (SAMPLE.name,)} if options.quick or not _tensorflow() else JOBS
    total = sum(map(len, jobs.values()))
    done = 0
    for model, readings in jobs.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            progress(done / total, f"{model}: write it")
            if model in JOBS:
                processes.run([*MODELS, "write", model, name])
            else:
                shutil.copy(SAMPLE, folder)
            for reading in readings:
                source = folder / reading.removesuffix("+")
                architecture = folder / "architecture.json" if reading.endswith("+") else None
                yield {"model": model, "container": source.name} | costs(
                    model,
                    source,
                    architecture,
                    options.rounds,
                    lambda share, text, done=done, at=f"{model}, {source.name}": progress(
                        (done + share) / total, f"{at}: {text}"
                    ),
                )
                done += 1


def costs(
    model: str,
    source: Path,
    architecture: Path | None,
    rounds: int,
    progress: Callable[[float, str], None],
) -> Row:
    """Do the job on one file; return what it took, after comparing what came out."""
    folder = source.parent
    files = [source] if source.is_file() else [f for f in source.rglob("*") if f.is_file()]
    taken = processes.interleaved(commands(model, source, architecture), rounds, progress)
    if "tensorflow" in taken:
        results = [str(folder / f"{name}.npz") for name in ("qmath", "tensorflow")]
        processes.run([*MODELS, "compare", *results])
    row: Row = {"mebibytes": round(sum(file.stat().st_size for file in files) / 2**20, 2)}
    for name, median in taken.items():
        row[name] = {key: round(value, 4) for key, value in median._asdict().items()}
    return row


def full(rows: list[Row]) -> str:
    """Return the table of all files, with the fastest and the slowest run."""
    return _table(rows, lambda of: f" ({time_text(of['fastest'])} … {time_text(of['slowest'])})")


def summary(rows: list[Row]) -> str:
    """Return the table of all files."""
    return _table(rows, lambda _of: "")


def _table(rows: list[Row], spread: Callable[[Row], str]) -> str:
    """Return a row for each file: time and peak memory of both, and against ``cp``."""
    header = ["model, container", "MiB", "qmath", "peak MiB", "TensorFlow", "peak MiB"]
    header += ["faster, times", "of its memory", "in cp's of the file"]
    lines = []
    for row in rows:
        ours, theirs, copy = row["qmath"], row.get("tensorflow"), row["cp"]
        cells = [f"{row['model']}, {row['container']}", f"{row['mebibytes']:,.1f}"]
        for of in (ours, theirs):
            cells.append(time_text(of["seconds"]) + spread(of) if of else "-")
            cells.append(f"{of['mebibytes']:,.0f}" if of else "-")
        cells.append(faster(theirs and theirs["seconds"] / ours["seconds"]))
        cells.append(f"{ours['mebibytes'] / theirs['mebibytes']:.1%}" if theirs else "-")
        lines.append([*cells, faster(ours["seconds"] / copy["seconds"])])
    return markdown(header, lines)
