"""Which mistakes change nothing in a layer: proved for all accumulators that its weights allow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.mistakes.catalogue import Mistake
from reference.mistakes.kernel import Kernel
from reference.mistakes.layers import Constants, Layer, Op, Term

__all__ = ["first_difference", "intervals"]

Array = NDArray[Any]

STAGES = ("constants", "sums", "negative", "rounded", "clamped")  # a function of accumulators alone
UNWRITTEN = ("last channel unwritten", "last integer unwritten")
MOST = 1 << 24  # combinations of accumulators looked at for a channel of several terms


def first_difference(mistake: Mistake, layer: Layer, kernel: type[Kernel] = Kernel) -> str | None:
    """Return where the mistake changes the layer's result, as words; ``""`` if proved nowhere.

    A channel's result is a rising or falling function of its one accumulator, and so is what a
    mistake of these stages makes of it, apart from jumps where a narrow accumulator wraps. Two
    such functions are equal everywhere if they are at both ends of each run of accumulators with
    one result, and at each jump. Of several terms, all combinations are looked at.

    ``None`` if the mistake acts elsewhere, or there are too many combinations. That inputs for the
    accumulator exist is not said.
    """
    if layer.kind != "requantize":
        return None
    if mistake.name in UNWRITTEN:
        return (
            ""
            if _last_is_zero(layer, kernel())
            else "any vector whose last integer is not real zero"
        )
    if mistake.stage not in STAGES:
        return None
    right, wrong = kernel(), kernel(mistake.stage, mistake.change)
    zero = right.zeros(layer)[-1]
    for place, ends, ours, theirs in _channels(layer, right, wrong):
        if len(ends) == 1 and ours[1] is None:
            sums = [_ends_of_runs(ours[0], *ends[0], layer.terms[0].bits, kernel.margin)]
        else:
            if math.prod(high - low + 1 for low, high in ends) > MOST:
                return None
            sums = list(np.ix_(*(np.arange(low, high + 1) for low, high in ends)))
        expected = right.requantize(layer, sums, zero, ours)
        made = wrong.requantize(layer, sums, zero, theirs)
        if not np.array_equal(made, expected):
            index = np.unravel_index((made != expected).argmax(), expected.shape)
            values = [int(np.broadcast_to(a, expected.shape)[index]) for a in sums]
            given = ", ".join(map(str, values))
            return f"{place}: accumulator {given} gives {made[index]}, not {expected[index]}"
    return ""


def _last_is_zero(layer: Layer, right: Kernel) -> bool:
    """Return whether the last channel, or element, is real zero whatever the accumulator."""
    result = np.array(np.nan)
    for _, ends, ours, _ in _channels(layer, right, right):
        if len(ends) > 1 or ours[1] is not None:
            return False
        runs = _ends_of_runs(ours[0], *ends[0], layer.terms[0].bits, right.margin)
        result = right.requantize(layer, [runs], layer.grid.zero_point, ours)
    return bool((result == layer.grid.zero_point).all())


def intervals(layer: Layer, term: Term) -> tuple[Array, Array]:
    """Return the least and greatest accumulator of a term, of a shape that the output's takes."""
    grid, shape = layer.grids[term.source], layer.inputs[term.source].shape[1:]
    low, high = (np.array(end - grid.zero_point) for end in (grid.low, grid.high))
    for op in term.ops:
        entry = op.entry
        if op.integers is not None:
            low, high = np.minimum(low.min(), 0), np.maximum(high.max(), 0)
            above, below = _signed_sums(op)
            low, high = above * low + below * high, above * high + below * low
        elif entry["kind"] in ("pool_sum", "bilinear"):
            taps = Kernel().sums(
                replace(layer, grids={term.source: replace(grid, zero_point=0)}),
                replace(term, ops=(op,)),
                {term.source: np.ones((1, *shape), np.int64)},
            )[0]
            low, high = low.min() * taps, high.max() * taps
        elif entry["kind"] == "multiply":
            other = layer.grids[entry["factor"]]
            ends_of = other.low - other.zero_point, other.high - other.zero_point
            products = np.multiply.outer([low.min(), high.max()], ends_of)
            low, high = products.min(initial=0), products.max(initial=0)
        elif entry["kind"] == "pad":
            ends = (np.broadcast_to(x, shape) for x in (low, high))
            low, high = (np.pad(x, [tuple(p) for p in entry["pads"]]) for x in ends)
        else:
            low, high = low.min(), high.max()
        shape = tuple(entry["shape"])
    return low, high


