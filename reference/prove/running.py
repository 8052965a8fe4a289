"""Tasks in worker processes. A module apart: processes cannot import a package's ``__main__``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any

import qmath
from reference.prove import certificate
from reference.prove.tasks import tasks

__all__ = ["Finished", "run"]

Finished = tuple[str, list[dict[str, Any]], float]
_counter: Any = None  # of a worker: what all of them have compared


def _start(counter: Any) -> None:
    global _counter
    _counter = counter


def _tick(elements: int) -> None:
    with _counter.get_lock():
        _counter.value += elements


def _work(name: str, quick: bool, against: str) -> Finished:
    """Run one task in this process."""
    qmath.set_num_threads(1)  # the processes share the processors already
    start = time.process_time()
    records = [
        {**record, "commit": certificate.commit()}
        for record in tasks(quick, against)[name].run(_tick)
    ]
    return name, records, time.process_time() - start


def run(
    names: list[str],
    quick: bool,
    jobs: int,
    counter: Any,
    show: Callable[[], object],
    against: str = "tf",
) -> Iterator[Finished]:
    """Run tasks, in this process or in `jobs` others; call `show` now and then."""
    if jobs == 1:
        _start(counter)
        for name in names:
            yield _work(name, quick, against)
            show()
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start, (counter,)) as pool:
        waiting = {pool.submit(_work, name, quick, against) for name in names}
        while waiting:
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            show()
