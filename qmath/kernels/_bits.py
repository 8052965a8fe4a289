"""Fixed-width integers side by side in bytes and words, without a step that touches single values.

Inside words of up to 64 bits neighbours close the gap between them, first pairs, then fours, then
eights. `order` is where the first value goes: ``"<"`` the lowest bits, ``">"`` the highest. In the
second case everything is read and written as big-endian words, and the same steps apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Order",
    "by_groups",
    "from_lines",
    "from_stream",
    "from_words",
    "lines",
    "resized",
    "to_stream",
    "to_words",
]

_BLOCK = 1 << 17  # values: few enough that a block and its results stay in the cache

Array = NDArray[Any]
Order = Literal["<", ">"]


def lines(array: Array, axis: int | None) -> Array:
    """Return the lines that are packed on their own as rows."""
    if axis is None:
        return np.ascontiguousarray(array).reshape(1, -1)
    moved = np.ascontiguousarray(np.moveaxis(array, axis, -1))
    return moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1])


def from_lines(rows: Array, shape: tuple[int, ...], axis: int | None) -> Array:
    """Return the array whose lines are these rows: `lines` backwards."""
    if axis is None:
        return np.asarray(rows.reshape(shape))
    moved = rows.reshape(*shape[:axis], *shape[axis + 1 :], shape[axis])
    return np.ascontiguousarray(np.moveaxis(moved, -1, axis))


def resized(rows: Array, length: int) -> Array:
    """Cut the rows, or fill them up with zeros."""
    if rows.shape[1] >= length:
        return np.ascontiguousarray(rows[:, :length])
    longer = np.zeros((len(rows), length), rows.dtype)
    longer[:, : rows.shape[1]] = rows
    return longer


def by_groups(
    convert: Callable[[Array], Array],
    rows: Array,
    group: int,
    dtype: np.dtype[Any],
    converted_group: int,
) -> Array:
    """Convert each row, filled up with zeros to whole groups, a block of groups at a time."""
    groups = -(-rows.shape[1] // group)
    source = resized(rows, groups * group).reshape(-1, group)
    target = np.empty((len(source), converted_group), dtype)
    step = _BLOCK // max(group, converted_group)
    for start in range(0, len(source), step):
        block = source[start : start + step]
        target[start : start + step] = convert(block.reshape(-1)).reshape(-1, converted_group)
    return target.reshape(len(rows), groups * converted_group)


def to_stream(bits: Array, num_bits: int, order: Order) -> Array:
    """Return the dense stream of bytes of values that end at a byte.

    Parameters
    ----------
    bits : ndarray of uint8 (to 8 bits) or uint16
        Flat, whole eights (of 8 and 16 bits, any number); only the lowest `num_bits` bits are set.
    """
    width = 8 * bits.itemsize
    if num_bits == 1:
        return np.packbits(bits, bitorder="little" if order == "<" else "big")
    stored = bits.astype(bits.dtype.newbyteorder(order), copy=False)
    if num_bits == width:
        return stored.view(np.uint8)
    word_bytes = _word_bytes(num_bits)
    words = stored.view(f"{order}u{word_bytes}").astype(f"u{word_bytes}", copy=False)
    words = _merge(words, width, num_bits)
    if word_bytes < 8:
        return words.astype(np.uint8)
    packed = np.empty(bits.size // 8 * num_bits, np.uint8)
    used = 64 // width * num_bits  # bits of a word
    if used % 8 == 0:
        low, high = _ends(packed, used // 8, order)
        low[...] = words
        high[...] = words >> used - 8 * high.itemsize
    else:
        low, high = _ends(packed, num_bits, order)
        lower, upper = (words[0::2], words[1::2])[:: 1 if order == "<" else -1]
        low[...] = lower | upper << used
        high[...] = lower >> 2 * used - 64 | upper << 64 - used
    return packed


def from_stream(packed: Array, num_bits: int, order: Order) -> Array:
    """Return the values of a dense stream, as unsigned integers: `to_stream` backwards."""
    width = 8 if num_bits <= 8 else 16
    container = np.dtype(f"u{width // 8}")
    if num_bits == 1:
        return np.unpackbits(packed, bitorder="little" if order == "<" else "big")
    if num_bits == width:
        values = packed.view(container.newbyteorder(order))
        return np.asarray(values.astype(container))
    word_bytes = _word_bytes(num_bits)
    used = 8 * word_bytes // width * num_bits
    if word_bytes < 8:
        words = packed.astype(f"u{word_bytes}")
    elif used % 8 == 0:
        low, high = _ends(packed, used // 8, order)
        words = high.astype(np.uint64)
        words <<= used - 8 * high.itemsize
        words |= low
    else:
        low, high = _ends(packed, num_bits, order)
        words = np.empty(2 * low.size, np.uint64)
        lower, upper = (words[0::2], words[1::2])[:: 1 if order == "<" else -1]
        lower[...] = low & (1 << used) - 1
        upper[...] = high >> 64 - used
    _spread(words, width, num_bits)
    stored = words.astype(f"{order}u{word_bytes}", copy=False)
    values = stored.view(container.newbyteorder(order))
    return np.asarray(values.astype(container, copy=False))


def to_words(bits: Array, num_bits: int) -> Array:
    """Return the bytes of little-endian 32-bit words that hold as many whole values as fit.

    `bits` are as for `to_stream`, and fill the words, whose highest bits are zero.
    """
    if 32 % num_bits == 0:
        return to_stream(bits, num_bits, "<")
    runs, run = _runs(num_bits)
    values = bits.astype(bits.dtype.newbyteorder("<"), copy=False)
    merged = _merge(values.view(f"<u{run * bits.itemsize}"), 8 * bits.itemsize, num_bits)
    columns = merged.reshape(-1, runs).T
    words = columns[-1].astype("<u4")
    for column in columns[-2::-1]:
        words <<= run * num_bits
        words |= column
    return np.asarray(words.view(np.uint8))


def from_words(packed: Array, num_bits: int) -> Array:
    """Return the values of 32-bit words, as unsigned integers: `to_words` backwards."""
    if 32 % num_bits == 0:
        return from_stream(packed, num_bits, "<")
    runs, run = _runs(num_bits)
    itemsize = 1 if num_bits <= 8 else 2
    words = packed.view("<u4")
    merged = np.empty(words.size * runs, f"<u{run * itemsize}")
    for place, column in enumerate(merged.reshape(-1, runs).T):
        column[...] = words >> place * run * num_bits & (1 << run * num_bits) - 1
    _spread(merged, 8 * itemsize, num_bits)
    return merged.view(f"<u{itemsize}").astype(f"u{itemsize}", copy=False)


def _word_bytes(num_bits: int) -> int:
    """Return the size of the words to merge in: values of 2 or 4 bits fill a byte early."""
    return 8 // num_bits if 8 % num_bits == 0 else 8


def _runs(num_bits: int) -> tuple[int, int]:
    """Return the number of runs in a 32-bit word, and that of the values to merge into a run."""
    count = 32 // num_bits
    run = count & -count  # the largest power of two that divides it
    return count // run, run


def _merge(words: Array, width: int, num_bits: int) -> Array:
    """Close the gaps in each word: values `width` bits apart become `num_bits` apart."""
    dtype = words.dtype
    while width < 8 * dtype.itemsize:
        lanes = words.view(f"{dtype.byteorder}u{width // 4}")  # lower + 2**width * upper
        if 2 * num_bits <= width:  # the product holds them side by side, and nothing below
            lanes = lanes * lanes.dtype.type((1 << width) + (1 << num_bits))
            lanes >>= width
        else:
            gaps = lanes >> width
            gaps *= lanes.dtype.type((1 << width) - (1 << num_bits))
            lanes = lanes - gaps
        words, width, num_bits = lanes.view(dtype), 2 * width, 2 * num_bits
    return words


def _spread(words: Array, width: int, num_bits: int) -> None:
    """Open the gaps in each word, in place: `_merge` backwards."""
    lane = 4 * words.itemsize
    while lane >= width:
        lanes = words.view(f"{words.dtype.byteorder}u{lane // 4}")
        kept = lane // width * num_bits
        gaps = lanes >> kept
        gaps *= lanes.dtype.type((1 << lane) - (1 << kept))
        lanes += gaps
        lane //= 2


def _ends(packed: Array, size: int, order: Order) -> tuple[Array, Array]:
    """Return the low and the high end of each group of `size` bytes: integers that cover it.

    They overlap, so that two strided copies move groups of any size.
    """
    part = 8 if size >= 8 else 4 if size >= 4 else 2
    first, last = (
        np.ndarray((packed.size // size,), f"{order}u{part}", packed, offset, (size,))
        for offset in (0, size - part)
    )
    return (first, last) if order == "<" else (last, first)
