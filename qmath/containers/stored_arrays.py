"""Arrays that stay in their files, ``.npy`` or ``.npz``, and are read a few rows at a time.

A memory map would do as much for an ``.npy``; but its pages count as the program's memory, and a
file that shrinks ends the process.
"""

from __future__ import annotations

import glob
import math
import os
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from qmath.containers.array_file import read_arrays
from qmath.containers.source_files import open_source, stamp_of
from qmath.errors import FileFormatError, QmathError

__all__ = ["JoinedArray", "Rows", "StoredArray", "open_arrays"]

Array = NDArray[Any]
Shape = tuple[int, ...]
_READ = 1 << 20
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Rows(Protocol):
    """What holds an array's rows, and returns those of a slice: an ndarray, a Zarr array."""

    @property
    def shape(self) -> Shape:
        """The number of rows, and the shape of each."""

    @property
    def dtype(self) -> Any:
        """Of an element."""

    def __getitem__(self, rows: slice, /) -> Any: ...


class _TooShortError(FileFormatError):
    """A file has fewer bytes than its header says."""


class _AsArray:
    """What rows have in common: as an array, they are read."""

    shape: Shape
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self: Rows, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype)


class StoredArray(_AsArray):
    """An array in a file, read forward: rows before those read last are looked for from the start.

    Parameters
    ----------
    open_file : callable
        Opens the ``.npy``, or the member of an ``.npz``, at its beginning.
    where : str
        What error messages call it.
    size : int
        How many bytes the file or the member has, header and all.

    Raises
    ------
    FileFormatError
        Its rows would take more.
    """

    def __init__(
        self, open_file: Callable[[], AbstractContextManager[IO[bytes]]], where: str, size: int
    ) -> None:
        self._open, self._where = open_file, where
        self._opened = ExitStack()
        self._file: IO[bytes] | None = None
        self._at = 0
        with open_file() as file:
            self.shape, self.dtype = _header(file)
            if file.tell() + self.dtype.itemsize * math.prod(self.shape) > size:
                raise _TooShortError(f"{where} ends before its last row; copy it again")

    def __getitem__(self, rows: slice) -> Array:
        start, stop, _ = rows.indices(len(self))
        count = max(0, stop - start)
        try:
            return self._read(start, count)
        except FileFormatError:
            self.close()
            raise
        except Exception as error:  # a damaged archive makes zipfile raise whatever it likes
            self.close()
            raise FileFormatError(f"{self._where} cannot be read to its end ({error})") from error

    def close(self) -> None:
        """Close the file, which is opened again for the next rows."""
        self._opened.close()
        self._file = None

    def _read(self, start: int, count: int) -> Array:
        row = self.dtype.itemsize * math.prod(self.shape[1:])
        if self._file is None or start < self._at:
            self.close()
            self._file = self._opened.enter_context(self._open())
            _header(self._file)
            self._at = 0
        _skip(self._file, row * (start - self._at))
        content = self._file.read(row * count)
        if len(content) != row * count:
            raise FileFormatError(f"{self._where} ends before its last row; copy it again")
        self._at = start + count
        if self._at == len(self):
            self._file.read(1)  # past the end, where an archive checks its sum
            self.close()
        return np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])


class JoinedArray(_AsArray):
    """The rows of several arrays, one after the other.

    Parameters
    ----------
    parts : sequence of Rows
        Equal in dtype, and in shape but for the first axis.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._ends = list(accumulate(part.shape[0] for part in parts))
        self.shape = (self._ends[-1], *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __getitem__(self, rows: slice) -> Array:
        start, stop, _ = rows.indices(len(self))
        found = [self._parts[0][:0]]
        while start < stop:
            number = bisect_right(self._ends, start)
            end, part = min(stop, self._ends[number]), self._parts[number]
            first = self._ends[number] - part.shape[0]
            found.append(part[start - first : end - first])
            start = end
        return found[1] if len(found) == 2 else np.concatenate(found)


def open_arrays(path: str | os.PathLike[str]) -> dict[str, Rows]:
    """Return the arrays of a file, or of all files that a pattern names, without reading them.

    Parameters
    ----------
    path : path
        An ``.npz``; an ``.npy``, whose array has the name ``""``; or a pattern such as
        ``shards/*.npz``, whose files are joined in the order of their names.

    Raises
    ------
    FileFormatError
        As `qmath.containers.array_file.read_arrays`; the files of a pattern do not fit together.
    """
    text = os.fspath(path)
    if not glob.has_magic(text) or os.path.lexists(text):
        return _of_file(Path(text))
    files = [Path(name) for name in sorted(glob.glob(text))]
    if not files:
        raise FileFormatError(f"{text}: the pattern names no file; quote it, and check the path")
    shards = [_of_file(file) for file in files]
    for file, shard in zip(files, shards, strict=True):
        if (found := _kinds(shard)) != (expected := _kinds(shards[0])):
            raise FileFormatError(
                f"{file} holds {found}, {files[0]} {expected}; give shards of the same arrays"
            )
    return {name: JoinedArray([shard[name] for shard in shards]) for name in shards[0]}


def _kinds(arrays: Mapping[str, Rows]) -> str:
    parts = [f"{n or 'an array'} {x.dtype} (N, {x.shape[1:]})" for n, x in sorted(arrays.items())]
    return ", ".join(parts)


def _of_file(path: Path) -> dict[str, Rows]:
    """Return the arrays of one file: read at once where they cannot be read by rows."""
    text = os.fspath(path)
    try:
        with open_source(text) as file:
            if not zipfile.is_zipfile(file):
                return {"": StoredArray(partial(_file, text), text, stamp_of(file).size)}
            with zipfile.ZipFile(file) as archive:
                sizes = {info.filename: info.file_size for info in archive.infolist()}
        return {
            name.removesuffix(".npy"): StoredArray(
                partial(_member, text, name), f"{text}: {name}", size
            )
            for name, size in sizes.items()
        }
    except _TooShortError:
        raise  # NumPy would allocate what the header says
    except Exception:  # what is unusual NumPy reads, and what is wrong `read_arrays` names
        return dict(read_arrays(path))


@contextmanager
def _file(path: str) -> Iterator[IO[bytes]]:
    with open_source(path) as file:
        yield file


@contextmanager
def _member(path: str, name: str) -> Iterator[IO[bytes]]:
    with (
        open_source(path) as file,
        zipfile.ZipFile(file) as archive,
        archive.open(name) as member,
    ):
        yield member


def _header(file: IO[bytes]) -> tuple[Shape, np.dtype[Any]]:
    """Return shape and dtype, and leave the file at its first row."""
    read = _HEADERS[npy.read_magic(file)]
    shape, in_columns, dtype = read(file)
    if (in_columns and len(shape) > 1) or not shape or dtype.hasobject:
        raise QmathError("its rows do not follow each other")
    return tuple(shape), dtype


def _skip(file: IO[bytes], count: int) -> None:
    while count > 0:
        read = len(file.read(min(count, _READ)))
        if not read:
            return
        count -= read
