"""Whether a file holds, byte by byte, what an export of the model would write now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["byte_differences"]

_BLOCK = 1 << 20


def byte_differences(name: str, found: BinaryIO, expected: BinaryIO) -> Iterator[str]:
    """Yield in words, once, where a file differs from what an export would write now.

    Examples
    --------
    >>> from io import BytesIO
    >>> list(byte_differences("a.bin", BytesIO(b"abc"), BytesIO(b"abd.")))
    ['a.bin: it differs from byte 2 on (3 bytes, and the model gives 4)']
    """
    sizes = [file.seek(0, os.SEEK_END) for file in (found, expected)]
    for file in (found, expected):
        file.seek(0)
    at = 0
    while (a := found.read(_BLOCK)) == (b := expected.read(_BLOCK)) and a:
        at += len(a)
    if a != b:
        pairs = enumerate(zip(a, b, strict=False))
        at += next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
        yield (
            f"{name}: it differs from byte {at} on ({sizes[0]} bytes, and the model gives "
            f"{sizes[1]})"
        )
