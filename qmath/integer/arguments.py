"""What `run` and `diff` are given, checked before any work: each refusal says what is expected."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from qmath.containers.stored_arrays import Rows
from qmath.errors import QmathError
from qmath.integer.program import Program
from qmath.integer.reducers import Reducer
from qmath.integer.streams import rows_of
from qmath.kernels._arrays import as_index

__all__ = [
    "check_against",
    "check_callbacks",
    "check_reducers",
    "check_workers",
    "kept_names",
    "labels_of",
]


def check_workers(workers: object) -> None:
    """Raise unless `workers` are a whole number of 1 or more.

    Raises
    ------
    QmathError
        They are not.
    """
    number = as_index(workers)
    if number is None:
        raise QmathError(f"workers must be a whole number of processes, got {workers!r}")
    if number < 1:
        raise QmathError(f"workers must be 1 or more, got {workers}")


def check_reducers(reducers: object) -> None:
    """Raise unless `reducers` are a sequence of them.

    Raises
    ------
    QmathError
        They are not.
    """
    given = list(reducers) if isinstance(reducers, Iterable) else [reducers]
    wrong = [x for x in given if not isinstance(x, Reducer)]
    if wrong or not isinstance(reducers, Collection):
        raise QmathError(
            f"reducers has {(wrong or [reducers])[0]!r}; give a list of objects whose class is a "
            "subclass of qmath.integer.reducers.Reducer"
        )


def check_callbacks(progress: object, executor: object, sink: object = None) -> None:
    """Raise unless what a call is to use has what it uses.

    Raises
    ------
    QmathError
        `progress` is no function, `executor` cannot be given work, or `sink` no results.
    """
    if progress is not None and not callable(progress):
        raise QmathError(
            "progress must be a function of two numbers, the examples done and all of them, got "
            f"{progress!r}"
        )
    for name, given, method, like in (
        ("executor", executor, "submit", "those of concurrent.futures have"),
        ("sink", sink, "write", "qmath.exports.arrays.growing.GrowingNpz has"),
    ):
        if given is not None and not callable(getattr(given, method, None)):
            raise QmathError(f"{name} must have a method {method}, as {like}, got {given!r}")


def check_against(against: object) -> None:
    """Raise unless a comparison can be with that.

    Raises
    ------
    QmathError
        It is no name, path or mapping.
    """
    expected = "give the name of a profile, the path of a file or folder, or {TENSOR: array}"
    if not isinstance(against, (str, os.PathLike, Mapping)):
        raise QmathError(f"against is of the type {type(against).__name__}; {expected}")
    for name in against if isinstance(against, Mapping) else ():
        if not isinstance(name, str):
            raise QmathError(f"against has the name {name!r}; {expected}")


def labels_of(labels: Any) -> dict[str, Rows]:
    """Return the labels of a run by what they are called beside the data, if there are any.

    Raises
    ------
    QmathError
        They are no array of numbers with an entry for each example.
    """
    if labels is None:
        return {}
    if isinstance(labels, (str, os.PathLike, Mapping)):
        raise QmathError(
            f"labels must be an array, got {_shown(labels)}; the command line alone takes names "
            "and files: give what they hold, such as numpy.load(FILE)['labels']"
        )
    found = rows_of(labels, "labels")
    kind = getattr(found.dtype, "kind", "i")  # other libraries' types have none
    if not len(found.shape) or kind not in "buif":
        raise QmathError(
            f"labels must be an array of numbers with an entry for each example, got {found.dtype} "
            f"of shape {tuple(found.shape)}"
        )
    return {"labels": found}


def kept_names(program: Program, keep: Any) -> frozenset[str] | None:
    """Return the steps whose results a run keeps; ``None``: all.

    Raises
    ------
    QmathError
        It is no collection of their names.
    """
    if keep is None:
        return None
    if isinstance(keep, (str, bytes)) or not isinstance(keep, Iterable):
        raise QmathError(
            f"keep must be a list of tensors' names, got {keep!r}; of the outputs alone: "
            f"keep={list(program.outputs)}"
        )
    names = [step.name for step in program.steps]
    kept = list(keep)
    for name in kept:
        if name not in names:
            raise QmathError(
                f"keep has {name!r}, which is none of the model's tensors: {', '.join(names)}"
            )
    return frozenset(kept)


def _shown(value: object) -> str:
    return f"a {type(value).__name__}" if isinstance(value, Mapping) else repr(value)
