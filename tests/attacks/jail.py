"""Read a hostile file in a process of its own, whose time and memory are limited and measured."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import qmath
from qmath.containers import isolation
from tests.readers.builders import SAMPLES

SECONDS = 60
# Beyond what the process holds already.
MEMORY = 1 << 28
SAMPLE = SAMPLES / "question.h5"


class Judgement(NamedTuple):
    """What came of a file: ``"read"``, the class of an error, or what ended the process."""

    outcome: str
    message: str


def judge(
    path: Path, architecture: Path | None = None, *, isolate: bool = False, declared: int = 0
) -> Judgement:
    """Load and inspect a model, and make all that an export would hold.

    Parameters
    ----------
    path, architecture, isolate
        As `qmath.load` takes them.
    declared : int
        The bytes of weights that are compressed as they may be.
    """
    if not hasattr(os, "fork"):
        return _judge(path, architecture, isolate)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        sys.settrace(None)  # coverage that is measured in a fork is lost
        try:
            _limit()
            found = _measured(path, architecture, isolate, declared)
        except BaseException as error:
            found = Judgement(type(error).__name__, str(error))
        os.write(writing, json.dumps(found).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        text = file.read()
    status = os.waitpid(pid, 0)[1]
    return Judgement(*json.loads(text)) if text else Judgement(f"status {status}", "")


def _limit() -> None:
    signal.alarm(SECONDS)
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _measured(path: Path, architecture: Path | None, isolate: bool, declared: int) -> Judgement:
    """Judge a file, whose peak of memory must be bounded by what it takes on the disk."""
    if sys.platform != "linux":
        return _judge(path, architecture, isolate)
    peaks: list[int] = []
    end = isolation._end

    def note(process: subprocess.Popen[bytes], owner: int) -> None:
        peaks.append(_peak(process.pid))
        end(process, owner)

    isolation._end = note
    _judge(SAMPLE, None, isolate)
    gc.collect()
    before, before_there = _peak(os.getpid()), max(peaks, default=0)
    peaks.clear()
    found = _judge(path, architecture, isolate)
    gc.collect()
    allowed = (64 << 20) + 4 * (_on_disk(path) + declared)
    for what, used in (
        ("here", _peak(os.getpid()) - before),
        ("in the other process", max(peaks, default=0) - before_there),
    ):
        if used > allowed:
            said = f"{used} bytes {what}, {allowed} allowed; {found}"
            return Judgement("too much memory", said)
    return found


def _peak(pid: int) -> int:
    """Return the most memory that a process had, or 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


def _on_disk(path: Path) -> int:
    """Return the bytes that a file, a directory or all files of a checkpoint take."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(file.stat().st_blocks * 512 for file in files)


def _judge(path: Path, architecture: Path | None, isolate: bool) -> Judgement:
    try:
        model = qmath.load(path, architecture=architecture, isolate=isolate)
        qmath.inspect(model)
        for _, array in qmath.quantize_model(model).arrays():
            assert isinstance(array, np.ndarray)
    except qmath.QmathError as error:
        return Judgement(type(error).__name__, str(error))
    return Judgement("read", json.dumps([list(model.tensors), model.notes]))
