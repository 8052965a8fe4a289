"""Run a program on data under an arithmetic profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.integer import softmax
from qmath.integer.bounds import exact_dtype, interval
from qmath.integer.input_reach import InputReach
from qmath.integer.lowering import activations
from qmath.integer.profiles.exact import Exact, Planner, Profile
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import (
    CutStep,
    FloatStep,
    MoveStep,
    Program,
    QuantizedStep,
    QuantizeStep,
    QuantParams,
    Requantize,
    SoftmaxStep,
    Step,
    Term,
    UnroundedSum,
    sources,
    unrounded_sums,
)
from qmath.kernels._arrays import as_array
from qmath.kernels._environment import (
    check_kept,
    flushes_subnormals,
    in_default_environment,
    least_magnitude,
)
from qmath.kernels.affine import NanError, smallest_dtype

__all__ = ["Executor", "batches", "counted_from", "planned"]

Array = NDArray[Any]
# Of a batch: its mean tensor, and the greatest. With half or twice as many, seven models took up to
# 1.2 times as long, from 5 steps of 1,610 elements to the 70 steps of MobileNetV2 with 740,764.
_MEAN_ELEMENTS = 45_000
_MOST_ELEMENTS = 1 << 19


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What a term needs at run time: weights in the dtype that BLAS multiplies exactly."""

    dtype: type[np.floating[Any]]
    weights: tuple[Array | None, ...]
    interval: tuple[int, int]


