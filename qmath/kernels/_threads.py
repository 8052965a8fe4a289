"""Threads over the blocks of large arrays: NumPy lets go of Python's lock inside an operation."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import SupportsIndex

from qmath.errors import QmathError

__all__ = ["get_num_threads", "in_threads", "set_num_threads"]

_VARIABLE = "QMATH_NUM_THREADS"
_MOST_BY_DEFAULT = 8  # all read and write one memory; who knows better sets another number
_chosen: int | None = None


def set_num_threads(num_threads: SupportsIndex | None) -> None:
    """Set how many threads work on one large array.

    Parameters
    ----------
    num_threads : int or None
        1 or more; None returns to the default: the environment variable ``QMATH_NUM_THREADS`` if
        it is set, else as many as the process may use processors, at most 8.

    Raises
    ------
    QmathError
        `num_threads` is no positive integer.

    Notes
    -----
    No result depends on it, not even the order of a sum. Arrays of less than 512 Ki elements are
    worked on by the calling thread alone.

    Examples
    --------
    >>> import qmath
    >>> qmath.set_num_threads(2)
    >>> qmath.get_num_threads()
    2
    >>> qmath.set_num_threads(None)
    """
    global _chosen
    _chosen = None if num_threads is None else _checked(num_threads, "num_threads")


def get_num_threads() -> int:
    """Return how many threads work on one large array: see `set_num_threads`."""
    if _chosen is not None:
        return _chosen
    if text := os.environ.get(_VARIABLE):
        return _checked(int(text) if text.isdecimal() else text, _VARIABLE)
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return min(available, _MOST_BY_DEFAULT)


def _checked(value: object, name: str) -> int:
    """Return a number of threads as an int, if it is one."""
    if not isinstance(value, SupportsIndex) or isinstance(value, bool) or value.__index__() < 1:
        raise QmathError(f"{name} must be a positive integer, got {value!r}")
    return value.__index__()


def in_threads(run: Callable[[int], None], parts: Sequence[int]) -> None:
    """Call ``run(part)`` for each part, every one but the first in a thread of its own.

    The calling thread waits for all; the error of the first part that has one is raised.
    """
    if len(parts) == 1:
        run(parts[0])
        return
    from threading import Thread  # which NumPy does not import

    errors: dict[int, BaseException] = {}

    def attempt(part: int) -> None:
        try:
            run(part)
        except BaseException as error:
            errors[part] = error

    threads = [Thread(target=attempt, args=(part,), daemon=True) for part in parts[1:]]
    for thread in threads:
        thread.start()
    attempt(parts[0])
    for thread in threads:
        thread.join()
    for part in parts:
        if part in errors:
            raise errors[part]
