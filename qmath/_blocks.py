"""Cache-sized blocks: each pass over a block finds it in the cache, so no pass costs memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath._threads import get_num_threads, in_threads

# Elements of a block: 128 KiB of float32, or 32 KiB where the constants are as long as the block,
# which leave room for the passes' other operands in a core's own second-level cache.
_BLOCK = 32768
_BLOCK_WITH_CHANNELS = 8192
_SMALLEST_SHARE = 1 << 18  # elements for a thread: their work has to outweigh starting it

Work = Callable[..., None]


def each_block(work: Work, size: int, constants: Sequence[NDArray[Any]]) -> None:
    """Call ``work(block, *constants)`` for each block of a flat array, in some threads if it pays.

    Parameters
    ----------
    work : callable
        Takes a slice, and the constants that apply to its elements: of shape ``()``, or of the
        block's length. NumPy's floating-point warnings are off inside.
    size : int
        Number of elements of the flat array.
    constants : sequence of ndarray
        All of shape ``()``, or all ``(C,)`` where the array's last axis has `C` channels. The
        latter are repeated to the length of a block, so that every pass is flat whatever `C` is.
    """
    if not size:
        return
    if constants[0].ndim:
        channels = constants[0].size
        rows = max(1, min(_BLOCK_WITH_CHANNELS, size) // channels)
        period, step = rows * channels, _BLOCK_WITH_CHANNELS
        constants = [_repeated(part, rows) for part in constants]
    else:
        period = step = min(_BLOCK, size)
    periods = -(-size // period)
    workers = threads_for(size)
    share = -(-periods // workers) * period

    def run(first: int) -> None:
        with np.errstate(all="ignore"):
            for start in range(first, min(first + share, size), period):
                _run_period(work, start, min(start + period, size), step, period, constants)

    in_threads(run, range(0, size, share))


def threads_for(size: int) -> int:
    """Return how many threads pay for so many elements."""
    # Of few elements nothing is asked, as the system is for the number of processors.
    return max(1, min(get_num_threads(), size // _SMALLEST_SHARE)) if size > _SMALLEST_SHARE else 1


def _repeated(part: NDArray[Any], rows: int) -> NDArray[Any]:
    """Return a vector repeated `rows` times, as ``np.tile`` does with more work a call."""
    if rows == 1:
        return part
    repeated = np.empty((rows, part.size), part.dtype)
    repeated[...] = part
    return repeated.reshape(-1)


def _run_period(
    work: Work, start: int, stop: int, step: int, period: int, constants: Sequence[NDArray[Any]]
) -> None:
    """Work on one period of the constants, in more than one block where it is long."""
    if not constants[0].ndim or stop - start == period <= step:
        work(slice(start, stop), *constants)
        return
    for first in range(start, stop, step):
        last = min(first + step, stop)
        work(slice(first, last), *(part[first - start : last - start] for part in constants))
