"""One process at a time goes on from a file of what is done."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from qmath.errors import OutputError

__all__ = ["claimed", "lock_of"]

# Those that this call has claimed itself; another thread's begin without any.
_CLAIMED: ContextVar[frozenset[Path]] = ContextVar("claimed", default=frozenset())


def lock_of(path: Path) -> Path:
    """Return the name of the file whose lock stands for `path`, which is replaced as it grows."""
    return path.with_name(f"{path.name}.lock")


@contextlib.contextmanager
def claimed(path: Path | None) -> Iterator[None]:
    """Let no other process, nor another call of this one, have `path` during the block.

    The system frees what a process held that died. Of a block inside a block, the outer one holds.

    Parameters
    ----------
    path : Path or None
        ``None`` claims nothing.

    Raises
    ------
    OutputError
        Another has it; the folder cannot be written to; the lock's name is another file's.
    """
    if path is None or path.resolve() in _CLAIMED.get():
        yield
        return
    lock = lock_of(path)
    file = _locked(lock, path)
    token = _CLAIMED.set(_CLAIMED.get() | {path.resolve()})
    try:
        yield
    finally:
        _CLAIMED.reset(token)
        _release(lock, file)


def _locked(lock: Path, path: Path) -> int:
    """Return the descriptor of the lock's file, which is made if need be."""
    while True:
        try:
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror or error}; check that its folder is there, "
                "its permissions and free space"
            ) from error
        try:
            if os.fstat(file).st_size:
                raise OutputError(
                    f"{lock} is not empty, so it is no lock of {path}; give --resume (resume=) "
                    "another name"
                )
            _lock(file, path)
            is_there = _is_there(lock, file)
        except BaseException:
            os.close(file)
            raise
        if is_there:
            return file
        os.close(file)  # whoever had it has removed it meanwhile


def _is_there(lock: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(lock), os.fstat(file))
    except FileNotFoundError:
        return False


def _lock(file: int, path: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise OutputError(
            f"{path} is used by another process, or another call of this one; wait until it ends, "
            "or give --resume (resume=) another name"
        ) from error
    except OSError:
        pass  # a file system without locks, on which work goes on as if alone


def _release(lock: Path, file: int) -> None:
    if sys.platform == "win32":  # where an open file cannot be removed
        os.close(file)
    with contextlib.suppress(OSError):
        lock.unlink()
    if sys.platform != "win32":  # removed while it is held, so that nobody else's is
        os.close(file)
