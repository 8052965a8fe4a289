"""Time and memory that an import costs: ``python -m benchmarks.startup [--runs 15]``.

Each import runs in a fresh interpreter, away from this folder, so that installed packages are
measured. The candidates take turns; the medians are printed with their ratio to ``import numpy``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial

from benchmarks.measure import take_turns

# What qmath's package imports when it is first used is not hidden: one line uses its kernels.
STATEMENTS = {
    "numpy": "import numpy",
    "qmath": "import qmath",
    "qmath, its kernels used": "import qmath; qmath.quantize; qmath.fake_quant_with_min_max_vars",
    "tensorflow": "import tensorflow",
    "tensorflow_model_optimization": "import tensorflow_model_optimization",
}
PROBE = """
import resource, time
start = time.perf_counter()
{statement}
seconds = time.perf_counter() - start
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure(statement: str) -> tuple[float, float]:
    """Return milliseconds and peak resident MiB of a statement that imports, in a new process."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement)],
        capture_output=True, text=True, check=True, env=environment, cwd=tempfile.gettempdir(),
    )  # fmt: skip
    seconds, kibibytes = map(float, run.stdout.split())
    return seconds * 1e3, kibibytes / 1024


def main() -> None:
    """Print a line for each module; one that is not installed is named and left out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup")
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    present = {
        name: statement
        for name, statement in STATEMENTS.items()
        if importlib.util.find_spec(name.partition(",")[0])
    }
    # the first round fills the disk cache
    samples = take_turns(
        {name: partial(measure, statement) for name, statement in present.items()}, runs
    )
    medians = {
        module: [statistics.median(column) for column in zip(*rows, strict=True)]
        for module, rows in samples.items()
    }
    for module in STATEMENTS:
        if module not in medians:
            print(f"{module:32} not installed")
            continue
        (time, memory), (base, base_memory) = medians[module], medians["numpy"]
        ratio, extra = time / base, memory - base_memory
        print(f"{module:32} {time:8.1f} ms  x{ratio:6.2f}  {memory:7.1f} MiB  {extra:+8.1f} MiB")


if __name__ == "__main__":
    main()
