"""Damaged files: ``python -m reference.mutate --count N --seed S [--isolate]``.

Takes files that Keras and TensorFlow wrote (`reference.golden`), damages them at random, reads them
with qmath, and counts for each container:

right      all tensors are those of the undamaged file;
refused    qmath's own error;
crashed    the same error, as the HDF5 library crashed in the isolated process;
late       the same error, as it hung there;
other      other data, finite and of the shapes of the undamaged file: possible only where the
           container has no checksum;
violation  anything else: a crash, a hang, another exception, data that are not finite or of other
           shapes, or other data in spite of a checksum. Each is printed.

``sealed`` containers are damaged inside their checksums. Every mutant follows from the seed, its
container and its number alone, and is read in a child process. One that crashes or hangs there is
read again as ``qmath.load(…, isolate=True)`` does it, which has to make an error of that; with
``--isolate`` all are, at twice the time. Needs a system with ``fork``.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import select
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import h5py  # noqa: F401  (a forked process need not load it)
import numpy as np

import qmath
from qmath.containers import isolation
from reference.damage import CONTAINERS, Source, mutants

__all__ = ["judge", "run"]

OUTCOMES = ("right", "refused", "crashed", "late", "other", "violation")
# Seconds of one mutant: without isolation, before it is tried with it; in the isolated process,
# which ends in an error; and of what waits for that.
HANG, ISOLATED_HANG, PATIENCE = 4, 2, 60
MEMORY = 3 << 30

Content = dict[str, tuple[Any, ...]]


def content(model: qmath.QatModel) -> Content:
    """Return all that a model holds, by tensor."""

    def array(part: Any) -> Any:
        return None if part is None else np.asarray(part)

    return {
        name: (tensor.role, array(tensor.values), array(tensor.min), array(tensor.max))
        for name, tensor in model.tensors.items()
    }


def same(a: Content, b: Content) -> bool:
    """Tell whether all bits are equal."""

    def plain(content: Content) -> list[Any]:
        return [
            (name, role, *(x if x is None else (x.dtype, x.shape, x.tobytes()) for x in parts))
            for name, (role, *parts) in content.items()
        ]

    return plain(a) == plain(b)


def judge(source: Source, wanted: Content, has_checksum: bool, isolate: bool) -> tuple[str, str]:
    """Read a mutant; return one of `OUTCOMES` and, of a violation, what happened."""
    try:
        model = qmath.load(source.path, architecture=source.architecture, isolate=isolate)
        found = content(model)
        if same(found, wanted):
            return "right", ""
        for _ in qmath.quantize_model(model).arrays():
            pass
    except qmath.QmathError as error:
        text = str(error)
        for outcome, words in (("crashed", "its own crashed"), ("late", "its own took longer")):
            if isinstance(error, qmath.FileFormatError) and words in text:
                return outcome, ""
        return "refused", ""
    except Exception as error:
        import traceback

        frames = traceback.extract_tb(error.__traceback__)
        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        return "violation", f"{type(error).__name__}: {error} ({at})"
    if has_checksum:
        return "violation", "other data in spite of the checksum"
    for name, (_, values, *ends) in found.items():
        for array in (values, *ends):
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                return "violation", f"{name} is not finite"
        before = wanted[name][1] if name in wanted else None
        if values is not None and before is not None and values.shape != before.shape:
            return "violation", f"{name} has the shape {values.shape}"
    return "other", ""


# ---- processes


class _Forked:
    """What `isolation.spawn` returns, of a forked process."""

    def __init__(self) -> None:
        (questions, asking), (answering, answers) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(asking)
            os.close(answering)
            with open(questions, "rb") as ours, open(answers, "wb") as theirs:
                isolation.serve(ours, theirs)
            os._exit(0)
        os.close(questions)
        os.close(answers)
        self.stdin, self.stdout = open(asking, "wb"), open(answering, "rb")  # noqa: SIM115

    def kill(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self) -> None:
        """Wait for its end."""
        os.waitpid(self.pid, 0)
        self.stdout.close()
        with suppress(BrokenPipeError):
            self.stdin.close()


def _work(container: str, numbers: range, seed: int, isolate: bool, report: int) -> None:
    """Judge mutants in this process, which ends then; a line for each goes to `report`."""
    import resource

    faulthandler.disable()  # as pytest enables it
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the HDF5 library speaks there
    isolation.spawn, isolation.SECONDS = _Forked, ISOLATED_HANG
    wanted: dict[Source, Content] = {}
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        found = mutants(container, numbers, seed, Path(folder) / "now")
        for number, (source, mutant) in zip(numbers, found, strict=True):
            if source not in wanted:
                model = qmath.load(source.path, architecture=source.architecture, isolate=isolate)
                wanted[source] = content(model)
            checked = CONTAINERS[container].has_checksum
            outcome, why = judge(mutant, wanted[source], checked, isolate)
            os.write(report, json.dumps([number, outcome, why[:500]]).encode() + b"\n")
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run(
    container: str,
    count: int,
    seed: int,
    isolate: bool = False,
    progress: Callable[[], object] | None = None,
) -> tuple[Counter[str], list[str]]:
    """Judge mutants of one container.

    Returns
    -------
    counts : Counter
        By outcome.
    violations : list of str
        Each with the number of its mutant.
    """
    counts: Counter[str] = Counter()
    violations: list[str] = []
    following = 0
    while following < count:
        for number, outcome, why in _batch(container, range(following, count), seed, isolate):
            if outcome == "violation" and not isolate:
                ((_, outcome, why),) = _batch(container, range(number, number + 1), seed, True)
            counts[outcome] += 1
            if outcome == "violation":
                violations.append(f"{container} {number}: {why}")
            following = number + 1
            if progress:
                progress()
    return counts, violations


def _batch(
    container: str, numbers: range, seed: int, isolate: bool
) -> Iterator[tuple[int, str, str]]:
    """Judge mutants in another process; yield number, outcome and reason, until one ends it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        try:
            _work(container, numbers, seed, isolate, writing)
        finally:
            os._exit(1)
    os.close(writing)
    following, rest, why = numbers.start, b"", ""
    with open(reading, "rb", buffering=0) as lines:
        while True:
            if not select.select([lines], [], [], PATIENCE if isolate else HANG)[0]:
                why = "hang"
                os.kill(pid, signal.SIGKILL)
                break
            chunk = os.read(lines.fileno(), 1 << 16)
            if not chunk:
                break
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                following = json.loads(line)[0] + 1
                yield tuple(json.loads(line))
    status = os.waitpid(pid, 0)[1]
    if following < numbers.stop:
        yield following, "violation", why or f"crash (status {status})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge mutants of all containers, and print a table."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    from rich.table import Table

    parser = argparse.ArgumentParser(
        prog="python -m reference.mutate", description="Read damaged files, and count what comes."
    )
    parser.add_argument("--count", type=int, default=1000, help="mutants of each container")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--container", action="append", choices=CONTAINERS, help="only this one; repeatable"
    )
    parser.add_argument("--isolate", action="store_true", help="read each in a process of its own")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("container", *OUTCOMES)
    total: Counter[str] = Counter()
    found: list[str] = []
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        for name in options.container or CONTAINERS:
            task = bars.add_task(name, total=options.count)
            counts, violations = run(
                name, options.count, options.seed, options.isolate, lambda t=task: bars.advance(t)
            )
            table.add_row(name, *(f"{counts[outcome]:,}" for outcome in OUTCOMES))
            total += counts
            found += violations
    table.add_row("all", *(f"{total[outcome]:,}" for outcome in OUTCOMES), style="bold")
    console.print(table)
    for violation in found:
        console.print(violation, markup=False)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
