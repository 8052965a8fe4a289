"""The job, from a file to integers in a file: ``python -m benchmarks.job [--rounds 5]``.

``qmath export`` against the shortest TensorFlow script that gets the same integers (which is
checked), and against ``cp`` of the file: MobileNetV2 in every container, and a checkpoint of more
than 1 GiB. Each run is a process of its own; they take turns. Times are medians with the fastest
and the slowest run, memory is the kernel's count at its peak. Needs the `reference` extra.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import processes

# Containers of each model; of "+" the architecture comes from a file of its own.
JOBS = {
    "mobilenetv2": ("model.h5", "model.keras", "saved_model", "model.weights.h5+", "checkpoint+"),
    "big": ("model.h5", "checkpoint+"),
}
MODELS = [sys.executable, "-m", "benchmarks.job_models"]
QMATH = [sys.executable, "-c", "from qmath.cli import main; main()"]


def commands(source: Path, architecture: Path | None, out: Path) -> dict[str, list[str]]:
    """Return what takes turns on one file."""
    ours = [*QMATH, "export", str(source), "-o", str(out / "qmath.npz"), "--overwrite"]
    if architecture:
        ours += ["--architecture", str(architecture)]
    return {
        "qmath": ours,
        "tensorflow": [*MODELS, "integers", str(source), str(out / "tensorflow.npz")],
        "cp": ["cp", "-r", str(source), str(out / "copy")],
    }


def measure(model: str, folder: Path, rounds: int) -> list[dict[str, object]]:
    """Write a model, run the job on each of its files, and print a row for each."""
    processes.run([*MODELS, "write", model, str(folder)])
    rows = []
    for reading in JOBS[model]:
        source = folder / reading.removesuffix("+")
        architecture = folder / "architecture.json" if reading.endswith("+") else None
        files = [source] if source.is_file() else [f for f in source.rglob("*") if f.is_file()]
        size = sum(file.stat().st_size for file in files) / 2**20
        taken = processes.interleaved(commands(source, architecture, folder), rounds)
        results = [str(folder / f"{name}.npz") for name in ("qmath", "tensorflow")]
        processes.run([*MODELS, "compare", *results])
        rows.append({"model": model, "container": source.name, "mebibytes": round(size, 1)})
        rows[-1].update({name: median._asdict() for name, median in taken.items()})
        print(row(rows[-1], taken), flush=True)
    return rows


HEADER = f"""\
{"model":12} {"container":17} {"MiB":>7}  {"qmath: s, MiB":>31}  {"TensorFlow: s, MiB":>31}  \
{"faster":>7} {"memory":>7} {"x cp":>6}"""


def row(of: dict[str, object], taken: dict[str, processes.Median]) -> str:
    """Return a line of the table."""
    ours, theirs, copy = (taken[name] for name in ("qmath", "tensorflow", "cp"))
    cells = [
        f"{cost.seconds:7.2f} ({cost.fastest:6.2f} …{cost.slowest:6.2f}) {cost.mebibytes:6.0f}"
        for cost in (ours, theirs)
    ]
    return (
        f"{of['model']:12} {of['container']:17} {of['mebibytes']:7}  {'  '.join(cells)}  "
        f"{theirs.seconds / ours.seconds:6.1f}x {ours.mebibytes / theirs.mebibytes:6.1%} "
        f"{ours.seconds / copy.seconds:6.1f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.job")
    parser.add_argument("--rounds", type=int, default=5, help="after one that fills the cache")
    parser.add_argument("--models", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE")
    options = parser.parse_args(arguments)
    rows = []
    print(HEADER)
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(model, Path(folder), options.rounds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
