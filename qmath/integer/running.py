"""Jobs of an executor; that of `qmath.run` gives its integers to whatever reducers there are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from qmath.integer.executor import Executor, counted_from
from qmath.integer.program import Requantize
from qmath.integer.reducers import Computed, Reducer, real_result
from qmath.integer.shards import Job, T
from qmath.integer.streams import Part

__all__ = ["Executing", "Running", "Totals"]

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

    def state(self) -> dict[str, Any]:
        """See `qmath.integer.resuming.Keepable`."""
        states = [reducer.state() for reducer in self.reducers]
        return {"examples": self.examples, "reducers": states}

    def restore(self, state: dict[str, Any]) -> None:
        """See `qmath.integer.resuming.Keepable`."""
        self.examples = state["examples"]
        for reducer, held in zip(self.reducers, state["reducers"], strict=True):
            reducer.restore(held)


class Executing(Job[T]):
    """A job that an executor does. Other processes make one of their own, of NumPy.

    Parameters
    ----------
    executor : Executor
    """

    def __init__(self, executor: Executor) -> None:
        self._program, self._profile = executor.given, executor.profile
        self.executor = executor

    def __getstate__(self) -> dict[str, Any]:
        kind = type(self)
        return {
            name: x
            for name, x in vars(self).items()
            if not isinstance(getattr(kind, name, None), cached_property)
        }

    @cached_property
    def executor(self) -> Executor:
        """What runs the program in a profile."""
        return Executor(self._program, self._profile)


class Running(Executing[Totals]):
    """A program's results, reduced.

    Parameters
    ----------
    executor : Executor
    reducers : sequence of Reducer
        Of which kinds; they are given nothing themselves.
    """

    def __init__(self, executor: Executor, reducers: Sequence[Reducer]) -> None:
        super().__init__(executor)
        self._reducers = [reducer.empty() for reducer in reducers]

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
        watching = watch if asked else None
        with counted_from(part.start):
            results = self.executor.run(part.inputs, watch=watching, keep=self._names)
        computed = Computed(part.start, part.inputs, results, part.beside, reals)
        for reducer in total.reducers:
            reducer.add(computed)
        total.examples += len(part)
