"""Failing machines: ``python -m reference.faults [--only NAME] [--jobs N]``.

Writes every format, new and over an older output, and makes each call fail in turn on what lies in
the output's folder: open, read, write, fsync, rename, mkdir, unlink and rmdir, close, flock, for
the first, the second … until a run has no such call. Then the same with SIGINT, SIGTERM, SIGHUP and
SIGKILL at each, with little memory, and, for each container, with calls on the model that is read.
After each run

* the output is the old one or the new one, whole: every byte is compared;
* an error is one line on stderr and status 2, and a signal's status is its own;
* nothing else is left in the folder, except after SIGKILL, or where nothing can be removed as every
  call fails, and then the next export removes it.

Where memory is short, the HDF5 library may crash the process, which counts for itself.
Whatever else happens is a violation, which is printed. Status 1 says that there was one.
"""

from __future__ import annotations

import argparse
import errno
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qmath.exports.registry import FORMATS
from reference.interposing import KINDS, Fault, Machine, Result, UnavailableError

__all__ = ["Case", "containers", "faults", "formats", "judge", "sweep", "verbs"]

SAMPLES = Path(__file__).parent / "samples"
GOLDEN = Path(__file__).parent / "golden"
OUTCOMES = ("old", "new", "left behind", "crashed", "violation")
ERRORS = {
    "open": (errno.EMFILE, errno.EACCES),
    "read": (errno.EIO,),
    "write": (errno.ENOSPC, errno.EIO),
    "sync": (errno.EIO,),
    "rename": (errno.EACCES, errno.EIO),
    "mkdir": (errno.ENOSPC,),
    "remove": (errno.EACCES,),
    "close": (errno.EIO,),
    "lock": (errno.ENOLCK,),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
SMALL = GOLDEN / "zoo/tf2.21/kernel_bias"
MEMORY_STEP = 1 << 17
ENOUGH = 4  # runs one after another that end well

Snapshot = dict[str, bytes | None]


class Case(NamedTuple):
    """A command that writes an output, and where calls count.

    Attributes
    ----------
    name : str
        Of the row.
    args : sequence
        Of the command line, the output's name left out, which comes last.
    output : str
        The output's name in its folder.
    is_old : bool
        Whether an older output is there.
    source : Path, optional
        What is copied; calls on the copy count, not those on the output. ``args`` say ``{source}``.
    """

    name: str
    args: Sequence[str]
    output: str
    is_old: bool
    source: Path | None = None


def formats() -> Iterator[Case]:
    """Yield every format, new and over an older output."""
    for name in FORMATS:
        model = SAMPLES / "default8.h5" if name == "cmsis-nn" else SMALL / "whole.h5"
        for is_old in (False, True):
            args = ("export", str(model), "--format", name, "--overwrite", "-o")
            yield Case(f"{name}, {'over an older' if is_old else 'new'}", args, "model", is_old)


def verbs() -> Iterator[Case]:
    """Yield what other verbs write."""
    model, data = str(SAMPLES / "default8.h5"), str(SAMPLES / "digits_test.npz")
    for verb, args in (
        ("run -o", ("run", model, data, "--overwrite", "-o")),
        ("inspect --html", ("inspect", model, "--overwrite", "--html")),
        ("recover -o", ("recover", "{floats}", "--overwrite", "-o")),
    ):
        yield Case(f"{verb}, over an older", args, "out", is_old=True)


def containers() -> Iterator[Case]:
    """Yield what models are read from."""
    architecture = ("--architecture", str(SMALL / "config.json"))
    for name, source, *more in (
        ("HDF5", SMALL / "whole.h5"),
        (".keras", SMALL / "model.keras"),
        (".weights.h5", SMALL / "model.weights.h5", *architecture),
        ("checkpoint", SMALL / "checkpoint", *architecture),
        ("SavedModel", GOLDEN / "saved_models/tf2.21/kernel_bias/exported"),
    ):
        args = ("export", "{source}", "--format", "npz", "--overwrite", *map(str, more), "-o")
        yield Case(f"read {name}", args, "model", is_old=True, source=Path(source))
    yield Case("read HDF5, written to h5", ("export", "{source}", "--format", "h5", "--overwrite",
               "-o"), "model", is_old=True, source=SAMPLES / "question.h5")  # fmt: skip


def faults(case: Case) -> Iterator[Fault]:
    """Yield what happens at a call; while a model is read, nothing is written yet."""
    kinds = KINDS if case.source is None else ("open", "read", "close")
    for kind in kinds:
        for number in ERRORS[kind]:
            yield Fault("fail", number, (kind,))
    if case.source is not None:
        yield Fault("short", 0, ("read",))
        return
    yield Fault("fail on", errno.EIO)
    yield Fault("short", 0, ("read", "write"))
    for number in SIGNALS:
        yield Fault("signal", number)
    yield Fault("signal on", signal.SIGTERM)


def snapshot(folder: Path) -> Snapshot:
    """Return all that is in a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def older(new: Snapshot) -> Snapshot:
    """Return another output of the same names, which qmath may replace."""
    changed: Snapshot = {}
    for name, data in new.items():
        is_manifest = name.endswith("manifest.json")
        changed[name] = data + b"\n" if is_manifest and data else data and data[::-1]
    return changed


def restore(folder: Path, content: Snapshot) -> None:
    """Let a folder hold this and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in content.items():
        if data is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)


