"""Whether the costs of an image stay flat as data sets grow, from 1,000 images to 100,000.

Microseconds an image of ``run``, ``run -o`` and ``diff`` on a file of small images, which a model
of a few kilobytes takes; those that the integer model takes by itself, on images in memory; and the
peak of NumPy's allocations in all. Small images show what is lost around the work.
"""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import qmath
from benchmarks.measure import Options, Progress, Row, spread, timed
from benchmarks.tables import faster, markdown
from qmath.cli.written import Written, written
from qmath.containers.stored_arrays import open_arrays
from qmath.integer.api import program_of
from qmath.integer.executor import Executor
from qmath.integer.program import Program

__all__ = ["ROUNDS", "SIZES", "full", "measure", "skipped", "summary"]

ROUNDS = {"full": 3, "quick": 1}
SIZES = {"full": (1_000, 10_000, 100_000), "quick": (300, 1_000)}
SAMPLES = Path(__file__).parents[1] / "reference" / "samples"


def skipped() -> list[str]:
    """Return what cannot be measured here: nothing."""
    return []


def measure(options: Options, progress: Progress) -> Iterator[Row]:
    """Yield a row for each verb and size."""
    qmath.set_num_threads(options.threads)
    program = program_of(SAMPLES / "default8.h5")
    some = np.load(SAMPLES / "digits_test.npz")["images"]
    sizes = SIZES["quick" if options.quick else "full"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        for number, size in enumerate(sizes):
            np.save(path, np.resize(some, (size, *some.shape[1:])))
            alone = _seconds(lambda size=size: _alone(program, some, size), options.rounds)
            for name, work in verbs(program, path).items():
                progress(number / len(sizes), f"{name}, {size} images")
                work()
                yield {
                    "of": name,
                    "images": size,
                    "microseconds": round(_seconds(work, options.rounds) / size * 1e6, 2),
                    "alone": round(alone / size * 1e6, 2),
                    "mebibytes": round(_peak(work) / 2**20, 2),
                }


def verbs(program: Program, data: Path) -> dict[str, Callable[[], object]]:
    """Return what is measured."""
    return {
        "run": lambda: qmath.run(program, data, keep=()),
        "run -o": lambda: _written(program, data),
        "diff": lambda: qmath.diff(program, data, profile="tflite", against="xnnpack"),
    }


def _written(program: Program, data: Path) -> None:
    """Write all tensors of all images, as the verb does."""
    names = [step.name for step in program.steps]
    inputs: dict[str, Any] = dict(zip(program.inputs, open_arrays(data).values(), strict=True))
    output = data.with_name("out.npz")
    with written(Written(output, program, program, inputs, {}, names, {}, True), None) as sink:
        qmath.run(program, inputs, keep=names, sink=sink)
    os.unlink(output)


def _alone(program: Program, images: np.ndarray, size: int) -> None:
    """Compute as many images, batch by batch, and let go of the results."""
    executor = Executor(program)
    (name,) = program.inputs
    for start in range(0, size, executor.examples):
        at = start % len(images)
        executor.run({name: images[at : at + min(executor.examples, size - start)]}, keep=())


def _seconds(work: Callable[[], object], rounds: int) -> float:
    sample = timed(work)
    return spread([sample() for _ in range(rounds)]).median


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def full(rows: list[Row]) -> str:
    """Return the table, which is short."""
    return summary(rows)


def summary(rows: list[Row]) -> str:
    """Return a row for each verb and size."""
    header = ["of", "images", "µs an image", "of the model alone, times", "peak MiB"]
    return markdown(
        header,
        [
            [
                row["of"],
                f"{row['images']:,}",
                f"{row['microseconds']:.3g}",
                faster(row["microseconds"] / row["alone"]),
                f"{row['mebibytes']:.3g}",
            ]
            for row in rows
        ],
    )
