"""Whether costs stay flat as the work grows: ``python -m benchmarks.growth``.

Nanoseconds an element and the peak of NumPy's allocations in bytes an element, over the size of a
tensor, the number of its channels, and the number of tensors of a model. A column that rises where
the work grows tells of an algorithm that does not scale; the first rows tell what a call costs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import qmath
from qmath.exports import export

__all__ = ["CURVES", "measure"]

Case = tuple[int, int, Callable[[], object]]  # what grows, elements, the work


def sizes(largest: int) -> Iterator[Case]:
    """Quantize tensors of 1 Ki elements and more."""
    for size in _powers(2**10, largest, 8):
        x = np.random.default_rng(0).normal(size=size).astype(np.float32)
        yield size, size, lambda x=x: qmath.quantize(x, -3.0, 3.0, 8)


def channels(largest: int) -> Iterator[Case]:
    """Quantize tensors of one size with 1 and more channels."""
    size = min(largest, 2**22)
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)
    for count in _powers(1, size // 4, 16):
        low = np.linspace(-4, -2, count, dtype=np.float32)
        rows = x.reshape(-1, count)
        yield count, size, lambda x=rows, a=low: qmath.quantize(x, a, -a, 8, per_axis=True)


def tensors(largest: int) -> Iterator[Case]:
    """Export models of the same elements in 1 and more tensors."""
    size = min(largest, 2**22)
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)
    spec = qmath.QuantSpec("LastValueQuantizer", 8, False, True, True)
    low, high = np.float32(-3), np.float32(3)
    for count in _powers(1, 2**10, 4):
        found = {
            f"layer{i}/kernel": qmath.QatTensor(
                f"layer{i}/kernel", "weight", part, np.asarray(low), np.asarray(high), spec
            )
            for i, part in enumerate(np.split(x, count))
        }
        model = qmath.QatModel(found)
        yield count, size, lambda model=model: _export(model)


def _export(model: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder) / "model.npz")


def _powers(first: int, last: int, factor: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= factor


CURVES = {"elements": sizes, "channels": channels, "tensors": tensors}


def measure(work: Callable[[], object], elements: int, rounds: int) -> tuple[float, float]:
    """Return median nanoseconds and peak bytes an element."""
    work()
    repeats = max(1, 2**18 // elements)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        times.append((time.perf_counter() - start) / repeats)
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return statistics.median(times) / elements * 1e9, peak / elements


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth")
    parser.add_argument("--largest", type=int, default=2**25, help="elements of a tensor")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    for name, curve in CURVES.items():
        print(f"{name:>9} {'ns an element':>14} {'bytes an element':>17}")
        for grown, elements, work in curve(options.largest):
            nanoseconds, peak = measure(work, elements, options.rounds)
            print(f"{grown:9} {nanoseconds:14.2f} {peak:17.2f}", flush=True)


if __name__ == "__main__":
    main()
