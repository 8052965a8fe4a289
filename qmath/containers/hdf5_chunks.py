"""The chunks of an HDF5 dataset, read where they lie and inflated to the size they must have.

The HDF5 library says where they are, and never sees them: its filters inflate whatever a chunk
asks for, and use one filter as often as a file says.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFLATE", "FLETCHER32", "SHUFFLE", "Chunks", "find_chunks", "read_chunks"]

# The registered numbers of the filters.
DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
# Where h5py chooses the chunks, they have about 512 KiB: so many have 32 GiB.
_MAX_COUNT = 1 << 16
# Where they are asked for one at a time, the library goes through all before each: a second for
# 4096 of them, a quarter of an hour for 65536.
_MAX_ASKED = 1 << 10
_CHECKSUM = 4
_WORDS = 1 << 15


class Chunks(NamedTuple):
    """Where the elements of a dataset lie.

    Attributes
    ----------
    shape : tuple of int
        Of every chunk; at the end of an axis it is filled up.
    filters : tuple of int
        In the order in which they were applied.
    places : array of int64
        A row for each chunk: its first element's index on each axis, the filters that were left
        out (as bits), its first byte, and how many there are.
    """

    shape: tuple[int, ...]
    filters: tuple[int, ...]
    places: NDArray[np.int64]

    @property
    def spans(self) -> Iterator[tuple[int, int]]:
        """The first byte of each chunk, and the one after its last."""
        for start, size in self.places[:, -2:].tolist():
            yield start, start + size


def find_chunks(dataset: Any, shape: Sequence[int], filters: tuple[int, ...], held: int) -> Chunks:
    """Return the chunks of a dataset of the HDF5 library.

    Parameters
    ----------
    dataset : h5py.h5d.DatasetID
    shape : sequence of int
        Of the dataset, which is not empty.
    filters : tuple of int
        Each once, of those in `read_chunks`.
    held : int
        The size of the file.

    Raises
    ------
    ValueError
        There are too many, one is missing or there twice, or lies outside the file.
    """
    chunk = dataset.get_create_plist().get_chunk()
    count = math.prod(-(-length // side) for length, side in zip(shape, chunk, strict=True))
    # Not where h5py was built with an early HDF5 1.10 or 1.12, as the wheels of 3.8.
    visits = hasattr(dataset, "chunk_iter")
    if count > (_MAX_COUNT if visits else _MAX_ASKED):
        newer = "" if visits or count > _MAX_COUNT else ", or install a newer h5py"
        raise ValueError(
            f"{count} chunks are too many; rewrite the file with h5repack -l CONTI{newer}"
        )
    if dataset.get_num_chunks() != count:
        raise ValueError(f"{dataset.get_num_chunks()} of its {count} chunks were written")
    rows = array("q")

    def note(info: Any) -> None:
        rows.extend([*info.chunk_offset, info.filter_mask, info.byte_offset, info.size])

    if visits:
        dataset.chunk_iter(note)
    else:
        for i in range(count):
            note(dataset.get_chunk_info(i))
    places = np.frombuffer(rows, np.int64).reshape(-1, len(chunk) + 3)
    index, (starts, sizes) = places[:, : len(chunk)], places[:, -2:].T
    is_in_file = ((starts >= 0) & (sizes > 0) & (sizes <= held) & (starts <= held - sizes)).all()
    is_on_grid = ((index >= 0) & (index < shape) & (index % chunk == 0)).all()
    if not (is_in_file and is_on_grid and len(np.unique(index, axis=0)) == len(places) == count):
        raise ValueError("a chunk is not where it should be")
    return Chunks(tuple(chunk), filters, places)


def read_chunks(
    file: BinaryIO, chunks: Chunks, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return the elements of a dataset.

    Raises
    ------
    ValueError
        A chunk holds more or less than its size, or does not match its checksum.
    """
    values = np.empty(shape, dtype)
    for *index, skipped, start, size in chunks.places.tolist():
        file.seek(start)
        raw = file.read(size)
        filters = [code for i, code in enumerate(chunks.filters) if not skipped >> i & 1]
        raw = _restored(raw, filters, math.prod(chunks.shape) * dtype.itemsize, dtype.itemsize)
        part = np.frombuffer(raw, dtype).reshape(chunks.shape)
        box = tuple(
            slice(first, min(first + side, length))
            for first, side, length in zip(index, chunks.shape, shape, strict=True)
        )
        values[box] = part[tuple(slice(0, side.stop - side.start) for side in box)]
    return values


def _restored(raw: bytes, filters: Sequence[int], nbytes: int, itemsize: int) -> bytes:
    """Undo the filters of a chunk of `nbytes`."""
    for i, code in reversed(list(enumerate(filters))):
        wanted = nbytes + _CHECKSUM * (FLETCHER32 in filters[:i])
        if code == DEFLATE:
            inflater = zlib.decompressobj()
            raw = inflater.decompress(raw, wanted + 1)
            if len(raw) > wanted or not inflater.eof:
                raise ValueError(f"a chunk inflates to another size than its {wanted} bytes")
        elif code == FLETCHER32:
            raw, checksum = raw[:-_CHECKSUM], raw[-_CHECKSUM:]
            if _fletcher32(raw).to_bytes(_CHECKSUM, "little") != checksum:
                raise ValueError("a chunk does not match its checksum")
        elif len(raw) == nbytes:  # shuffled: the first bytes of all elements, then the second
            raw = np.frombuffer(raw, np.uint8).reshape(itemsize, -1).T.tobytes()
    if len(raw) != nbytes:
        raise ValueError(f"a chunk holds {len(raw)} instead of {nbytes} bytes")
    return raw


def _fletcher32(data: bytes) -> int:
    """Return HDF5's checksum: of big-endian words of 16 bits, modulo 65535."""
    one = two = 0
    for start in range(0, len(data), 2 * _WORDS):
        block = data[start : start + 2 * _WORDS]
        words = np.frombuffer(block + b"\0" * (len(block) % 2), ">u2").astype(np.int64)
        two += one * len(words) + int(words @ np.arange(len(words), 0, -1))
        one += int(words.sum())
    # Folded as HDF5 folds, a multiple of 65535 is 65535 unless it is 0.
    one, two = ((value - 1) % 65535 + 1 if value else 0 for value in (one, two))
    return two << 16 | one
