"""How long the texts of an attribute are, before the HDF5 library takes memory for them.

A text of variable length is a reference to bytes elsewhere in the file, and many references may
lead to the same bytes. The library copies those for each. The references lie in the header of the
object that has the attribute, which is read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["length_of_texts"]

_ATTRIBUTE, _CONTINUATION, _DENSE = 0x0C, 0x10, 0x15
_SHARED = 2  # flag of a message that lies elsewhere
_REFERENCE = struct.Struct("<IQI")  # length, and where
# Of a message: its kind, the length of its body, flags.
_OLD, _NEW, _TRACKED = struct.Struct("<HHB3x"), struct.Struct("<BHB"), struct.Struct("<BHB2x")
_NOWHERE = b"\xff" * 8
# Headers of Keras's files have up to 64 KiB for each attribute.
_USUAL = 1 << 10
_MAX_BLOCKS = 1 << 10
_MAX_BYTES = 1 << 24


def length_of_texts(file: BinaryIO, address: int, name: bytes, count: int) -> int | None:
    """Return the bytes of all texts of an attribute, or ``None`` if its header does not say.

    Parameters
    ----------
    file : binary file
        Whose references to places have eight bytes, as all but the smallest machines write.
    address : int
        Of the object's header.
    name : bytes
        Of the attribute, which holds texts of variable length.
    count : int
        How many it holds.
    """
    found = []
    try:
        for kind, flags, body in _messages(file, address):
            if kind == _DENSE and _is_dense(body):
                return None
            if kind == _ATTRIBUTE:
                if flags & _SHARED:
                    return None
                if (data := _data_of(body, name)) is not None:
                    references = _REFERENCE.iter_unpack(data[: count * _REFERENCE.size])
                    lengths = [length for length, *_ in references]
                    if len(lengths) < count:
                        return None
                    found.append(sum(lengths))
    except (struct.error, ValueError, IndexError, OverflowError, OSError):
        return None
    return max(found, default=None)


def _messages(file: BinaryIO, address: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield what messages of an object's header, of either version, say of attributes."""
    start = _read(file, address, _USUAL)
    if start[:4] == b"OHDR":
        flags = start[5]
        at = 6 + 16 * (flags >> 5 & 1) + 4 * (flags >> 4 & 1)
        width = 1 << (flags & 3)
        size, at = int.from_bytes(start[at : at + width], "little"), at + width
        head, signature, checksum = _TRACKED if flags & 4 else _NEW, 4, 4
    else:
        (size,) = struct.unpack_from("<I", start, 8)
        at, head, signature, checksum = 16, _OLD, 0, 0
    waiting, total = [(address + at, size)], 0
    for _ in range(_MAX_BLOCKS):
        if not waiting:
            return
        place, size = waiting.pop(0)
        total += size
        if size < 0 or total > _MAX_BYTES:
            break
        offset, at = place - address, 0
        is_here = offset >= 0 and offset + size <= len(start)
        block = start[offset : offset + size] if is_here else _read(file, place, size)
        while at + head.size <= len(block):
            kind, length, flags = head.unpack_from(block, at)
            at += head.size + length
            if kind == _CONTINUATION:
                place, size = struct.unpack_from("<QQ", block, at - length)
                waiting.append((place + signature, size - signature - checksum))
            elif kind in (_ATTRIBUTE, _DENSE):
                yield kind, flags, block[at - length : at]
    raise ValueError("the header is too long")


def _data_of(body: bytes, name: bytes) -> bytes | None:
    """Return the data of an attribute's message, if it has this name."""
    version, name_size, type_size, space_size = struct.unpack_from("<BxHHH", body)
    at, unit = 8 + (version == 3), 8 if version == 1 else 1
    if body[at : at + name_size].split(b"\0")[0] != name:
        return None
    for size in (name_size, type_size, space_size):
        at += -(-size // unit) * unit
    return body[at:]


def _is_dense(body: bytes) -> bool:
    """Tell whether an attribute info message says that attributes lie elsewhere."""
    at = 2 + 2 * (body[1] & 1)
    return body[at : at + 8] != _NOWHERE


def _read(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)
