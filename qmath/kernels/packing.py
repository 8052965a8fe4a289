"""Integers of 1 to 16 bits in the bytes and words that files, kernels and memories hold.

A layout says which bit goes where; ``docs/packing.md`` is its specification.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.kernels import _bits
from qmath.kernels._arrays import as_array, place_of
from qmath.kernels.affine import smallest_dtype

__all__ = ["LAYOUTS", "Layout", "pack", "unpack"]

Array = NDArray[Any]


class Layout(NamedTuple):
    """The place of each bit.

    Attributes
    ----------
    word_bytes : {1, 4}
        Size of a packed element. In bytes a value may continue in the next one, so that no bit is
        lost; 32-bit words hold whole values.
    order : {"<", ">"}
        Whether the first value takes the lowest bits of a word or the highest.
    widths : range
        The widths that the layout supports.
    axis : int or None
        The axis that is packed unless another is asked for; ``None`` is the flat array.
    """

    word_bytes: int
    order: _bits.Order
    widths: range
    axis: int | None = None


LAYOUTS = {
    "lsb": Layout(1, "<", range(1, 17)),
    "msb": Layout(1, ">", range(1, 17)),
    "nibbles": Layout(1, "<", range(4, 5)),
    "keras_int4": Layout(1, "<", range(4, 5), axis=-1),
    "words": Layout(4, "<", range(1, 17)),
}


def pack(
    values: ArrayLike,
    num_bits: int,
    layout: str,
    *,
    axis: int | None = None,
    signed: bool | None = None,
) -> Array:
    """Pack integers into dense streams of bytes, or as many as fit into each 32-bit word.

    Parameters
    ----------
    values : array-like of integers
        Of any shape and strides, read in C order.
    num_bits : int
        Width of a value, 1 to 16.
    layout : str
        ``"lsb"`` or ``"msb"`` (dense streams), ``"nibbles"`` (ONNX, TFLite, CMSIS-NN),
        ``"keras_int4"`` or ``"words"`` (32-bit words of whole values).
    axis : int, optional
        Pack every line along this axis on its own, padded to whole bytes or words. Default: the
        last axis for ``"keras_int4"``, otherwise the whole array as one line.
    signed : bool, optional
        Whether the values count from ``-2**(num_bits - 1)``. Default: whether their dtype does.

    Returns
    -------
    ndarray of uint8, or of uint32 for ``"words"``
        One-dimensional; with an axis, of the shape of `values` except for that axis.

    Raises
    ------
    QmathError
        A value does not fit, the values are not integers, or the layout does not have this width.

    Examples
    --------
    >>> import numpy as np
    >>> from qmath.kernels.packing import pack
    >>> pack(np.array([1, -2, 3], np.int8), 4, "nibbles")
    array([225,   3], dtype=uint8)
    >>> pack([[1, 2, 3], [4, 5, 6]], 3, "lsb", signed=False)
    array([209,  88,   3], dtype=uint8)
    >>> pack([[1, 2, 3], [4, 5, 6]], 3, "lsb", axis=1, signed=False)
    array([[209,   0],
           [172,   1]], dtype=uint8)
    """
    rules, num_bits = _rules("pack", layout, num_bits)
    array = as_array(values, "pack: the values")
    if array.dtype.kind not in "iu" and array.size:
        raise QmathError(
            f"pack: the values are {array.dtype}, but only integers can be packed; quantize them, "
            f"or convert them with .astype"
        )
    array = array.astype(array.dtype.newbyteorder("=") if array.size else np.uint8, copy=False)
    signed = array.dtype.kind == "i" if signed is None else signed
    axis = _normal_axis("pack", rules.axis if axis is None else axis, array.ndim)
    low, high = (-(1 << num_bits - 1), (1 << num_bits - 1) - 1) if signed else (0, 2**num_bits - 1)
    limits = np.iinfo(array.dtype)
    container = smallest_dtype(num_bits, signed=False)

    def encode(block: Array) -> Array:
        if (limits.min < low and block.min() < low) or (limits.max > high and block.max() > high):
            raise _does_not_fit(array, num_bits, low, high)
        same_size = block.itemsize == container.itemsize
        bits = block.view(container) if same_size else block.astype(container)
        if limits.min < 0 and num_bits % 8:
            bits = bits & container.type((1 << num_bits) - 1)
        if rules.word_bytes == 4:
            return _bits.to_words(bits, num_bits)
        return _bits.to_stream(bits, num_bits, rules.order)

    group, group_bytes = _group(num_bits, rules)
    stored = _bits.by_groups(
        encode, _bits.lines(array, axis), group, np.dtype(np.uint8), group_bytes
    )
    shape = _packed_shape(array.shape, num_bits, rules, axis)
    stored = _bits.resized(stored, shape[axis or 0] * rules.word_bytes)
    words = stored.view(f"<u{rules.word_bytes}").astype(f"u{rules.word_bytes}", copy=False)
    return _bits.from_lines(words, shape, axis)


def unpack(
    packed: Array | bytes,
    num_bits: int,
    layout: str,
    shape: int | Sequence[int],
    signed: bool,
    *,
    axis: int | None = None,
) -> Array:
    r"""Return the integers that `pack` packed, or a file's own in one of the layouts.

    Parameters
    ----------
    packed : ndarray or bytes
        The result of `pack`. int8 or int32 in place of uint8 or uint32, and little-endian bytes,
        are accepted as the bits they hold.
    num_bits, layout, axis
        As for `pack`.
    shape : int or sequence of int
        Shape of the integers.
    signed : bool
        Whether the highest bit of a value is its sign (two's complement).

    Returns
    -------
    ndarray
        Of the smallest NumPy integer dtype that holds `num_bits`.

    Raises
    ------
    QmathError
        The size or dtype of `packed` does not fit the settings, or its padding is not zero, so
        other settings packed it.

    Examples
    --------
    >>> from qmath.kernels.packing import unpack
    >>> unpack(b"\xe1\x03", 4, "nibbles", 3, signed=True)
    array([ 1, -2,  3], dtype=int8)
    >>> unpack(b"\xe1\x13", 4, "nibbles", 3, signed=True)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    qmath.errors.QmathError: unpack: 0x13 has bits set in its padding, which must be zero...
    """
    rules, num_bits = _rules("unpack", layout, num_bits)
    shape = _checked_shape(shape)
    axis = _normal_axis("unpack", rules.axis if axis is None else axis, len(shape))
    words = _as_words(packed, rules, _packed_shape(shape, num_bits, rules, axis))
    sign = 1 << (num_bits - 1)
    dtype = smallest_dtype(num_bits, signed)

    def decode(block: Array) -> Array:
        if rules.word_bytes == 4:
            bits = _bits.from_words(block, num_bits)
        else:
            bits = _bits.from_stream(block, num_bits, rules.order)
        if signed and num_bits % 8:  # the sign bit weighs -sign: (bits ^ sign) - sign
            bits ^= sign
            bits -= sign
        return bits.view(dtype)

    group, group_bytes = _group(num_bits, rules)
    lines = _bits.lines(words, axis)
    stored = lines.astype(f"<u{rules.word_bytes}", copy=False).view(np.uint8)
    values = _bits.by_groups(decode, stored, group_bytes, dtype, group)
    length = math.prod(shape) if axis is None else shape[axis]
    _check_padding(lines, values[:, length:], num_bits, rules)
    return _bits.from_lines(_bits.resized(values, length), shape, axis)


def _group(num_bits: int, rules: Layout) -> tuple[int, int]:
    """Return how many values begin and end with a byte or word, and in how many bytes."""
    return (8, num_bits) if rules.word_bytes == 1 else (32 // num_bits, 4)


def _packed_shape(
    shape: tuple[int, ...], num_bits: int, rules: Layout, axis: int | None
) -> tuple[int, ...]:
    length = math.prod(shape) if axis is None else shape[axis]
    per_word = 32 // num_bits
    words = -(-length * num_bits // 8) if rules.word_bytes == 1 else -(-length // per_word)
    return (words,) if axis is None else (*shape[:axis], words, *shape[axis + 1 :])


def _as_words(packed: Array | bytes, rules: Layout, shape: tuple[int, ...]) -> Array:
    """Return the packed elements as unsigned integers of the expected shape."""
    dtype = np.dtype(f"u{rules.word_bytes}")
    if isinstance(packed, (bytes, bytearray)):
        array: Array = np.frombuffer(packed, np.uint8)
        if array.size == math.prod(shape) * rules.word_bytes:
            array = array.view(dtype.newbyteorder("<")).reshape(shape)
    else:
        array = as_array(packed, "unpack: the packed array")
    if array.shape != shape:
        raise QmathError(
            f"unpack: the packed array has shape {array.shape}, but such integers fill {dtype} "
            f"elements of shape {shape}; check num_bits, layout, shape and axis"
        )
    if array.dtype.kind not in "iu" or array.itemsize != rules.word_bytes:
        raise QmathError(
            f"unpack: the packed array is {array.dtype}, but the layout's elements are {dtype}; "
            f"pass its bytes, or an array of such elements"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False).view(dtype)


def _check_padding(lines: Array, beyond: Array, num_bits: int, rules: Layout) -> None:
    """Raise if bits are set beyond a line's last value, or above the values of a word."""
    wrong = lines[beyond.any(axis=1), -1:]
    if rules.word_bytes == 4 and 32 % num_bits and not wrong.size:
        wrong = lines[lines >> 32 // num_bits * num_bits != 0]
    if wrong.size:
        raise QmathError(
            f"unpack: {hex(wrong.flat[0])} has bits set in its padding, which must be zero; check "
            f"num_bits, layout, shape and axis"
        )


def _does_not_fit(values: Array, num_bits: int, low: int, high: int) -> QmathError:
    index = np.unravel_index(int(np.argmax((values < low) | (values > high))), values.shape)
    place = f" at {tuple(map(int, index))}" if index else ""
    sign = "signed" if low else "unsigned"
    return QmathError(
        f"pack: {values[index]}{place} is not one of {low} … {high}, the {sign} integers of "
        f"{num_bits} bits; pass signed={not low}, or another num_bits, if that is what is meant"
    )


def _rules(function: str, layout: str, num_bits: SupportsIndex) -> tuple[Layout, int]:
    if layout not in LAYOUTS:
        raise QmathError(f"{function}: no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    rules = LAYOUTS[layout]
    try:
        width = operator.index(num_bits)
    except TypeError:
        width = 0
    if width not in rules.widths or isinstance(num_bits, bool):
        first, last = rules.widths[0], rules.widths[-1]
        known = f"{first} bits" if first == last else f"{first} to {last} bits"
        raise QmathError(f"{function}: num_bits={num_bits!r}; layout {layout!r} is for {known}")
    return rules, width


def _normal_axis(function: str, axis: int | None, ndim: int) -> int | None:
    if axis is None:
        return None
    if (place := place_of(axis, ndim)) is None:
        raise QmathError(
            f"{function}: axis={axis!r} of an array of {ndim} dimensions; choose another"
        )
    return place


def _checked_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in np.atleast_1d(shape))
    except TypeError:
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise QmathError(f"unpack: shape={shape!r}, but sizes are integers from 0 on")
    return sizes
