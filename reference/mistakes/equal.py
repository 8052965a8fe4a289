"""Which mistakes change nothing in a layer: proved for all accumulators that its weights allow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.mistakes.catalogue import Mistake
from reference.mistakes.kernel import Here, Kernel
from reference.mistakes.layers import Constants, Layer, Op, Term

__all__ = ["first_difference", "intervals"]

Array = NDArray[Any]

STAGES = ("constants", "sums", "negative", "rounded", "clamped")  # a function of accumulators alone
UNWRITTEN = ("last channel unwritten", "last integer unwritten")
TIES = ("half to even", "half away from zero", "half down")
MOST = 1 << 24  # combinations of accumulators looked at for a channel of several terms


def first_difference(mistake: Mistake, layer: Layer, kernel: type[Kernel] = Kernel) -> str | None:
    """Return where the mistake changes the layer's result, as words; ``""`` if proved nowhere.

    A channel's result is a rising or falling function of its one accumulator, and so is what a
    mistake of these stages makes of it, apart from jumps where a narrow accumulator wraps. Two
    such functions are equal everywhere if they are at both ends of each run of accumulators with
    one result, and at each jump. Of products, all that there are are looked at, of several terms
    all combinations, or where these are too many, those on a tie if only ties matter.

    ``None`` if the mistake acts elsewhere, or there are too many combinations. That inputs for the
    accumulator exist is not said, but of products.
    """
    if layer.kind != "requantize" or mistake.stage not in STAGES:
        return _of_another_stage(mistake, layer, kernel)
    if mistake.stage == "clamped" and _clamps_alike(mistake, layer):
        return ""
    if mistake.stage == "sums" and _are_kept(mistake, layer):
        return ""
    right, wrong = kernel(), kernel(mistake.stage, mistake.change)
    zero, products = right.zeros(layer)[-1], _products(layer)
    for place, ends, ours, theirs in _channels(layer, right, wrong):
        if products is not None:
            sums: list[Array] | None = [products]
        elif len(ends) == 1 and ours[1] is None:
            sums = [_ends_of_runs(ours[0], *ends[0], layer.terms[0].bits, kernel.margin)]
        elif math.prod(high - low + 1 for low, high in ends) <= MOST:
            sums = list(np.ix_(*(np.arange(low, high + 1) for low, high in ends)))
        else:
            # The ties of another kernel's rounding are not those of the constants.
            has_ties = mistake.name in TIES and kernel.margin == Kernel.margin
            sums = _on_ties(ends, ours) if has_ties else None
        if sums is None:
            return None
        expected = right.requantize(layer, sums, zero, ours)
        made = wrong.requantize(layer, sums, zero, theirs)
        if not np.array_equal(made, expected):
            index = np.unravel_index((made != expected).argmax(), expected.shape)
            values = [int(np.broadcast_to(a, expected.shape)[index]) for a in sums]
            given = ", ".join(map(str, values))
            return f"{place}: accumulator {given} gives {made[index]}, not {expected[index]}"
    return ""


def _of_another_stage(mistake: Mistake, layer: Layer, kernel: type[Kernel]) -> str | None:
    """Return what `first_difference` does, of mistakes that are no function of accumulators."""
    if layer.kind == "requantize" and mistake.name in UNWRITTEN:
        is_zero = _last_is_zero(layer, kernel())
        return "" if is_zero else "any vector whose last integer is not real zero"
    if mistake.name == "weights negated":
        weighted = [sum(op.integers is not None for op in term.ops) for term in layer.terms]
        return "" if all(count % 2 == 0 for count in weighted) else None
    if mistake.name == "maximum not below zero" and layer.kind == "move":
        grid = layer.grids[layer.entry["sources"][0]]
        return "" if grid.low >= grid.zero_point else None
    return None


def _clamps_alike(mistake: Mistake, layer: Layer) -> bool:
    """Return whether wrong clamps are the right ones for all that they could be given."""
    c, grid = layer.constants, layer.grid
    assert c is not None
    ends = min(int(c.low.min()), grid.low) - 2, max(int(c.high.max()), grid.high) + 3
    y = np.arange(*ends).reshape(-1, *(1,) * max(c.low.ndim, c.high.ndim))
    clamped = np.clip(y, c.low, c.high)
    here = Here(layer, zero_point=grid.zero_point, constants=c, before=y)
    return np.array_equal(mistake.change(clamped, here), clamped)


def _are_kept(mistake: Mistake, layer: Layer) -> bool:
    """Return whether no accumulator reaches what a narrower one cannot hold."""
    return all(
        np.array_equal(mistake.change(end, Here(layer, source=str(number))), end)
        for number, term in enumerate(layer.terms)
        for end in intervals(layer, term)
    )


def _products(layer: Layer) -> Array | None:
    """Return all accumulators of a layer that multiplies tensors and then only moves."""
    (term, *others), found = layer.terms, None
    if others or all(op.entry["kind"] != "multiply" for op in term.ops):
        return None
    for name in (term.source, *(op.entry.get("factor") for op in term.ops)):
        if name is not None:
            grid = layer.grids[name]
            factor = np.arange(grid.low, grid.high + 1) - grid.zero_point
            found = factor if found is None else np.unique(np.multiply.outer(found, factor))
    kinds = {op.entry["kind"] for op in term.ops}
    return None if kinds - {"multiply", "broadcast", "reshape", "crop", "permute"} else found


def _on_ties(ends: Sequence[tuple[int, int]], sides: Sides) -> list[Array] | None:
    """Return the accumulators of several terms that lie on a tie, ``None`` if too many may.

    All combinations of terms but the widest are looked at, with the one number that it must be.
    """
    widest = max(range(len(ends)), key=lambda i: ends[i][1] - ends[i][0])
    others = [np.arange(low, high + 1) for i, (low, high) in enumerate(ends) if i != widest]
    if math.prod(map(len, others)) > MOST:
        return None
    grids = [grid.reshape(-1) for grid in np.meshgrid(*others, indexing="ij")]
    low, high = ends[widest]
    found = []
    for c in sides:
        if c is None:
            continue
        rest, multipliers = np.int64(c.addend), [int(m) for m in c.multipliers]
        multiplier = multipliers.pop(widest)
        even = (multiplier & -multiplier).bit_length() - 1 if multiplier else 64
        period = 1 << max(int(c.shift) - even, 0)
        if high - low >= period:  # more numbers than one
            return None
        total = rest + sum(m * x for m, x in zip(multipliers, grids, strict=True))
        inverse = pow(multiplier >> even, -1, period)
        wanted = (-(total >> even)).astype(np.uint64) * np.uint64(inverse)  # modulo 2**64
        last = (wanted - np.uint64(low % period)) & np.uint64(period - 1)
        is_tie = (total & ((1 << even) - 1) == 0) & (last <= high - low)
        picked = [grid[is_tie] for grid in grids]
        picked.insert(widest, low + last[is_tie].astype(np.int64))
        found.append(picked)
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


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
    if _is_bounded_loosely(term) and math.prod(shape) * math.prod(layer.shape) <= MOST:
        return _exact_intervals(layer, term)
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


def _is_bounded_loosely(term: Term) -> bool:
    """Return whether the bounds of one operation after the other are no least and greatest sum."""
    kinds = [op.entry["kind"] for op in term.ops if op.integers is not None]
    is_product = any(op.entry["kind"] == "multiply" for op in term.ops)
    return (len(kinds) > 1 or "conv2d_transpose" in kinds) and not is_product


def _exact_intervals(layer: Layer, term: Term) -> tuple[Array, Array]:
    """Return the least and greatest accumulator of each element, by what each input weighs."""
    grid, shape = layer.grids[term.source], layer.inputs[term.source].shape[1:]
    every = np.eye(math.prod(shape), dtype=np.int64).reshape(-1, *shape)
    weights = Kernel().sums(layer, term, {term.source: every})
    low, high = grid.low - grid.zero_point, grid.high - grid.zero_point
    ends = weights * low, weights * high
    return np.minimum(*ends).sum(0), np.maximum(*ends).sum(0)


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
