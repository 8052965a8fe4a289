"""HDF5 files, trusted with nothing: attributes as text, datasets as arrays read on demand.

Only hard links are followed. A dataset must hold its bytes in this very file, so that a file
cannot reach others, alone, and not claim more than `MAX_RATIO` times as many. Texts together are no
longer than the file.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qmath.containers.extents import Extents
from qmath.containers.hdf5_chunks import read_chunks
from qmath.containers.hdf5_errors import as_format_error
from qmath.containers.hdf5_layout import MAX_RATIO, Layout, SmallArrays, layout_of
from qmath.containers.hdf5_texts import length_of_texts
from qmath.containers.lazy_array import LazyArray
from qmath.containers.source_files import Section, is_same, open_source, stamp_of, unchanged
from qmath.errors import FileFormatError, MissingExtraError

__all__ = ["MAX_RATIO", "Hdf5File"]

# What may be taken for texts that cannot be measured before they are read.
_SPARE = 1 << 23
# Each group on a path is looked up anew.
_MAX_DEPTH = 100
_LONGEST_NAME = 1 << 12


class Hdf5File:
    """An HDF5 file, opened for reading in a ``with`` statement.

    Arrays taken from it stay readable afterwards, as long as the file does not change. Their bytes
    are read where they lie, without the HDF5 library, but for types that NumPy does not have.

    Parameters
    ----------
    path : str
        The file.
    section : Section, optional
        The part of it to read, by default all.

    Raises
    ------
    FileFormatError
        On entering: the path is missing, a directory, not HDF5, or damaged.
    MissingExtraError
        On entering: h5py is not installed.
    """

    def __init__(self, path: str, section: Section | None = None) -> None:
        self.path = f"{path}: {section.name}" if section else path
        self._absolute = os.path.abspath(path)
        self._section = section
        self._stamp = section.stamp if section else None
        self._size = 0
        self._h5py: Any = None  # like the root, only while the file is open
        self._root: Any = None
        self._before = 0  # bytes of another kind at the beginning
        self._is_usual = True  # places are counted from the beginning, in eight bytes
        self._found: dict[str, Any] = {}  # groups and datasets, while the file is open
        self._dtypes: dict[bytes, tuple[np.dtype[Any], bool]] = {}
        self._layouts: dict[str, Layout] = {}  # of the arrays taken
        self._small = SmallArrays()  # of those
        self._extents = Extents()  # of all that were met
        self._texts_read = 0  # the bytes of all
        self._bytes: BinaryIO | None = None  # the same file, while it is open

    def __enter__(self) -> Hdf5File:
        try:
            import h5py
        except ImportError:
            raise MissingExtraError(
                f"{self.path}: reading HDF5 needs h5py; install it with "
                f"pip install 'qmath-tfmot[checkpoints]'"
            ) from None
        with as_format_error(self.path):
            self._bytes = self._open_bytes()
            try:
                self._stamp = self._stamp or stamp_of(self._bytes)
                self._size = self._bytes.seek(0, os.SEEK_END)
                source = self._absolute if self._section is None else self._bytes
                self._root = h5py.File(source, "r")
                self._before = self._root.userblock_size
                sizes = self._root.id.get_create_plist().get_sizes()
                self._is_usual = sizes == (8, 8) and not self._before
            except BaseException:
                self._close()
                raise
            self._h5py = h5py
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with as_format_error(self.path):
                self._close()
        except FileFormatError:
            if kind is None:  # otherwise the first error counts
                raise
        if kind is None:  # the library has opened it by its name
            with as_format_error(self.path), self._reading():
                pass

    def _close(self) -> None:
        self._found.clear()
        self._texts_read = 0
        root, opened = self._root, self._bytes
        self._h5py = self._root = self._bytes = None
        try:
            if root is not None:
                root.close()
        finally:
            if opened is not None:
                opened.close()

    def has(self, path: str) -> bool:
        """Tell whether a group or dataset is there, reached by hard links alone."""
        return self._find(path) is not None

    def has_attribute(self, group: str, name: str) -> bool:
        """Tell whether a group (``""`` is the root) has an attribute."""
        with as_format_error(f"{self.path}: {group}"):
            return bool(self._h5py.h5a.exists(self._group(group), name.encode()))

    def text(self, group: str, name: str) -> str:
        """Return an attribute that holds one text.

        Raises
        ------
        FileFormatError
            It is missing, or not one text.
        """
        texts = self._texts(group, name)
        if len(texts) != 1:
            raise FileFormatError(
                f"{self.path}: attribute {name!r} of {group or '/'!r} should be "
                f"one text; the file is damaged, save the model again"
            )
        return texts[0]

    def names(self, group: str, name: str) -> list[str] | None:
        """Return an attribute that holds a list of names, or ``None`` if there is none.

        Long lists are split over ``name0``, ``name1``, …, as HDF5 limits an attribute's size.
        """
        if self.has_attribute(group, name):
            parts = self._texts(group, name)
        else:
            parts, count = [], 0
            while self.has_attribute(group, f"{name}{count}"):
                parts += self._texts(group, f"{name}{count}")
                count += 1
            if not count:
                return None
        for part in parts:
            if not part.isprintable() or len(part) > _LONGEST_NAME:
                raise FileFormatError(
                    f"{self.path}: {name} of {group or '/'!r} holds {part[:80]!r}, "
                    f"which is no name; the file is damaged"
                )
        return parts

    def children(self, group: str) -> list[str]:
        """Return the names in a group (``""`` is the root), in HDF5's own order.

        Raises
        ------
        FileFormatError
            There is no such group.
        """
        names: list[bytes] = []
        left = self._size

        def note(name: bytes) -> bool | None:
            nonlocal left
            left -= len(name)  # two may be the same bytes
            names.append(name)
            return None if left >= 0 else True

        with as_format_error(f"{self.path}: {group}"):
            if self._group(group).links.iterate(note)[0]:
                raise ValueError("its names are longer than the file")
            return [name.decode() for name in names]

    def datasets(self, group: str) -> list[str]:
        """Return the paths of all datasets below a group, reached by hard links alone.

        Raises
        ------
        FileFormatError
            There is no such group; or below it is a link to elsewhere, or one group twice, as when
            links form a circle.
        """
        found: list[str] = []
        met: set[int] = set()
        waiting = [(group, self._group(group))]
        while waiting:
            place, node = waiting.pop()
            with as_format_error(f"{self.path}: {place}"):
                address = self._h5py.h5o.get_info(node).addr
            if address in met:
                raise FileFormatError(
                    f"{self.path}: {place} is a group that the file holds elsewhere as well, which "
                    "Keras never writes; the file is damaged or hostile"
                )
            met.add(address)
            for name in self.children(place):
                path = f"{place}/{name}" if place else name
                child = self._step(node, name, path)
                if isinstance(child, self._h5py.h5g.GroupID):
                    waiting.append((path, child))
                elif child is not None:
                    found.append(path)
        return found

    def array(self, path: str) -> LazyArray:
        """Return a dataset, its elements unread.

        Raises
        ------
        FileFormatError
            It is missing, lies outside this file, or claims more than the file holds.
        """
        _, layout = self._dataset(path)
        if path not in self._layouts:
            self._layouts[path] = layout
            if self._bytes is not None:
                self._small.keep(path, layout, self._bytes)
        return LazyArray(self, path, layout.shape, layout.dtype)

    def read(self, path: str) -> NDArray[Any]:
        """Return a dataset's elements, opening the file if it is not open.

        Raises
        ------
        FileFormatError
            As `array`, or the file has changed since it was first opened.
        """
        kept = self._small.get(path)
        if kept is not None and is_same(self._absolute, self._stamp):
            return kept
        known = self._layouts.get(path)
        if known is not None and (known.offset is not None or known.chunks):
            with as_format_error(f"{self.path}: {path}"):
                return self._read_numbers(known)
        if self._root is None:
            with self:
                return self.read(path)
        dataset, layout = self._dataset(path)
        with as_format_error(f"{self.path}: {path}"):
            if layout.offset is not None or layout.chunks:
                return self._read_numbers(layout)
            return np.asarray(self._h5py.Dataset(dataset)[()])

    def parts(self, path: str, size: int) -> Iterator[NDArray[Any]]:
        """Yield a dataset's rows, about `size` elements at a time, in the same memory.

        Those that do not lie in the file one after the other come all at once.

        Raises
        ------
        FileFormatError
            As `read`.
        """
        known = self._layouts.get(path)
        if known is None or known.offset is None or not known.shape:
            yield self.read(path)
            return
        length, *others = known.shape
        count = max(1, size // max(1, math.prod(others)))
        buffer = np.empty((min(count, length), *others), known.dtype)
        with as_format_error(f"{self.path}: {path}"), self._reading() as file:
            for start in range(0, length, count):
                rows = buffer[: length - start]
                known.read_into(rows, file, start * math.prod(others) * known.dtype.itemsize)
                yield rows

    def inflated(self, path: str) -> int:
        """Return the bytes of an array that was taken, if it lies in chunks: 0 otherwise."""
        known = self._layouts.get(path)
        return math.prod(known.shape) * known.dtype.itemsize if known and known.chunks else 0

    def _read_numbers(self, layout: Layout) -> NDArray[Any]:
        """Return elements from where they lie in the file."""
        with self._reading() as file:
            if layout.chunks:
                values = read_chunks(file, layout.chunks, layout.shape, layout.dtype)
            else:
                values = np.empty(layout.shape, layout.dtype)
                layout.read_into(values, file)
        return values

    @contextmanager
    def _reading(self) -> Iterator[io.BufferedReader]:
        """Open the file, which must be what it was when it was first opened, and stay so."""
        with (
            self._open_bytes() as file,
            unchanged(file, self._stamp or stamp_of(file), self.path),
        ):
            yield file

    def _open_bytes(self) -> io.BufferedReader:
        if self._section is None:
            return open_source(self._absolute, self.path)
        return io.BufferedReader(self._section.open())  # type: ignore[arg-type]

    @property
    def source(self) -> str:
        """The file's absolute path."""
        return self._absolute

    def place(self, path: str) -> tuple[int, str]:
        """Return where in the file a dataset's elements begin, and their dtype in NumPy's letters.

        The file is opened if it is not open.

        Raises
        ------
        FileFormatError
            As `read`; or they do not lie in the file plainly, but compressed or in an archive.
        """
        if self._root is None:
            with self:
                return self.place(path)
        _, layout = self._dataset(path)
        where = f"{self.path}: {path}"
        if self._section is not None:
            raise FileFormatError(
                f"{where} is part of an archive; save the model with model.save('model.h5')"
            )
        if layout.offset is None:
            raise FileFormatError(
                f"{where} is compressed, in chunks or empty; rewrite the file with: "
                "h5repack -f NONE -l CONTI MODEL.h5 PLAIN.h5"
            )
        return layout.offset, layout.dtype.str

    def _dataset(self, path: str) -> tuple[Any, Layout]:
        """Return a dataset that does not claim more than the file holds."""
        where = f"{self.path}: {path}"
        node = self._find(path)
        if node is None:
            raise FileFormatError(
                f"{where}: the file lists this tensor and does not hold it; it "
                f"was cut or edited, save the model again"
            )
        if not isinstance(node, self._h5py.h5d.DatasetID):
            raise FileFormatError(
                f"{where}: a tensor should be here, not a group; the file was "
                f"edited, save the model again"
            )
        self._found.pop(path, None)  # of an open dataset the library keeps kilobytes
        with as_format_error(where):
            return node, self._layout_of(node, where)

    def _find(self, path: str) -> Any:
        """Walk one link at a time, as h5py's own lookup would follow links out of the file."""
        if not path:
            return self._root.id
        if path.count("/") >= _MAX_DEPTH:
            raise FileFormatError(
                f"{self.path}: a path in it is deeper than {_MAX_DEPTH} groups, as no model's; "
                "the file is damaged or hostile"
            )
        if path in self._found:
            return self._found[path]
        parent, slash, name = path.rpartition("/")
        if slash and not parent:
            return None
        node = self._find(parent)
        return None if node is None else self._step(node, name, path)

    def _step(self, node: Any, name: str, path: str) -> Any:
        """Return a group's child and remember it, or return ``None`` if there is none."""
        with as_format_error(f"{self.path}: {path}"):
            if name in ("", ".") or not isinstance(node, self._h5py.h5g.GroupID):
                return None
            encoded = name.encode()
            try:
                link = node.links.get_info(encoded)
            except Exception:  # which one depends on the versions of h5py and HDF5
                if node.links.exists(encoded):
                    raise
                return None
            if link.type != self._h5py.h5l.TYPE_HARD:
                raise FileFormatError(
                    f"{self.path}: {path} is a link to elsewhere, which "
                    f"Keras never writes; qmath does not follow it"
                )
            self._found[path] = self._h5py.h5o.open(node, encoded)
            return self._found[path]

    def _group(self, path: str) -> Any:
        node = self._find(path)
        if not isinstance(node, self._h5py.h5g.GroupID):
            raise FileFormatError(
                f"{self.path}: group {path!r} is missing; the file was cut or "
                f"edited, save the model again"
            )
        return node

    def _texts(self, group: str, name: str) -> list[str]:
        where = f"{self.path}: attribute {name!r} of {group or '/'!r}"
        with as_format_error(where):
            claim = self._h5py.h5a.open(self._group(group), name.encode())
            count, dtype = math.prod(claim.shape), claim.dtype
            length = count * dtype.itemsize
            if dtype.kind == "O":
                length += self._length_of_texts(group, name, count)
            self._check_length(length, where)
            stored = np.zeros(claim.shape, dtype)
            claim.read(stored)
            values = stored.ravel().tolist()
            if not all(isinstance(value, (str, bytes)) for value in values):
                raise FileFormatError(f"{where} holds no text; the file is damaged")
            self._texts_read += sum(map(len, values))
            self._check_length(0, where)
            # As h5py decodes; what is no text is refused where names and JSON are looked at.
            how = "surrogateescape" if dtype.kind == "O" else "strict"
            return [v.decode(errors=how) if isinstance(v, bytes) else v for v in values]

    def _check_length(self, more: int, where: str) -> None:
        """Raise if texts of so many bytes, and those that were read, are more than the file has."""
        if more + self._texts_read > self._size + _SPARE:
            raise FileFormatError(
                f"{where} claims more bytes than the file has; the file is damaged or hostile"
            )

    def _length_of_texts(self, group: str, name: str, count: int) -> int:
        """Return the bytes of an attribute's texts, which is 0 if they cannot be too many.

        If they cannot be measured, each may be as long as the file.
        """
        most = count * self._size
        if self._texts_read + most <= self._size + _SPARE:
            return 0
        node, length = self._group(group), None
        if self._bytes is not None and self._is_usual:
            address = self._h5py.h5o.get_info(node).addr
            length = length_of_texts(self._bytes, address, name.encode(), count)
        return most if length is None else length

    def _layout_of(self, dataset: Any, where: str) -> Layout:
        """Return the layout of a dataset whose bytes are no other's."""
        dtype, is_numpys = self._dtype_of(dataset)
        layout = layout_of(self._h5py.h5d, dataset, dtype, where, self._size, is_numpys=is_numpys)
        if layout.chunks and self._before:
            raise ValueError("chunks behind a block of the user's; HDF5's versions count both ways")
        # A byte of the header, which two links may lead to, stands for what lies there.
        spans = [layout.span] if layout.span else layout.spans
        if not spans:
            address = self._h5py.h5o.get_info(dataset).addr + self._before
            spans = [(address, address + 1)]
        if not self._extents.take(where, spans):
            raise FileFormatError(
                f"{where}: its bytes are those of another tensor, too, which Keras never writes; "
                "the file is damaged or hostile"
            )
        return layout

    def _dtype_of(self, dataset: Any) -> tuple[np.dtype[Any], bool]:
        """Return a dataset's dtype, and whether its bytes are those of NumPy's numbers.

        HDF5 has types that NumPy does not have, such as integers of 12 bits. Each is asked of h5py
        once.
        """
        stored = dataset.get_type()
        key = stored.encode()
        if key not in self._dtypes:
            dtype = dataset.dtype
            is_numpys = dtype.kind in "iuf" and stored == self._h5py.h5t.py_create(dtype)
            self._dtypes[key] = dtype, is_numpys
        return self._dtypes[key]
