"""Inputs for an accumulator: integers within limits whose weighted sum is a given one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

__all__ = ["solve"]

Int64Array = NDArray[np.int64]
_ENDS = 10  # of the largest, and of the smallest weights, what is adjusted
_PAIRED = 7  # of the smallest weights, what is adjusted in pairs


def solve(
    weights: Int64Array,
    targets: Int64Array,
    limits: tuple[int, int],
    rng: np.random.RandomState,
    unrest: float = 0.5,
) -> tuple[Int64Array, NDArray[np.bool_]]:
    """Find inputs whose sums with their weights are the targets.

    Parameters
    ----------
    weights : ndarray of int64
        ``(J, K)``, a row for each sum.
    targets : ndarray of int64
        ``(J,)``, within the least and greatest sum.
    limits : tuple of int
        Lowest and highest input.
    rng : RandomState
        What is left open is drawn from it.
    unrest : float
        From 0 to 1: how far inputs are drawn from where all weights would share the target evenly.

    Returns
    -------
    inputs : ndarray of int64
        ``(J, K)``.
    is_found : ndarray of bool
        Whether the sum is the target.
    """
    low, high = limits
    x = _start(weights, targets, limits, rng, unrest)
    rest = targets - (weights * x).sum(1)
    size = np.abs(weights)
    order = np.argsort(np.where(size > 0, -size, 1), axis=1, kind="stable")
    count = (size > 0).sum(1)
    rows = np.arange(len(x))
    width = weights.shape[1]
    most = min(width, _ENDS)
    for i in [*range(most), *range(-most, 0)] if width > most else range(width):
        at = order[rows, i if i >= 0 else np.maximum(count + i, 0)]
        w = weights[rows, at]
        change = np.sign(rest) * np.sign(w) * (np.abs(rest) // np.maximum(np.abs(w), 1))
        change = np.clip(change, low - x[rows, at], high - x[rows, at])
        x[rows, at] += change
        rest -= w * change
    left = np.flatnonzero(rest)
    if len(left):
        x[left] = _paired(weights[left], x[left], rest[left], order[left], count[left], limits)
    return x, (weights * x).sum(1) == targets


def _start(
    weights: Int64Array,
    targets: Int64Array,
    limits: tuple[int, int],
    rng: np.random.RandomState,
    unrest: float,
) -> Int64Array:
    """Return inputs about where the sum is the target, each as far from its end as the others."""
    low, high = limits
    top = np.where(weights > 0, high, low)
    bottom = low + high - top
    most, least = (weights * top).sum(1), (weights * bottom).sum(1)
    share = ((targets - least) / np.maximum(most - least, 1))[:, np.newaxis]
    center = bottom + share * (top - bottom)
    drawn = rng.randint(-1000, 1001, weights.shape, np.int64) / 1000.0
    noise = drawn * unrest * np.minimum(center - low, high - center)
    x = np.floor(center + noise + 0.5)
    free = low + (drawn + 1.0) / 2.0 * (high - low)
    x = np.where(weights == 0, np.floor(free + 0.5), x)
    return np.clip(x.astype(np.int64), low, high)


def _paired(
    weights: Int64Array,
    x: Int64Array,
    rest: Int64Array,
    order: Int64Array,
    count: Int64Array,
    limits: tuple[int, int],
) -> Int64Array:
    """Change two inputs of each sum so that nothing is left of `rest`, where that can be."""
    low, high = limits
    span = min(high - low, 255)
    change = np.arange(-span, span + 1)
    change = change[np.argsort(np.abs(change), kind="stable")]
    left = np.arange(len(x))
    for first, second in combinations(range(1, min(_PAIRED, weights.shape[1]) + 1), 2):
        left = left[rest[left] != 0]
        left = left[count[left] >= second]
        if not len(left):
            continue
        i, j = order[left, count[left] - first], order[left, count[left] - second]
        wi, wj = weights[left, i][:, np.newaxis], weights[left, j][:, np.newaxis]
        xi, xj = x[left, i][:, np.newaxis], x[left, j][:, np.newaxis]
        other, remains = np.divmod(rest[left][:, np.newaxis] - wi * change, wj)
        fits = (remains == 0) & (xi + change >= low) & (xi + change <= high)
        fits &= (xj + other >= low) & (xj + other <= high)
        best = fits.argmax(1)
        done = fits[np.arange(len(left)), best]
        at = left[done]
        x[at, i[done]] += change[best[done]]
        x[at, j[done]] += other[np.arange(len(left)), best][done]
        rest[at] = 0
    return x
