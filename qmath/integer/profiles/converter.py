"""A trained program as TensorFlow's converter writes it: which operation writes on which scale.

Training has a quantizer after every layer, and TFLite's concatenations, maxima and resizings have
one scale for what goes in and what comes out. Between the two the converter puts a ``QUANTIZE``,
and takes it back where an operation can write on the new scale itself: where nothing else reads
what it makes. What it computes in float32, or in an order that depends on more, is refused.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.profiles.tflite_arithmetic import round_half_away
from qmath.integer.profiles.tflite_kernels import refused
from qmath.integer.profiles.tflite_parts import Part, activation_of, split
from qmath.integer.program import (
    CutStep,
    FloatStep,
    MoveStep,
    Program,
    QuantizeStep,
    QuantParams,
    Requantize,
    SoftmaxStep,
    Step,
    TableStep,
    Term,
    UnroundedSum,
    sources,
)

__all__ = ["check_converted", "converted"]

Array = NDArray[Any]

# The scales that TFLite's functions have, whatever training had.
_FUNCTIONS = {
    "sigmoid": QuantParams(1 / 256, 0, 0, 255, 8, 0.0, 255 / 256),
    "tanh": QuantParams(1 / 128, 128, 0, 255, 8, -1.0, 127 / 128),
}


def converted(program: Program) -> Program:
    """Return a program whose steps are the operations of the converter's file.

    Steps keep their names and parameters. One that only a step with another scale reads is not
    there any more: ``…/requantized`` in its place writes on that scale.

    Parameters
    ----------
    program : Program

    Returns
    -------
    Program
        The same one if nothing changes.
    """
    return _Converter(program).program()


class _Converter:
    """A program's steps by name, and what reads them."""

    def __init__(self, program: Program) -> None:
        self.given = program
        self.made = {step.name: step for step in program.steps}
        self.readers: dict[str, list[Step]] = defaultdict(list)
        for step in program.steps:
            for name in dict.fromkeys(sources(step)):
                self.readers[name].append(step)
        self.moved: dict[str, QuantParams] = {}  # what is written on another scale

    def program(self) -> Program:
        """Return the program as it is converted."""
        for step in self.given.steps:
            if isinstance(step, Requantize) and _has_a_scale_of_its_own(step):
                self._find_scale(step)
        steps = [new for step in self.given.steps for new in self._rewritten(step)]
        if not self.moved and all(map(operator.is_, steps, self.given.steps)):
            return self.given
        return replace(self.given, steps=tuple(steps))

    def _find_scale(self, step: Requantize) -> None:
        """Note the other scale on which a step's result is wanted, if on that one alone."""
        if step.name in self.given.outputs:
            return
        wanted: list[QuantParams] = []
        resized: list[str] = []
        for reader in self.readers[step.name]:
            if isinstance(reader, MoveStep):
                if not _keeps_the_scale(reader, step):
                    return
                resized.append(reader.name)
                after = self.readers[reader.name]
                if reader.name in self.given.outputs or len(after) != 1:
                    return
                reader = after[0]
                name = resized[-1]
            else:
                name = step.name
            if not isinstance(reader, Requantize) or not _only_rescales(reader, name):
                return
            if (name == step.name) != _joins(reader):
                return
            wanted.append(reader.params)
        if not wanted or _alike(step.params, wanted[0]):
            return
        if all(_alike(params, wanted[0]) for params in wanted):
            for name in (step.name, *resized):
                self.moved[name] = wanted[0]

    def _rewritten(self, step: Step) -> Sequence[Step]:
        params = self.moved.get(step.name)
        if isinstance(step, Requantize):
            move = self.made.get(step.value.terms[0].source)
            if isinstance(move, MoveStep) and move.name in self.moved:
                source = _renamed(move.source)
                return [replace(move, name=step.name, source=source, params=step.params)]
            step = self._on_new_scales(step)
            if params is not None:
                return [replace(step, name=_renamed(step.name), params=params)]
            if _pools_a_line(step):
                return self._rescaled_before(step)
            fused = self._after_maximum(step)
            return [step if fused is None else fused]
        if isinstance(step, MoveStep):
            return [] if params is not None else [self._with_activation(step)]
        if isinstance(step, TableStep):
            return _looked_up(step)
        if isinstance(step, SoftmaxStep):
            return [_refusing(step, "TFLite has a softmax of its own, in fixed point")]
        if isinstance(step, QuantizeStep) and self._is_between(step.source):
            why = (
                f"{step.source} was trained in float32 between integers, and what TFLite's "
                "converter makes of it depends on what surrounds it"
            )
            return [_refusing(step, why)]
        return [step]

    def _on_new_scales(self, step: Requantize) -> Requantize:
        terms = tuple(
            term if (params := self.moved.get(term.source)) is None else _reading(term, params)
            for term in step.value.terms
        )
        if all(new is old for new, old in zip(terms, step.value.terms, strict=True)):
            return step
        return replace(step, value=replace(step.value, terms=terms))

    def _rescaled_before(self, step: Requantize) -> Sequence[Step]:
        """Return the steps of an average along a line: TFLite changes the scale before it."""
        (term,) = step.value.terms
        shape = self._shape(term.source)
        whole = Term(term.source, (), np.asarray(term.params.scale), term.params)
        name = f"{step.name}/input"
        rescaled = Requantize(name, UnroundedSum((whole,), np.zeros(()), shape), step.params)
        count = np.rint(term.params.scale / term.scale)
        term = replace(term, source=name, params=step.params, scale=step.params.scale / count)
        return [rescaled, replace(step, value=replace(step.value, terms=(term,)))]

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.made[name].shape)

    def _activated_maximum(self, step: Step) -> MoveStep | None:
        """Return the maximum pool that takes over a step's ReLU, if any."""
        if not isinstance(step, Requantize) or len(step.value.terms) != 1:
            return None
        (term,), activation = step.value.terms, step.value.activation
        pool = self.made.get(term.source)
        if activation is None or activation.leaks or term.ops or not isinstance(pool, MoveStep):
            return None
        if np.ndim(activation.limit) or activation.limit not in (6.0, np.inf):
            return None
        is_alone = len(self.readers[pool.name]) == 1 and pool.name not in self.given.outputs
        is_pool = pool.attributes.get("kind") == "pool_max" and "rows" not in pool.attributes
        return pool if is_alone and is_pool else None

    def _after_maximum(self, step: Requantize) -> Requantize | None:
        if self._activated_maximum(step) is None:
            return None
        return replace(step, value=replace(step.value, activation=None))

    def _with_activation(self, step: MoveStep) -> MoveStep:
        readers = self.readers[step.name]
        if len(readers) != 1 or self._activated_maximum(readers[0]) is not step:
            return step
        assert isinstance(readers[0], Requantize)
        activation = readers[0].value.activation
        assert activation is not None
        high = float(step.params.limits[1])
        if np.isfinite(activation.limit):
            limit = round_half_away(np.float32(activation.limit) / np.float32(step.params.scale))
            high = min(high, float(limit))
        return replace(step, apply=partial(_clipped, step.apply, 0.0, high))

    def _is_between(self, name: str) -> bool:
        """Whether a float tensor is computed from integers."""
        step = self.made.get(name)
        if step is None or isinstance(step, CutStep):
            return False
        return not isinstance(step, FloatStep) or any(map(self._is_between, sources(step)))


