"""The files a model is read from: opened with care, and whether they changed; their digest."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from io import BufferedReader
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from qmath.errors import FileFormatError

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = [
    "Section",
    "SourceFiles",
    "Stamp",
    "has_changed",
    "is_same",
    "open_source",
    "stamp_of",
    "unchanged",
]

# Bytes that a file may claim without room on the disk: a copy may leave out blocks of zeros.
_MAX_HOLES = 1 << 24
_MAX_PIECES = 4096
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_LARGE = 1 << 24  # bytes that take longer to hash than a thread to start
_BUFFER = 1 << 18  # bytes that stay in the processor's cache
_BLOCK = 512  # of `st_blocks`, whatever the file system's


class Stamp(NamedTuple):
    """What differs once a file has changed: which it is, its size, when it was written."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Section(Protocol):
    """A part of a file that is a file itself, such as a member of an archive."""

    @property
    def name(self) -> str:
        """The name of the part in messages."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    @property
    def stamp(self) -> Stamp:
        """That of the file, when the part was found in it."""

    def open(self) -> BinaryIO:
        """Open it, for reading."""


class SourceFiles:
    """The files of one model, as they were when it was read.

    Parameters
    ----------
    paths : iterable of str
        All files that were read; their contents stay unread until `sha256` is asked for.
    root : str, optional
        The directory that holds them; by default, each counts by its base name.

    Raises
    ------
    FileFormatError
        One is missing.
    """

    def __init__(self, paths: Iterable[str], root: str | None = None) -> None:
        self._files = {
            os.path.abspath(path): os.path.relpath(path, root) if root else os.path.basename(path)
            for path in paths
        }
        self._stamps = {path: _stamp(path) for path in self._files}
        self._ahead: Future[str] | None = None

    @contextmanager
    def hashing(self) -> Iterator[None]:
        """Compute `sha256` in a thread beside the body, where that is worth it.

        Whoever asks for it there waits for the thread, and so does the end.
        """
        size = sum(stamp.size for stamp in self._stamps.values())
        if size < _LARGE or "sha256" in self.__dict__ or self._ahead is not None:
            yield
            return
        from concurrent.futures import ThreadPoolExecutor  # which small files need not wait for

        with ThreadPoolExecutor(1) as pool:
            self._ahead = pool.submit(self._combined)
            try:
                yield
            finally:
                self._ahead = None

    @cached_property
    def sha256(self) -> str:
        """The SHA-256. Of one file, it is the digest of its bytes.

        Of several files, it is the digest of the lines ``<digest>  <name>`` (as ``sha256sum``
        prints them, names relative to the root and with ``/``) in sorted order, each ended by a
        newline.

        Raises
        ------
        FileFormatError
            A file has changed since the model was read.
        """
        ahead = self._ahead
        return ahead.result() if ahead else self._combined()

    def _combined(self) -> str:
        digests = [(self._digest(path), name) for path, name in self._files.items()]
        if len(digests) == 1:
            return digests[0][0]
        lines = sorted(f"{digest}  {name.replace(os.sep, '/')}\n" for digest, name in digests)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def _digest(self, path: str) -> str:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER))
        try:
            with open_source(path) as file, unchanged(file, self._stamps[path], path):
                while count := file.readinto(buffer):
                    digest.update(buffer[:count])
        except OSError as error:
            raise _unreadable(path, error) from None
        return digest.hexdigest()


def open_source(path: str, name: str | None = None) -> BufferedReader:
    """Open a file for reading, without waiting for what a pipe or a device may send.

    Parameters
    ----------
    path : str
        The file.
    name : str, optional
        What error messages call it.

    Raises
    ------
    FileFormatError
        It is no regular file, or large parts of it were never written.
    OSError
        As `open` raises.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 (the caller closes it)
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError(f"{name or path}: this is no regular file; copy it into one")
        missing = status.st_size - getattr(status, "st_blocks", math.inf) * _BLOCK
        holes = _holes(file.fileno(), status.st_size) if missing > _MAX_HOLES else 0
        if holes > _MAX_HOLES:
            raise FileFormatError(
                f"{name or path}: {holes} of its {status.st_size} bytes were never written, so it "
                "is damaged, hostile or still being copied; copy it again"
            )
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def unchanged(file: BinaryIO, stamp: Stamp, name: str) -> Iterator[None]:
    """Raise, before the body and after it, if an open file is not the one that has this stamp.

    Raises
    ------
    FileFormatError
        It was written, replaced, cut or deleted.
    """
    if stamp_of(file) != stamp:
        raise has_changed(name)
    yield
    if stamp_of(file) != stamp:
        raise has_changed(name)


def stamp_of(file: BinaryIO) -> Stamp:
    """Return the stamp of an open file."""
    return _of_status(os.fstat(file.fileno()))


def is_same(path: str, stamp: Stamp | None) -> bool:
    """Whether the file of a name surely has that stamp, without opening it.

    There are systems that tell of a file otherwise by its name than once it is open.
    """
    try:
        return _of_status(os.stat(path)) == stamp
    except OSError:
        return False


def _of_status(status: os.stat_result) -> Stamp:
    return Stamp(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def has_changed(name: str) -> FileFormatError:
    """Return the error that a file is not the one that was loaded."""
    return FileFormatError(f"{name}: the file has changed since it was loaded; load it again")


def _stamp(path: str) -> Stamp:
    try:
        with open_source(path) as file:
            return stamp_of(file)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> FileFormatError:
    return FileFormatError(f"{path}: it cannot be read ({error.strerror})")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | _AT_ONCE)


def _holes(descriptor: int, size: int) -> int:
    """Return how many bytes of a file just opened were never written.

    That it has fewer blocks is not enough: a file system may compress, or write later.
    """
    written, at = 0, 0
    try:
        for _ in range(_MAX_PIECES):
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
            written += at - start
    except OSError:  # nothing but a hole is left
        pass
    os.lseek(descriptor, 0, os.SEEK_SET)
    return size - written
