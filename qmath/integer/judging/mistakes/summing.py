"""Mistakes in the sum and before it: zero points, borders, kernels, narrow accumulators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.judging.mistakes.case import Case, Mistake, summed, term_of, with_sums
from qmath.integer.program import (
    Linear,
    Requantize,
)

__all__ = ["accumulators", "kernels", "paddings", "zero_points"]

Array = NDArray[Any]


def zero_points(case: Case) -> Iterator[Mistake]:
    """Yield zero points that are missing, of integers stored unsigned or signed."""
    step = case.step
    half = 1 << (step.params.num_bits - 1)
    for convention, moved in (("unsigned", 0), ("signed", half)):
        if case.y is not None and step.params.zero_point != moved:
            words = f"the output's zero point is missing ({convention} integers)"
            shift = moved - step.params.zero_point
            yield Mistake("zero point missing", words, partial(_moved, shift=shift))
    if not isinstance(step, Requantize):
        return
    for i, term in enumerate(step.value.terms):
        for convention, signed in (("unsigned", 0), ("signed", 1 << (term.params.num_bits - 1))):
            offset = term.params.zero_point - signed
            if offset:
                words = f"the zero point of {term.source} is missing ({convention} integers)"
                yield Mistake(
                    "zero point missing", words, partial(_input_moved, index=i, offset=offset)
                )


def _moved(case: Case, shift: int) -> Array:
    assert case.y is not None
    return np.asarray(np.clip(case.rounded(case.y) + shift, *case.step.params.limits))


def _input_moved(case: Case, index: int, offset: float) -> Array:
    term = term_of(case, index)
    return with_sums(case, index, summed(case, term, case.relative(term) + offset))


def paddings(case: Case) -> Iterator[Mistake]:
    """Yield a border of stored zeros where real zeros belong, which are the zero point."""
    if not isinstance(case.step, Requantize):
        return
    for i, term in enumerate(case.step.value.terms):
        products = [op for op in term.ops if op.weights is not None]
        if products != [*term.ops[-1:]] or not any(map(_is_padded, term.ops)):
            continue
        for convention, signed in (("unsigned", 0), ("signed", 1 << (term.params.num_bits - 1))):
            fill = signed - term.params.zero_point
            if fill:
                words = f"the border is padded with 0, not the zero point ({convention} integers)"
                yield Mistake("padding", words, partial(_padded, index=i, fill=fill))


def _is_padded(op: Linear) -> bool:
    return op.kind != "pool_sum" and any(any(pad) for pad in op.attributes.get("pads", ()))


def _padded(case: Case, index: int, fill: int) -> Array:
    """Return the result with a border of `fill`: that of the input moved by it, moved back."""
    term = term_of(case, index)
    above, below = term.ops[-1].signed_sums
    return with_sums(
        case, index, summed(case, term, case.relative(term) - fill) + fill * (above + below)
    )


def accumulators(case: Case) -> Iterator[Mistake]:
    """Yield accumulators that are too narrow for these examples."""
    if not isinstance(case.step, Requantize):
        return
    for i, sums in enumerate(case.sums):
        needed = int(max(abs(float(sums.min(initial=0))), float(sums.max(initial=0)) + 1))
        for bits in dict.fromkeys((16, needed.bit_length(), needed.bit_length() - 1)):
            if 4 <= bits <= needed.bit_length():
                words = f"the accumulator wraps at {bits} bits"
                yield Mistake(
                    "accumulator narrow", words, partial(_narrow, index=i, bits=bits, wraps=True)
                )
                words = f"the accumulator saturates at {bits} bits"
                yield Mistake(
                    "accumulator narrow", words, partial(_narrow, index=i, bits=bits, wraps=False)
                )


def _narrow(case: Case, index: int, bits: int, wraps: bool) -> Array:
    half, sums = 2.0 ** (bits - 1), case.sums[index].astype(np.float64)
    narrow = np.mod(sums + half, 2 * half) - half if wraps else np.clip(sums, -half, half - 1)
    return with_sums(case, index, narrow)


def kernels(case: Case) -> Iterator[Mistake]:
    """Yield kernels that are read in another order."""
    if not isinstance(case.step, Requantize):
        return
    for i, term in enumerate(case.step.value.terms):
        if not term.ops or term.ops[-1].weights is None or term.ops[-1].weights.ndim != 4:
            continue
        height, width = term.ops[-1].weights.shape[:2]
        if height * width == 1:
            continue
        words = "the kernel is rotated by 180°: a convolution, not a correlation"
        yield Mistake("kernel rotated", words, partial(_with_kernel, index=i, change=_rotated))
        if height == width:
            words = "the kernel's rows and columns are swapped"
            yield Mistake(
                "kernel transposed", words, partial(_with_kernel, index=i, change=_swapped)
            )


def _rotated(kernel: Array) -> Array:
    return kernel[::-1, ::-1]


def _swapped(kernel: Array) -> Array:
    return np.asarray(kernel.swapaxes(0, 1))


def _with_kernel(case: Case, index: int, change: Callable[[Array], Array]) -> Array:
    term = term_of(case, index)
    return with_sums(case, index, summed(case, term, case.relative(term), change))
