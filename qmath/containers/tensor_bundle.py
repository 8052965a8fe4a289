"""TensorFlow checkpoints, trusted with nothing: an index, and shards of arrays read on demand.

The index, a sorted table, holds for each tensor the shard and place of its bytes, and their
checksum. It is read at once, a tensor when it is asked for. A tensor may be cut into slices, each
with an entry of its own. Every byte that is used has been checked against a CRC-32C.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.containers.crc32c import crc32c_extender, masked
from qmath.containers.extents import Extents
from qmath.containers.lazy_array import LazyArray
from qmath.containers.protos import parse
from qmath.containers.sorted_table import read_table, varint
from qmath.containers.source_files import Stamp, open_source, stamp_of, unchanged
from qmath.errors import FileFormatError

__all__ = ["TensorBundle"]

# DataType of types.proto → how the elements are stored. bfloat16 is the upper half of a float32.
_BFLOAT16, _STRING = 14, 7
_STORED = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?",
    _BFLOAT16: "<u2", 17: "<u2", 19: "<f2", 22: "<u4", 23: "<u8",
}  # fmt: skip
_REFUSED = {
    _STRING: "string", 8: "complex64", 11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16",
    16: "quint16", 18: "complex128", 20: "resource", 21: "variant", 24: "float8_e5m2",
    25: "float8_e4m3fn", 26: "float8_e4m3fnuz", 27: "float8_e4m3b11fnuz", 28: "float8_e5m2fnuz",
    29: "int4", 30: "uint4", 31: "int2", 32: "uint2", 33: "float4_e2m1fn",
}  # fmt: skip
_VERSION = 1
# 70 and 100 times what MobileNetV2 needs for its 974 tensors, and for the graph of its objects.
_MAX_INDEX = 1 << 22
_MAX_STRING = 1 << 24
_MAX_RANK = 32
_MAX_ELEMENTS = 1 << 48
_CHUNK = 1 << 20


class _Piece(NamedTuple):
    """Bytes of a tensor, or of the slice of it that `box` gives."""

    shard: str
    offset: int
    size: int
    crc32c: int
    box: tuple[slice, ...]


class _Tensor(NamedTuple):
    """The index's entry of a tensor, checked."""

    data_type: int
    shape: tuple[int, ...]
    pieces: tuple[_Piece, ...]


