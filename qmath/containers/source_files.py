"""The files a model was read from: their digest, when somebody asks, and whether they changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import cached_property

from qmath.errors import FileFormatError

__all__ = ["SourceFiles", "Stamp", "has_changed", "stamp_of"]

Stamp = tuple[int, int]


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
        digests = [(self._digest(path), name) for path, name in self._files.items()]
        if len(digests) == 1:
            return digests[0][0]
        lines = sorted(f"{digest}  {name.replace(os.sep, '/')}\n" for digest, name in digests)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def _digest(self, path: str) -> str:
        if _stamp(path) != self._stamps[path]:
            raise has_changed(path)
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what differs once a file has changed: its size, and when it was written last."""
    return status.st_size, status.st_mtime_ns


def has_changed(name: str) -> FileFormatError:
    """Return the error that a file is not the one that was loaded."""
    return FileFormatError(f"{name}: the file has changed since it was loaded; load it again")


def _stamp(path: str) -> Stamp:
    try:
        return stamp_of(os.stat(path))
    except OSError as error:
        raise FileFormatError(f"{path}: it cannot be read ({error.strerror})") from None
