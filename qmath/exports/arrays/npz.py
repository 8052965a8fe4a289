"""The ``.npz`` format: NumPy alone reads it, and equal bundles give equal bytes.

Every array is a stored (uncompressed) zip member ``<key>.npy``: ``<tensor>`` (integers, or the
floats of a tensor that training left float), ``<tensor>.scale`` (float32), ``<tensor>.zero_point``
(int32), and ``manifest``, UTF-8 JSON as one-dimensional uint8. That is the last, since arrays are
written as they are made; until 0.2.0 it was the first, and readers go by its name. Compression is
left out because its bytes depend on the zlib version; dates and the platform that a member names
are fixed. Only members that need the fields of zip64 have them, since Pythons fill them in
differently for others.
"""

from __future__ import annotations

import io
import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from qmath.containers.bounded_json import parse_long_json
from qmath.containers.extents import Extents
from qmath.errors import FileFormatError, QmathError
from qmath.exports.bundle import Bundle
from qmath.exports.exporter import Content, Exporter, Reading
from qmath.exports.reading import checked

__all__ = [
    "Npz", "NpzWriter", "array_header", "finished", "local_header", "member_info", "write_arrays",
]  # fmt: skip

MANIFEST = "manifest"
# What zipfile and numpy raise on damaged files.
_DAMAGE = (
    zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError,
    SyntaxError, tokenize.TokenError,
)  # fmt: skip
_UNIX = 3  # whose permissions a member has; Python would name Windows there
_LARGEST = 2**31 - 1  # of a member without zip64, for Python's zipfile
_AT_ONCE = 1 << 14  # bytes that are copied faster than written by a call of their own
_LOCAL_HEADER = 30  # bytes before the name of a member, which precedes its data
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip archive can hold


class Npz(Exporter):
    """The ``.npz`` format."""

    name = "npz"
    takes_stored_integers = True  # the manifest states the convention of each tensor

    def files(self, bundle: Bundle) -> Iterator[tuple[str, Content]]:
        """Yield the one file, written one tensor after another."""
        last = (MANIFEST, _as_array(self.manifest(bundle)))
        yield "arrays.npz", lambda file: write_arrays(file, chain(bundle.arrays(), [last]))

    def writer(self, file: BinaryIO) -> NpzWriter:
        """Return what writes a file array by array."""
        return NpzWriter(file)

    def read(self, file: BinaryIO) -> Reading:
        """Return the manifest and the arrays by key of a file.

        Nothing is trusted: members must be stored uncompressed under unique names, and the array
        that a member's header announces must be as large as the member. The arrays are read one by
        one, when they are asked for, so `file` must stay open.

        Raises
        ------
        FileFormatError
            The file, or later the array, is damaged, or not one of qmath's.
        """
        name = str(getattr(file, "name", "the file"))
        arrays = _Arrays(file, name)
        if MANIFEST not in arrays:
            raise FileFormatError(f"{name} has no manifest, so it is not an .npz that qmath wrote")
        text = arrays.pop(MANIFEST).tobytes()
        return checked(parse_long_json(text, f"{name}: the manifest", "export again"), name), arrays


