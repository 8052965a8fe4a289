"""HDF5 files, trusted with nothing: attributes as text, datasets as arrays read on demand.

Only hard links are followed. A dataset must hold its bytes in this very file, so that a file
cannot reach others, and not claim more than `MAX_RATIO` times the bytes it holds.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from qmath.containers.lazy_array import LazyArray
from qmath.containers.source_files import Stamp, has_changed, stamp_of
from qmath.errors import FileFormatError, MissingExtraError, QmathError

__all__ = ["MAX_RATIO", "Hdf5File"]

# Deflate, shuffle and checksum: what h5repack and h5py write. Others may load foreign plugins.
_FILTERS = frozenset({1, 2, 3})
# Trained weights hardly shrink; pruned ones by 10 or 20.
MAX_RATIO = 64
# Each group on a path is looked up anew.
_MAX_DEPTH = 100


class Section(Protocol):
    """A part of a file that is an HDF5 file itself, such as a member of an archive."""

    @property
    def name(self) -> str:
        """The name of the part in messages."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    def open(self) -> BinaryIO:
        """Open it, for reading."""


class _Layout(NamedTuple):
    """Shape and dtype of a dataset, and where its elements lie, if they do as in an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None


class Hdf5File:
    """An HDF5 file, opened for reading in a ``with`` statement.

    Arrays taken from it stay readable afterwards, as long as the file does not change. As Keras
    writes them, their bytes are read where they lie, without the HDF5 library.

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
        self._stamp: Stamp | None = None
        self._size = 0
        self._h5py: Any = None  # like the root, only while the file is open
        self._root: Any = None
        self._found: dict[str, Any] = {}  # groups and datasets, while the file is open
        self._dtypes: dict[bytes, tuple[np.dtype[Any], bool]] = {}
        self._layouts: dict[str, _Layout] = {}  # of the arrays taken
        self._opened: BinaryIO | None = None

    def __enter__(self) -> Hdf5File:
        try:
            import h5py
        except ImportError:
            raise MissingExtraError(
                f"{self.path}: reading HDF5 needs h5py; install it with "
                f"pip install 'qmath-tfmot[checkpoints]'"
            ) from None
        with _as_format_error(self.path):
            self._check_unchanged()
            if self._section is not None:
                self._size = self._section.size
                self._opened = self._section.open()
            try:
                self._root = h5py.File(self._opened or self._absolute, "r")
            except BaseException:
                self._close_section()
                raise
            self._h5py = h5py
        return self

    def __exit__(self, *_: object) -> None:
        self._found.clear()
        self._root.close()
        self._close_section()
        self._h5py = self._root = None

    def _check_unchanged(self) -> None:
        """Raise if the file is not as it was when it was first opened."""
        status = os.stat(self._absolute)
        stamp = stamp_of(status)
        if stamp != (self._stamp or stamp):
            raise has_changed(self.path)
        self._stamp, self._size = stamp, status.st_size

    def _close_section(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    def has(self, path: str) -> bool:
        """Tell whether a group or dataset is there, reached by hard links alone."""
        return self._find(path) is not None

    def has_attribute(self, group: str, name: str) -> bool:
        """Tell whether a group (``""`` is the root) has an attribute."""
        with _as_format_error(f"{self.path}: {group}"):
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
            if not part.isprintable():
                raise FileFormatError(
                    f"{self.path}: {name} of {group or '/'!r} holds {part!r}, "
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
        with _as_format_error(f"{self.path}: {group}"):
            self._group(group).links.iterate(names.append)
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
            with _as_format_error(f"{self.path}: {place}"):
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
        self._layouts[path] = layout
        return LazyArray(self, path, layout.shape, layout.dtype)

    def read(self, path: str) -> NDArray[Any]:
        """Return a dataset's elements, opening the file if it is not open.

        Raises
        ------
        FileFormatError
            As `array`, or the file has changed since it was first opened.
        """
        known = self._layouts.get(path)
        if known is not None and known.offset is not None:
            return self._read_plain(path, known.shape, known.dtype, known.offset)
        if self._root is None:
            with self:
                return self.read(path)
        dataset, _ = self._dataset(path)
        with _as_format_error(f"{self.path}: {path}"):
            return np.asarray(self._h5py.Dataset(dataset)[()])

    def _read_plain(
        self, path: str, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int
    ) -> NDArray[Any]:
        """Return elements that lie in the file one after the other."""
        values = np.empty(shape, dtype)
        with _as_format_error(f"{self.path}: {path}"), self._open_bytes() as file:
            self._check_unchanged()
            file.seek(offset)
            if file.readinto(values.reshape(-1).view(np.uint8).data) != values.nbytes:
                raise EOFError("the file ends before the array does")
        return values

    def _open_bytes(self) -> io.BufferedReader:
        if self._section is None:
            return open(self._absolute, "rb")
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

    def _dataset(self, path: str) -> tuple[Any, _Layout]:
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
        with _as_format_error(where):
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
        with _as_format_error(f"{self.path}: {path}"):
            if name in ("", ".") or not isinstance(node, self._h5py.h5g.GroupID):
                return None
            encoded = name.encode()
            if not node.links.exists(encoded):
                return None
            if node.links.get_info(encoded).type != self._h5py.h5l.TYPE_HARD:
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
        with _as_format_error(where):
            attributes = self._h5py.Group(self._group(group)).attrs
            claim = attributes.get_id(name)
            if math.prod(claim.shape) * claim.dtype.itemsize > self._size:
                raise FileFormatError(
                    f"{where} claims more bytes than the file has; the file is damaged"
                )
            values = np.atleast_1d(np.asarray(attributes[name])).ravel().tolist()
            if not all(isinstance(value, (str, bytes)) for value in values):
                raise FileFormatError(f"{where} holds no text; the file is damaged")
            return [value.decode() if isinstance(value, bytes) else value for value in values]

    def _layout_of(self, dataset: Any, where: str) -> _Layout:
        """Return the layout of a dataset that is a tensor, of no more than the file holds."""
        h5d = self._h5py.h5d
        creation = dataset.get_create_plist()
        kind = creation.get_layout()
        is_elsewhere = kind == h5d.CONTIGUOUS and creation.get_external_count() > 0
        if is_elsewhere or kind not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED):
            raise FileFormatError(
                f"{where}: its data lie outside the file, which Keras never "
                f"writes; qmath does not follow them"
            )
        shape, stored = dataset.shape, dataset.get_storage_size()
        dtype, is_numpys = self._dtype_of(dataset)
        if shape is None or dtype.kind not in "biuf":
            raise FileFormatError(
                f"{where}: {dtype} is no tensor of numbers; the file "
                f"was not written by Keras, or is damaged"
            )
        filters = {creation.get_filter(i)[0] for i in range(creation.get_nfilters())}
        if not filters <= _FILTERS:
            raise FileFormatError(
                f"{where}: it is compressed in a way that Keras never writes; "
                f"rewrite the file with h5repack -f NONE"
            )
        elements = math.prod(shape)
        claimed = elements * dtype.itemsize
        if kind == h5d.CHUNKED and elements:
            claimed = max(claimed, math.prod(creation.get_chunk()) * dtype.itemsize)
            fits = claimed <= stored * (MAX_RATIO if filters else 1)
        else:
            fits = claimed == stored or not elements
        if not fits or stored > self._size:
            raise FileFormatError(
                f"{where}: its shape {shape} claims {claimed} bytes and "
                f"{stored} are stored; the file is damaged or hostile"
            )
        is_plain = kind == h5d.CONTIGUOUS and elements and is_numpys
        return _Layout(tuple(shape), dtype, dataset.get_offset() if is_plain else None)

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


@contextmanager
def _as_format_error(where: str) -> Iterator[None]:
    """Turn whatever h5py and the HDF5 library raise on bad files into the one error class."""
    try:
        yield
    except QmathError:
        raise
    except FileNotFoundError:
        raise FileFormatError(f"{where}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise FileFormatError(f"{where}: this is a directory, not an HDF5 file") from None
    except PermissionError:
        raise FileFormatError(f"{where}: no permission to read it") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileFormatError(
            f"{where}: HDF5 cannot read this ({reason}); the file is damaged or "
            f"was cut, copy it or save the model again"
        ) from error
