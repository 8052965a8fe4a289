"""Patches of sums of single integers: of all combinations of inputs, those that find mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from qmath.integer.directed.mistakes import NEAR, Rounding
from qmath.integer.directed.weighted import Goal, Limits, Patches

__all__ = ["ElementwisePatches"]

Int64Array = NDArray[np.int64]
_MOST = 1 << 16  # combinations
_NEAREST = 2  # combinations
_CHOICE = 7919  # so that channels have different ones of those that serve a purpose


class ElementwisePatches(Patches):
    """Patches of sums whose terms each read one integer, or none.

    Parameters
    ----------
    is_read : sequence of ndarray of bool
        For each term, of which channels it is read.
    rounding : Rounding
        Of the channels.
    limits : sequence of (int, int)
        Lowest and highest integer of each term's source, relative to its zero point.
    rng : RandomState
    is_typical : ndarray of bool
        As of `Patches`.
    """

    def __init__(
        self,
        is_read: Sequence[NDArray[np.bool_]],
        rounding: Rounding,
        limits: Sequence[Limits],
        rng: np.random.RandomState,
        is_typical: NDArray[np.bool_],
    ) -> None:
        count = len(is_read[0])
        super().__init__(is_typical)
        kinds = np.stack(
            [
                *is_read,
                rounding.low,
                rounding.high,
                *(x for s in rounding.sides for x in (*s.multipliers, s.addend, s.shift)),
            ]
        ).astype(np.int64)
        _, first, kind = np.unique(kinds, axis=1, return_index=True, return_inverse=True)
        kind = kind.reshape(-1)
        size = max(256, _MOST // max(1, len(first) // 4))
        size = min(size, _MOST)
        self.is_complete = math.prod(high - low + 1 for low, high in limits) <= size
        self.combinations = self.possible(_combinations(limits, size, rng))
        for number, channel in enumerate(first):
            channels = np.flatnonzero(kind == number)
            reads = [bool(read[channel]) for read in is_read]
            self._add(channels.tolist(), rounding.of_channels([channel], (count,)), reads)

    def inputs(self, goals: Sequence[Goal]) -> list[Int64Array]:
        """Return for each term the inputs ``(goals, 1)`` of the goals' next candidates."""
        rows = np.array([goal.candidates[goal.tried] for goal in goals], np.int64)
        return [x[rows][:, np.newaxis] for x in self.combinations]

    def possible(self, every: list[Int64Array]) -> list[Int64Array]:
        """Return of every combination those that inputs can have."""
        return every

    def sums(self, reads: Sequence[bool]) -> list[Int64Array]:
        """Return each term's accumulator of every combination, of which a channel reads these."""
        return [x * read for x, read in zip(self.combinations, reads, strict=True)]

    def preferred(self, found: Int64Array) -> Int64Array:
        """Return which of the combinations that serve a purpose to choose from."""
        return found

    def _add(self, channels: list[int], rounding: Rounding, reads: list[bool]) -> None:
        """Add the goals of channels with the same constants."""
        sums = self.sums(reads)
        below, above = rounding.distances(sums)
        self.below[channels] = min(float(below.min()), 1.0)
        self.above[channels] = min(float(above.min()), 1.0)
        masks = rounding.masks(sums)
        for purpose, distance in (("below a tie", below), ("above a tie", above)):
            masks[purpose] = distance <= max(float(distance.min()), NEAR)
            masks[purpose] &= np.isfinite(distance)
        for purpose, mask in masks.items():
            found = self.preferred(np.flatnonzero(mask))
            if not len(found) and self.is_complete:
                self.exclude(purpose, "no combination of integers does it", channels)
            for channel in channels if len(found) else ():
                chosen = int(found[channel * _CHOICE % len(found)])
                self.goals[channel].append(Goal(purpose, channel, [chosen]))
        for purpose, distance in (("below a tie", below), ("above a tie", above)):
            self._add_nearest(purpose, channels, distance, np.sum(sums, axis=0))

    def _add_nearest(
        self, purpose: str, channels: list[int], distance: NDArray[np.float64], total: Int64Array
    ) -> None:
        """Add combinations whose result the least change of multipliers moves over a tie.

        A change moves a result by as much as the accumulators are large, upward or downward. Of
        each of these the channels take turns.
        """
        turn = cycle(channels)
        for sign in (1, -1):
            found = np.flatnonzero(sign * total > 0)
            ratio = distance[found] / np.abs(total[found])
            order = np.argsort(ratio, kind="stable")[:_NEAREST]
            for chosen in found[order[np.isfinite(ratio[order])]].tolist():
                channel = next(turn)
                self.goals[channel].append(Goal(purpose, channel, [chosen], takes_any=False))


def _combinations(
    limits: Sequence[Limits], most: int, rng: np.random.RandomState
) -> list[Int64Array]:
    """Return for each term one integer of every combination, or of many drawn ones."""
    sizes = [high - low + 1 for low, high in limits]
    if math.prod(sizes) <= most:
        grids = np.meshgrid(*(np.arange(low, high + 1) for low, high in limits), indexing="ij")
        return [grid.reshape(-1).astype(np.int64) for grid in grids]
    ends = np.meshgrid(*([low, 0, high] for low, high in limits), indexing="ij")
    drawn = [rng.randint(low, high + 1, most, np.int64) for low, high in limits]
    for x, end in zip(drawn, ends, strict=True):
        x[: min(end.size, most)] = end.reshape(-1)[:most]
    return drawn
