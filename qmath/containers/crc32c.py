"""CRC-32C as TensorFlow stores it."""

from __future__ import annotations

from collections.abc import Callable

from qmath.errors import MissingExtraError

__all__ = ["crc32c_extender", "masked"]


def crc32c_extender(where: str) -> Callable[[int, bytes], int]:
    """Return the function that extends the checksum of some bytes, at first 0, by further bytes.

    Raises
    ------
    MissingExtraError
        google-crc32c is not installed.
    """
    try:
        import google_crc32c
    except ImportError:
        raise MissingExtraError(
            f"{where}: checking it needs google-crc32c; install it with "
            f"pip install 'qmath-tfmot[checkpoints]'"
        ) from None
    extend: Callable[[int, bytes], int] = google_crc32c.extend
    return extend


def masked(crc: int) -> int:
    """Return a checksum as it is stored, as ``crc32c::Mask`` of LevelDB and TensorFlow does.

    Examples
    --------
    >>> hex(masked(0))
    '0xa282ead8'
    """
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