class TensorBundle:
    """A checkpoint as TensorFlow's ``BundleWriter`` writes it.

    No file stays open. Arrays taken from it stay readable as long as the files do not change.

    Parameters
    ----------
    path : str
        The beginning of the names of its files: ``ckpt`` for ``ckpt.index``.

    Attributes
    ----------
    path : str
    keys : tuple of str
        The keys of all tensors, sorted by their bytes.

    Raises
    ------
    FileFormatError
        The index is missing, damaged, or of a kind that is not read: big-endian, compressed, of a
        newer version, or a single file of TensorFlow 1 (V1).
    MissingExtraError
        protobuf or google-crc32c is not installed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._stamps: dict[str, Stamp] = {}
        self._extents: dict[str, Extents] = {}  # of each shard, as far as tensors were met
        self._tensors: dict[str, _Tensor] = {}  # of these, where they lie
        self._prefix = os.path.abspath(path)
        self.index = f"{self._prefix}.index"
        table = read_table(self._read_index(), f"{path}.index")
        header = parse("BundleHeaderProto", table.pop(b"", b""), f"{path}.index: header")
        if header.num_shards < 1:
            raise FileFormatError(
                f"{path}.index: this is no index of shards, but perhaps a checkpoint in the single "
                f"file of TensorFlow 1 (V1), which qmath does not read; save it again with "
                f"tf.train.Checkpoint"
            )
        if header.endianness != 0:
            raise FileFormatError(
                f"{path}.index: a big-endian machine wrote this checkpoint, which qmath does not "
                f"read; save it again on another"
            )
        if header.version.min_consumer > _VERSION:
            raise FileFormatError(
                f"{path}.index: its format (version {header.version.producer}) is newer than what "
                f"qmath knows; save it with an earlier TensorFlow"
            )
        self._num_shards: int = header.num_shards
        self._entries = table
        # Those of slices begin with a zero byte.
        keys = [key.decode(errors="replace") for key in table if not key.startswith(b"\0")]
        for key in keys:
            if not key.isprintable() or "\ufffd" in key:
                raise FileFormatError(
                    f"{path}.index: the key {key!r} is no name; the file is damaged"
                )
        self.keys = tuple(keys)

    @property
    def shards(self) -> tuple[str, ...]:
        """The paths of the shards that were met."""
        return tuple(path for path in self._stamps if path != self.index)

    def array(self, key: str) -> LazyArray:
        """Return a tensor of numbers, its elements unread.

        Raises
        ------
        FileFormatError
            It is missing, no tensor of numbers, or claims more than the shards hold.
        """
        tensor = self._tensor(key)
        is_wide = tensor.data_type == _BFLOAT16
        dtype = np.dtype(np.float32 if is_wide else _STORED[tensor.data_type])
        return LazyArray(self, key, tensor.shape, dtype)

    def read(self, key: str) -> NDArray[Any]:
        """Return a tensor's elements; those of a bfloat16 tensor as float32, which holds them.

        Raises
        ------
        FileFormatError
            As `array`; or its checksum does not match, its slices overlap, or a file has changed
            since the index was read.
        """
        data_type, shape, pieces = self._tensor(key)
        stored = np.dtype(_STORED[data_type])
        if len(pieces) == 1:
            values = self._elements(key, pieces[0], stored).reshape(shape)
        else:
            values = np.empty(shape, stored)
            is_filled = np.zeros(shape, bool)
            for piece in pieces:
                if is_filled[piece.box].any():
                    raise FileFormatError(
                        f"{self.path}: {key}: its slices overlap; the file is damaged"
                    )
                is_filled[piece.box] = True
                part = self._elements(key, piece, stored)
                values[piece.box] = part.reshape(is_filled[piece.box].shape)
        if data_type == _BFLOAT16:
            return np.asarray(values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(stored.newbyteorder("="), copy=False)

    def parts(self, key: str, size: int) -> Iterator[NDArray[Any]]:
        """Yield a tensor's rows, about `size` elements at a time, in the same memory.

        The checksum is that of all rows, so it is compared before the last of them. What is not
        stored as NumPy has it, row after row, comes all at once.

        Raises
        ------
        FileFormatError
            As `read`.
        """
        data_type, shape, pieces = self._tensor(key)
        stored = np.dtype(_STORED[data_type])
        is_plain = len(pieces) == 1 and data_type != _BFLOAT16 and stored.kind != "b"
        if not is_plain or not shape or not math.prod(shape):
            yield self.read(key)
            return
        where, (piece,) = f"{self.path}: {key}", pieces
        row = math.prod(shape[1:]) * stored.itemsize
        count = max(1, size * stored.itemsize // row)
        buffer, crc = np.empty(min(count, shape[0]) * row, np.uint8), 0
        with self._open(piece.shard) as file:
            file.seek(piece.offset)
            for start in range(0, shape[0], count):
                rows = buffer[: (shape[0] - start) * row]
                crc = _read_into(rows, file, crc, where)
                if start + count >= shape[0] and masked(crc) != piece.crc32c:
                    raise _mismatch(where)
                yield rows.view(stored).reshape(-1, *shape[1:])

    def string(self, key: str) -> bytes:
        """Return the one string that a tensor holds.

        Raises
        ------
        FileFormatError
            It is missing, holds something else, or its checksum does not match.
        """
        where = f"{self.path}: {key}"
        entry = self._entry(key.encode(), where)
        if entry.dtype != _STRING or entry.shape.dim or entry.slices or entry.size > _MAX_STRING:
            raise FileFormatError(f"{where}: this should be one string; the file is damaged")
        piece = self._piece(entry, (), where)
        data = self._bytes(piece, where)[0].tobytes()
        extend = crc32c_extender(where)
        # Stored are the length, the checksum of the length as 32 bits, and the string.
        try:
            length, at = varint(data, 0)
        except ValueError:
            raise _mismatch(where) from None
        checksum, text = data[at : at + 4], data[at + 4 :]
        if length != len(text):
            raise _mismatch(where)
        crc = extend(0, length.to_bytes(4, "little"))
        if checksum != masked(crc).to_bytes(4, "little"):
            raise _mismatch(where)
        if masked(extend(extend(crc, checksum), text)) != piece.crc32c:
            raise _mismatch(where)
        return text

    def _tensor(self, key: str) -> _Tensor:
        """Return where a tensor lies, whose bytes are no other's."""
        if key not in self._tensors:
            self._tensors[key] = self._found(key)
        return self._tensors[key]

    def _found(self, key: str) -> _Tensor:
        where = f"{self.path}: {key}"
        entry = self._entry(key.encode(), where)
        if entry.dtype not in _STORED:
            kind = _REFUSED.get(entry.dtype, f"type number {entry.dtype}")
            raise FileFormatError(f"{where}: a tensor of {kind} is not read, only one of numbers")
        shape = _shape(entry, where)
        itemsize = np.dtype(_STORED[entry.dtype]).itemsize
        if not entry.slices:
            whole = tuple(slice(0, length) for length in shape)
            pieces = [self._piece(entry, whole, where, math.prod(shape) * itemsize)]
        else:
            pieces = []
            for extents in entry.slices:
                code, box = _slice(key, extents.extent, shape, where)
                part = self._entry(code, where)
                lengths = tuple(side.stop - side.start for side in box)
                if part.dtype != entry.dtype or part.slices or _shape(part, where) != lengths:
                    raise FileFormatError(
                        f"{where}: a slice of it is of another kind or shape than it says; the "
                        f"file is damaged"
                    )
                pieces.append(self._piece(part, box, where, math.prod(lengths) * itemsize))
            if sum(piece.size for piece in pieces) != math.prod(shape) * itemsize:
                raise FileFormatError(
                    f"{where}: its slices do not make up its shape {shape}; a part of the "
                    f"checkpoint is missing, or the file is damaged"
                )
        self._take(key, pieces, where)
        return _Tensor(entry.dtype, shape, tuple(pieces))

    def _take(self, key: str, pieces: Sequence[_Piece], where: str) -> None:
        """Raise if another tensor has bytes of this one."""
        taken: dict[str, list[tuple[int, int]]] = {}
        for piece in pieces:
            taken.setdefault(piece.shard, []).append((piece.offset, piece.offset + piece.size))
        for shard, spans in taken.items():
            if not self._extents.setdefault(shard, Extents()).take(key, spans):
                raise FileFormatError(
                    f"{where}: its bytes are those of another tensor, too, which TensorFlow never "
                    "writes; the file is damaged or hostile"
                )

    def _entry(self, key: bytes, where: str) -> Any:
        if key not in self._entries or not key:
            raise FileFormatError(
                f"{where}: the checkpoint lists this tensor and does not hold it; the file was "
                f"cut or edited, save the model again"
            )
        return parse("BundleEntryProto", self._entries[key], where)

    def _piece(
        self, entry: Any, box: tuple[slice, ...], where: str, claimed: int | None = None
    ) -> _Piece:
        """Return where the bytes are, once it is sure that they are there, as many as claimed."""
        if not 0 <= entry.shard_id < self._num_shards:
            raise FileFormatError(
                f"{where}: it lies in shard {entry.shard_id} of {self._num_shards}; the file is "
                f"damaged"
            )
        shard = f"{self._prefix}.data-{entry.shard_id:05d}-of-{self._num_shards:05d}"
        held = self._size(shard)
        size = entry.size if claimed is None else claimed
        if entry.size != size or entry.offset < 0 or not 0 <= size <= held - entry.offset:
            raise FileFormatError(
                f"{where}: its shape claims {size} bytes, the index {entry.size} from byte "
                f"{entry.offset}, of {held} in {os.path.basename(shard)}; the file is damaged or "
                f"was cut"
            )
        return _Piece(shard, entry.offset, size, entry.crc32c, box)

    def _elements(self, key: str, piece: _Piece, stored: np.dtype[Any]) -> NDArray[Any]:
        where = f"{self.path}: {key}"
        values, crc = self._bytes(piece, where)
        if masked(crc) != piece.crc32c:
            raise _mismatch(where)
        return values.view(stored) if stored.kind != "b" else values != 0

    def _bytes(self, piece: _Piece, where: str) -> tuple[NDArray[np.uint8], int]:
        """Return bytes and their checksum."""
        values = np.empty(piece.size, np.uint8)
        with self._open(piece.shard) as file:
            file.seek(piece.offset)
            return values, _read_into(values, file, 0, where)

    def _read_index(self) -> bytes:
        size = self._size(self.index)
        if size > _MAX_INDEX:
            raise FileFormatError(
                f"{self.path}.index: {size} bytes are too many for an index, which takes some 100 "
                f"for a tensor"
            )
        with self._open(self.index) as file:
            return file.read(size)

    def _size(self, path: str) -> int:
        """Return a file's size when it was first met, which it must have whenever it is read."""
        if path not in self._stamps:
            with self._open(path):
                pass
        return self._stamps[path].size

    def _name(self, path: str) -> str:
        """Return a file's path as the user would write it."""
        return os.path.join(os.path.dirname(self.path), os.path.basename(path))

    @contextmanager
    def _open(self, path: str) -> Iterator[BinaryIO]:
        """Open a file that is what it was when it was first met, and stays so meanwhile."""
        name = self._name(path)
        try:
            with open_source(path, name) as file:
                if path not in self._stamps:
                    self._stamps[path] = stamp_of(file)
                with unchanged(file, self._stamps[path], name):
                    yield file
        except FileNotFoundError:
            raise FileFormatError(
                f"{name}: there is no such file; a checkpoint is its .index and all its .data "
                f"files, copy them together"
            ) from None
        except FileFormatError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FileFormatError(f"{name}: it cannot be read ({reason})") from None


