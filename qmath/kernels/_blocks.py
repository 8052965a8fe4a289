"""Cache-sized blocks: each pass over a block finds it in the cache, so no pass costs memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._threads import get_num_threads, in_threads

# Elements of a block. Passes over 512 KiB of float32 are still fed by a cache, and NumPy's cost a
# call is spread thinly. Where the constants are as long as the block, a quarter of that holds them
# beside it; and less again where repeating them would be more than an eighth of the work.
_BLOCK = 1 << 17
_BLOCK_WITH_CHANNELS = 1 << 15
_SMALLEST_BLOCK_WITH_CHANNELS = 1 << 13
_LONG_ROW = 128
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
        Of one dtype; all of shape ``()``, or all ``(C,)`` where the array's last axis has `C`
        channels. The latter are repeated to the length of a block, so that every pass is flat
        whatever `C` is.
    """
    if not size:
        return
    channels = constants[0].size
    share = -(-size // (threads_for(size) * channels)) * channels

    def run(first: int) -> None:
        run_blocks(work, first, min(first + share, size), constants)

    in_threads(run, range(0, size, share))


def run_blocks(work: Work, first: int, last: int, constants: Sequence[NDArray[Any]]) -> None:
    """Call ``work(block, *constants)`` as `each_block` does, for whole rows and in this thread."""
    size = last - first
    period = step = _BLOCK
    if constants[0].size > 1:
        step = min(_BLOCK_WITH_CHANNELS, max(_SMALLEST_BLOCK_WITH_CHANNELS, size // 8))
        constants = _repeated(constants, size, step)
        period = constants[0].size
    elif constants[0].ndim:  # one channel is a tensor
        constants = [part.reshape(()) for part in constants]
    with np.errstate(all="ignore"):
        for start in range(first, last, period):
            _run_period(work, start, min(start + period, last), step, period, constants)


def threads_for(size: int) -> int:
    """Return how many threads pay for so many elements."""
    # Of few elements nothing is asked, as the system is for the number of processors.
    return max(1, min(get_num_threads(), size // _SMALLEST_SHARE)) if size > _SMALLEST_SHARE else 1


def _repeated(constants: Sequence[NDArray[Any]], size: int, step: int) -> Sequence[NDArray[Any]]:
    """Return the constants of channels repeated: whole rows for `size` elements, or for a block.

    Rows of few channels are repeated twice, since NumPy copies longer rows faster.
    """
    few = max(1, _LONG_ROW // constants[0].size)
    row = few * constants[0].size
    table = np.array(constants)
    for times in (few, max(1, min(step, size + row - 1) // row)):
        if times > 1:
            repeated = np.empty((len(table), times, table.shape[1]), table.dtype)
            repeated[...] = table[:, np.newaxis]
            table = repeated.reshape(len(table), -1)
    return list(table)


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
