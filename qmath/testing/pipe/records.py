"""Records as text lines or as bytes; `docs/testing.md` specifies both.

A record is a case's fields and, when it comes back, its result. In memory and in the binary form
records are a structured array, little-endian and without padding.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.errors import FileFormatError
from qmath.testing.arithmetic import DTYPES
from qmath.testing.pipe.settings import Settings, parsed

__all__ = ["Field", "dtype_of", "read_header", "read_results", "write_cases"]

Array = NDArray[Any]
_MAGIC = "qmath-vectors"
_VERSION = "1"
_LONGEST = 1 << 24  # bytes of a line
_MOST_OTHERS = 1 << 24  # lines that a simulator may print besides
_LONGEST_HEADER = 1 << 14
_TYPES = {dtype: name for name, dtype in DTYPES.items()}


class Field(NamedTuple):
    """A named number or array of a record, its dtype as `arithmetic.DTYPES` names it."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        lengths = f"[{','.join(map(str, self.shape))}]" if self.shape else ""
        return f"{self.name}:{self.dtype}{lengths}"


class Header(NamedTuple):
    """The first line of a stream."""

    settings: Settings
    words: dict[str, str]
    is_binary: bool


def dtype_of(fields: Iterable[Field]) -> np.dtype[Any]:
    """Return the dtype of records with these fields."""
    return np.dtype([(name, DTYPES[dtype], shape) for name, dtype, shape in fields])


def fields_of(dtype: np.dtype[Any]) -> list[Field]:
    """Return the fields of records, as `dtype_of` takes them."""
    return [Field(name, _TYPES[dtype[name].base], dtype[name].shape) for name in dtype.names or ()]


def write_cases(
    settings: Settings, cases: Array, result: Field, *, is_binary: bool
) -> Iterator[bytes]:
    """Yield the bytes of a stream of cases, its header first."""
    words = [
        f"{_MAGIC} {_VERSION} {settings.header()} form={'binary' if is_binary else 'text'}",
        f"digest={zlib.crc32(cases.tobytes()):08x}",
        f"case={';'.join(map(str, fields_of(cases.dtype)))}",
        f"result={result}\n",
    ]
    yield " ".join(words).encode()
    for start in range(0, len(cases), 1024):
        part = cases[start : start + 1024]
        yield part.tobytes() if is_binary else "".join(_lines(part)).encode()


def _lines(cases: Array) -> Iterator[str]:
    columns = [
        _texts(cases[name].reshape(len(cases), -1), field)
        for field in fields_of(cases.dtype)
        for name in [field.name]
    ]
    names = cases.dtype.names or ()
    for values in zip(*columns, strict=True):
        yield " ".join(f"{n}={v}" for n, v in zip(names, values, strict=True)) + "\n"


def _texts(rows: Array, field: Field) -> list[str]:
    """Return each row as text: floats by their bits, in hexadecimal, integers in decimal."""
    if field.dtype.startswith("f"):
        digits = int(field.dtype[1:]) // 4
        bits = np.ascontiguousarray(rows).view(f"<u{digits // 2}").tolist()
        return [",".join(f"{value:0{digits}x}" for value in row) for row in bits]
    return [",".join(map(str, row)) for row in rows.tolist()]


def read_header(line: bytes, where: str) -> Header:
    """Return what the first line of a stream says.

    Raises
    ------
    FileFormatError
        It is no header, or one of another version.
    """
    magic, _, rest = line.decode(errors="replace").strip().partition(" ")
    version, _, rest = rest.partition(" ")
    if magic != _MAGIC:
        raise FileFormatError(
            f"{where}: the first line must be the header of the cases, which begins with "
            f"{_MAGIC}; it is {line[:40]!r}: copy that line before the results"
        )
    if version != _VERSION:
        raise FileFormatError(f"{where}: cases of version {version}; this qmath has {_VERSION}")
    words = dict(word.partition("=")[::2] for word in rest.split())
    missing = [name for name in ("digest", "case", "result", "form") if name not in words]
    if missing:
        raise FileFormatError(f"{where}: the header lacks {', '.join(missing)}")
    return Header(parsed(words), words, words["form"] == "binary")