def _read_into(values: NDArray[np.uint8], file: BinaryIO, crc: int, where: str) -> int:
    """Fill `values` from a file, and return the checksum extended by them."""
    extend = crc32c_extender(where)
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK]
        if file.readinto(chunk.data) != chunk.size:  # type: ignore[attr-defined]
            raise _mismatch(where)
        crc = extend(crc, chunk)
    return crc


def _mismatch(where: str) -> FileFormatError:
    return FileFormatError(
        f"{where}: the checksum does not match; the file is damaged, copy it or save the model "
        f"again"
    )


def _shape(entry: Any, where: str) -> tuple[int, ...]:
    shape = tuple(dim.size for dim in entry.shape.dim)
    if (
        entry.shape.unknown_rank
        or len(shape) > _MAX_RANK
        or any(length < 0 for length in shape)
        or math.prod(max(length, 1) for length in shape) > _MAX_ELEMENTS
    ):
        raise FileFormatError(
            f"{where}: {list(shape)[:_MAX_RANK]} is no shape; the file is damaged"
        )
    return shape


def _slice(
    key: str, extents: Sequence[Any], shape: tuple[int, ...], where: str
) -> tuple[bytes, tuple[slice, ...]]:
    """Return the key of a slice's own entry, and the part of the tensor that it is."""
    code = bytearray(b"\0" + key.encode() + b"\0\1\1" + bytes([len(shape)]))
    box = []
    for extent, length in zip(extents, shape, strict=False):
        is_part = extent.HasField("length")
        start, count = (extent.start, extent.length) if is_part else (0, length)
        if not (start >= 0 and 0 < count <= length - start):
            break
        box.append(slice(start, start + count))
        code += _ordered(start) + _ordered(count if is_part else -1)
    if not len(box) == len(extents) == len(shape):
        raise FileFormatError(
            f"{where}: a slice of it is no part of its shape {shape}; the file is damaged"
        )
    return bytes(code), tuple(box)


def _ordered(value: int) -> bytes:
    """Return an integer as TensorFlow's ``OrderedCode::WriteSignedNumIncreasing`` writes it.

    As many leading bits as bytes are flipped in its two's complement of 7 bits a byte.
    """
    count = 1
    while not -(1 << (7 * count - 1)) <= value < 1 << (7 * count - 1):
        count += 1
    header = ((1 << count) - 1) << (7 * count)
    return ((value % (1 << (8 * count))) ^ header).to_bytes(count, "big")