class Executor:
    """A program made ready to run, once, for any number of batches.

    Parameters
    ----------
    program : Program
    profile : Profile, optional
        Default: `Exact`.

    Attributes
    ----------
    given : Program
        As it was passed.
    program : Program
        As the profile's runtime has it, which may lack steps, and have some more in between.
    engine : str
        What runs the batches.
    """

    engine = "numpy"

    def __init__(self, program: Program, profile: Profile | None = None) -> None:
        self.given = program
        self.profile = profile or Exact()
        self.program = program = planned(program, self.profile)
        self.quant_params = program.quant_params
        self._plans: dict[Profile, Program] = {}
        self._others: dict[Profile, Executor] = {}
        self._idle_after = _idle_after(program)
        self._float_inputs = {  # what is read otherwise than by a quantizer
            name
            for step in program.steps
            if isinstance(step, FloatStep)
            for name in sources(step)
            if name in program.feeds
        }
        self._prepared: dict[int, _Prepared] = {}
        for step in program.steps:
            for value in unrounded_sums(step):
                for term in value.terms:
                    self._prepared[id(term)] = self._prepare(term, step.name)

    def _prepare(self, term: Term, name: str) -> _Prepared:
        ends = interval(term)
        dtype = exact_dtype(*ends, name)
        weights = tuple(None if op.weights is None else op.weights.astype(dtype) for op in term.ops)
        return _Prepared(dtype, weights, ends)

    @property
    def examples(self) -> int:
        """How many examples to run at once, so that most tensors of a batch stay in the cache."""
        sizes = [max(1, math.prod(step.shape)) for step in self.program.steps] or [1]
        most = _MOST_ELEMENTS // max(sizes)
        return max(1, min(most, _MEAN_ELEMENTS * len(sizes) // sum(sizes)))

    def intervals(self, step: Requantize) -> list[tuple[int, int]]:
        """Return the least and greatest accumulator of each term of a step."""
        return [self._prepared[id(term)].interval for term in step.value.terms]

    @in_default_environment
    def accumulators(self, step: Requantize, integers: Mapping[str, Array]) -> list[Array]:
        """Return the exact accumulator of each term of a step, from unsigned integers."""
        values = {
            name: (integers[name].astype(np.int32) - self.quant_params[name].zero_point).astype(
                np.float32
            )
            for name in sources(step)
        }
        return [self._accumulate(term, values) for term in step.value.terms]

    @in_default_environment
    def under(self, profile: Profile, step: Requantize, integers: Mapping[str, Array]) -> Array:
        """Return what another profile makes of one of the steps.

        Parameters
        ----------
        profile : Profile
        step : Requantize
            Of the program.
        integers : mapping of str to ndarray
            The unsigned integers of everything before it.

        Returns
        -------
        ndarray
            The integers relative to the output's zero point, as float32.
        """
        if profile not in self._plans:
            self._plans[profile] = planned(self.given, profile)
        plan = {each.name: each for each in self._plans[profile].quantized}
        if plan.get(step.name, step) is step:
            sums = self.accumulators(step, integers)
            return profile.requantize(step, sums, self.intervals(step))
        if profile not in self._others:
            self._others[profile] = Executor(self.given, profile)
        other, values = self._others[profile], dict(integers)
        theirs = next(each for each in other.program.quantized if each.name == step.name)
        for before in other.missing(theirs, values):
            values[before.name] = other.apply(before, {n: values[n] for n in sources(before)})
        result = other.apply(theirs, {n: values[n] for n in sources(theirs)})
        return (result.astype(np.int32) - theirs.params.zero_point).astype(np.float32)

    def missing(self, step: Step, integers: Mapping[str, Array]) -> list[QuantizedStep]:
        """Return the steps that have to be computed before one, in order."""
        needed = {name for name in sources(step) if name not in integers}
        for before in reversed(self.program.steps):
            if before.name in needed:
                needed.update(name for name in sources(before) if name not in integers)
        return [before for before in self.program.quantized if before.name in needed]

    @in_default_environment
    def run(
        self,
        inputs: Mapping[str, ArrayLike],
        forced: Mapping[str, Array] | None = None,
        watch: Callable[[Requantize, list[Array]], None] | None = None,
        keep: Container[str] | None = None,
        restart: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Run one batch.

        Parameters
        ----------
        inputs : mapping of str to array-like
            Float data of each input, ``(N, …)``, and of cut points. What needs another cut point
            is not computed.
        forced : mapping of str to ndarray, optional
            Unsigned integers that replace those of the named steps for what follows
            (teacher forcing); the step's own result is still what is returned.
        watch : callable, optional
            Called with each requantization and its exact accumulators.
        keep : container of str, optional
            The steps whose results to return; default: all.
        restart : mapping of str to ndarray, optional
            Unsigned integers of the named steps, for what follows where they are not computed.

        Returns
        -------
        dict of str to ndarray
            For every step kept that is computed its result: unsigned integers, as TensorFlow
            counts, of the smallest dtype, or float32.
        """
        values = self.converted(inputs)
        results: dict[str, Array] = {}
        for step in self.program.steps:
            replacement = (forced or {}).get(step.name)
            try:
                if self.program.cuts and _lacks(step, values):
                    value = None
                    if replacement is None:
                        replacement = (restart or {}).get(step.name)
                else:
                    value = self._compute(step, values, watch)
            except MemoryError:
                raise QmathError(
                    f"{step.name}: the memory that is left does not hold what it computes; run "
                    "fewer examples at once, or a model with a smaller input"
                ) from None
            if value is not None and (keep is None or step.name in keep):
                params = self.quant_params.get(step.name)
                results[step.name] = value if params is None else _unsigned(value, params)
            if replacement is not None and step.name in self.quant_params:
                zero_point = self.quant_params[step.name].zero_point
                value = (replacement.astype(np.int32) - zero_point).astype(np.float32)
            if value is not None:
                values[step.name] = value
            for name in self._idle_after[step.name]:
                values.pop(name, None)
        return results

    @in_default_environment
    def apply(
        self,
        step: QuantizedStep,
        inputs: Mapping[str, Array],
        watch: Callable[[Requantize, list[Array]], None] | None = None,
    ) -> Array:
        """Compute one step by itself.

        Parameters
        ----------
        step : QuantizedStep
            Of the program.
        inputs : mapping of str to ndarray
            By source: unsigned integers ``(N, …)``, or the floats that a `QuantizeStep` reads.
        watch : callable, optional
            As of `run`.

        Returns
        -------
        ndarray
            Unsigned integers of the smallest dtype.
        """
        values = {
            name: np.asarray(x, np.float32)
            if isinstance(step, QuantizeStep)
            else (x.astype(np.int32) - self.quant_params[name].zero_point).astype(np.float32)
            for name, x in inputs.items()
        }
        return _unsigned(self._compute(step, values, watch), step.params)

    @in_default_environment
    def checked(self, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """Return all of the data as float32 arrays, or raise if they cannot be the model's.

        Raises
        ------
        QmathError
            Names, shapes or dtypes do not fit; the inputs differ in length; the data are scaled
            otherwise than in training, so that the model's input would clip them.
        """
        arrays = self.converted(inputs)
        lengths = {len(x) for x in arrays.values()}
        if len(lengths) > 1:
            raise QmathError(f"the inputs differ in their number of examples: {sorted(lengths)}")
        reach = InputReach(self.program)
        reach.add(arrays)
        reach.check()
        return arrays

    @in_default_environment
    def converted(self, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """Return some of the data as float32 arrays.

        Raises
        ------
        QmathError
            Names, shapes or dtypes do not fit.
        """
        needed, feeds = set(self.program.inputs), self.program.feeds
        if not needed <= set(inputs) <= set(feeds):
            cuts = (
                f", and {sorted(set(feeds) - needed)} are cut points" if self.program.cuts else ""
            )
            raise QmathError(
                f"the model's inputs are {sorted(needed)}{cuts}, the data has {sorted(inputs)}"
            )
        arrays: dict[str, Array] = {}
        for name, shape in feeds.items():
            if name not in inputs:
                continue
            x = as_array(inputs[name], f"{name}: the data")
            if x.dtype.kind not in "fiub":
                raise QmathError(f"{name}: the data must be numbers, got dtype {x.dtype}")
            if x.shape[1:] != tuple(shape) or x.ndim != len(shape) + 1:
                expected = ", ".join(map(str, shape))
                raise QmathError(f"{name}: the data must have shape (N, {expected}), got {x.shape}")
            if name in self._float_inputs and x.dtype.kind == "f" and flushes_subnormals():
                check_kept(f"{name}: the data", least_magnitude(x))
            arrays[name] = np.ascontiguousarray(x, np.float32)
            if name not in needed and not np.isfinite(arrays[name]).all():
                raise QmathError(f"{name}: the data hold NaN or infinities")
        return arrays

    def _compute(
        self,
        step: Step,
        values: Mapping[str, Array],
        watch: Callable[[Requantize, list[Array]], None] | None,
    ) -> Array:
        if isinstance(step, Requantize):
            sums = [self._accumulate(term, values) for term in step.value.terms]
            if watch:
                watch(step, sums)
            return self.profile.requantize(step, sums, self.intervals(step))
        if isinstance(step, MoveStep):
            return step.apply(values[step.source])
        if isinstance(step, QuantizeStep):
            return step.params.quantize(values[step.source], step.source).astype(np.float32)
        if isinstance(step, CutStep):
            return values[step.name]
        if isinstance(step, FloatStep):
            return self._compute_floats(step, values)
        if isinstance(step, SoftmaxStep):
            x = np.asarray(values[step.source], np.float32)
            if isinstance(self.profile, Integer):
                return softmax.in_integers(step, x)
            return softmax.in_floats(step, x, self.quant_params[step.source].scale)
        index = values[step.source].astype(np.int32) + self.quant_params[step.source].zero_point
        return step.table[index].astype(np.float32)

    def _compute_floats(self, step: FloatStep, values: Mapping[str, Array]) -> Array:
        """Run a step in float32, unless subnormals may be met and count as zero.

        Products are multiples of those of the operands' last bits, and so are sums of them: from
        2**-78 on, neither is subnormal.
        """
        parts = [
            values[source] if isinstance(source, str) else self._real(source, values)
            for source in step.sources
        ]
        if flushes_subnormals():
            least = min(1.0, *map(least_magnitude, parts)) * min(1.0, step.least)
            check_kept(step.name, least, 2.0**-78)
        parts = [part.astype(np.float32, copy=False) for part in parts]
        return np.asarray(step.apply(*parts), np.float32)

    def _accumulate(self, term: Term, values: Mapping[str, Array]) -> Array:
        prepared = self._prepared[id(term)]
        x = values[term.source].astype(prepared.dtype, copy=False)
        for linear, weights in zip(term.ops, prepared.weights, strict=True):
            if linear.factor is not None:
                weights = values[linear.factor.source].astype(prepared.dtype, copy=False)
            x = linear.apply(x, weights)
        return x

    def _real(self, value: UnroundedSum, values: Mapping[str, Array]) -> Array:
        """Return an accumulator's real values, in float64."""
        total = value.offset
        for term in value.terms:
            total = total + self._accumulate(term, values).astype(np.float64) * term.scale
        total = np.broadcast_to(total, (len(total), *value.shape))
        if value.activation is not None:
            total = activations.piecewise(total, value.activation)
        return np.asarray(total)


def planned(program: Program, profile: Profile) -> Program:
    """Return what a profile computes of a program: the runtime's own steps, where they differ."""
    return profile.planned(program) if isinstance(profile, Planner) else program


def batches(arrays: Mapping[str, Array], examples: int) -> Iterator[tuple[int, dict[str, Array]]]:
    """Cut arrays of equal length into batches of so many examples, such as `Executor.examples`.

    Yields
    ------
    tuple of int, dict of str to ndarray
        Which example is a batch's first, and the batch.
    """
    length = len(next(iter(arrays.values())))
    for start in range(0, max(length, 1), examples):
        yield start, {name: x[start : start + examples] for name, x in arrays.items()}


@contextmanager
def counted_from(start: int) -> Iterator[None]:
    """Let the error that a float of a batch is NaN count examples from `start`, its first one."""
    try:
        yield
    except NanError as error:
        if not error.index:
            raise
        example, *inside = error.index
        raise NanError(error.prefix, (start + example, *inside)) from None


def _idle_after(program: Program) -> dict[str, list[str]]:
    """Return the tensors that nothing reads after each step: their memory is used again."""
    last = {name: step.name for step in program.steps for name in sources(step)}
    idle: dict[str, list[str]] = {step.name: [] for step in program.steps}
    for name, step_name in last.items():
        idle[step_name].append(name)
    return idle


def _lacks(step: Step, values: Mapping[str, Array]) -> bool:
    """Whether a step cannot be computed from the values at hand."""
    if isinstance(step, CutStep):
        return step.name not in values
    return not all(name in values for name in sources(step))


def _unsigned(value: Array, params: QuantParams) -> Array:
    dtype = smallest_dtype(params.num_bits, signed=False)
    return np.asarray((value + np.float32(params.zero_point)).astype(dtype))
