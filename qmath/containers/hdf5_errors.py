"""What h5py and the HDF5 library raise on bad files, as the one error class."""

from __future__ import annotations

from qmath.errors import FileFormatError, QmathError

__all__ = ["as_format_error"]

_REASONS = {
    FileNotFoundError: "there is no such file; check the path",
    IsADirectoryError: "this is a directory, not an HDF5 file",
    PermissionError: "no permission to read it",
}


class as_format_error:  # noqa: N801 (it reads as what it does)
    """Turn whatever h5py and the HDF5 library raise on bad files into the one error class.

    It is entered several times for each tensor, where a generator would cost more than HDF5.
    """

    __slots__ = ("_where",)

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, QmathError) or not isinstance(error, Exception):
            return
        for known, reason in _REASONS.items():
            if isinstance(error, known):
                raise FileFormatError(f"{self._where}: {reason}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileFormatError(
            f"{self._where}: HDF5 cannot read this ({reason}); the file is damaged or "
            f"was cut, copy it or save the model again"
        ) from error
