"""HDF5 files in a process of their own: the library crashes or hangs on some damaged files.

A child process opens the file and answers one question after the other, over its standard input
and output: a line of JSON each, and after it the elements of an array, if they were asked for. The
process that asks never gives the file to the HDF5 library, and accepts only texts, shapes and
numbers in an answer. It ends a child that takes too long; the system limits what else the child
takes, as far as it can (`_limit`). This is not a sandbox: it guards against damage, not against a
file that exploits the library.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qmath import errors
from qmath.containers.hdf5 import MAX_RATIO, Hdf5File
from qmath.containers.keras_zip import ZipSection
from qmath.containers.lazy_array import LazyArray
from qmath.containers.source_files import Stamp, open_source, stamp_of
from qmath.errors import FileFormatError, QmathError

__all__ = ["IsolatedHdf5File", "serve", "spawn"]

# To read the structure of a file, or one array; and 1 s more for each 8 MiB of the file.
SECONDS = 60
_BYTES_PER_SECOND = 1 << 23
# Bytes of memory beyond what Python, NumPy and h5py take, and for each byte of the file; besides
# that, for each byte of an array that is inflated.
MEMORY = 1 << 26
_MEMORY_PER_BYTE = 4
# Where a system does not say how much is taken.
_TAKEN = 2 << 30

# Of Linux's prctl.
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_RAISED = ("FileFormatError", "MissingExtraError")
# Without the user's environment, but with all the paths that this process searches.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); parent = int(sys.argv[2]); "
    "from qmath.containers.isolation import serve; "
    "serve(sys.stdin.buffer, sys.stdout.buffer, parent)"
)
# The HDF5 library does one thing at a time as well.
_LOCK = threading.RLock()


class IsolatedHdf5File(Hdf5File):
    """An HDF5 file that another process reads, which ends with this object.

    Parameters
    ----------
    path, section
        As of `Hdf5File`.

    Raises
    ------
    FileFormatError
        From every method, besides what those of `Hdf5File` raise: reading crashed or took too long.
    QmathError
        On entering: no process can be started.
    """

    def __init__(self, path: str, section: ZipSection | None = None) -> None:
        super().__init__(path, section)
        self._place = list(vars(section).values()) if section else None
        self._child: _Child | None = None
        self._failure = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_child": None}

    def __enter__(self) -> IsolatedHdf5File:
        _LOCK.acquire()
        try:
            self._started().watch()
            self._ask("__enter__")
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._child is not None:
                self._ask("__exit__")
        finally:
            self._leave()

    def has(self, path: str) -> bool:
        """As `Hdf5File.has`."""
        return self._ask("has", path) is True

    def has_attribute(self, group: str, name: str) -> bool:
        """As `Hdf5File.has_attribute`."""
        return self._ask("has_attribute", group, name) is True

    def text(self, group: str, name: str) -> str:
        """As `Hdf5File.text`."""
        return self._texts_in([self._ask("text", group, name)])[0]

    def names(self, group: str, name: str) -> list[str] | None:
        """As `Hdf5File.names`."""
        answer = self._ask("names", group, name)
        return None if answer is None else self._texts_in(answer)

    def children(self, group: str) -> list[str]:
        """As `Hdf5File.children`."""
        return self._texts_in(self._ask("children", group))

    def datasets(self, group: str) -> list[str]:
        """As `Hdf5File.datasets`."""
        return self._texts_in(self._ask("datasets", group))

    def array(self, path: str) -> LazyArray:
        """As `Hdf5File.array`."""
        return LazyArray(self, path, *self._kind_in(self._ask("array", path)))

    def read(self, path: str) -> NDArray[Any]:
        """As `Hdf5File.read`."""
        with self._watched():
            values = np.empty(*self._kind_in(self._ask("read", path)))
            if not self._started().read_into(values.reshape(-1).view(np.uint8)):
                raise self._failed()
            return values

    def place(self, path: str) -> tuple[int, str]:
        """As `Hdf5File.place`."""
        with self._watched():
            answer = self._ask("place", path)
        match answer:
            case [int(offset), dtype] if 0 <= offset <= self._size:
                return offset, self._kind_in([(), dtype])[1].str
        raise self._failed()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Limit the time of what opens the file by itself, if it is not open."""
        with _LOCK:
            child = self._started()
            if child.is_watched:
                yield
                return
            child.watch()
            try:
                yield
            finally:
                child.unwatch()

    def _started(self) -> _Child:
        """Return the child: a new one at first, and in a process forked from that of the first."""
        if self._child is None or self._child.owner != os.getpid():
            # The child says what is wrong.
            with suppress(OSError, FileFormatError), open_source(self._absolute) as file:
                self._stamp = self._stamp or stamp_of(file)
                self._size = file.seek(0, os.SEEK_END)
            self._child = _Child(self.path, self._size)
            self._child.write([self._absolute, self.path, self._place, self._stamp, self._size])
        return self._child

    def _leave(self) -> None:
        if self._child is not None:
            self._child.unwatch()
        _LOCK.release()

    def _ask(self, method: str, *arguments: str) -> Any:
        """Return what a method of the child's `Hdf5File` returns, or raise what it raises."""
        with _LOCK:
            child = self._started()
            try:
                child.write([method, *arguments])
                answer = child.answer()
            except (OSError, ValueError, RecursionError):
                raise self._failed() from None
            except BaseException:  # interrupted: the answer would be taken for that of the next
                child.end()
                self._child = None
                raise
        if set(answer) == {"value"}:
            return answer["value"]
        if answer.get("error") in _RAISED and isinstance(answer.get("message"), str):
            raise getattr(errors, answer["error"])(answer["message"])
        raise self._failed()

    def _failed(self) -> FileFormatError:
        """End the child, and return what to say of the file."""
        if self._child is not None:
            late = f"took longer than {self._child.seconds} s" if self._child.is_late else ""
            self._failure = self._failure or late or "crashed"
            self._child.end()
        return FileFormatError(
            f"{self.path}: reading it in a process of its own {self._failure}; the file is "
            "damaged, copy it or save the model again"
        )

    def _texts_in(self, answer: Any) -> list[str]:
        if not isinstance(answer, list) or not all(isinstance(text, str) for text in answer):
            raise self._failed()
        return answer

    def _kind_in(self, answer: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return the shape and dtype of an array, if the file can hold it."""
        try:
            shape, dtype = tuple(map(int, answer[0])), np.dtype(answer[1])
        except (TypeError, ValueError, LookupError):
            raise self._failed() from None
        is_array = dtype.kind in "biuf" and all(length >= 0 for length in shape)
        if not is_array or math.prod(shape) * dtype.itemsize > MAX_RATIO * self._size:
            raise self._failed()
        return shape, dtype


class _Child:
    """The other process, its questions and answers."""

    def __init__(self, name: str, size: int) -> None:
        self.owner = os.getpid()
        self.seconds = SECONDS + size // _BYTES_PER_SECOND
        self._deadline = math.inf
        self._longest = 16 * size + (1 << 16)  # JSON takes up to 12 bytes for a character
        self._timer: threading.Timer | None = None
        remedy = "read it without isolate if you trust it"
        try:
            self._process = spawn()
        except (OSError, ValueError) as error:
            raise QmathError(
                f"{name}: no process to read it in starts ({error}); {remedy}"
            ) from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self.end = weakref.finalize(self, _end, self._process, self.owner)
        if self._answers.readline(64) != b"ready\n":
            self.end()
            raise QmathError(
                f"{name}: no process to read it in starts, as {sys.executable} cannot import "
                f"qmath; {remedy}"
            )

    @property
    def is_watched(self) -> bool:
        return self._timer is not None

    @property
    def is_late(self) -> bool:
        return time.monotonic() >= self._deadline

    def watch(self) -> None:
        """Begin what may take `seconds`."""
        self._deadline = time.monotonic() + self.seconds
        self._timer = threading.Timer(self.seconds, self._process.kill)
        self._timer.daemon = True
        self._timer.start()

    def unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def write(self, question: list[Any]) -> None:
        self._questions.write(json.dumps(question).encode() + b"\n")
        self._questions.flush()

    def answer(self) -> dict[str, Any]:
        """Return one answer; raise if there is none."""
        answer = json.loads(self._answers.readline(self._longest))
        if not isinstance(answer, dict):
            raise ValueError
        return answer

    def read_into(self, view: NDArray[np.uint8]) -> bool:
        """Fill `view` with the bytes after an answer; return whether all of them came."""
        count: int = self._answers.readinto(view)  # type: ignore[attr-defined]
        return count == view.size


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a process, and no more than that in a fork of the process that started it."""
    if os.getpid() == owner:
        process.kill()
        process.communicate()


def spawn() -> subprocess.Popen[bytes]:
    """Start a process that runs `serve`."""
    paths = [*sys.path, str(Path(__file__).parents[2])]
    # The system tells a child of the end of the thread that started it: any other may end earlier.
    parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
    return subprocess.Popen(
        [sys.executable or "", "-I", "-S", "-c", _BOOT, json.dumps(paths), str(parent)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def serve(questions: BinaryIO, answers: BinaryIO, parent: int = 0) -> None:
    """Answer questions about one file: the work of the child process.

    Parameters
    ----------
    questions : binary file
        First ``[path, name, section, stamp, size]`` of the file, then for each question the name
        of a method of `Hdf5File` and its arguments.
    answers : binary file
        ``ready``, then for each question ``{"value": …}``, or ``{"error": class, "message": …}``.
    parent : int
        The process with which this one ends; any other than 0 must be the one that started it.
    """
    if sys.platform == "linux":
        _bind(parent)
    _write(answers, b"ready\n")
    path, name, place, stamp, size = json.loads(questions.readline())
    if place:
        place[-1] = Stamp(*place[-1])
    with suppress(ImportError):
        import h5py  # noqa: F401  (it needs memory itself)
    memory = _taken() + MEMORY + _MEMORY_PER_BYTE * size
    seconds = SECONDS + size // _BYTES_PER_SECOND
    section = ZipSection(*place) if place else None
    file = Hdf5File(path, section)
    file.path = name
    file._stamp = Stamp(*stamp) if stamp else None
    for question in questions:
        method, *arguments = json.loads(question)
        if method == "__exit__":
            arguments = [None] * 3
        inflated = file.inflated(*arguments) if method == "read" else 0
        _limit(memory + _MEMORY_PER_BYTE * inflated, seconds)
        # Ends this process should the other one have ended in the meantime.
        if hasattr(signal, "alarm"):
            signal.alarm(2 * seconds)
        elements: bytes | memoryview = b""
        answer: dict[str, Any]
        try:
            value = getattr(file, method)(*arguments)
        except QmathError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        else:
            if isinstance(value, np.ndarray):
                elements = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
            if isinstance(value, (np.ndarray, LazyArray)):
                value = [value.shape, value.dtype.str]
            answer = {"value": None if isinstance(value, Hdf5File) else value}
        _write(answers, json.dumps(answer).encode() + b"\n", elements)
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _write(file: BinaryIO, *parts: bytes | memoryview) -> None:
    for part in parts:
        file.write(part)
    file.flush()


def _bind(parent: int) -> None:
    """Give up what new programs may gain by their files' owners, and end with the parent."""
    import ctypes

    set_process = ctypes.CDLL(None, use_errno=True).prctl
    set_process(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if parent:
        set_process(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


def _taken() -> int:
    """Return the bytes of address space that this process has."""
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return _TAKEN


def _limit(memory: int, seconds: int) -> None:
    """Limit what this process takes until the next question, where the system offers that."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = {
        resource.RLIMIT_AS: memory,  # more is a `MemoryError`
        resource.RLIMIT_CPU: math.ceil(used.ru_utime + used.ru_stime) + seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        with suppress(OSError, ValueError):  # macOS does not take every size
            least = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(kind, (least, hard if wanted else 0))
