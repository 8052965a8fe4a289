"""Damaged files: ``python -m reference.mutate --count N --seed S [--verbs] [--state FILE]``.

Takes files that Keras, TensorFlow and qmath wrote (`reference.mutants`), damages or changes them at
random, and counts for each container what qmath makes of them. Models are loaded, all their tensors
read, and lowered to integers; with ``--verbs``, they go through one random verb or format instead
(`reference.verbs`). What qmath wrote goes through ``qmath verify``.

right      all tensors are those of the undamaged file; what was written is equal; the verb is done;
refused    qmath's own error;
crashed    the same error, as the HDF5 library crashed in the isolated process;
late       the same error, as it hung there;
other      other data, finite and of the shapes of the undamaged file: possible only where the
           container has no checksum, or was changed on purpose; or `verify` tells the difference;
violation  anything else: a crash, a hang, another exception, a warning that is not qmath's own,
           something left behind after an error, data that are not finite or of other shapes, or
           other data in spite of a checksum. Each is printed.

``lowered`` are those of the right and others that run in integers. ``changed`` containers are whole
files that say another thing: their checksums are right. Every mutant follows from the seed, its
container and its number alone, and is read in a child process. One that crashes or hangs there is
read again as ``qmath.load(…, isolate=True)`` does it, which has to make an error of that; with
``--isolate`` all are, at twice the time. ``--state`` keeps counts in a file, and goes on where they
end. Needs a system with ``fork``.
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
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import h5py  # noqa: F401  (a forked process need not load it)
import numpy as np

import qmath
from qmath.containers import isolation
from qmath.integer.api import program_of
from reference.mutants import CONTAINERS, FORWARD, OUTPUTS, Container, Source, mutants, write_output
from reference.verbs import try_verb

__all__ = ["Verdict", "judge", "run"]

OUTCOMES = ("right", "refused", "crashed", "late", "other", "violation")
# Seconds of one mutant: of this process's time, before it is tried again with isolation (the HDF5
# library hangs often) and then; of the isolated process, which ends in an error; and of all, as
# other programs may keep the machine busy.
FIRST_HANG, HANG, ISOLATED_HANG, PATIENCE = 0.5, 10, 2, 120
MEMORY = 1 << 30  # beyond what the process holds already
SAVED_EVERY = 2  # seconds

Content = dict[str, tuple[Any, ...]]


class Verdict(NamedTuple):
    """What came of a mutant: one of `OUTCOMES`, why it is a violation, and whether it runs."""

    outcome: str
    why: str = ""
    lowered: bool = False


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


@contextmanager
def _loud() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings, of which only qmath's own may be."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", qmath.QmathWarning)
        yield caught


def watched(call: Callable[[], Verdict]) -> Verdict:
    """Return the verdict of a call, or what its exception or warning stands for."""
    with _loud() as caught:
        verdict = _watched(call)
    if caught and verdict.outcome != "violation":
        first = caught[0]
        at = f"{Path(first.filename).name}:{first.lineno}"
        return Verdict("violation", f"{first.category.__name__}: {first.message} ({at})")
    return verdict


def _watched(call: Callable[[], Verdict]) -> Verdict:
    try:
        return call()
    except qmath.QmathError as error:
        text = str(error)
        for outcome, words in (("crashed", "its own crashed"), ("late", "its own took longer")):
            if words in text:
                return Verdict(outcome)
        return Verdict("refused")
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[:-5:-1])
        return Verdict("violation", f"{type(error).__name__}: {str(error)[:300]} ({at})")


def judge(source: Source, wanted: Content, kind: Container, isolate: bool) -> Verdict:
    """Load and lower a mutant."""
    return watched(lambda: _judged(source, wanted, kind, isolate))


def _judged(source: Source, wanted: Content, kind: Container, isolate: bool) -> Verdict:
    model = qmath.load(source.path, architecture=source.architecture, isolate=isolate)
    found = content(model)
    lowered = False
    with suppress(qmath.QmathError):
        lowered = bool(program_of(model))
    if same(found, wanted):
        return Verdict("right", lowered=lowered)
    for _ in qmath.quantize_model(model).arrays():
        pass
    if kind.has_checksum:
        return Verdict("violation", "other data in spite of the checksum")
    for name, (_, values, *ends) in found.items() if kind.is_sane else ():
        for array in (values, *ends):
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                return Verdict("violation", f"{name} is not finite")
        before = wanted[name][1] if name in wanted else None
        if values is not None and before is not None and values.shape != before.shape:
            return Verdict("violation", f"{name} has the shape {values.shape}")
    return Verdict("other", lowered=lowered)


class _Judges:
    """What judges the mutants of a container in one process.

    Parameters
    ----------
    container : str
    seed : int
    isolate, verbs : bool
        As on the command line.
    folder : Path
        Of its own.
    """

    def __init__(self, container: str, seed: int, isolate: bool, verbs: bool, folder: Path) -> None:
        self.kind = (CONTAINERS | OUTPUTS)[container]
        self.name, self.seed, self.isolate, self.verbs = container, seed, isolate, verbs
        self.folder = folder
        self.seconds = FIRST_HANG if not (isolate or verbs or self.kind.output) else HANG
        self.wanted: dict[Source, Content] = {}
        self.models: dict[Source, tuple[qmath.QatModel, Path]] = {}

    def __call__(self, number: int, source: Source, mutant: Source) -> Verdict:
        """Judge one."""
        if self.kind.output:
            return watched(lambda: self._verified(source, mutant))
        if self.verbs:
            rng = np.random.default_rng([self.seed, zlib.crc32(self.name.encode()), number, 1])
            return self._put_through(rng, mutant)
        if source not in self.wanted:
            self.wanted[source] = {}
            with suppress(qmath.QmathError):
                model = qmath.load(source.path, architecture=source.architecture)
                self.wanted[source] = content(model)
        return judge(mutant, self.wanted[source], self.kind, self.isolate)

    def _verified(self, source: Source, mutant: Source) -> Verdict:
        if source not in self.models:
            model = qmath.load(source.path)
            self.models[source] = model, write_output(source.path, "npz", self.folder)
        model, output = self.models[source]
        if self.kind.output == FORWARD:
            found = qmath.verify(model, output, against=mutant.path)
        else:
            found = qmath.verify(model, mutant.path, format=self.kind.output)
        return Verdict("right" if found.ok else "other")

    def _put_through(self, rng: np.random.Generator, mutant: Source) -> Verdict:
        out = self.folder / "out"
        out.mkdir()
        verdict = watched(lambda: self._done(rng, mutant, out))
        shutil.rmtree(out)
        return verdict

    def _done(self, rng: np.random.Generator, mutant: Source, out: Path) -> Verdict:
        try_verb(rng, mutant, out, self.isolate)
        return Verdict("right")


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


@cache
def _warm() -> None:
    """Import here what a model needs, which each process would import anew."""
    for source in (CONTAINERS[name].sources[0] for name in ("whole.h5", "checkpoint", "exported")):
        with suppress(qmath.QmathError):
            model = qmath.load(source.path)
            program_of(model)
            qmath.quantize_model(model)


def _work(judges: _Judges, numbers: range, report: int) -> None:
    """Judge mutants in this process, which ends then; a line for each goes to `report`."""
    import resource

    faulthandler.disable()  # as pytest enables it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the HDF5 library speaks there
    isolation.spawn, isolation.SECONDS = _Forked, ISOLATED_HANG
    found = mutants(judges.name, numbers, judges.seed, judges.folder / "now")
    for number, (source, mutant) in zip(numbers, found, strict=True):
        signal.setitimer(signal.ITIMER_PROF, judges.seconds)  # which ends the process
        verdict = judges(number, source, mutant)
        signal.setitimer(signal.ITIMER_PROF, 0)
        line = [number, verdict.outcome, verdict.why[:600], verdict.lowered]
        os.write(report, json.dumps(line).encode() + b"\n")
    os._exit(0)


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Tally(NamedTuple):
    """What came of a container's mutants: counts by outcome, and each violation in words."""

    counts: Counter[str]
    violations: list[str]