def _signed_sums(op: Op) -> tuple[Array, Array]:
    """Return for each output channel the sums of its positive and of its negative weights."""
    assert op.integers is not None
    w = op.integers - op.zero_point
    if op.entry["kind"] == "conv2d_transpose":  # an output reads every stride-th row and column
        rows, columns = op.entry["strides"]
        parts = [w[i::rows, j::columns] for i in range(rows) for j in range(columns)]
        above = [np.maximum(part, 0).sum((0, 1, 3)) for part in parts]
        below = [np.minimum(part, 0).sum((0, 1, 3)) for part in parts]
        return np.max(above, 0), np.min(below, 0)
    if op.entry["kind"] == "depthwise_conv2d":
        w = w.reshape(-1, w.shape[-2] * w.shape[-1])
    axes = tuple(range(w.ndim - 1))
    return np.maximum(w, 0).sum(axes), np.minimum(w, 0).sum(axes)


Sides = tuple[Constants, Constants | None]


def _channels(
    layer: Layer, right: Kernel, wrong: Kernel
) -> Iterator[tuple[str, list[tuple[int, int]], Sides, Sides]]:
    """Yield the ends of each term and the constants of each channel or element, equal ones once."""
    sides = (*right.constants(layer), *wrong.constants(layer))
    arrays = [x for c in sides if c is not None for x in c.arrays()]
    ends = [end for term in layer.terms for end in intervals(layer, term)]
    shape = np.broadcast_shapes(*(x.shape for x in (*arrays, *ends)))
    table = np.stack([np.broadcast_to(x, shape).reshape(-1) for x in (*ends, *arrays)])
    what = "channel" if len(shape) == 1 else "element"
    places = np.unique(table, axis=1, return_index=True)[1]
    last = table.shape[1] - 1  # which `_last_is_zero` looks at
    for place in sorted({*places.tolist(), last}):
        numbers = iter(table[:, place])
        pairs = [(int(next(numbers)), int(next(numbers))) for _ in layer.terms]
        picked = [None if c is None else _picked(c, numbers) for c in sides]
        ours, theirs = (picked[0], picked[1]), (picked[2], picked[3])
        assert ours[0] is not None
        assert theirs[0] is not None
        yield f"{what} {place}", pairs, (ours[0], ours[1]), (theirs[0], theirs[1])


def _picked(c: Constants, numbers: Iterator[Any]) -> Constants:
    multipliers = tuple(np.asarray(next(numbers)) for _ in c.multipliers)
    keys = ("addend", "shift", "low", "high")
    return replace(c, multipliers=multipliers, **{k: np.asarray(next(numbers)) for k in keys})


def _ends_of_runs(c: Constants, low: int, high: int, bits: int, margin: int) -> Array:
    """Return the first and last accumulator of each result, and those at which one may wrap."""
    multiplier, addend, shift = int(c.multipliers[0]), int(c.addend), int(c.shift)
    first, last = sorted((a * multiplier + addend) >> shift for a in (low, high))
    results = range(max(first, int(c.low)) - 1, min(last, int(c.high)) + 3)
    found = {low, high}
    for result in results if multiplier else ():
        edge = -(-((result << shift) - addend) // multiplier)  # rounded up
        found.update(range(edge - margin, edge + margin + 1))
    step = 1 << max(bits - 3, 0)
    for jump in range(low // step * step, high + 1, step):
        found.update((jump - 1, jump))
    return np.array(sorted(a for a in found if low <= a <= high), np.int64)
