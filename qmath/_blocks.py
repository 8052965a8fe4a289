"""Cache-sized blocks: each pass over a block finds it in the cache, so no pass costs memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 32768  # float32 elements: 128 KiB, within every desktop core's own cache


def blocks(
    size: int, constants: Sequence[NDArray[np.float32]]
) -> Iterator[tuple[slice, tuple[NDArray[np.float32], ...]]]:
    """Cut ``range(size)`` into blocks, each with the constants that apply to its elements.

    Parameters
    ----------
    size : int
        Number of elements of a flat array.
    constants : sequence of ndarray
        All of shape ``()``, or all ``(C,)`` where the array's last axis has `C` channels. The
        latter are repeated to a block's length, so that every pass is flat whatever `C` is.

    Yields
    ------
    slice, tuple of ndarray
        The block and its constants, of shape ``()`` or of the block's length.
    """
    channels = constants[0].size
    rows = max(1, min(BLOCK, size) // max(1, channels))
    length = rows * max(1, channels)
    repeated = tuple(np.tile(c, rows) if c.ndim else c for c in constants)
    for start in range(0, size, length):
        stop = min(start + length, size)
        tail = slice(stop - start) if constants[0].ndim else ()
        yield slice(start, stop), tuple(c[tail] for c in repeated)