def _renamed(name: str) -> str:
    return f"{name}/requantized"


def _has_a_scale_of_its_own(step: Requantize) -> bool:
    """Whether its operation takes any scale for what it makes."""
    parts = split(step)
    return len(parts) == 1 and not _rescales(step, parts[0]) and not _pools(parts[0])


def _only_rescales(step: Requantize, source: str) -> bool:
    """Whether a step only changes the scale of a source, in all places where it reads it."""
    reading = [part for part in split(step) if any(t.source == source for t in part.terms)]
    return all(_rescales(step, part) for part in reading)


def _keeps_the_scale(step: MoveStep, source: Requantize) -> bool:
    """Whether TFLite has one operation for a move, which works on any scale."""
    return step.attributes.get("kind") in ("upsample", "pool_max") and len(source.shape) == 3


def _rescales(step: Requantize, part: Part) -> bool:
    if len(part.terms) != 1 or any(op.kind != "reshape" for op in part.terms[0].ops):
        return False
    try:
        return activation_of(step, part.region) is None
    except QmathError:  # it differs from channel to channel
        return False


def _pools(part: Part) -> bool:
    kinds = {(op.kind, bool(op.attributes.get("global"))) for t in part.terms for op in t.ops}
    return ("pool_sum", False) in kinds


def _pools_a_line(step: Requantize) -> bool:
    (part, *others) = split(step)
    return not others and len(step.shape) == 2 and len(part.terms) == 1 and _pools(part)


def _joins(step: Requantize) -> bool:
    return len(split(step)) > 1


def _alike(a: QuantParams, b: QuantParams) -> bool:
    return np.float32(a.scale) == np.float32(b.scale) and a.zero_point == b.zero_point


def _reading(term: Term, params: QuantParams) -> Term:
    """Return a term whose source is written on another scale; zero stays in its padding."""
    scale = np.where(term.scale != 0, params.scale, 0.0)
    return replace(term, source=_renamed(term.source), scale=np.asarray(scale), params=params)


def _looked_up(step: TableStep) -> Sequence[Step]:
    """Return TFLite's function, which has a scale of its own, and the change to the trained one."""
    if step.function not in _FUNCTIONS:
        return [_refusing(step, "TFLite has no table for its function, or several operations")]
    params = _FUNCTIONS[step.function]
    name = f"{step.name}/{step.function}"
    integers = round_half_away(step.results.astype(np.float64) / params.scale)
    table = np.clip(integers, *params.limits).astype(np.int32)
    term = Term(name, (), np.asarray(params.scale), params)
    return [
        replace(step, name=name, table=table, params=params),
        Requantize(step.name, UnroundedSum((term,), np.zeros(()), step.shape), step.params),
    ]


def _clipped(apply: Callable[[Array], Array], low: float, high: float, x: Array) -> Array:
    return np.clip(apply(x), np.float32(low), np.float32(high))


def _refusing(step: TableStep | SoftmaxStep | QuantizeStep, why: str) -> MoveStep:
    message = f"{step.name}: {why}; run the model under the exact or the integer profile"
    return MoveStep(step.name, step.source, partial(_refuse, message), step.params, step.shape)


def _refuse(message: str, _: Array) -> Array:
    raise QmathError(message)


def check_converted(step: Requantize) -> None:
    """Refuse a step of which it is not known how the converter computes it."""
    found = split(step)
    for term in step.value.terms:
        kind = term.ops[0].kind if term.ops else ""
        if kind in ("dense", "conv2d_transpose") and term.origin and term.origin.normalizations:
            raise QmathError(
                f"{step.name}: TFLite's converter folds no batch normalization into "
                f"{term.ops[0].name}, and leaves the layer in float32, or quantizes its input "
                "again at run time; run the model under the exact or the integer profile"
            )
        if len(found) > 1 and sum(op.kind == "pad" for op in term.ops) > 1:
            raise refused(step, "a concatenation in another, or padding, with no scale of its own")
    if len(found) > 1 and len(step.shape) == 2 and any(map(_pools, found)):
        raise refused(step, "an average along a line that a concatenation joins")