def read_results(
    stream: BinaryIO, header: Header, case: np.dtype[Any], result: Field, where: str
) -> tuple[Array, Array]:
    """Return the cases and the results of the rest of a stream.

    Raises
    ------
    FileFormatError
        A record is damaged, results are missing or of another dtype or length, or the cases are
        not those that were written.
    """
    fields = fields_of(case)
    said = header.words["case"], header.words["result"]
    if said != (";".join(map(str, fields)), str(result)):
        raise FileFormatError(f"{where}: the header does not fit its op: it was changed")
    whole = dtype_of([*fields, result])
    read = _read_binary if header.is_binary else _read_text
    records = read(stream, whole, header.settings.count, [*fields, result], where)
    cases = np.empty(len(records), case)
    for name in case.names or ():
        cases[name] = records[name]
    if f"{zlib.crc32(cases.tobytes()):08x}" != header.words["digest"]:
        raise FileFormatError(
            f"{where}: the cases are not those that were written: a kernel must give back every "
            "field of every case as it was, in order, and its result after them"
        )
    return cases, records[result.name]


def _read_binary(
    stream: BinaryIO, whole: np.dtype[Any], count: int, fields: Sequence[Field], where: str
) -> Array:
    most = 2 * count * whole.itemsize  # enough to tell how long its records are
    data = stream.read(most + 1)
    if len(data) != count * whole.itemsize:
        got = f"{len(data):,}, {len(data) / count:.6g} a record"
        got = "more than twice as many" if len(data) > most else got
        result = dtype_of(fields[-1:]).itemsize
        raise FileFormatError(
            f"{where}: expected {count} records of {whole.itemsize} bytes, {result} of them the "
            f"result {fields[-1]}, together {count * whole.itemsize:,} bytes after the header; got "
            f"{got}"
        )
    return np.frombuffer(data, whole)


def _read_text(
    stream: BinaryIO, whole: np.dtype[Any], count: int, fields: Sequence[Field], where: str
) -> Array:
    start = f"{fields[0].name}=".encode()
    lines: list[bytes] = []
    others = 0
    while len(lines) <= count and (line := stream.readline(_LONGEST)):
        if line.startswith(start):
            lines.append(line)
        elif (others := others + 1) > _MOST_OTHERS:
            raise FileFormatError(f"{where}: more than {_MOST_OTHERS} lines are no results")
    if len(lines) != count:
        got = "more" if len(lines) > count else str(len(lines))
        raise FileFormatError(
            f"{where}: expected {count} results, lines that begin with {start.decode()}, got {got}"
        )
    records = np.empty(count, whole)
    columns: list[list[bytes]] = [[] for _ in fields]
    for number, line in enumerate(lines):
        words = line.split()
        for field, column, word in zip(fields, columns, words, strict=False):
            name, _, text = word.partition(b"=")
            if name.decode(errors="replace") != field.name:
                raise FileFormatError(f"{where}: result {number}: expected {field}, got {word!r}")
            column.append(text)
        if len(words) != len(fields):
            lacks = fields[len(words)] if len(words) < len(fields) else "nothing more"
            raise FileFormatError(
                f"{where}: result {number} has {len(words)} fields, expected {len(fields)}: "
                f"{lacks} has to follow"
            )
    for field, column in zip(fields, columns, strict=True):
        records[field.name] = _numbers(column, field, where)
    return records


def _numbers(texts: list[bytes], field: Field, where: str) -> Array:
    """Return a field of all records from its texts."""
    size, is_float = int(np.prod(field.shape)), field.dtype.startswith("f")
    dtype, digits = DTYPES[field.dtype], int(field.dtype[1:]) // 4
    container = np.dtype(f"<u{digits // 2}") if is_float else dtype
    limits = np.iinfo(container)
    values: list[int] = []
    for number, text in enumerate(texts):
        parts = text.split(b",")
        if len(parts) != size:
            raise FileFormatError(
                f"{where}: result {number}: {field.name} has {len(parts)} values, expected {size}: "
                f"{field}"
            )
        try:
            if b"_" in text or b"+" in text:  # which Python would read
                raise ValueError
            row = [int(part, 16 if is_float else 10) for part in parts]
        except ValueError:
            row = [limits.max + 1]
        if (is_float and any(len(part) != digits for part in parts)) or not (
            limits.min <= min(row) <= max(row) <= limits.max
        ):
            wanted = f"{digits} hexadecimal digits, a float's bits" if is_float else "decimal"
            raise FileFormatError(
                f"{where}: result {number}: {field.name}={text[:40].decode(errors='replace')} is "
                f"no {field.dtype}: {wanted}"
            )
        values += row
    return np.array(values, container).view(dtype).reshape(len(texts), *field.shape)