def judge(result: Result, fault: Fault, found: Snapshot, old: Snapshot, new: Snapshot) -> str:
    """Return one of `OUTCOMES` except the last, or what is wrong, in words."""
    is_signal = fault.action.startswith("signal")
    known = {name: data for name, data in found.items() if not name.startswith(".qmath-")}
    if known != old and known != new:
        return "the output is neither the old one nor the new one"
    if fault.memory is not None and result.status == -signal.SIGSEGV and found == old:
        return "crashed"
    outcome = "new" if known == new else "old"
    if result.status == 0:
        if outcome != "new" or result.lines:
            return "status 0, and yet the output is the old one, or something was said"
    elif is_signal:
        said = [] if fault.number != signal.SIGINT else result.lines[:1]
        if result.status not in (-fault.number, 128 + fault.number) or result.lines != said:
            return "a signal ended with another status, or with words"
    elif result.status != 2 or len(result.lines) != 1 or outcome != "old":
        return "no single line and status 2, or an error although the output is there"
    elif not result.lines[0].startswith("qmath: error: "):
        return "an unclear line"
    if known != found:
        if fault.number != signal.SIGKILL and fault.action != "fail on":
            return "something is left behind"
        return "left behind"
    return outcome


def sweep(
    machine: Machine,
    case: Case,
    place: Path,
    wanted: Iterable[Fault],
    *,
    with_memory: bool = False,
    report: Callable[[str], None] = print,
) -> Counter[tuple[str, str, str]]:
    """Run a case with each fault at each call; count by kind of fault, kind of call and outcome.

    Parameters
    ----------
    machine : Machine
        Runs the command line.
    case : Case
        What it does.
    place : Path
        An empty folder.
    wanted : iterable of Fault
        What happens, each for the first call, the second … until there is none.
    with_memory : bool
        Whether also to run it with as much address space as it has, and then more, until it ends
        well.
    report : callable
        Takes a line that says what is wrong.
    """
    out, source = place / "out", place / "source"
    floats = place / "floats.npy"
    np.save(floats, np.arange(-100, 100, dtype=np.float32) * np.float32(0.1))
    if case.source is not None:  # readers tell files apart by their names
        source = source.with_suffix("".join(case.source.suffixes[-2:]))
    args = [part.format(source=source, floats=floats) for part in case.args]
    args.append(str(out / case.output))
    if case.source is not None:
        (shutil.copytree if case.source.is_dir() else shutil.copy)(case.source, source)
    restore(out, {})
    machine.warm(args)
    new = snapshot(out)
    old = older(new) if case.is_old else {}

    def tried(fault: Fault, nth: int) -> Result:
        restore(out, old)
        result = machine.run(args, source if case.source else out, fault, nth)
        if result.kind is None and fault.memory is None:
            return result
        outcome = judge(result, fault, snapshot(out), old, new)
        if outcome == "left behind":
            later = machine.run(args, out)
            if later.status or snapshot(out) != new:
                outcome = f"a later export leaves {set(snapshot(out)) - set(new)}: {later.lines}"
        if outcome not in OUTCOMES:
            report(f"{case.name}: {fault} at call {nth}, {result}: {outcome}")
            outcome = "violation"
        counts[_title(fault), result.kind or "", outcome] += 1
        return result

    counts: Counter[tuple[str, str, str]] = Counter()
    for fault in wanted:
        nth = 1
        while tried(fault, nth).kind is not None:
            nth += 1
    if with_memory:
        extra, enough = 0, 0
        while enough < ENOUGH:
            enough = 0 if tried(Fault(memory=extra), 1).status else enough + 1
            extra += MEMORY_STEP
    return counts


def _title(fault: Fault) -> str:
    if fault.memory is not None:
        return "memory"
    if fault.action.startswith("signal"):
        return signal.Signals(fault.number).name
    return "short" if fault.action == "short" else "error"


def _row(name: str, counts: Counter[tuple[str, str, str]]) -> str:
    """Return a line of the table: how many runs of each kind, and how they ended."""
    kinds = dict.fromkeys((*KINDS, "short", "signals", "memory"), 0)
    ends: Counter[str] = Counter()
    for (fault, kind, outcome), number in counts.items():
        ends[outcome] += number
        is_error = fault == "error"
        kinds[kind if is_error else fault if fault in kinds else "signals"] += number
    cells = [*kinds.values(), *(ends[outcome] for outcome in OUTCOMES)]
    return f"| {name} | " + " | ".join(map(str, cells)) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases, print a line for each, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reference.faults", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    options = parser.parse_args(arguments)
    cases = [c for c in (*formats(), *verbs(), *containers()) if options.only in c.name]

    def run(case: Case) -> Counter[tuple[str, str, str]]:
        with Machine() as machine, tempfile.TemporaryDirectory() as place:
            return sweep(
                machine, case, Path(place), faults(case), with_memory=case.source is None,
                report=lambda line: print(line, file=sys.stderr, flush=True),
            )  # fmt: skip

    titles = ["case", *KINDS, "short", "signals", "memory", *OUTCOMES]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    total: Counter[tuple[str, str, str]] = Counter()
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            for case, counts in zip(cases, pool.map(run, cases), strict=True):
                print(_row(case.name, counts), flush=True)
                total += counts
    except UnavailableError as error:
        parser.error(str(error))
    print(_row("all", total))
    return int(any(outcome == "violation" for _, _, outcome in total))


if __name__ == "__main__":
    sys.exit(main())
