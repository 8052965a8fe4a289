"""An ``.npz`` whose arrays grow side by side, so that none has to be held in memory.

Members of an archive follow each other. So where each begins is settled first, from the shapes that
the arrays will have, and rows are written to their places. The file is the one that `write_arrays`
makes of the same arrays.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qmath.errors import FileFormatError, QmathError
from qmath.exports.arrays.npz import array_header, finished, local_header, member_info

__all__ = ["GrowingNpz", "Shaped"]

Array = NDArray[Any]
_READ = 1 << 20


@dataclass(frozen=True)
class Shaped:
    """What an array will be.

    Attributes
    ----------
    dtype : dtype
    shape : tuple of int
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass
class _Member:
    info: zipfile.ZipInfo
    header: bytes
    shaped: Shaped
    at: int  # where its data begin in the file
    crc: int
    filled: int = 0  # bytes of its data that are there

    @property
    def size(self) -> int:
        """How many bytes the data will have."""
        return self.info.file_size - len(self.header)


class GrowingNpz:
    """An ``.npz`` that is written by rows; a `qmath.integer.resuming.Sink`.

    Parameters
    ----------
    file : binary file
        Open for writing and, to go on with what was written before, for reading; seekable.
    arrays : iterable of (str, ndarray or Shaped)
        In order; those that are there at once, and what the others will be.

    Raises
    ------
    QmathError
        Two arrays cannot be told apart by their names.
    """

    def __init__(self, file: BinaryIO, arrays: Iterable[tuple[str, Array | Shaped]]) -> None:
        self._file, self._members = file, {}
        names: set[str] = set()
        at = 0
        for name, array in arrays:
            shaped = Shaped(array.dtype, array.shape)
            header = array_header(shaped.dtype, shaped.shape)
            info = member_info(name, names, len(header) + _size(shaped))
            info.header_offset = at
            at += len(local_header(info)) + len(header)
            self._members[name] = _Member(info, header, shaped, at, zlib.crc32(header))
            at += self._members[name].size
            if isinstance(array, np.ndarray):
                self._append(self._members[name], array)
        self._end = at

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Append rows to arrays.

        Raises
        ------
        QmathError
            There is no such array, its rows are others, or it has all of them.
        """
        for name, rows in arrays.items():
            member = self._members.get(name)
            if (
                member is None
                or rows.dtype != member.shaped.dtype
                or rows.shape[1:] != member.shaped.shape[1:]
                or member.filled + rows.nbytes > member.size
            ):
                raise QmathError(
                    f"{name}: rows of {rows.dtype} {rows.shape} do not fit "
                    f"{None if member is None else member.shaped}"
                )
            self._append(member, rows)

    def finish(self) -> None:
        """Write what makes an archive of the arrays.

        Raises
        ------
        QmathError
            One lacks rows.
        """
        for name, member in self._members.items():
            if member.filled != member.size:
                raise QmathError(f"{name}: {member.filled} of {member.size} bytes were written")
            member.info.CRC = member.crc
            self._file.seek(member.info.header_offset)
            self._file.write(local_header(member.info) + member.header)
        finished(self._file, [member.info for member in self._members.values()], self._end)

    def state(self) -> dict[str, list[int]]:
        """Return what `restore` needs; what was written is on the disk then."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {name: [member.filled, member.crc] for name, member in self._members.items()}

    def restore(self, state: Mapping[str, list[int]]) -> None:
        """Go on from where a file was; later rows that it may hold are written again.

        Raises
        ------
        FileFormatError
            The file does not hold that.
        """
        for name, member in self._members.items():
            member.filled, crc = state[name]
            member.crc = self._crc(member)
            if member.crc != crc:
                raise FileFormatError(
                    f"{self._file.name}: the rows of {name} that were written are not there any "
                    "more"
                )

    def _append(self, member: _Member, rows: Array) -> None:
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._file.seek(member.at + member.filled)
        self._file.write(data)
        member.crc = zlib.crc32(data, member.crc)
        member.filled += len(data)

    def _crc(self, member: _Member) -> int:
        crc, left = zlib.crc32(member.header), member.filled
        self._file.seek(member.at)
        while left and (data := self._file.read(min(left, _READ))):
            crc, left = zlib.crc32(data, crc), left - len(data)
        return crc


def _size(shaped: Shaped) -> int:
    return shaped.dtype.itemsize * math.prod(shaped.shape)
