"""Large arrays in cache-sized blocks, on several threads, into the caller's array or a new one.

Each pass over a block finds it in the cache, so no pass costs memory. NumPy releases Python's lock
inside an operation, so threads help.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.kernels._arrays import as_index, unmasked
from qmath.kernels._float32 import Float32Array

# Elements of a block. Passes over 512 KiB of float32 are still fed by a cache, and NumPy's cost a
# call is spread thinly. Where the constants are as long as the block, a quarter of that holds them
# beside it, and an eighth float64 ones; less again where repeating them would be more than an
# eighth of the work.
_BLOCK = 1 << 17
_BLOCK_WITH_CHANNELS = 1 << 15
_BLOCK_WITH_FLOAT64 = 1 << 14
_SMALLEST_BLOCK_WITH_CHANNELS = 1 << 13
_LONG_ROW = 128
_WITH_CHANNELS_AT_ONCE = 1 << 16
_ROWS_AT_ONCE = 64  # for each channel
_SMALLEST_SHARE = 1 << 18  # elements for a thread: their work has to outweigh starting it

_VARIABLE = "QMATH_NUM_THREADS"
_MOST_BY_DEFAULT = 8  # all read and write one memory; who knows better sets another number
_chosen: int | None = None

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
        All of shape ``()``, or all ``(C,)`` where the array's last axis has `C`
        channels. The latter are repeated to the length of a block, so that every pass is flat
        whatever `C` is.
    """
    if not size:
        return
    if size <= _BLOCK and not constants[0].ndim:
        with np.errstate(all="ignore"):
            work(slice(0, size), *constants)
        return
    channels = constants[0].size
    share = -(-size // (threads_for(size) * channels)) * channels

    def run(first: int) -> None:
        run_blocks(work, first, min(first + share, size), constants)

    in_threads(run, range(0, size, share))


def fits_at_once(size: int, constant: NDArray[Any]) -> bool:
    """Whether an array is worked on fastest whole, in its shape, with the constants broadcast.

    Then each row costs a pass its start, but the constants need not be repeated.
    """
    if not constant.ndim:
        return size <= _BLOCK
    return size <= min(_WITH_CHANNELS_AT_ONCE, _ROWS_AT_ONCE * constant.size**2)


def run_blocks(work: Work, first: int, last: int, constants: Sequence[NDArray[Any]]) -> None:
    """Call ``work(block, *constants)`` as `each_block` does, for whole rows and in this thread."""
    size = last - first
    period = step = _BLOCK
    if constants[0].size > 1:
        is_wide = any(part.itemsize > 4 for part in constants)
        most = _BLOCK_WITH_FLOAT64 if is_wide else _BLOCK_WITH_CHANNELS
        step = min(most, max(_SMALLEST_BLOCK_WITH_CHANNELS, size // 8))
        constants = _repeated(constants, size, step)
        period = constants[0].size
    elif constants[0].ndim:  # one channel is a tensor
        constants = [part.reshape(()) for part in constants]
    with np.errstate(all="ignore"):
        for start in range(first, last, period):
            _run_period(work, start, min(start + period, last), step, period, constants)


def threads_for(size: int) -> int:
    """Return how many threads pay for so many elements."""
    # Small arrays skip this: it asks the system for the number of processors.
    return max(1, min(get_num_threads(), size // _SMALLEST_SHARE)) if size > _SMALLEST_SHARE else 1


def _repeated(constants: Sequence[NDArray[Any]], size: int, step: int) -> Sequence[NDArray[Any]]:
    """Return the constants of channels repeated: whole rows for `size` elements, or for a block.

    Rows of few channels are repeated twice, since NumPy copies longer rows faster.
    """
    few = max(1, _LONG_ROW // constants[0].size)
    row = few * constants[0].size
    found = list(constants)
    for dtype in {part.dtype for part in constants}:
        places = [place for place, part in enumerate(constants) if part.dtype == dtype]
        table = np.array([constants[place] for place in places])
        for times in (few, max(1, min(step, size + row - 1) // row)):
            if times > 1:
                repeated = np.empty((len(table), times, table.shape[1]), dtype)
                repeated[...] = table[:, np.newaxis]
                table = repeated.reshape(len(table), -1)
        for place, part in zip(places, table, strict=True):
            found[place] = part
    return found


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


def set_num_threads(num_threads: SupportsIndex | None) -> None:
    """Set how many threads work on one large array.

    Parameters
    ----------
    num_threads : int or None
        1 or more; None returns to the default: the environment variable ``QMATH_NUM_THREADS`` if
        it is set, else as many as the process may use processors, at most 8.

    Raises
    ------
    QmathError
        `num_threads` is no positive integer.

    Notes
    -----
    No result depends on it, not even the order of a sum. Arrays of less than 512 Ki elements are
    worked on by the calling thread alone.

    Examples
    --------
    >>> import qmath
    >>> qmath.set_num_threads(2)
    >>> qmath.get_num_threads()
    2
    >>> qmath.set_num_threads(None)
    """
    global _chosen
    _chosen = None if num_threads is None else _checked(num_threads, "num_threads")


def get_num_threads() -> int:
    """Return how many threads work on one large array: see `set_num_threads`."""
    if _chosen is not None:
        return _chosen
    if text := os.environ.get(_VARIABLE):
        return _checked(int(text) if text.isdecimal() else text, _VARIABLE)
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return min(available, _MOST_BY_DEFAULT)


def _checked(value: object, name: str) -> int:
    """Return a number of threads as an int, if it is one."""
    number = None if isinstance(value, bool) else as_index(value)
    if number is None or number < 1:
        raise QmathError(f"{name} must be a positive integer, got {value!r}")
    return number


def in_threads(run: Callable[[int], None], parts: Sequence[int]) -> None:
    """Call ``run(part)`` for each part, every one but the first in a thread of its own.

    The calling thread waits for all; the error of the first part that has one is raised.
    """
    if len(parts) == 1:
        run(parts[0])
        return
    from threading import Thread  # which NumPy does not import

    errors: dict[int, BaseException] = {}

    def attempt(part: int) -> None:
        try:
            run(part)
        except BaseException as error:
            errors[part] = error

    threads = [Thread(target=attempt, args=(part,), daemon=True) for part in parts[1:]]
    for thread in threads:
        thread.start()
    attempt(parts[0])
    for thread in threads:
        thread.join()
    for part in parts:
        if part in errors:
            raise errors[part]


def output(out: Float32Array | None, shape: tuple[int, ...]) -> Float32Array:
    """Return the array to write a result of this shape to, refusing what cannot hold it."""
    if out is None:
        return np.empty(shape, np.float32)
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape:
        raise QmathError(f"out must be a float32 array of shape {shape}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise QmathError("out must be C-contiguous and writeable")
    return unmasked(out, "out")


def non_overlapping(x: Float32Array, out: Float32Array) -> Float32Array:
    """Return `x` flat, and copied if writing `out` would change elements that are not read yet."""
    if not x.flags.c_contiguous:
        return x.flatten()
    if np.may_share_memory(x, out) and x.ctypes.data != out.ctypes.data:
        return x.flatten()
    return x.reshape(-1)
