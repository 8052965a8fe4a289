"""Work over data, divided into shards: in this process, in others, or on other machines.

A shard is a task of about a second. Its result counts once, when it arrives, in the order of the
examples; until then the shard is kept, and is done again if the process that had it is lost.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from qmath._progress import Progress
from qmath.errors import QmathError
from qmath.integer.arguments import check_workers
from qmath.integer.resuming import Keepable, Resumption
from qmath.integer.streams import Part, Stream

__all__ = ["Job", "T", "reduced"]

_SECONDS = 1.0  # that a shard takes
_GROWTH = 4  # of one shard to the next, at most
_ELEMENTS = 1 << 24  # of a shard, at most
_TRIES = 2
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Total(Keepable, Protocol):
    """What adds up."""

    def merge(self, other: Any) -> None:
        """Add what another holds, of examples that follow."""


T = TypeVar("T", bound=Total)


class Job(ABC, Generic[T]):
    """What is done with examples. It can be pickled, and so can its totals."""

    @abstractmethod
    def empty(self) -> T:
        """Return the total of no examples."""

    @abstractmethod
    def add(self, total: T, part: Part) -> None:
        """Compute a batch of examples and add it."""


def reduced(
    job: Job[T],
    stream: Stream,
    *,
    workers: int = 1,
    executor: Executor | None = None,
    progress: Progress | None = None,
    resume: Resumption | None = None,
    after: Callable[[T], object] | None = None,
) -> T:
    """Return the total of all examples.

    Parameters
    ----------
    job : Job
    stream : Stream
    workers : int
        How many processes compute at once; 1 is this one.
    executor : concurrent.futures.Executor, optional
        What computes in place of processes of this call's own, `workers` tasks at a time, or as
        many as this machine has processors.
    progress : callable, optional
        Called with how many examples are done, and of how many, 0 if that is not known.
    resume : Resumption, optional
        What was done before, and where to keep what is.
    after : callable, optional
        Called with the total, in this process, whenever further examples are in it.

    Raises
    ------
    QmathError
        As the job; a process was lost twice with the same examples.
    """
    check_workers(workers)
    tally = _Tally(job, stream, progress, resume, after)
    try:
        if executor is None and workers == 1:
            _serial(job, stream, tally)
        elif executor is not None:
            at_once = workers if workers > 1 else os.cpu_count() or 1
            _Division(job, stream, _Given(executor), at_once, tally).work()
        else:
            with _Processes(workers) as processes:
                _Division(job, stream, processes, workers, tally).work()
    except BaseException:
        tally.keep()
        raise
    return tally.total


class _Tally(Generic[T]):
    """The total so far, of this and of earlier calls."""

    def __init__(
        self,
        job: Job[T],
        stream: Stream,
        progress: Progress | None,
        resume: Resumption | None,
        after: Callable[[T], object] | None,
    ) -> None:
        self.total = job.empty()
        self._stream, self._progress = stream, progress
        self._resume, self._after = resume, after
        self._done, self._is_whole, self._is_new = 0, True, False
        if resume is not None:
            resume.begin(job, stream, self.total)
            self._done = resume.done

    def parts(self, size: Callable[[], int]) -> Iterator[Part]:
        """Yield the data that are not in the total yet."""
        parts = self._stream.parts(size)
        return parts if self._resume is None else self._resume.rest(parts)

    def add(self, found: T, parts: list[Part]) -> None:
        """Add the total of further examples."""
        self._is_whole = False
        self.total.merge(found)
        if self._after:
            self._after(self.total)
        if self._resume is not None:
            self._resume.count(parts, self.total)
        self._is_whole = self._is_new = True
        self._done += sum(map(len, parts))
        if self._progress:
            self._progress(self._done, self._stream.length or 0)

    def keep(self) -> None:
        """Keep what this call did, unless an addition was interrupted: the last file holds."""
        if self._resume is not None and self._is_whole and self._is_new:
            self._resume.save(self.total)


def _serial(job: Job[T], stream: Stream, tally: _Tally[T]) -> None:
    for given in tally.parts(lambda: stream.batch):
        for part in given.cut(stream.batch):
            found = job.empty()
            job.add(found, part)
            tally.add(found, [part])


class _Given:
    """Someone's executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, content: bytes, parts: list[Part], batch: int) -> Future[Any]:
        return self._executor.submit(_work, content, parts, batch)


