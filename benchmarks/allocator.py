"""How the C library hands out large arrays: fresh from the system, or recycled.

glibc takes arrays above a threshold from the system and gives them back when they are freed, so
that each new one costs a page fault for every 4 KiB. A library that cannot be told to write to an
array of the caller's, as TensorFlow, pays this for every large result, unless glibc keeps memory.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["RECYCLED", "available", "keeping", "settle"]

RECYCLED = 32 << 20  # bytes, up to which glibc recycles what a program has once freed
# mallopt's parameters, and what glibc arrives at by itself once a program has freed an array of
# that size: set at the start, nothing depends on the order of the candidates.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_SETTLED = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: RECYCLED, _TRIM_THRESHOLD: 2 * RECYCLED}
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}


def available() -> bool:
    """Return whether the C library is one that can be told."""
    return platform.libc_ver()[0] == "glibc"


def _set(parameters: dict[int, int]) -> None:
    """Call glibc's mallopt."""
    library = ctypes.CDLL(None)
    for parameter, value in parameters.items():
        if not library.mallopt(parameter, value):
            raise OSError(f"mallopt({parameter}, {value}) was refused")


def settle() -> None:
    """Fix the thresholds, which glibc moves, and give back what is free; elsewhere do nothing."""
    if available():
        _set(_SETTLED)
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def keeping() -> Iterator[None]:
    """Let freed memory stay with the program, to be handed out again; later give it all back."""
    _set(_KEEPING)
    try:
        yield
    finally:
        settle()
