"""Wall time and peak memory of a child process, as the kernel counts them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from benchmarks.measure import Progress, take_long_turns

__all__ = ["Cost", "Median", "interleaved", "run"]


class Cost(NamedTuple):
    """What one run took: seconds, and MiB at its peak."""

    seconds: float
    mebibytes: float


class Median(NamedTuple):
    """Of some runs: median, fastest and slowest seconds, and the median peak in MiB."""

    seconds: float
    fastest: float
    slowest: float
    mebibytes: float


def run(command: Sequence[str]) -> Cost:
    """Run a command to its end and return what it took.

    A child's peak counts from its parent's memory at the start, so the parent has to be small: it
    must not have imported NumPy, let alone TensorFlow.

    Raises
    ------
    RuntimeError
        The command fails; the message holds its output.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if status:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)}:\n{output.read().decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return Cost(seconds, usage.ru_maxrss * unit / 2**20)


def interleaved(
    commands: Mapping[str, Sequence[str]], rounds: int, progress: Progress
) -> dict[str, Median]:
    """Let commands take turns, after one round that fills the disk cache."""
    runs = {name: partial(run, command) for name, command in commands.items()}
    costs = take_long_turns(runs, rounds, progress)
    found = {}
    for name, taken in costs.items():
        seconds = [cost.seconds for cost in taken]
        peak = statistics.median(cost.mebibytes for cost in taken)
        found[name] = Median(statistics.median(seconds), min(seconds), max(seconds), peak)
    return found
