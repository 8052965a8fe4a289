"""Where a verb computes: in this process, in several, or on the machines of a Dask scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import click

from qmath.errors import MissingExtraError, QmathError

__all__ = ["computing", "worker_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def worker_options(function: _Function) -> _Function:
    """Add the options that say where to compute."""
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
