"""Check on all 2**32 floats that each operation of a kernel keeps the order of its inputs.

This is the lemma of ``docs/proof.md``, by which ``qmath verify --all-floats`` proves a kernel from
its steps. Each operation is computed in float32 by NumPy, operands and results that are subnormal
replaced by zero as TensorFlow's threads do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

import numpy as np

INFINITY = 0x7F800000
SMALLEST = np.float32(2.0**-126)
CONSTANTS = [1.0, 255 / 2.0, float(np.nextafter(np.float32(2**-7), np.float32(0))), 2.0**-120, 3e38]
Operation = Callable[[np.ndarray, np.float32], np.ndarray]

OPERATIONS: dict[str, Operation] = {
    "x + c": lambda x, c: x + c,
    "x - c": lambda x, c: x - c,
    "x * c": lambda x, c: x * c,
    "x / c": lambda x, c: x / c,
    "fma(x, c, 1/2)": lambda x, c: fused(x, c),
    "floor(x)": lambda x, _: np.floor(x),
    "min(x, c)": np.minimum,
    "max(x, c)": np.maximum,
}


def fused(x: np.ndarray, c: np.float32) -> np.ndarray:
    """Return ``x * c + 1/2`` rounded once: the sum of an exact product, to odd, then to float32."""
    product = x.astype(np.float64) * np.float64(c)
    total = product + 0.5
    of_half = total - product
    lost = (product - (total - of_half)) + (0.5 - of_half)
    bits = total.view(np.int64)
    inexact = (lost != 0) & ((bits & 1) == 0) & np.isfinite(total)
    bits += np.where((lost > 0) == (total > 0), inexact, -inexact.astype(np.int64))
    return total.astype(np.float32)


def flushed(x: np.ndarray) -> np.ndarray:
    """Return floats with zeros for what is subnormal."""
    tiny = np.abs(x) < SMALLEST
    return np.where(tiny, np.copysign(np.float32(0), x), x) if tiny.any() else x


def floats(step: int, size: int) -> Iterator[np.ndarray]:
    """Yield the floats from minus to plus infinity in their order, or every so many, in blocks."""
    starts = range(0, INFINITY + 1, size * step)
    for start in reversed(starts):
        stop = min(start + size * step, INFINITY + 1)
        negative = np.arange(start, stop, step, dtype=np.uint32)[::-1] | np.uint32(0x80000000)
        yield negative.view(np.float32)
    for start in starts:
        stop = min(start + size * step, INFINITY + 1)
        yield np.arange(start, stop, step, dtype=np.uint32).view(np.float32)


def falls(operation: Operation, constant: np.float32, step: int, size: int) -> int:
    """Return how often the result falls from one float to the next, in their order.

    Parameters
    ----------
    step : int
        1 for every float; more for every so many of them, to try this out.
    size : int
        Floats at a time.
    """
    found, before = 0, -np.inf
    with np.errstate(all="ignore"):
        for x in floats(step, size):
            results = flushed(operation(flushed(x), constant))
            found += int(results[0] < before) + int(np.count_nonzero(results[1:] < results[:-1]))
            before = float(results[-1])
            if np.isnan(results.min()):
                raise AssertionError("a result is NaN, which has no order")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each operation and constant; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reference.monotone", description=__doc__)
    parser.add_argument("--step", type=int, default=1, help="take every so many floats alone")
    options = parser.parse_args(arguments)
    total = 0
    for name, operation in OPERATIONS.items():
        for constant in CONSTANTS if "c" in name else CONSTANTS[:1]:
            found = falls(operation, np.float32(constant), options.step, 1 << 14)
            print(f"{name:16} c = {constant:<12.6g} falls {found} times", flush=True)
            total += found
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
