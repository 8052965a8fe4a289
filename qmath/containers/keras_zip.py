"""Keras's ``.keras`` archives, trusted with nothing: a zip file whose members are not compressed.

Members are read where they lie in the file, never extracted. Keras compresses none of them, so a
compressed one is refused, and no small file can ask for much memory.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from qmath.containers.source_files import Stamp, has_changed, open_source, stamp_of, unchanged
from qmath.errors import FileFormatError, QmathError

__all__ = ["KerasZip", "ZipSection"]

# Keras writes three members, and one for each vocabulary.
_MAX_DIRECTORY = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class ZipSection:
    """The place of a member's bytes in its archive.

    Attributes
    ----------
    path : str
        The archive, an absolute path.
    name : str
        The member.
    start, size : int
        In bytes.
    stamp : tuple of int
        Of the archive, when its directory was read.
    """

    path: str
    name: str
    start: int
    size: int
    stamp: Stamp = field(compare=False)

    def open(self) -> BinaryIO:
        """Open the member, for reading."""
        return _SectionFile(self)  # type: ignore[return-value]


class _SectionFile(io.RawIOBase):
    """A section of a file as a file of its own."""

    def __init__(self, section: ZipSection) -> None:
        super().__init__()
        self._file = open_source(section.path)
        if stamp_of(self._file) != section.stamp:
            self._file.close()
            raise has_changed(section.path)
        self._start, self._size = section.start, section.size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(self._size - self._position, 0)]
        self._file.seek(self._start + self._position)
        count = self._file.readinto(view) or 0
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _DirectoryFile(io.FileIO):
    """A zip file for `zipfile`, which reads the directory in one piece of the size it claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise ValueError(f"a directory of {size} bytes")
        return super().read(_MAX_DIRECTORY if size is None or size < 0 else size)


class KerasZip:
    """A ``.keras`` archive; its directory is read and checked at once.

    Parameters
    ----------
    path : str
        The file.

    Raises
    ------
    FileFormatError
        It is not a zip file, or one of arrays, or its directory is damaged, hostile or names a
        member twice.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._absolute = os.path.abspath(path)
        with _as_format_error(path), open_source(self._absolute, path) as opened:
            self._stamp = stamp_of(opened)
            with (
                unchanged(opened, self._stamp, path),
                _DirectoryFile(opened.fileno(), closefd=False) as file,
                zipfile.ZipFile(file) as archive,
            ):
                members: list[zipfile.ZipInfo] = archive.infolist()
        self._members = {member.filename: member for member in members}
        if members and all(name.endswith(".npy") for name in self._members):
            raise FileFormatError(
                f"{path}: this is an archive of arrays (.npz), which is data or an export, and no "
                "model; a pattern of files of data is quoted: 'shards/*.npz'"
            )
        if len(self._members) < len(members):
            raise FileFormatError(
                f"{path}: two members of the zip file have one name; the file was edited, save "
                "the model again"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def section(self, name: str) -> ZipSection:
        """Return where a member lies, its checksum being checked.

        Raises
        ------
        FileFormatError
            It is missing, compressed, encrypted or damaged.
        """
        section = self._locate(name)
        checksum = 0
        with (
            _as_format_error(self.path),
            section.open() as file,
            unchanged(file, self._stamp, self.path),
        ):
            while block := file.read(_BLOCK):
                checksum = zlib.crc32(block, checksum)
        if checksum != self._members[name].CRC:
            raise FileFormatError(
                f"{self.path}: {name} does not match its checksum; the file is damaged, copy it "
                "again"
            )
        return section

    def read(self, name: str, limit: int) -> bytes:
        """Return a member's bytes, at most `limit`.

        Raises
        ------
        FileFormatError
            As `section`, or it is longer.
        """
        if self._locate(name).size > limit:
            raise FileFormatError(
                f"{self.path}: {name} is longer than {limit} bytes, which no model needs; the "
                "file is damaged or hostile"
            )
        section = self.section(name)
        with (
            _as_format_error(self.path),
            section.open() as file,
            unchanged(file, self._stamp, self.path),
        ):
            return file.read(limit)

    def _locate(self, name: str) -> ZipSection:
        where = f"{self.path}: {name}"
        member = self._members.get(name)
        if member is None:
            raise FileFormatError(
                f"{where} is missing from the zip file, so Keras did not write it, or it was "
                "edited; save the model again"
            )
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise FileFormatError(
                f"{where} is compressed or encrypted, which Keras never does; unzip the file and "
                "pack it again without: zip -0 -r"
            )
        with _as_format_error(self.path), open_source(self._absolute, self.path) as file:
            file.seek(member.header_offset)
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(
                file.read(_LOCAL_HEADER.size)
            )
            local_name = file.read(name_length)
            start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            end = file.seek(0, os.SEEK_END)
        if (
            signature != b"PK\x03\x04"
            or local_name != member.orig_filename.encode()
            or member.file_size != member.compress_size
            or start + member.file_size > end
        ):
            raise FileFormatError(
                f"{where} does not lie where the zip file's directory says; the file is damaged, "
                "copy it or save the model again"
            )
        return ZipSection(self._absolute, name, start, member.file_size, self._stamp)


@contextmanager
def _as_format_error(where: str) -> Iterator[None]:
    """Turn whatever the standard library raises on bad zip files into the one error class."""
    try:
        yield
    except QmathError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise FileFormatError(
            f"{where}: this zip file cannot be read ({reason or type(error).__name__}); it is "
            "damaged or was cut, copy it or save the model again"
        ) from error