def write_arrays(file: BinaryIO, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Write named arrays to an open file; unlike `numpy.savez`, whatever their names are.

    Raises
    ------
    QmathError
        Two arrays cannot be told apart by their names.
    """
    writer = NpzWriter(file)
    for name, array in arrays:
        writer.add(name, array)
    writer.close()


class NpzWriter:
    """An ``.npz`` that is written array by array; an `ArrayWriter`.

    Parameters
    ----------
    file : binary file
        Open for writing; for `read`, for reading, too.

    Raises
    ------
    QmathError
        From `add` and `rows`: two arrays cannot be told apart by their names.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at = file, file.tell()
        self._names: set[str] = set()
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._is_elsewhere = False  # the file's position, after rows

    def add(self, key: str, array: NDArray[Any]) -> None:
        """Write an array, whatever its name is."""
        header = array_header(array.dtype, array.shape)
        is_small = array.nbytes < _AT_ONCE
        data = array.tobytes() if is_small else _bytes_of(array)
        info = member_info(key, self._names, len(header) + array.nbytes)
        info.CRC = zlib.crc32(data, zlib.crc32(header))
        info.header_offset = self._at
        head = local_header(info) + header
        self._go_to_end()
        for part in [head + data] if is_small else [head, data]:
            self._file.write(part)
        self._take(key, info, len(head) + array.nbytes)

    def rows(self, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Rows:
        """Return what takes an array by rows; unless it is closed, the next array takes its place.

        No other is written meanwhile.
        """
        header = array_header(dtype, shape)
        size = dtype.itemsize * math.prod(shape)
        info = member_info(key, set(self._names), len(header) + size)
        info.header_offset = self._at
        self._is_elsewhere = True
        return _Rows(self._file, info, header, partial(self._take, key, info))

    def read(self, key: str) -> NDArray[Any]:
        """Return an array that was written."""
        info = self._members[key]
        self._file.seek(info.header_offset + len(local_header(info)))
        self._is_elsewhere = True
        values: NDArray[Any] = npy.read_array(self._file, allow_pickle=False)
        return values

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, and what makes an archive of the arrays."""
        self.add(MANIFEST, _as_array(manifest))
        self.close()

    def close(self) -> None:
        """Write what makes an archive of the arrays."""
        self._go_to_end()
        finished(self._file, self._members.values(), self._at)

    def _go_to_end(self) -> None:
        if self._is_elsewhere:
            self._file.seek(self._at)
            self._file.truncate()  # rows that were given up may have reached beyond
            self._is_elsewhere = False

    def _take(self, key: str, info: zipfile.ZipInfo, size: int) -> None:
        """Note a member that was written."""
        self._names.add(info.filename)
        self._members[key] = info
        self._at += size


class _Rows:
    """An array of an ``.npz`` that is written by rows: a `qmath.exports.weights.Rows`."""

    def __init__(
        self,
        file: BinaryIO,
        info: zipfile.ZipInfo,
        header: bytes,
        take: Callable[[int], None],
    ) -> None:
        self._file, self._info, self._take = file, info, take
        self._size = self._write_head() + file.write(header)
        self._left = info.file_size - len(header)
        info.CRC = zlib.crc32(header)

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""
        data = _bytes_of(rows)
        self._info.CRC = zlib.crc32(data, self._info.CRC)
        self._size += self._file.write(data)
        self._left -= len(data)

    def close(self) -> None:
        """Write the checksum in front of the rows, which are all there."""
        if self._left:
            raise QmathError(f"{self._info.filename}: {self._left} of its bytes are missing")
        self._write_head()
        self._take(self._size)

    def _write_head(self) -> int:
        self._file.seek(self._info.header_offset)
        return self._file.write(local_header(self._info))


def _as_array(manifest: dict[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(manifest, allow_nan=False).encode(), np.uint8)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def member_info(name: str, names: set[str], size: int) -> zipfile.ZipInfo:
    """Return the entry of an array among those of other names, of so many bytes with its header."""
    member = name + ".npy"
    # numpy.load("f.npz")["x.npy"] means the member of the array x.
    if {name, member, member + ".npy"} & names:
        raise QmathError(
            f"{name}: in an .npz this name is also that of {name.removesuffix('.npy')}; "
            "rename the layer"
        )
    names.add(member)
    info = zipfile.ZipInfo(member, _EPOCH)
    info.create_system, info.external_attr = _UNIX, 0o644 << 16
    info.CRC, info.file_size, info.compress_size = 0, size, size
    return info


def local_header(info: zipfile.ZipInfo) -> bytes:
    """Return what precedes a member's content.

    `ZipFile.open`, which is not told the size, would write it twice; for small arrays that takes
    longer than all the rest.
    """
    return info.FileHeader(zip64=info.file_size > _LARGEST)


def finished(file: BinaryIO, members: Iterable[zipfile.ZipInfo], end: int) -> None:
    """Write the directory of an archive whose members end there."""
    file.seek(0)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.filelist.extend(members)
        archive.start_dir = end


@lru_cache(maxsize=64)
def array_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return how an ``.npy`` begins: most arrays of a model are scales and zero points alike."""
    header = io.BytesIO()
    descr = npy.dtype_to_descr(dtype)
    npy.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


class _Arrays(Mapping[str, NDArray[Any]]):
    """The arrays of an ``.npz`` by key, each read from the archive when asked for."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        try:
            self._archive = zipfile.ZipFile(file)
        except _DAMAGE as error:
            raise FileFormatError(
                f"{name} is not an .npz file, or it is damaged ({error})"
            ) from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        extents = Extents()
        for info in self._archive.infolist():
            key = info.filename.removesuffix(".npy")
            if key in self._members or key == info.filename:
                raise FileFormatError(
                    f"{name} has an unexpected member {info.filename!r}, so it is "
                    "not an .npz that qmath wrote"
                )
            end = info.header_offset + _LOCAL_HEADER + len(info.orig_filename) + info.compress_size
            if not extents.take(key, [(info.header_offset, end)]):
                raise FileFormatError(
                    f"{name}: the bytes of {info.filename!r} are those of another member, too; "
                    "the file is damaged or hostile, export again"
                )
            self._members[key] = info

    def __contains__(self, key: object) -> bool:
        return key in self._members  # Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, key: str) -> NDArray[Any]:
        info = self._members[key]
        try:
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed")
            with self._archive.open(info) as stream:
                if npy.read_magic(stream) != (1, 0):
                    raise ValueError("unknown .npy version")
                shape, fortran_order, dtype = npy.read_array_header_1_0(stream)
                count = math.prod(shape)
                if dtype.hasobject or stream.tell() + count * dtype.itemsize != info.file_size:
                    raise ValueError("its header does not fit its size")
                data = np.frombuffer(stream.read(), dtype, count)
            return data.reshape(shape, order="F" if fortran_order else "C")
        except _DAMAGE as error:
            raise FileFormatError(
                f"{self._name}: the array {key!r} is damaged ({error}); export again"
            ) from error

    def pop(self, key: str) -> NDArray[Any]:
        """Read an array and drop it from the mapping."""
        array = self[key]
        del self._members[key]
        return array