class _Processes:
    """Processes of our own, which a lost one takes with it, and which are then started again."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._workers, mp_context=get_context("spawn"), initializer=_begin
        )

    def submit(self, content: bytes, parts: list[Part], batch: int) -> Future[Any]:
        with _one_thread():  # processes are started when there is work
            try:
                return self._pool.submit(_work, content, parts, batch)
            except BrokenExecutor:
                self._pool.shutdown(wait=True, cancel_futures=True)
                self._pool = self._started()
                return self._pool.submit(_work, content, parts, batch)

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(eq=False)
class _Task:
    """A shard that is being computed."""

    parts: list[Part]
    future: Future[Any]
    tries: int = 1

    @property
    def examples(self) -> int:
        return sum(map(len, self.parts))


class _Division(Generic[T]):
    """A job whose shards are computed elsewhere, a few at a time."""

    def __init__(
        self,
        job: Job[T],
        stream: Stream,
        place: _Given | _Processes,
        at_once: int,
        tally: _Tally[T],
    ) -> None:
        self._stream, self._place, self._tally = stream, place, tally
        self._most = 2 * at_once
        self._content = _pickled(job)
        self._size = stream.batch
        self._tasks: deque[_Task] = deque()

    def work(self) -> None:
        """Compute all shards, and add them up."""
        shards = self._shards()
        try:
            while True:
                while self._has_room() and (parts := next(shards, None)):
                    self._tasks.append(_Task(parts, self._submitted(parts)))
                if not self._tasks:
                    return
                found, seconds = self._first()
                task = self._tasks.popleft()
                self._tally.add(found, task.parts)
                self._adapt(task.examples / max(seconds, 1e-3))
        finally:
            for task in self._tasks:
                task.future.cancel()

    def _has_room(self) -> bool:
        return len(self._tasks) < self._most and not any(_is_lost(t.future) for t in self._tasks)

    def _first(self) -> tuple[T, float]:
        """Return the result of the first shard, and how long it took.

        A pool that broke has lost all its tasks. Each is done again when it is the first one, and
        alone, so that the one that breaks the pool is known.
        """
        task = self._tasks[0]
        while True:
            try:
                found: tuple[T, float] = task.future.result()
                return found
            except Exception as error:
                if not _is_loss(error):
                    raise
                start, task.tries = task.parts[0].start, task.tries + 1
                if task.tries > _TRIES:
                    raise QmathError(
                        f"a worker was lost twice with the examples {start} to "
                        f"{start + task.examples - 1}: was there too little memory? use fewer "
                        "workers; in a script, call from under if __name__ == '__main__'"
                    ) from error
                task.future = self._submitted(task.parts)

    def _submitted(self, parts: list[Part]) -> Future[Any]:
        try:
            return self._place.submit(self._content, parts, self._stream.batch)
        except BrokenExecutor as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def _adapt(self, rate: float) -> None:
        """Let the next shards take about a second."""
        batch = self._stream.batch
        wanted = min(int(rate * _SECONDS), self._size * _GROWTH, self._stream.holding(_ELEMENTS))
        self._size = max(1, wanted // batch) * batch

    def _shards(self) -> Iterator[list[Part]]:
        """Yield shards of whole batches, or of whole parts that an iterable gives."""
        parts: list[Part] = []
        for part in self._tally.parts(lambda: self._size):
            parts.append(part)
            if sum(map(len, parts)) >= self._size:
                yield parts
                parts = []
        if parts:
            yield parts


def _is_loss(error: BaseException | None) -> bool:
    # The second is what Dask's scheduler raises of a task that killed several workers.
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


def _is_lost(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and _is_loss(future.exception())


class _Pickler(pickle.Pickler):
    """A pickler that leaves out what is kept of steps, such as a profile's constants."""

    def reducer_override(self, value: Any) -> Any:
        return (WeakKeyDictionary, ()) if isinstance(value, WeakKeyDictionary) else NotImplemented


def _pickled(job: Job[Any]) -> bytes:
    content = io.BytesIO()
    try:
        _Pickler(content, pickle.HIGHEST_PROTOCOL).dump(job)
        return content.getvalue()
    except Exception as error:  # whatever an object of the user's raises
        raise QmathError(
            f"other processes cannot get what is computed ({error}); give functions and reducers "
            "of a module, not of a notebook or a function, or do without workers"
        ) from error


@lru_cache(maxsize=2)
def _loaded(content: bytes) -> Job[Any]:
    job: Job[Any] = pickle.loads(content)
    return job


def _work(content: bytes, parts: list[Part], batch: int) -> tuple[Any, float]:
    """Return the total of a shard, and the seconds that it took; called in a worker."""
    job = _loaded(content)
    start = time.perf_counter()
    total = job.empty()
    for given in parts:
        for part in given.cut(batch):
            job.add(total, part)
    return total, time.perf_counter() - start


def _begin() -> None:
    """Let a worker end with the process that it works for, which alone heeds interruptions."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that are started compute in one thread each: there are enough of them."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
