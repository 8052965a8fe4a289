"""One random verb or format for a model: the second mode of `reference.mutate`."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import qmath
from qmath.exports.registry import FORMATS
from qmath.inspection.html import render
from qmath.integer.api import PROFILES, program_of
from reference.mutants import MODEL, Source
from reference.structures import pick

__all__ = ["VERBS", "LeftBehindError", "try_verb"]

# Beyond which data are not made up for a model: whoever runs it has data of that size.
MOST_DATA = 1 << 16
BY_COMMAND = 0.25  # of the mutants
WITHOUT_VECTORS = ("h5", "onnx", "qonnx", "tflite")
Call = Callable[[np.random.Generator, qmath.QatModel, Path], object]


class LeftBehindError(Exception):
    """Something that must not be there after an error, or is not there without one."""


def _inputs(model: qmath.QatModel) -> dict[str, np.ndarray]:
    shapes = program_of(model).inputs
    if sum(math.prod(shape) for shape in shapes.values()) > MOST_DATA:
        raise qmath.QmathError("its data would be too large")
    return {name: np.zeros((2, *shape), np.float32) for name, shape in shapes.items()}


def _inspect(_: np.random.Generator, model: qmath.QatModel, __: Path) -> None:
    json.dumps(qmath.inspect(model).as_dict(), allow_nan=False)


def _html(_: np.random.Generator, model: qmath.QatModel, __: Path) -> None:
    render(qmath.inspect(model)).encode()


def _run(rng: np.random.Generator, model: qmath.QatModel, _: Path) -> None:
    qmath.run(model, _inputs(model), profile=pick(rng, list(PROFILES)))


def _diff(rng: np.random.Generator, model: qmath.QatModel, _: Path) -> None:
    one, other = (pick(rng, list(PROFILES)) for _ in range(2))
    qmath.diff(model, _inputs(model), profile=one, against=other)


def _verify(rng: np.random.Generator, model: qmath.QatModel, folder: Path) -> None:
    """Check the mutant's own export, or that of the undamaged model."""
    output = folder / "whole.npz"
    try:
        qmath.export(model if rng.random() < 0.5 else MODEL, output)
        found = qmath.verify(model, output)
        list(map(str, found.differences))
    finally:
        output.unlink(missing_ok=True)


def _recover(_: np.random.Generator, model: qmath.QatModel, __: Path) -> None:
    for tensor in model.tensors.values():
        if tensor.values is not None and tensor.role in ("weight", "float"):
            with contextlib.suppress(qmath.QmathError):
                qmath.recover(np.asarray(tensor.values))


def _export(name: str) -> Call:
    def call(rng: np.random.Generator, model: qmath.QatModel, folder: Path) -> None:
        output = folder / f"out.{name}"
        vectors = pick(rng, [None, 0, 1]) if name not in WITHOUT_VECTORS else None
        qmath.export(model, output, format=name, signed=rng.random() < 0.7, vectors=vectors)
        if not output.exists():
            raise LeftBehindError(f"{output.name} is not there")

    return call


VERBS: dict[str, Call] = {
    "inspect": _inspect,
    "html": _html,
    "run": _run,
    "diff": _diff,
    "verify": _verify,
    "recover": _recover,
    **{f"export {name}": _export(name) for name in FORMATS},
}


def try_verb(rng: np.random.Generator, mutant: Source, folder: Path, isolate: bool) -> str:
    """Put a mutant through one random verb or format, and return which.

    Some go through the command line.

    Raises
    ------
    QmathError
        The mutant, or the verb, was refused.
    LeftBehindError
        An error left something in `folder`, which is empty.
    """
    name = pick(rng, list(VERBS))
    try:
        if rng.random() < BY_COMMAND:
            _by_command(name, mutant, folder, isolate)
        else:
            model = qmath.load(mutant.path, architecture=mutant.architecture, isolate=isolate)
            VERBS[name](rng, model, folder)
    except qmath.QmathError as error:
        left = os.listdir(folder)
        if left:
            raise LeftBehindError(f"{name} left {left} after: {error}") from None
        raise
    return name


def _by_command(name: str, mutant: Source, folder: Path, isolate: bool) -> None:
    """Run the command, whose status must be 0 or 1; of an error one line and nothing else."""
    from qmath.cli.app import app

    status, said, complained = _ended(app, list(_words(name, mutant, folder, isolate)))
    if status == 2:
        lines = complained.strip().splitlines()
        if said or not lines or not lines[-1].startswith("qmath: error: "):
            raise LeftBehindError(f"{name} said {said[:200]!r} and {complained[:200]!r}")
        if "out of memory" in lines[-1]:
            raise MemoryError(lines[-1])
        raise qmath.QmathError(lines[-1])
    if status not in (0, 1):
        raise LeftBehindError(f"{name} ended with the status {status}")


def _words(name: str, mutant: Source, folder: Path, isolate: bool) -> Iterator[str]:
    verb, _, format_ = name.partition(" ")
    yield "inspect" if verb in ("html", "recover", "run", "diff") else verb
    yield str(mutant.path)
    if mutant.architecture:
        yield from ("--architecture", str(mutant.architecture))
    if isolate:
        yield "--isolate"
    if verb == "html":
        yield from ("--html", str(folder / "out.html"))
    elif verb == "export":
        yield from ("-o", str(folder / f"out.{format_}"), "--format", format_)
    elif verb == "verify":
        yield str(folder / "none.npz")


def _ended(app: Any, words: list[str]) -> tuple[Any, str, str]:
    """Return the exit status of a command, and what it wrote to both streams."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            app.main(words)
    except SystemExit as end:
        return end.code, out.getvalue(), err.getvalue()
    raise LeftBehindError("the command did not end")
