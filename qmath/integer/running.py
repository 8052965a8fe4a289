"""The job behind `qmath.run`: a profile's integers, for whatever reducers are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from qmath.integer.executor import Executor
from qmath.integer.profiles.exact import Profile
from qmath.integer.program import Program, Requantize
from qmath.integer.reducers import Computed, Reducer, real_result
from qmath.integer.shards import Job
from qmath.integer.streams import Part

__all__ = ["Running", "Totals"]

Array = NDArray[Any]


class Totals:
    """What several reducers were given.

    Attributes
    ----------
    reducers : list of Reducer
    examples : int
        How many.
    """

    def __init__(self, reducers: Sequence[Reducer]) -> None:
        self.reducers = [reducer.empty() for reducer in reducers]
        self.examples = 0

    def merge(self, other: Totals) -> None:
        """Add those of examples that follow."""
        for own, further in zip(self.reducers, other.reducers, strict=True):
            own.merge(further)
        self.examples += other.examples


class Running(Job[Totals]):
    """A program's results in a profile, reduced.

    Parameters
    ----------
    program : Program
    profile : Profile
    reducers : sequence of Reducer
        Of which kinds; they are given nothing themselves.
    executor : Executor
        What runs it in this process; others make their own, of NumPy.
    """

    def __init__(
        self,
        program: Program,
        profile: Profile,
        reducers: Sequence[Reducer],
        executor: Executor,
    ) -> None:
        self._program, self._profile = program, profile
        self._reducers = [reducer.empty() for reducer in reducers]
        self._executor = executor

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name != "_executor"}

    @cached_property
    def _executor(self) -> Executor:
        return Executor(self._program, self._profile)

    @cached_property
    def _names(self) -> frozenset[str] | None:
        """The steps whose results are read by a reducer; all if one reads all."""
        names: frozenset[str] = frozenset()
        for reducer in self._reducers:
            if reducer.names is None:
                return None
            names |= reducer.names
        return names

    def empty(self) -> Totals:
        """See `Job`."""
        return Totals(self._reducers)

    def add(self, total: Totals, part: Part) -> None:
        """See `Job`."""
        reals: dict[str, Array] = {}

        def watch(step: Requantize, sums: list[Array]) -> None:
            reals[step.name] = real_result(step, sums)

        asked = any(reducer.asks_reals for reducer in self._reducers)
        results = self._executor.run(part.inputs, watch=watch if asked else None, keep=self._names)
        computed = Computed(part.start, part.inputs, results, part.beside, reals)
        for reducer in total.reducers:
            reducer.add(computed)
        total.examples += len(part)
