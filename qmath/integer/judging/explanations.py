"""Which mistake explains how a layer's integers differ, by computing each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.executor import Executor
from qmath.integer.judging.mistakes import ordering, rounding, summing
from qmath.integer.judging.mistakes.case import Case, Mistake
from qmath.integer.judging.mistakes.rounding import is_same, named_profiles
from qmath.integer.streams import Stream

__all__ = ["MISTAKES", "Explanation", "Trial", "agreeing_profile"]

Array = NDArray[Any]

# In the order of plausibility: of mistakes that explain a layer equally well, the first is told.
MISTAKES: tuple[Callable[[Case], Iterator[Mistake]], ...] = (
    rounding.other_profiles,
    rounding.roundings,
    rounding.double_rounding,
    rounding.biases,
    rounding.missing_clamps,
    summing.zero_points,
    summing.paddings,
    rounding.multipliers,
    summing.accumulators,
    summing.kernels,
    ordering.signs,
    ordering.flattened,
    ordering.orders,
    ordering.constants,
)

_MANY = 8  # differences that nothing explains by chance


@dataclass(frozen=True)
class Explanation:
    """What most of a layer's differences follow from.

    Attributes
    ----------
    name, sentence : str
        The mistake: a short name, and what is done in place of what.
    differences, explained, broken : int
        How many integers differ; of these, how many the mistake makes; and how many others, which
        are equal, it would change.
    """

    name: str
    sentence: str
    differences: int
    explained: int
    broken: int

    @property
    def complete(self) -> bool:
        """Whether the layer with this mistake makes exactly these integers."""
        return self.explained == self.differences and not self.broken


@dataclass
class _Count:
    """How much of a layer one mistake explains."""

    mistake: Mistake
    explained: int = 0
    broken: int = 0


class Trial:
    """The mistakes tried on one layer.

    The first examples that differ are tried with each, in order, until one explains all of many
    differences; those that follow, with what explained these best. Examples before them, which
    agree, are not.

    Parameters
    ----------
    beyond_noise : bool
        Whether float32 noise is the first explanation, as of what float32 sums made.
    """

    def __init__(self, *, beyond_noise: bool = False) -> None:
        self.beyond_noise = beyond_noise
        self.differences = 0
        self._counts: list[_Count] = []

    def applies(self, near: bool) -> bool:
        """Whether to go on, or begin, where `near` says that noise explains these examples."""
        return self.differences > 0 or not (near and self.beyond_noise)

    def add(self, case: Case) -> None:
        """Try further examples of the layer."""
        differs = case.yours != case.own
        number = int(np.count_nonzero(differs))
        self.differences += number
        if self._counts:
            self._counts = [count for count in self._counts if _try(count, case, differs)]
        elif number:
            self._counts = list(self._first(case, differs))
        exact = [count for count in self._counts if self._is_exact(count)]
        best = max(self._counts, key=lambda c: c.explained - c.broken, default=None)
        self._counts = exact or ([best] if best else [])

    def _first(self, case: Case, differs: Array) -> Iterator[_Count]:
        for row in MISTAKES:
            # Alike mistakes are tried together: further examples tell them apart.
            tried = [count for count in map(_Count, row(case)) if _try(count, case, differs)]
            yield from tried
            if self.differences >= _MANY and any(map(self._is_exact, tried)):
                return

    def _is_exact(self, count: _Count) -> bool:
        return count.explained == self.differences and not count.broken

    def explanation(self, preferred: str = "") -> Explanation | None:
        """Return the first mistake that explains all, or the one that explains most, if any.

        That of the name `preferred` is the first.
        """
        counts = sorted(self._counts, key=lambda count: count.mistake.name != preferred)
        if not counts or counts[0].explained <= counts[0].broken:
            return None
        mistake, best = counts[0].mistake, counts[0]
        return Explanation(
            mistake.name, mistake.sentence, self.differences, best.explained, best.broken
        )


def _try(count: _Count, case: Case, differs: Array) -> bool:
    """Count what a mistake explains, unless the layer cannot suffer it."""
    try:
        with np.errstate(all="ignore"):
            agrees = count.mistake.integers(case) == case.yours
    except QmathError:  # a profile that refuses the layer
        return False
    count.explained += int(np.count_nonzero(agrees & differs))
    count.broken += int(np.count_nonzero(~agrees & ~differs))
    return True


def agreeing_profile(judged: Executor, stream: Stream) -> str | None:
    """Return the profile that makes all integers beside the data, from the data on, if any.

    Where layers between them are not given, no mistake of a single layer shows it.
    """
    for name, profile in named_profiles().items():
        executor = Executor(judged.given, profile)
        try:
            if not is_same(profile, judged.profile) and _agrees(executor, stream):
                return name
        except QmathError:  # it refuses a layer
            continue
    return None


def _agrees(executor: Executor, stream: Stream) -> bool:
    for part in stream.parts(lambda: stream.batch):
        yours = part.beside
        # Up to the first integer that differs, theirs are the profile's own.
        found = executor.run(part.inputs, keep=yours)
        if not all(name in found and np.array_equal(found[name], x) for name, x in yours.items()):
            return False
    return True
