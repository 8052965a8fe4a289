"""Arrays that stay in their file until they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["ArrayFile", "LazyArray"]


class ArrayFile(Protocol):
    """A file that holds arrays, each under its own path."""

    path: str

    def read(self, path: str) -> NDArray[Any]:
        """Return the elements of the array at `path`."""


class LazyArray:
    """An array in a file: shape and dtype now, the elements when ``np.asarray`` asks for them.

    The file is open only while it is read, so that it can be written again meanwhile; then
    reading from it is an error.

    Attributes
    ----------
    file : ArrayFile
    path : str
        Path of the array in the file.
    shape : tuple of int
    dtype : numpy.dtype
        In native byte order, whatever the file's.
    nbytes : int
    """

    def __init__(
        self, file: ArrayFile, path: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.file = file
        self.path = path
        self.shape = shape
        self.dtype = dtype.newbyteorder("=")
        self.nbytes: int = math.prod(shape) * dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self.path}: reading from a file always copies")
        return self.file.read(self.path).astype(self.dtype if dtype is None else dtype, copy=False)

    def parts(self, size: int) -> Iterator[NDArray[Any]]:
        """Yield the rows, about `size` elements at a time, where the file can be read so.

        Each part is good until the next is asked for.
        """
        read = getattr(self.file, "parts", None)
        for part in (self.file.read(self.path),) if read is None else read(self.path, size):
            yield part.astype(self.dtype, copy=False)

    def __repr__(self) -> str:
        return (
            f"LazyArray({self.file.path!r}, {self.path!r}, shape={self.shape}, dtype={self.dtype})"
        )
