"""Temporary names beside an output: gone when their process ends, or when the next one writes.

A process locks (`flock`) what it writes for as long as it lives, so a temporary whose lock can be
taken is a dead process's. It is removed only if its name says, with a checksum, that it was made
since this system started. Where a file system has no locks, the name says nothing, and it stays.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import stat
import zlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Aside", "Temporary", "remove_unfinished", "sweep"]

_NAME = re.compile(r"\.qmath-([0-9a-f]{8})-([0-9a-f]{16})-([0-9a-f]{8})\.tmp")
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_TRIES = 8  # to make a name that no other process removes before it is locked

# What this process made: its id, as a fork is another process, and the name that an old output,
# moved away, has to get back if nothing took its place.
_unfinished: dict[Path, tuple[int, Path | None]] = {}


class Temporary:
    """A new empty file or folder beside an output, under a name that is gone after the block.

    Parameters
    ----------
    target : Path
        The output.
    is_folder : bool
        Whether to make a folder.

    Attributes
    ----------
    path : Path
        Where it is. Whatever has this name after the block is removed.

    Raises
    ------
    OSError
        It cannot be made.
    """

    path: Path

    def __init__(self, target: Path, *, is_folder: bool = False) -> None:
        self._target, self._is_folder = target, is_folder
        self._descriptor: int | None = None  # holds the lock, also when the file is closed

    def __enter__(self) -> Temporary:
        sweep(self._target.parent)
        boot = _boot()
        try:
            for _ in range(_TRIES if boot else 0):
                self._make(_name(f"{boot}-{os.urandom(8).hex()}"))
                try:
                    if self._lock():
                        return self
                except BlockingIOError:  # another process is removing it
                    pass
                except OSError:  # this file system has no locks
                    self._end()
                    break
                self._end()
            self._make(_plain_name())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def open(self) -> BinaryIO:
        """Open the file for binary writing and reading."""
        assert self._descriptor is not None
        descriptor = self._descriptor
        try:
            return open(self.path, "w+b", opener=lambda *_: os.dup(descriptor))
        finally:
            if fcntl is None:  # Windows does not rename what is open
                self._close()

    def _make(self, name: str) -> None:
        self.path = self._target.with_name(name)
        _unfinished[self.path] = (os.getpid(), None)
        if self._is_folder:
            os.mkdir(self.path)
            if fcntl is not None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self.path, flags, 0o666)

    def _lock(self) -> bool:
        """Lock it, and return whether it still has its name."""
        assert self._descriptor is not None
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def _end(self) -> None:
        """Remove what has the name, and unlock it then."""
        if hasattr(self, "path"):
            _settle(self.path)
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):  # of what was written, the file that `open` returned tells
                os.close(descriptor)


class Aside:
    """A block in which an old folder has another name, to make room for a new one.

    It gets its own back if nothing took it, and is removed otherwise. No other process removes it.

    Parameters
    ----------
    target : Path
        The folder.

    Raises
    ------
    OSError
        It cannot be moved.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path = target.with_name(_plain_name())

    def __enter__(self) -> None:
        _unfinished[self._path] = (os.getpid(), self._target)
        try:
            os.rename(self._target, self._path)
        except BaseException:
            _settle(self._path)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _settle(self._path)


def remove_unfinished() -> None:
    """Remove what this process made and could not remove, or was interrupted before it did."""
    for path in list(_unfinished):
        _settle(path)


atexit.register(remove_unfinished)


def _settle(path: Path) -> None:
    """Remove a temporary of this process, or give an old output its name back; raise no OSError."""
    process, target = _unfinished.get(path, (0, None))
    if process != os.getpid():
        return
    with suppress(OSError):
        if target is not None and not os.path.lexists(target):
            os.rename(path, target)
        elif os.path.lexists(path):
            _remove(path)
    if not os.path.lexists(path):
        _unfinished.pop(path, None)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def sweep(folder: Path) -> None:
    """Remove the temporaries in a folder whose processes were killed; raise no OSError."""
    boot = _boot()
    if boot is None:
        return
    with suppress(OSError):
        names = os.listdir(folder)
        for name in names:
            found = _NAME.fullmatch(name)
            if found and found[1] == boot and name == _name(f"{boot}-{found[2]}"):
                with suppress(OSError):
                    _sweep(folder / name)


def _sweep(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        is_file = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        if status.st_uid != os.geteuid() or not (is_file or stat.S_ISDIR(status.st_mode)):
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(status, os.lstat(path)):
            _remove(path)
    finally:
        os.close(descriptor)


def _name(text: str) -> str:
    """Return the temporary name of ``boot-number``, which no user's file has by chance."""
    return f".qmath-{text}-{zlib.crc32(text.encode()):08x}.tmp"


def _plain_name() -> str:
    """Return a temporary name that is never swept."""
    return f".qmath-{os.urandom(8).hex()}.tmp"


@functools.lru_cache(maxsize=1)
def _boot() -> str | None:
    """Return what is the same until the system starts again, where locks can be relied on."""
    if fcntl is None:
        return None
    try:
        with open(_BOOT_ID, "rb") as file:
            return f"{zlib.crc32(file.read()):08x}"
    except OSError:
        return None
