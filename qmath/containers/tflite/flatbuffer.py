"""FlatBuffers, as far as TFLite's schema needs them: every offset and length is checked first.

A table is read whole, into a dictionary by field, and what it points to as it is asked for. What a
file may make of itself is bounded by its size: offsets may point anywhere, many to the same place.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.containers.tflite.schema import IDENTIFIER, SCALARS, TABLES, Field
from qmath.errors import FileFormatError

__all__ = ["FlatBuffer", "Table"]

MAX_TABLES = 1 << 18
_TABLE = 8  # bytes that a table and the offset to it take at least
_LONGEST_TEXT = 1 << 16
_CODES = {"i1": "b", "u1": "B", "i4": "i", "u4": "I", "i8": "q", "u8": "Q", "f4": "f"}
_NUMBERS = {word: struct.Struct(f"<{_CODES[kind[1:]]}") for word, kind in SCALARS.items()}
_UINT16, _INT32, _UINT32 = (struct.Struct(f"<{code}") for code in "HiI")


class FlatBuffer:
    """The bytes of a file, and how much of them was read.

    Parameters
    ----------
    content : bytes
    name : str
        Of the file, in messages.

    Raises
    ------
    FileFormatError
        It has not the identifier of TFLite.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.name = content, name
        self._tables = min(len(content) // _TABLE, MAX_TABLES)
        self._bytes = len(content)
        if content[4:8] != IDENTIFIER:
            raise FileFormatError(f"{name}: this is no TFLite file; it does not say TFL3")

    def root(self) -> Table:
        """Return the table that the file begins with."""
        return Table(self, self.offset(0, "the model"), "Model", "the model")

    def damaged(self, where: str, how: str) -> FileFormatError:
        """Return the error that a part of the file is damaged."""
        return FileFormatError(
            f"{self.name}: {where}: {how}; the file is damaged, copy or convert it again"
        )

    def spend(self, where: str, *, tables: int = 0, size: int = 0) -> None:
        """Count what is read, and raise where it is more than the file can hold.

        It is more where many offsets point to the same place.
        """
        self._tables -= tables
        self._bytes -= size
        if self._tables < 0 or self._bytes < 0:
            raise self.damaged(where, "parts of the file are used again and again")

    def number(self, code: struct.Struct, at: int, where: str) -> Any:
        """Return a number."""
        if not 0 <= at <= len(self.content) - code.size:
            raise self.damaged(
                where, f"it lies at {at}, and the file has {len(self.content)} bytes"
            )
        return code.unpack_from(self.content, at)[0]

    def offset(self, at: int, where: str) -> int:
        """Return where the offset at `at` leads to."""
        return int(at + self.number(_UINT32, at, where))

    def vector(self, at: int, item: int, where: str) -> tuple[int, int]:
        """Return where the elements of a vector begin, and how many there are."""
        count = self.number(_UINT32, at, where)
        if count * item > len(self.content) - at - 4:
            raise self.damaged(where, f"its {count} elements do not fit the file")
        return at + 4, count

    def array(self, at: int, kind: str, where: str) -> NDArray[Any]:
        """Return a vector of numbers, as a view of the file."""
        dtype = np.dtype(kind)
        start, count = self.vector(at, dtype.itemsize, where)
        return np.frombuffer(self.content, dtype, count, start)

    def text(self, at: int, where: str) -> str:
        """Return a text."""
        start, count = self.vector(at, 1, where)
        self.spend(where, size=count)
        if count > _LONGEST_TEXT:
            raise self.damaged(where, f"it is a text of {count} bytes")
        return self.content[start : start + count].decode("utf-8", "replace")


class Table:
    """A table of the schema, its fields read and checked as they are asked for.

    Parameters
    ----------
    buffer : FlatBuffer
    at : int
        Where it lies.
    kind : str
        A key of `qmath.containers.tflite.schema.TABLES`.
    where : str
        The part of the file that it is, in messages.
    """

    def __init__(self, buffer: FlatBuffer, at: int, kind: str, where: str) -> None:
        buffer.spend(where, tables=1)
        self.buffer, self.at, self.kind, self.where = buffer, at, kind, where
        self._vtable = at - buffer.number(_INT32, at, where)
        self._slots = buffer.number(_UINT16, self._vtable, where)
        self._size = buffer.number(_UINT16, self._vtable + 2, where)
        if self._slots < 4 or self._slots % 2 or self._size < 4:
            raise buffer.damaged(where, "its list of fields has an impossible length")
        if self._vtable + self._slots > len(buffer.content) or at + self._size > len(
            buffer.content
        ):
            raise buffer.damaged(where, "it reaches beyond the end of the file")

    def get(self, name: str) -> Any:
        """Return a field: a number, a text, an array, a table or a list of tables.

        A text or table that the file leaves out is ``None``, a vector is empty.
        """
        field = next(field for field in TABLES[self.kind] if field.name == name)
        at = self._place(field)
        where = f"{self.where}: {name}"
        if field.is_vector:
            return self._vector(field, at, where)
        if field.kind in _NUMBERS:
            if at is None:
                return field.default
            value = self.buffer.number(_NUMBERS[field.kind], at, where)
            return bool(value) if field.kind == "bool" else value
        if at is None:
            return None
        target = self.buffer.offset(at, where)
        if field.kind == "string":
            return self.buffer.text(target, where)
        return Table(self.buffer, target, field.kind, where)

    def union(self, name: str, kind: str) -> Table | None:
        """Return a field that is a table of the kind `kind`, ``None`` where there is none."""
        field = next(field for field in TABLES[self.kind] if field.name == name)
        at, where = self._place(field), f"{self.where}: {kind}"
        return (
            None if at is None else Table(self.buffer, self.buffer.offset(at, where), kind, where)
        )

    def fields(self) -> dict[str, Any]:
        """Return all fields, of a table that has no tables in it."""
        found = ((field.name, self.get(field.name)) for field in TABLES[self.kind])
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in found
        }

    def has(self, name: str) -> bool:
        """Whether the file states a field."""
        return self._place(next(f for f in TABLES[self.kind] if f.name == name)) is not None

    def _place(self, field: Field) -> int | None:
        """Return where a field lies, ``None`` where the file leaves it out."""
        slot = 4 + 2 * field.slot
        if slot >= self._slots:
            return None
        offset = self.buffer.number(_UINT16, self._vtable + slot, self.where)
        if not offset:
            return None
        size = _NUMBERS[field.kind].size if field.kind in _NUMBERS else 4
        if not 4 <= offset <= self._size - size:
            raise self.buffer.damaged(f"{self.where}: {field.name}", "it lies outside its table")
        return int(self.at + offset)

    def _vector(self, field: Field, at: int | None, where: str) -> Any:
        kind = SCALARS.get(field.element)
        if kind is not None:
            if at is None:
                return np.zeros(0, kind)
            array = self.buffer.array(self.buffer.offset(at, where), kind, where)
            if field.element != "ubyte":  # those are views that nothing copies
                self.buffer.spend(where, size=array.nbytes)
            return array
        if at is None:
            return []
        start, count = self.buffer.vector(self.buffer.offset(at, where), 4, where)
        self.buffer.spend(where, size=4 * count)
        return [
            Table(
                self.buffer,
                self.buffer.offset(start + 4 * i, where),
                field.element,
                f"{self.where}: {field.name} {i}" if self.kind != "Model" else f"{field.name} {i}",
            )
            for i in range(count)
        ]
