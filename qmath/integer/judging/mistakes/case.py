"""One layer as it was computed, and a mistake that it may have suffered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.executor import Executor
from qmath.integer.profiles.exact import clamps, unrounded
from qmath.integer.program import (
    MoveStep,
    QuantizedStep,
    QuantizeStep,
    Requantize,
    SoftmaxStep,
    TableStep,
    Term,
)
from qmath.integer.softmax import of_reals

__all__ = ["Case", "Mistake", "summed", "term_of", "with_sums"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Case:
    """One layer's integers in some examples, and what they were computed from.

    Attributes
    ----------
    executor : Executor
    step : QuantizedStep
    own, yours : ndarray of int32
        qmath's and anyone's integers, relative to the zero point, from the same sources.
    values : mapping of str to ndarray
        Unsigned integers, or floats, of everything before the step.
    """

    executor: Executor
    step: QuantizedStep
    own: Array
    yours: Array
    values: dict[str, Array] = field(repr=False)

    @cached_property
    def sums(self) -> list[Array]:
        """The exact accumulators of a requantization."""
        assert isinstance(self.step, Requantize)
        return self.executor.accumulators(self.step, self.values)

    @cached_property
    def y(self) -> Array | None:
        """The real result in steps before it is rounded, where anything is."""
        if isinstance(self.step, Requantize):
            return unrounded(self.step, self.sums)
        if isinstance(self.step, QuantizeStep):
            return self.values[self.step.source].astype(np.float64) / self.step.params.scale
        if isinstance(self.step, TableStep):
            results = self.step.results.astype(np.float64)[self.values[self.step.source]]
            return np.asarray(results / self.step.params.scale)
        if isinstance(self.step, SoftmaxStep):
            x = self.values[self.step.source].astype(np.float64) * self.source_scale
            return of_reals(x, self.step.axis) / self.step.params.scale
        if self.rows is not None:
            assert isinstance(self.step, MoveStep)
            sums = self.executor.accumulators(self.rows, self.values)
            return self.step.apply(unrounded(self.rows, sums))
        return None

    @property
    def source_scale(self) -> float:
        """Of the integers that a softmax reads."""
        if not isinstance(self.step, SoftmaxStep):
            return 1.0
        return self.executor.quant_params[self.step.source].scale

    @cached_property
    def rows(self) -> Requantize | None:
        """The step that rounds what this one only moves, or is the least or greatest of."""
        if not isinstance(self.step, MoveStep) or not {"rows", "of_sum"} & {*self.step.attributes}:
            return None
        rows = self.executor.program.step(self.step.source)
        return rows if isinstance(rows, Requantize) else None

    @cached_property
    def limits(self) -> tuple[Array, Array]:
        """The clamps of the step."""
        if isinstance(self.step, Requantize):
            low, high = clamps(self.step)
            return low.astype(np.float64), high.astype(np.float64)
        ends = self.step.params.limits
        return np.float64(ends[0]), np.float64(ends[1])

    def rounded(self, y: Array) -> Array:
        """Return a real result rounded and clamped as it ought to be."""
        return self.clamped(np.floor(y + 0.5))

    def clamped(self, y: Array) -> Array:
        """Return rounded results within the limits."""
        return np.asarray(np.clip(y, *self.limits))

    def relative(self, term: Term) -> Array:
        """Return a term's source relative to its zero point, as float64."""
        return self.values[term.source].astype(np.float64) - term.params.zero_point


@dataclass(frozen=True)
class Mistake:
    """One thing that may be wrong, and the integers that it would make.

    Attributes
    ----------
    name, sentence : str
    integers : callable
        Returns them for a `Case`, relative to the zero point.
    """

    name: str
    sentence: str
    integers: Callable[[Case], Array]


def term_of(case: Case, index: int) -> Term:
    """Return a term of a requantization."""
    assert isinstance(case.step, Requantize)
    return case.step.value.terms[index]


def summed(
    case: Case, term: Term, x: Array, weights: Callable[[Array], Array] = np.asarray
) -> Array:
    """Return a term's sums of what is relative to its zero point, with its weights changed."""
    for op in term.ops:
        if op.factor is not None:
            x = op.apply(x, case.values[op.factor.source] - np.float64(op.factor.params.zero_point))
        else:
            x = op.apply(x, None if op.weights is None else weights(op.weights).astype(np.float64))
    return x


def with_sums(case: Case, index: int, sums: Array) -> Array:
    """Return the result if a term had other sums."""
    assert isinstance(case.step, Requantize)
    return case.rounded(
        unrounded(case.step, [sums if i == index else a for i, a in enumerate(case.sums)])
    )
