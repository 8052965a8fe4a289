"""The parts of the benchmark, each run in a process of its own.

So no part inherits another's libraries, threads or memory, and one that fails leaves the others
alone. A part is a module with ``measure(options, progress)``, which yields rows, ``skipped()``,
which names what is missing here, ``full(rows)`` and ``summary(rows)``, which return Markdown, and
``ROUNDS``.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import measure

__all__ = ["PARTS", "equal_threads", "load", "run", "usual"]

# A part's share of the progress bar: about the seconds that it takes, all of it and quick.
PARTS = {
    "kernels": (600, 20),
    "start": (100, 10),
    "job": (600, 12),
    "growth": (40, 3),
    "datasets": (200, 3),
    "builds": (30, 2),
    "packing": (15, 2),
    "inference": (90, 30),
}
_THREADS = (
    "QMATH_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
)  # fmt: skip


def usual(quick: bool) -> list[str]:
    """Return the parts that are measured where none is named."""
    return [name for name in PARTS if not (quick and name == "inference")]


def load(name: str) -> Any:
    """Return the module of a part."""
    return importlib.import_module(f"benchmarks.{name}")


def equal_threads(threads: int) -> None:
    """Tell all libraries of all later processes how many threads to use, and to be quiet."""
    # Installed packages have their bytecode; without it, each start would compile qmath's sources.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ |= dict.fromkeys(_THREADS, str(threads))
    os.environ |= {
        "TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def run(
    name: str,
    *,
    quick: bool,
    threads: int,
    rounds: int | None,
    clock: str,
    progress: measure.Progress,
) -> dict[str, Any]:
    """Measure a part in a new process; return its rows and what it had to skip.

    Raises
    ------
    RuntimeError
        The part fails; the message is its traceback.
    """
    context: Any = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    found: dict[str, Any] = {"rounds": rounds, "skipped": [], "rows": []}
    take: dict[str, Callable[[Any], object]] = {
        "progress": lambda value: progress(*value),
        "about": found.update,
        "row": found["rows"].append,
    }
    failure = "its process ended before its work"
    with tempfile.NamedTemporaryFile() as log:
        arguments = (name, quick, threads, rounds, clock, theirs, log.name)
        process = context.Process(target=_work, args=arguments)
        process.start()
        theirs.close()
        try:
            while True:
                kind, value = ours.recv()
                if kind == "end":
                    failure = value
                    break
                take[kind](value)
        except EOFError:
            pass
        process.join()
        if failure:
            output = log.read().decode(errors="replace")
            raise RuntimeError(f"{name}: {failure}\n{output}".strip())
    return found


def _work(
    name: str,
    quick: bool,
    threads: int,
    rounds: int | None,
    clock: str,
    connection: Connection,
    log: str,
) -> None:
    """Measure, and send what is found and how far the work is; what libraries say goes to `log`."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
    try:
        part = load(name)
        measure.choose_clock(clock)
        rounds = part.ROUNDS["quick" if quick else "full"] if rounds is None else rounds
        connection.send(("about", {"rounds": rounds, "skipped": part.skipped()}))
        options = measure.Options(quick, threads, rounds)
        for row in part.measure(options, lambda *value: connection.send(("progress", value))):
            connection.send(("row", row))
    except Exception:
        connection.send(("end", traceback.format_exc()))
    else:
        connection.send(("end", ""))