def run(
    container: str,
    numbers: range | int,
    seed: int,
    isolate: bool = False,
    verbs: bool = False,
    progress: Callable[[int, Tally], object] | None = None,
) -> Tally:
    """Judge mutants of one container.

    Parameters
    ----------
    container : str
        A key of `CONTAINERS` or `OUTPUTS`.
    numbers : range or int
        Of the mutants, or how many.
    seed : int
    isolate, verbs : bool
        As on the command line.
    progress : callable, optional
        Called with the number of each mutant that is judged, and what came so far.

    Returns
    -------
    Tally
    """
    tally = Tally(Counter(), [])
    wanted = range(numbers) if isinstance(numbers, int) else numbers
    following = wanted.start
    _warm()
    while following < wanted.stop:
        rest = range(following, wanted.stop)
        for number, verdict in _batch(container, rest, seed, isolate, verbs):
            last = verdict
            if verdict.outcome == "violation" and not isolate:
                one = range(number, number + 1)
                ((_, last),) = _batch(container, one, seed, True, verbs)
            tally.counts[last.outcome] += 1
            tally.counts["lowered"] += last.lowered
            if last.outcome == "violation":
                tally.violations.append(f"{container} {number}: {last.why}")
            following = number + 1
            if progress:
                progress(number, tally)
    return tally


