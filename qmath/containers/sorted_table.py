"""Tables of sorted keys, in the format of LevelDB that TensorFlow uses: bytes → keys and values.

A footer points to an index block, whose values point to the data blocks. In each block, a key is
stored without the part that it shares with the key before. Memory and time are bounded by a fixed
multiple of the table's own size, whatever it claims.
"""

from __future__ import annotations

from collections.abc import Iterator

from qmath.containers.crc32c import crc32c_extender, masked
from qmath.errors import FileFormatError

__all__ = ["MAGIC", "read_table", "varint"]

MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER = 48
# After each block: how it is compressed, and the CRC-32C of both.
_TRAILER = 5
_SNAPPY = 1
# TensorFlow's keys share half of their bytes or less.
_MAX_SHARING = 64


def read_table(data: bytes, where: str) -> dict[bytes, bytes]:
    """Return all keys and values of a table, in its order.

    Parameters
    ----------
    data : bytes
        The whole file.
    where : str
        The file, for error messages.

    Raises
    ------
    FileFormatError
        The table is damaged, hostile, or compressed.
    MissingExtraError
        google-crc32c is not installed.

    Notes
    -----
    Mirrors ``tensorflow/core/lib/io/{format,block,table}.cc``, and checks what they trust: the
    order of the keys, and that blocks do not overlap.
    """
    if len(data) < _FOOTER or not data.endswith(MAGIC):
        raise FileFormatError(
            f"{where}: this is no table as TensorFlow writes it, or its end is missing; copy it or "
            f"save the model again"
        )
    blocks = _Blocks(data, where)
    try:
        at = len(data) - _FOOTER
        for _ in range(2):  # the handle of the metaindex, which is empty, comes first
            _, at = varint(data, at)
        table: dict[bytes, bytes] = {}
        last: bytes | None = None
        for _, handle in blocks.entries(data, at):
            for key, value in blocks.entries(handle, 0):
                if last is not None and key <= last:
                    raise ValueError("its keys are not in order")
                table[key] = value
                last = key
    except ValueError as damage:
        raise FileFormatError(
            f"{where}: {damage}; the file is damaged, copy it or save the model again"
        ) from None
    return table


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number of seven bits a byte that starts at `at`, and where it ends.

    Raises
    ------
    ValueError
        It takes more than ten bytes, or the data end.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number in it has no end")


class _Blocks:
    """The blocks of one table, each of whose bytes may be read once."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._extend = crc32c_extender(where)
        self._unread = len(data)

    def entries(self, handle: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys and values of the block that a handle points to."""
        offset, at = varint(handle, at)
        size, _ = varint(handle, at)
        block = self._block(offset, size)
        if len(block) < 4:
            raise ValueError("a block of it is too short")
        restarts = int.from_bytes(block[-4:], "little")
        end = len(block) - 4 * (restarts + 1)
        if end < 0:
            raise ValueError("a block of it claims more restarts than it holds")
        keys = at = 0
        key = b""
        while at < end:
            shared, at = varint(block, at)
            own, at = varint(block, at)
            length, at = varint(block, at)
            if shared > len(key) or own + length > end - at:
                raise ValueError("an entry of it is longer than its block")
            key = key[:shared] + block[at : at + own]
            keys += len(key)
            if keys > _MAX_SHARING * len(block):
                raise ValueError("its keys are far longer than the file")
            yield key, block[at + own : at + own + length]
            at += own + length

    def _block(self, offset: int, size: int) -> bytes:
        end = offset + size
        self._unread -= size + _TRAILER
        if end + _TRAILER > len(self._data) or self._unread < 0:
            raise ValueError("a block of it lies outside the file, or over another")
        stored = int.from_bytes(self._data[end + 1 : end + _TRAILER], "little")
        if masked(self._extend(0, self._data[offset : end + 1])) != stored:
            raise ValueError(f"the checksum of the block at byte {offset} does not match")
        if self._data[end] != 0:
            kind = "Snappy" if self._data[end] == _SNAPPY else f"method {self._data[end]}"
            raise ValueError(f"its blocks are compressed ({kind}), which TensorFlow never writes")
        return self._data[offset:end]
