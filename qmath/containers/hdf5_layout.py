"""Where the elements of an HDF5 dataset lie, and whether so many can be there."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.containers.hdf5_chunks import DEFLATE, FLETCHER32, SHUFFLE, Chunks, find_chunks
from qmath.errors import FileFormatError

__all__ = ["MAX_RATIO", "Layout", "SmallArrays", "layout_of"]

# Trained weights hardly shrink; pruned ones by 10 or 20.
MAX_RATIO = 64
# Deflate, shuffle and checksum: what h5repack and h5py write. Others may load foreign plugins.
_FILTERS = frozenset({DEFLATE, SHUFFLE, FLETCHER32})
# Bytes of a small array, and of all of one file.
_SMALL = 1 << 13
_ROOM = 1 << 20
# Of the bytes of a chunk that is larger than its dataset.
_MAX_CHUNK = 1 << 20


class Layout(NamedTuple):
    """Shape and dtype of a dataset, and where its elements lie, if they are NumPy's numbers.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    offset : int or None
        Of their first byte, if they lie in the file one after the other.
    chunks : Chunks or None
    span : pair of int or None
        Likewise of whatever numbers: the first byte, and the one after the last.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None = None
    chunks: Chunks | None = None
    span: tuple[int, int] | None = None

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The first byte of each stretch that elements take, and the one after its last."""
        return list(self.chunks.spans) if self.chunks else [self.span] if self.span else []

    def read_into(self, values: NDArray[Any], file: BinaryIO, skip: int = 0) -> None:
        """Read elements that lie one after the other, from so many bytes after the first on.

        Raises
        ------
        EOFError
            The file ends before them.
        """
        file.seek((self.offset or 0) + skip)
        into = values.reshape(-1).view(np.uint8).data
        if file.readinto(into) != values.nbytes:  # type: ignore[attr-defined]
            raise EOFError("the file ends before the array does")


class SmallArrays:
    """Arrays that are read while their file is open, by path.

    To open it again for each range, scale or bias takes longer than all else of reading it.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}
        self._room = _ROOM

    def keep(self, path: str, layout: Layout, file: BinaryIO) -> None:
        """Read an array, if it is small, lies in the file plainly, and there is room for it."""
        size = math.prod(layout.shape) * layout.dtype.itemsize
        if layout.offset is None or size > min(_SMALL, self._room):
            return
        values = np.empty(layout.shape, layout.dtype)
        with suppress(EOFError):  # which is for who reads it to tell
            layout.read_into(values, file)
            self._arrays[path] = values
            self._room -= size

    def get(self, path: str) -> NDArray[Any] | None:
        """Return a copy of an array that was kept."""
        found = self._arrays.get(path)
        return None if found is None else np.array(found)


def layout_of(
    h5d: Any, dataset: Any, dtype: np.dtype[Any], where: str, held: int, *, is_numpys: bool
) -> Layout:
    """Return the layout of a dataset that is a tensor, of no more than the file holds.

    Parameters
    ----------
    h5d : module
        Of h5py.
    dataset : h5py.h5d.DatasetID
    dtype : numpy.dtype
        As h5py has it.
    where : str
        File and path, for messages.
    held : int
        The size of the file.
    is_numpys : bool
        Whether the stored numbers are those of `dtype`, bit by bit.

    Raises
    ------
    FileFormatError
        It lies outside this file, is no tensor of numbers, is compressed in a way that Keras never
        writes, or claims more than the file holds.
    ValueError
        Its chunks are not where they should be.
    """
    if is_numpys and (plain := _plain(dataset, dtype, held)):
        return plain
    creation = dataset.get_create_plist()
    kind = creation.get_layout()
    is_plain = kind == h5d.CONTIGUOUS
    is_elsewhere = is_plain and creation.get_external_count() > 0
    if is_elsewhere or kind not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED):
        raise FileFormatError(
            f"{where}: its data lie outside the file, which Keras never "
            f"writes; qmath does not follow them"
        )
    shape = dataset.shape
    if shape is None or dtype.kind not in "biuf":
        raise FileFormatError(
            f"{where}: {dtype} is no tensor of numbers; the file "
            f"was not written by Keras, or is damaged"
        )
    stored, claimed = dataset.get_storage_size(), math.prod(shape) * dtype.itemsize
    if kind == h5d.CHUNKED and claimed:
        filters = _filters(creation, dtype.itemsize, where)
        chunk = math.prod(creation.get_chunk()) * dtype.itemsize
        most = stored * (MAX_RATIO if filters else 1)
        if chunk > max(claimed, _MAX_CHUNK) or claimed > most or stored > held:
            raise _too_large(where, shape, max(claimed, chunk), stored)
        if not is_numpys:
            raise FileFormatError(
                f"{where}: {dtype} in chunks is nothing that Keras writes; rewrite the file with "
                "h5repack -f NONE -l CONTI"
            )
        return Layout(shape, dtype, None, find_chunks(dataset, shape, filters, held))
    if (claimed and claimed != stored) or stored > held:
        raise _too_large(where, shape, claimed, stored)
    if is_plain and claimed:
        start = dataset.get_offset()
        return Layout(shape, dtype, start if is_numpys else None, None, (start, start + stored))
    return Layout(shape, dtype)


def _plain(dataset: Any, dtype: np.dtype[Any], held: int) -> Layout | None:
    """Return the layout of numbers that lie in the file one after the other, as Keras writes them.

    What else there is takes the library longer to say than the rest together.
    """
    start, shape = dataset.get_offset(), dataset.shape
    if start is None or shape is None:
        return None
    stored = dataset.get_storage_size()
    if not 0 < math.prod(shape) * dtype.itemsize == stored <= held:
        return None
    return Layout(shape, dtype, start, None, (start, start + stored))


def _too_large(where: str, shape: tuple[int, ...], claimed: int, stored: int) -> FileFormatError:
    return FileFormatError(
        f"{where}: its shape {shape} claims {claimed} bytes and "
        f"{stored} are stored; the file is damaged or hostile"
    )


def _filters(creation: Any, itemsize: int, where: str) -> tuple[int, ...]:
    """Return the filters of a dataset in the order in which they were applied, each once."""
    found = [creation.get_filter(i) for i in range(creation.get_nfilters())]
    codes = [code for code, *_ in found]
    shuffled = [values for code, _, values, *_ in found if code == SHUFFLE]
    is_known = _FILTERS.issuperset(codes) and all(size == (itemsize,) for size in shuffled)
    if not is_known or len(set(codes)) < len(codes):
        raise FileFormatError(
            f"{where}: it is compressed in a way that Keras never writes; "
            f"rewrite the file with h5repack -f NONE"
        )
    return tuple(codes)
