"""Read a hostile file in a process of its own, whose time and memory are limited and measured."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import qmath

SECONDS = 60
# Beyond what the process holds already.
MEMORY = 1 << 28


class Judgement(NamedTuple):
    """What came of a file: ``"read"``, the class of an error, or what ended the process."""

    outcome: str
    message: str


def judge(path: Path, architecture: Path | None = None) -> Judgement:
    """Load and inspect a model, and make all that an export would hold."""
    if not hasattr(os, "fork"):
        return _judge(path, architecture)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        try:
            _limit()
            found = _judge(path, architecture)
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


def _judge(path: Path, architecture: Path | None) -> Judgement:
    try:
        model = qmath.load(path, architecture=architecture)
        qmath.inspect(model)
        for _, array in qmath.quantize_model(model).arrays():
            assert isinstance(array, np.ndarray)
    except qmath.QmathError as error:
        return Judgement(type(error).__name__, str(error))
    return Judgement("read", json.dumps([list(model.tensors), model.notes]))
