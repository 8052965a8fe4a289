"""Time and memory that an import costs, each in a fresh interpreter.

It runs away from this folder, so that installed packages are measured.
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial

from benchmarks.measure import Options, Progress, Row, take_long_turns
from benchmarks.tables import faster, markdown

__all__ = ["ROUNDS", "full", "measure", "skipped", "summary"]

ROUNDS = {"full": 9, "quick": 0}
# What qmath's package imports when it is first used is not hidden: one line uses its kernels.
STATEMENTS = {
    "numpy": "import numpy",
    "qmath": "import qmath",
    "qmath, its kernels used": "import qmath; qmath.quantize; qmath.fake_quant_with_min_max_vars",
    "tensorflow": "import tensorflow",
    "tensorflow_model_optimization": "import tensorflow_model_optimization",
}
# The peak since the interpreter started: ru_maxrss would count its parent's memory, too.
PROBE = """
import resource, sys, time
start = time.perf_counter()
{statement}
seconds = time.perf_counter() - start
try:
    with open("/proc/self/status") as status:
        kibibytes = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
except OSError:
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kibibytes //= 1024 if sys.platform == "darwin" else 1
print(seconds, kibibytes)
"""


def skipped() -> list[str]:
    """Return the modules that are not installed."""
    names = [name.partition(",")[0] for name in STATEMENTS]
    return [name for name in dict.fromkeys(names) if not importlib.util.find_spec(name)]


def probe(statement: str) -> tuple[float, float]:
    """Return milliseconds and peak resident MiB of a statement that imports, in a new process."""
    command = [sys.executable, "-c", PROBE.format(statement=statement)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir())
    if run.returncode:
        raise RuntimeError(f"{statement}: {run.stderr}")  # qmath has to be installed, too
    seconds, kibibytes = map(float, run.stdout.split())
    return seconds * 1e3, kibibytes / 1024


def measure(options: Options, progress: Progress) -> Iterator[Row]:
    """Yield a row for each import."""
    absent = skipped()
    names = [name for name in STATEMENTS if name.partition(",")[0] not in absent]
    samples = {name: partial(probe, STATEMENTS[name]) for name in names}
    for name, found in take_long_turns(samples, options.rounds, progress).items():
        times, memory = zip(*found, strict=True)
        yield {
            "import": name,
            "milliseconds": round(statistics.median(times), 2),
            "fastest": round(min(times), 2),
            "slowest": round(max(times), 2),
            "mebibytes": round(statistics.median(memory), 1),
        }


def full(rows: list[Row]) -> str:
    """Return the table of all imports, beside NumPy's."""
    base = next(row for row in rows if row["import"] == "numpy")
    header = ["import", "ms", "fastest … slowest", "in imports of NumPy", "resident MiB", "more"]
    return markdown(
        header,
        [
            [
                row["import"],
                f"{row['milliseconds']:,.0f}",
                f"{row['fastest']:,.0f} … {row['slowest']:,.0f}",
                faster(row["milliseconds"] / base["milliseconds"]),
                f"{row['mebibytes']:.1f}",
                f"{row['mebibytes'] - base['mebibytes']:+.1f}",
            ]
            for row in rows
        ],
    )


summary = full
