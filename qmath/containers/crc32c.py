"""CRC-32C as TensorFlow stores it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import MissingExtraError

__all__ = ["crc32c_extender", "masked"]


def crc32c_extender(where: str) -> Callable[[int, bytes | NDArray[np.uint8]], int]:
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
    extend: Callable[[int, Any], int] = google_crc32c.extend
    return extend


def masked(crc: int) -> int:
    """Return a checksum as it is stored, as ``crc32c::Mask`` of LevelDB and TensorFlow does.

    Examples
    --------
    >>> hex(masked(0))
    '0xa282ead8'
    """
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
