"""The kernels of other TensorFlow builds, beside those of the default one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

import qmath
from benchmarks.measure import Options, Progress, Row, spread, take_turns, timed
from benchmarks.tables import markdown, size_text, time_text
from qmath.kernels.builds import BUILDS, Build

__all__ = ["ROUNDS", "full", "measure", "skipped", "summary"]

SIZES = [1 << 12, 1 << 16, 1 << 20, 1 << 22]  # as rows of 64 channels
QUICK = [1 << 12, 1 << 16]
ROUNDS = {"full": 15, "quick": 3}
_REPEATED = 1 << 21  # elements for a sample
Call = Callable[[Build], object]


def skipped() -> list[str]:
    """Return what is missing here: nothing."""
    return []


def calls(elements: int) -> dict[str, Call]:
    """Return what is measured, by operation."""
    x = np.random.default_rng(0).standard_normal((elements // 64, 64), np.float32)
    out = np.empty_like(x)
    low, high = np.float32(-2.1), np.float32(2)
    lows, highs = (np.linspace(a, b, 64, dtype=np.float32) for a, b in ((-3, -1), (1, 3)))
    return {
        "fake_quant, per tensor": lambda build: qmath.fake_quant_with_min_max_vars(
            x, low, high, out=out, build=build
        ),
        "fake_quant, per channel": lambda build: qmath.fake_quant_with_min_max_vars_per_channel(
            x, lows, highs, out=out, build=build
        ),
        "quantize, per tensor": lambda build: qmath.quantize(x, low, high, 8, build=build),
        "quantize, per channel": lambda build: qmath.quantize(
            x, lows, highs, 8, per_axis=True, build=build
        ),
    }


def measure(options: Options, progress: Progress) -> Iterator[Row]:
    """Yield a row for each operation and size: the time of each build, and its share of tf's."""
    qmath.set_num_threads(options.threads)
    sizes = QUICK if options.quick else SIZES
    for number, elements in enumerate(sizes):
        for operation, call in calls(elements).items():
            progress(number / len(sizes), f"{operation}, {size_text(elements)}")
            repeat = max(1, _REPEATED // elements)
            candidates = {build: timed(functools.partial(call, build), repeat) for build in BUILDS}
            found = {
                build: spread(times)
                for build, times in take_turns(candidates, options.rounds).items()
            }
            yield {
                "operation": operation,
                "elements": elements,
                "microseconds": {
                    build: [round(seconds * 1e6, 3) for seconds in times]
                    for build, times in found.items()
                },
                "times_tf": {
                    build: round(times.median / found["tf"].median, 4)
                    for build, times in found.items()
                },
            }


def full(rows: list[Row]) -> str:
    """Return the table of all cases."""
    lines = []
    for row in rows:
        median, low, high = (time_text(us / 1e6) for us in row["microseconds"]["tf"])
        ratios = [f"{row['times_tf'][build]:.2f}" for build in BUILDS if build != "tf"]
        size = size_text(row["elements"])
        lines.append([row["operation"], size, f"{median} ({low} … {high})", *ratios])
    legend = "Time of the build `tf` (quartiles), and how many times as long the others take."
    header = ["operation", "elements", "tf", *(build for build in BUILDS if build != "tf")]
    return f"{legend}\n\n{markdown(header, lines)}"


def summary(rows: list[Row]) -> str:
    """Return the same table."""
    return full(rows)
