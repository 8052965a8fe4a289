"""All 2**32 float32 bit patterns through one configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import qmath
from reference.prove.configurations import PATTERNS, Sweep, SymmetricSweep
from reference.prove.tally import Tally, Tick

__all__ = ["description", "sweep"]

BLOCK = 2**18  # elements: the fastest, as the arrays stay in the cache
QUICK_STEP = 2**12  # patterns: the quick run takes one of so many


def patterns(channels: int, quick: bool) -> Iterator[np.ndarray]:
    """Yield all float32 in the order of their patterns, or some from everywhere, in blocks.

    Each block has shape ``(n, channels)``, and the channels hold the same.
    """
    if quick:
        # An odd offset, as the low bits of a pattern are where roundings differ.
        numbers = np.arange(0, PATTERNS, QUICK_STEP, dtype=np.uint64) + 1377
        column = numbers.astype(np.uint32).view(np.float32)
        yield np.repeat(column[:, np.newaxis], channels, axis=1)
        return
    rows = BLOCK // channels
    block = np.empty((rows, channels), np.float32)
    first = np.arange(rows, dtype=np.uint32)[:, np.newaxis]
    for start in range(0, PATTERNS, rows):
        np.add(first, np.uint32(start), out=block.view(np.uint32))
        yield block


def sweep(of: Sweep, tick: Tick, quick: bool = False) -> dict[str, Any]:
    """Run a sweep and return its record.

    Its digest is that of the integers (signed, of the smallest dtype, NaN as 0.0), which with
    scale and zero point say all; of the floats where there are none.
    """
    tally = Tally()
    run = _backward if of.gradient else _forward
    for block in patterns(len(of.min), quick):
        run(of, block if of.per_channel else block.reshape(-1), tally)
        tick(of.elements * block.size // (PATTERNS * len(of.min)))
    return {**description(of, quick), **tally.record()}


def description(of: Sweep, quick: bool = False) -> dict[str, Any]:
    """Return what the record says of the configuration and of the patterns."""
    return {**of.description, "patterns": PATTERNS // QUICK_STEP if quick else PATTERNS}


def _forward(of: Sweep, x: np.ndarray, tally: Tally) -> None:
    """Compare the op's outputs and, where the range has integers, what these stand for."""
    (expected,) = of.twin.outputs(of.function, (x,), of.settings)
    tally.outputs(_op(of)(x, *of.settings), expected)
    if not _has_integers(of):
        tally.digest(expected)
        return
    nan = np.isnan(x)
    if nan.any():
        _check_refused(of, x)
    if of.twin.build != "tf":
        rows = ~nan if nan.ndim == 1 else ~nan.any(axis=1)
        q = _quantize(of, x[rows])
        tally.in_order(q, expected[rows])
    else:
        if nan.any():
            x, expected = np.where(nan, np.float32(0), x), np.where(nan, np.float32(0), expected)
        q = _quantize(of, x)
        tally.reconstructed(q, expected)
    tally.digest(q.values)


def _quantize(of: Sweep, x: np.ndarray) -> qmath.QuantizedTensor:
    low, high = of.range
    per_axis = of.op == "vars_per_channel"
    return qmath.quantize(
        x, low, high, of.num_bits, narrow_range=of.narrow_range, per_axis=per_axis,
        op="args" if of.op == "args" else "vars", build=of.twin.build,
    )  # fmt: skip


def _op(of: Sweep) -> Callable[..., Any]:
    """Return qmath's function, of the build."""
    function = getattr(qmath, of.function)
    return function if of.twin.build == "tf" else partial(function, build=of.twin.build)


def _has_integers(of: Sweep) -> bool:
    """Whether `qmath.quantize` has the op's grid, and takes the range."""
    if isinstance(of, SymmetricSweep):
        return False
    try:
        _quantize(of, np.zeros(of.range[0].shape, np.float32))
    except qmath.QmathError:
        return False
    return True


def _check_refused(of: Sweep, x: np.ndarray) -> None:
    """Raise unless `qmath.quantize` refuses `x`, which holds NaN."""
    try:
        _quantize(of, x)
    except qmath.QmathError:
        return
    raise AssertionError(f"{of.name}: quantize gives integers for NaN")


def _backward(of: Sweep, block: np.ndarray, tally: Tally) -> None:
    """Compare the gradients, the sums for the range's ends included."""
    if of.gradient == "inputs":
        arguments = [(np.ones_like(block), block)]
    else:
        ends = (np.float32(0), np.finfo(np.float32).max)
        arguments = [(block, np.full_like(block, x)) for x in ends]
    for g, x in arguments:
        theirs = of.twin.outputs(of.function, (g, x), of.settings)
        ours = _op(of)(g, x, *of.settings)
        for mine, expected in zip((ours,) if of.op == "args" else ours, theirs, strict=True):
            tally.outputs(np.atleast_1d(mine), np.atleast_1d(expected))
            tally.digest(np.atleast_1d(expected))
