"""How a verb computes: in this process, in others, on Dask's machines, and in instalments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from qmath.cli.models import ModelArgument
from qmath.cli.streams import complain
from qmath.errors import MissingExtraError, QmathError

__all__ = ["check_resumed", "computing", "resuming", "worker_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def worker_options(function: _Function) -> _Function:
    """Add the options that say where to compute, and what to go on from."""
    options = (
        click.option(
            "--workers",
            type=click.IntRange(1),
            metavar="N",
            help="Compute in N processes at once; default: in this one. The results are the same.",
        ),
        click.option(
            "--scheduler",
            metavar="tcp://HOST:PORT",
            help="Let the workers of a Dask scheduler compute, which have qmath; needs Dask's "
            "package distributed.",
        ),
        click.option(
            "--resume",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Keep in FILE what is done, until all is: the same command goes on from there "
            "after an interruption, to the same result. For one model.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@contextmanager
def computing(workers: int | None, scheduler: str | None) -> Iterator[dict[str, Any]]:
    """Yield the arguments of `qmath.run` and `qmath.diff` that say where to compute.

    Raises
    ------
    QmathError
        Dask is not installed, or there is no such scheduler.
    """
    if scheduler is None:
        yield {"workers": workers or 1}
        return
    try:
        distributed = import_module("distributed")
    except ImportError:
        raise MissingExtraError(
            "--scheduler needs Dask's package distributed: pip install distributed"
        ) from None
    try:
        client = distributed.Client(scheduler)
    except (OSError, ValueError) as error:
        raise QmathError(f"--scheduler {scheduler}: there is none ({error})") from None
    with client:
        at_once = workers or sum(client.nthreads().values())
        if not at_once:
            raise QmathError(f"--scheduler {scheduler}: it has no workers yet; start some")
        yield {"workers": at_once, "executor": client.get_executor()}


def check_resumed(resume: Path | None, model: ModelArgument, others: Iterable[Path | None]) -> None:
    """Raise if what is done cannot be kept in that file.

    Raises
    ------
    QmathError
        There are several models; the file is one of `others`.
    """
    if resume is None:
        return
    if model.others:
        raise click.UsageError("--resume keeps what is done of one model: give the others after it")
    from qmath.integer.claiming import lock_of
    from qmath.integer.resuming import outputs_beside

    taken = [path.resolve() for path in (*model.inputs, *others) if path is not None]
    for path in (resume, outputs_beside(resume), lock_of(resume)):
        if path.resolve() in taken:
            beside = "" if path == resume else f" keeps {path}, which"
            raise QmathError(
                f"--resume {resume}{beside} is another file of this command; give it a new name"
            )


@contextmanager
def resuming(resume: Path | None) -> Iterator[None]:
    """Let no other process have the file, and say after an interruption how to go on.

    Raises
    ------
    OutputError
        Another process has it.
    """
    from qmath.integer.claiming import claimed

    try:
        with claimed(resume):
            yield
    except KeyboardInterrupt:
        if resume is None:
            complain("with --resume FILE, the same command could go on from where it stopped")
        elif resume.exists():
            complain(f"{resume} holds what is done: give the same command to go on")
        raise
