"""Files of arrays that users write: an ``.npz`` of many, an ``.npy`` of one, or raw bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.containers.source_files import open_source
from qmath.errors import FileFormatError

__all__ = ["is_array_file", "read_arrays", "read_bytes"]

_BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY")  # a zip may be empty


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz``, or the one of an ``.npy`` under the name ``""``.

    Raises
    ------
    FileFormatError
        It cannot be read, or holds anything but plain arrays.
    """
    try:
        # Opened here, as NumPy leaves a damaged archive open.
        with open_source(os.fspath(path)) as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"": loaded}
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise FileFormatError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise FileFormatError(f"{path} is a directory; give an .npz or .npy file") from None
    except FileFormatError:
        raise
    except Exception as error:  # numpy raises whatever a damaged file makes it raise
        # NumPy takes a file that is not an array for a pickle, and advises to load it "unsafely".
        reason = "" if "allow_pickle" in str(error) else f" ({error})"
        raise FileFormatError(
            f"{path} is not an .npz or .npy of plain arrays{reason}; write one with numpy.savez"
        ) from error


def is_array_file(path: Path) -> bool:
    """Whether a file begins as one that `read_arrays` reads.

    Raises
    ------
    FileFormatError
        It cannot be read.
    """
    return read_bytes(path, 6).startswith(_BEGINNINGS)


def read_bytes(path: Path, limit: int) -> bytes:
    """Return a file's bytes, or the first `limit` and one more, if it is longer.

    Raises
    ------
    FileFormatError
        It cannot be read.
    """
    try:
        with open_source(os.fspath(path)) as file:
            return file.read(limit + 1)
    except FileNotFoundError:
        raise FileFormatError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise FileFormatError(f"{path}: it cannot be read ({error.strerror})") from None