def _batch(
    container: str, numbers: range, seed: int, isolate: bool, verbs: bool
) -> Iterator[tuple[int, Verdict]]:
    """Judge mutants in another process; yield number and verdict, until one ends it."""
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory(dir=_fast_folder(), ignore_cleanup_errors=True) as folder:
        pid = os.fork()
        if not pid:
            os.close(reading)
            sys.settrace(None)  # coverage that is measured in a fork is lost
            try:
                _work(_Judges(container, seed, isolate, verbs, Path(folder)), numbers, writing)
            except BaseException:
                os.write(writing, json.dumps(traceback.format_exc()).encode() + b"\n")
            finally:
                os._exit(1)
        os.close(writing)
        try:
            following = yield from _told(pid, reading, numbers.start)
        except (GeneratorExit, RuntimeError):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        status = os.waitpid(pid, 0)[1]
    if following < numbers.stop:
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGKILL)
        yield following, Verdict("violation", "hang" if late else f"crash (status {status})")


def _told(pid: int, reading: int, first: int) -> Iterator[tuple[int, Verdict]]:
    """Yield what a process reports; return the number that it did not come to."""
    following, rest = first, b""
    with open(reading, "rb", buffering=0) as lines:
        while True:
            if not select.select([lines], [], [], PATIENCE)[0]:
                os.kill(pid, signal.SIGKILL)
                return following
            chunk = os.read(lines.fileno(), 1 << 16)
            if not chunk:
                return following
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                told = json.loads(line)
                if isinstance(told, str):
                    raise RuntimeError(f"mutant {following} cannot be made: {told}")
                number, *verdict = told
                following = number + 1
                yield number, Verdict(*verdict)


# ---- the command


class State:
    """Counts by container, in a file or not.

    Parameters
    ----------
    path : Path or None
    mode : list
        What the mutants follow from and go through; a file of another mode is refused.
    """

    def __init__(self, path: Path | None, mode: list[Any]) -> None:
        self.path, self.mode = path, mode
        self.done: dict[str, dict[str, Any]] = {}
        self.saved = time.monotonic()
        if path and path.exists():
            held = json.loads(path.read_text())
            if held["mode"] != mode:
                raise SystemExit(f"{path} counts mutants of {held['mode']}, not of {mode}")
            self.done = held["containers"]

    def of(self, container: str) -> dict[str, Any]:
        """Return a container's next number, outcomes, violations, and seconds of the processor."""
        empty: dict[str, Any] = {"next": 0, "seconds": 0.0, "counts": {}, "violations": []}
        return self.done.setdefault(container, empty)

    def save(self, every: float = 0) -> None:
        """Write the file, unless it was written in the last seconds."""
        if self.path and time.monotonic() - self.saved >= every:
            beside = self.path.with_name(f"{self.path.name}.new")
            beside.write_text(json.dumps({"mode": self.mode, "containers": self.done}, indent=1))
            beside.replace(self.path)
            self.saved = time.monotonic()

    def judge(self, name: str, count: int, seed: int, isolate: bool, verbs: bool) -> None:
        """Judge the mutants of a container that are not yet counted."""
        entry = self.of(name)
        counts, known = Counter(entry["counts"]), [*entry["violations"]]
        start, before = _seconds(), entry["seconds"]

        def note(number: int, tally: Tally) -> None:
            entry["next"] = number + 1
            entry["counts"] = dict(counts + tally.counts)
            entry["violations"] = known + tally.violations
            entry["seconds"] = before + _seconds() - start
            self.save(SAVED_EVERY)

        run(name, range(entry["next"], count), seed, isolate, verbs, note)
        entry["seconds"] = before + _seconds() - start


def _seconds() -> float:
    """Return the processor's time of this process and of those that ended."""
    return sum(os.times()[:4])


def _table(state: State, names: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table("container", *OUTCOMES, "lowered", "a second")
    total: Counter[str] = Counter()
    for name in names:
        entry = state.of(name)
        counts = Counter(entry["counts"])
        rate = entry["next"] / entry["seconds"] if entry["seconds"] else 0
        table.add_row(name, *(f"{counts[o]:,}" for o in (*OUTCOMES, "lowered")), f"{rate:.0f}")
        total += counts
    table.add_row("all", *(f"{total[o]:,}" for o in (*OUTCOMES, "lowered")), style="bold")
    return table


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m reference.mutate", description="Read damaged files, and count what comes."
    )
    parser.add_argument("--count", type=int, default=1000, help="mutants of each container")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--container",
        action="append",
        choices=CONTAINERS | OUTPUTS,
        help="only this one; repeatable",
    )
    parser.add_argument("--verbs", action="store_true", help="one random verb or format for each")
    parser.add_argument("--isolate", action="store_true", help="read each in a process of its own")
    parser.add_argument(
        "--state", type=Path, help="go on from this file, and keep the counts there"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge mutants of all containers, and print a table."""
    from rich.console import Console
    from rich.progress import track

    options = _options(arguments)
    state = State(options.state, [options.seed, options.verbs])
    names = options.container or [*CONTAINERS, *(() if options.verbs else OUTPUTS)]
    try:
        for name in track(names, console=Console(stderr=True)):
            state.judge(name, options.count, options.seed, options.isolate, options.verbs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    finally:
        state.save()
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_table(state, names))
    found = [violation for name in names for violation in state.of(name)["violations"]]
    for violation in found:
        console.print(violation, markup=False, soft_wrap=True)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
