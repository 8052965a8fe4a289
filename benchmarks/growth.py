"""Whether costs stay flat as the work grows.

Nanoseconds an element and the peak of NumPy's allocations in bytes an element, over the size of a
tensor, the number of its channels, and the number of tensors of a model. A column that rises where
the work grows tells of an algorithm that does not scale; the first rows tell what a call costs.
"""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import qmath
from benchmarks.measure import Options, Progress, Row, spread, timed
from benchmarks.tables import markdown, size_text
from qmath.exports.writing import export

__all__ = ["CURVES", "ROUNDS", "full", "measure", "skipped", "summary"]

ROUNDS = {"full": 7, "quick": 2}
LARGEST = {"full": 2**25, "quick": 2**19}
Case = tuple[int, int, Callable[[], object]]  # what grows, elements, the work


def sizes(largest: int) -> Iterator[Case]:
    """Quantize tensors of 1 Ki elements and more."""
    for size in _powers(2**10, largest, 8):
        x = np.random.default_rng(0).normal(size=size).astype(np.float32)
        yield size, size, lambda x=x: qmath.quantize(x, -3.0, 3.0, 8)


def channels(largest: int) -> Iterator[Case]:
    """Quantize tensors of one size with 1 and more channels, of 64 elements at least."""
    size = min(largest, 2**22)
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)
    for count in _powers(1, size // 64, 16):
        low = np.linspace(-4, -2, count, dtype=np.float32)
        rows = x.reshape(-1, count)
        yield count, size, lambda x=rows, a=low: qmath.quantize(x, a, -a, 8, per_axis=True)


def tensors(largest: int) -> Iterator[Case]:
    """Export models of 1 and more tensors of 8 Ki elements."""
    spec = qmath.QuantSpec("LastValueQuantizer", 8, False, True, True)
    low, high = np.asarray(np.float32(-3)), np.asarray(np.float32(3))
    for count in _powers(1, min(2**10, largest // 2**13), 4):
        x = np.random.default_rng(0).normal(size=(count, 2**13)).astype(np.float32)
        names = [f"layer{i}/kernel" for i in range(count)]
        found = {
            name: qmath.QatTensor(name, "weight", values, low, high, spec)
            for name, values in zip(names, x, strict=True)
        }
        model = qmath.QatModel(found)
        yield count, x.size, lambda model=model: _export(model)


def _export(model: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder) / "model.npz")


def _powers(first: int, last: int, factor: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= factor


CURVES = {"elements": sizes, "channels": channels, "tensors": tensors}


def skipped() -> list[str]:
    """Return what cannot be measured here: nothing."""
    return []


def measure(options: Options, progress: Progress) -> Iterator[Row]:
    """Yield a row for each point of each curve."""
    qmath.set_num_threads(options.threads)
    largest = LARGEST["quick" if options.quick else "full"]
    for number, (name, curve) in enumerate(CURVES.items()):
        for index, (grown, elements, work) in enumerate(curve(largest)):
            progress((number + index / 6) / len(CURVES), f"{grown} {name}")
            yield {"of": name, "grown": grown, "elements": elements} | costs(
                work, elements, options.rounds
            )


def costs(work: Callable[[], object], elements: int, rounds: int) -> dict[str, float]:
    """Return median nanoseconds and peak bytes an element."""
    work()
    sample = timed(work, max(1, 2**18 // elements))
    times = [sample() for _ in range(rounds)]
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "nanoseconds": round(spread(times).median / elements * 1e9, 3),
        "bytes": round(peak / elements, 3),
    }


def full(rows: list[Row]) -> str:
    """Return the table of all points."""
    header = ["growing", "to", "ns an element", "peak bytes an element"]
    return markdown(
        header,
        [
            [row["of"], size_text(row["grown"]), f"{row['nanoseconds']:.2f}", f"{row['bytes']:.2f}"]
            for row in rows
        ],
    )


def summary(rows: list[Row]) -> str:
    """Return a row for each curve: its ends, and the least and the most between them.

    From 64 Ki elements on: below, a call costs more than the work.
    """
    lines = []
    for name in CURVES:
        curve = [row for row in rows if row["of"] == name and row["elements"] >= 2**16]
        first, last = curve[0], curve[-1]
        cells = [name, f"{size_text(first['grown'])} … {size_text(last['grown'])}"]
        for key in ("nanoseconds", "bytes"):
            values = [row[key] for row in curve]
            cells.append(f"{first[key]:.2f} … {last[key]:.2f}")
            cells.append(f"{min(values):.2f} … {max(values):.2f}")
        lines.append(cells)
    header = ["growing", "from … to", "ns an element", "least … most"]
    return markdown([*header, "peak bytes an element", "least … most"], lines)
