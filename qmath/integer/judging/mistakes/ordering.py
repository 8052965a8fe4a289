"""Mistakes in the order of results or inputs, in their sign, and constants in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.judging.axes import LETTERS
from qmath.integer.judging.mistakes.case import Case, Mistake, summed, term_of, with_sums
from qmath.integer.program import (
    MoveStep,
    Requantize,
    Term,
)

__all__ = ["constants", "flattened", "orders", "signs"]

Array = NDArray[Any]

_FEW = 4  # values of a channel, or channels, that may agree by chance


def flattened(case: Case) -> Iterator[Mistake]:
    """Yield images that were flattened channel by channel, before a dense layer or as such."""
    step = case.step
    if isinstance(step, MoveStep):
        if case.values[step.source].ndim == 4 and case.own.ndim == 2:
            words = "the image is flattened channel by channel (NCHW)"
            yield Mistake("axes transposed", words, _flat)
        return
    for i, term in enumerate(step.value.terms if isinstance(step, Requantize) else ()):
        if _image_before(case, term) is not None:
            words = f"{term.source} is flattened channel by channel (NCHW) before the product"
            yield Mistake("axes transposed", words, partial(_flat_before, index=i))


def _flat(case: Case) -> Array:
    assert isinstance(case.step, MoveStep)
    images = case.values[case.step.source].astype(np.int32) - case.step.params.zero_point
    return np.asarray(images.transpose(0, 3, 1, 2).reshape(case.own.shape))


def _image_before(case: Case, term: Term) -> tuple[int, ...] | None:
    """Return the shape of the images that a dense layer's vectors are."""
    kinds = [op.kind for op in term.ops]
    if kinds == ["reshape", "dense"]:
        shape = case.values[term.source].shape
        return shape if len(shape) == 4 else None
    before = case.executor.program.step(term.source)
    if kinds == ["dense"] and isinstance(before, MoveStep):
        shape = case.values[before.source].shape
        is_flat = len(shape) == 4 and np.prod(shape[1:]) == np.prod(before.shape)
        return shape if is_flat else None
    return None


def _flat_before(case: Case, index: int) -> Array:
    term = term_of(case, index)
    shape, x = _image_before(case, term), case.relative(term)
    assert shape is not None
    moved = x.reshape(shape).transpose(0, 3, 1, 2).reshape(x.shape)
    return with_sums(case, index, summed(case, term, moved))


def orders(case: Case) -> Iterator[Mistake]:
    """Yield results whose channels or axes are in another order."""
    letters = LETTERS.get(case.own.ndim, "N")
    for order in permutations(range(1, len(letters))):
        theirs = "N" + "".join(letters[i] for i in order)
        if theirs != letters:
            words = f"the axes are transposed: yours are in the order {theirs}, not {letters}"
            yield Mistake("axes transposed", words, partial(_transposed, axes=(0, *order)))
    channels = _channel_order(case.own, case.yours)
    if channels is not None:
        shown = ", ".join(map(str, channels[:16])) + (", …" if len(channels) > 16 else "")
        words = f"the channel order differs: yours are qmath's channels {shown}"
        yield Mistake("channel order", words, partial(_reordered, channels=channels))


def _transposed(case: Case, axes: tuple[int, ...]) -> Array:
    return np.asarray(case.own.transpose(axes).reshape(case.own.shape))


def signs(case: Case) -> Iterator[Mistake]:
    """Yield signed integers whose bytes were read as unsigned ones."""
    bits = case.step.params.num_bits
    for width in dict.fromkeys((bits, 8, 16)):
        if width >= bits:
            words = f"yours are signed, and were read as unsigned integers of {width} bits"
            yield Mistake("sign", words, partial(_read_unsigned, width=width))


def _read_unsigned(case: Case, width: int) -> Array:
    zero_point, half = case.step.params.zero_point, 1 << (case.step.params.num_bits - 1)
    return np.asarray((case.own + zero_point - half) % (1 << width) - zero_point)


def _channel_order(own: Array, yours: Array) -> list[int] | None:
    """Return which of qmath's channels each of yours is, if all are known and some moved."""
    if own.ndim < 2:
        return None
    ours, theirs = (
        [row.tobytes() for row in np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T)]
        for x in (own, yours)
    )
    moved = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if own.size // own.shape[-1] < _FEW and len(moved) < _FEW:
        return None
    places: dict[bytes, list[int]] = {}
    for i in moved:
        places.setdefault(ours[i], []).append(i)
    order = list(range(len(ours)))
    for i in moved:
        if not places.get(theirs[i]):
            return None
        order[i] = places[theirs[i]].pop(0)
    return order


def _reordered(case: Case, channels: Sequence[int]) -> Array:
    return case.own[..., list(channels)]


def constants(case: Case) -> Iterator[Mistake]:
    """Yield one constant in all results, added before or after the clamps."""
    difference = (case.yours - case.own)[case.yours != case.own]
    found, counts = np.unique(difference, return_counts=True)
    shift = int(found[counts.argmax()])
    words = f"every result is off by {shift:+d}"
    if case.y is not None:
        yield Mistake("constant", f"{words} before the clamps", partial(_shifted, shift=shift))
    yield Mistake("constant", words, partial(_offset_by, shift=shift))


def _shifted(case: Case, shift: int) -> Array:
    assert case.y is not None
    return case.clamped(np.floor(case.y + 0.5) + shift)


def _offset_by(case: Case, shift: int) -> Array:
    return case.own + shift
