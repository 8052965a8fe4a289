"""Patches of products of tensors: factors that make accumulators what they should be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from qmath.integer.directed.elementwise import ElementwisePatches
from qmath.integer.directed.mistakes import Rounding
from qmath.integer.directed.weighted import Goal, Limits
from qmath.integer.program import Linear, QuantParams, Requantize, Shape

__all__ = ["ProductPatches", "Reads", "place_factors", "reads_of"]

Int64Array = NDArray[np.int64]
_TRIED = 8  # elements of a channel, of which one has to be free


@dataclass(frozen=True, eq=False)
class Reads:
    """What a product's elements read: for each factor its source, its parameters and its places.

    `places` are the flat places in the source of what each flat element of the output reads,
    counted from 1; 0 where there is padding.
    """

    sources: tuple[str, ...]
    params: tuple[QuantParams, ...]
    places: tuple[Int64Array, ...]

    @property
    def is_shared(self) -> tuple[bool, ...]:
        """For each factor, whether several elements read one of its integers."""
        read = [places[places > 0] for places in self.places]
        return tuple(len(np.unique(places)) < len(places) for places in read)

    @property
    def twins(self) -> list[tuple[int, int]]:
        """The pairs of factors that are always one integer."""
        return [
            (a, b)
            for a, b in combinations(range(len(self.sources)), 2)
            if self.sources[a] == self.sources[b] and np.array_equal(self.places[a], self.places[b])
        ]


def reads_of(step: Requantize, before: Mapping[str, Shape]) -> Reads | None:
    """Return what a step reads that multiplies tensors and then only moves; ``None`` of others."""
    term, *others = step.value.terms
    if others or all(op.factor is None for op in term.ops):
        return None
    sources, params = [term.source], [term.params]
    places = [_counted(before[term.source])]
    for op in term.ops:
        if op.weights is not None or op.kind == "pool_sum":
            return None
        if op.factor is None:
            places = [_moved(x, op) for x in places]
            continue
        sources.append(op.factor.source)
        params.append(op.factor.params)
        places = [np.broadcast_to(x, op.shape) for x in (*places, _counted(op.factor.shape))]
    flat = tuple(np.broadcast_to(x, step.shape).reshape(-1) for x in places)
    return Reads(tuple(sources), tuple(params), flat)


class ProductPatches(ElementwisePatches):
    """Patches of one product of integers for each element.

    Parameters
    ----------
    reads : Reads
    rounding : Rounding
        Of the channels.
    limits : sequence of (int, int)
        Lowest and highest integer of each factor, relative to its zero point.
    rng : RandomState
    """

    def __init__(
        self,
        reads: Reads,
        rounding: Rounding,
        limits: Sequence[Limits],
        rng: np.random.RandomState,
    ) -> None:
        count = len(rounding.low)
        self._shared = [limit for limit, shared in zip(limits, reads.is_shared, strict=True)
                        if shared]  # fmt: skip
        self._is_shared = reads.is_shared
        self._twins = reads.twins
        every = np.ones(count, bool)
        super().__init__([every] * len(limits), rounding, limits, rng, every)

    def possible(self, every: list[Int64Array]) -> list[Int64Array]:
        """Return the combinations in which a factor that is there twice is one integer."""
        pairs = [every[a] == every[b] for a, b in self._twins]
        return [x[np.all(pairs, axis=0)] for x in every] if pairs else every

    def sums(self, reads: Sequence[bool]) -> list[Int64Array]:
        """Return the product of each combination."""
        factors = (x for x, is_read in zip(self.combinations, reads, strict=True) if is_read)
        return [np.asarray(math.prod(factors), np.int64)]

    def preferred(self, found: Int64Array) -> Int64Array:
        """Return of combinations those whose shared factors are all at one end, if any."""
        shared = [x[found] for x, s in zip(self.combinations, self._is_shared, strict=True) if s]
        for end in (1, 0):
            pairs = zip(shared, self._shared, strict=True)
            is_there = np.all([x == limits[end] for x, limits in pairs], axis=0)
            if shared and is_there.any():
                return found[is_there]
        return found


def place_factors(
    goals: Sequence[Goal],
    patches: ProductPatches,
    reads: Reads,
    channel: Int64Array,
    relative: Mapping[str, Int64Array],
) -> list[Goal]:
    """Write goals' factors into inputs, one after another, wherever what they read is free.

    Parameters
    ----------
    goals : sequence of Goal
    patches : ProductPatches
    reads : Reads
    channel : ndarray of int64
        Of each flat element of an output.
    relative : mapping of str to ndarray
        By source one input, flat, relative to the zero point, which is changed.

    Returns
    -------
    list of Goal
        Those that found no place.
    """
    order = np.argsort(channel, kind="stable")
    starts = np.searchsorted(channel[order], np.arange(len(patches.goals) + 1))
    free = [order[a:b].tolist() for a, b in pairwise(starts)]
    written: dict[tuple[str, int], int] = {}
    left = []
    for goal in goals:
        chosen = goal.candidates[goal.tried]
        values = [int(x[chosen]) for x in patches.combinations]
        elements = free[goal.channel]
        for i, element in enumerate(elements[:_TRIED]):
            at = [(name, int(p[element])) for name, p in zip(reads.sources, reads.places,
                                                            strict=True)]  # fmt: skip
            wanted = dict(zip(at, values, strict=True))
            is_whole = all(place > 0 for _, place in at) and values == [wanted[key] for key in at]
            if is_whole and all(written.get(key, value) == value for key, value in wanted.items()):
                written.update(wanted)
                elements.pop(i)
                break
        else:
            left.append(goal)
    for (name, place), value in written.items():
        relative[name][place - 1] = value
    return left


def _counted(shape: Shape) -> Int64Array:
    return np.arange(1, math.prod(shape) + 1, dtype=np.int64).reshape(shape)


def _moved(places: Int64Array, op: Linear) -> Int64Array:
    return np.asarray(op.apply(places[np.newaxis].astype(np.float64), None)[0].astype(np.int64))
