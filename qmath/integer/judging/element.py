"""One integer, closely: what it is computed from, in exact arithmetic, and by each profile."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.executor import Executor, counted_from
from qmath.integer.judging.integers import Yours
from qmath.integer.judging.names import tensor_named
from qmath.integer.judging.noise import float32_noise
from qmath.integer.profiles.exact import Profile, clamps
from qmath.integer.program import (
    FloatStep,
    MoveStep,
    QuantizeStep,
    QuantParams,
    Requantize,
    SoftmaxStep,
    TableStep,
)

__all__ = ["Element", "explained"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Element:
    """One element of a quantized tensor.

    Attributes
    ----------
    tensor : str
    index : tuple of int
        The example first.
    params : QuantParams
        Range, scale, zero point and ends of the tensor.
    sources : dict of str to int or float
        What it is computed from: the accumulator of each source, relative to its zero point; the
        float that is quantized; or the integer that is looked up or moved.
    step : Fraction or None
        The real result in integer steps from the zero point, exactly, before it is rounded;
        ``None`` where nothing is rounded.
    low, high : int
        The clamps, unsigned.
    integers : dict of str to int or str
        The unsigned integer by profile, or why the profile has none.
    reference : int or None
        Yours, or that of the profile compared with.
    to_tie, noise : float or None
        As of `qmath.integer.comparison.Difference`.
    """

    tensor: str
    index: tuple[int, ...]
    params: QuantParams
    sources: dict[str, int | float]
    step: Fraction | None
    low: int
    high: int
    integers: dict[str, int | str]
    reference: int | None = None
    to_tie: float | None = None
    noise: float | None = None
    notes: tuple[str, ...] = ()

    def explains(self, value: int) -> bool:
        """Whether float32 noise explains that yours is not `value`."""
        if self.reference is None or self.reference == value:
            return True
        if self.to_tie is None or self.noise is None:
            return False
        return abs(self.reference - value) == 1 and self.to_tie <= self.noise


def explained(
    executor: Executor,
    inputs: Mapping[str, Array],
    at: str,
    profiles: Mapping[str, Profile],
    reference: Profile | Yours | None,
) -> Element:
    """Return one element of a tensor.

    Parameters
    ----------
    executor : Executor
        Computes what lies before it.
    inputs : mapping of str to ndarray
        All data.
    at : str
        ``TENSOR[i, j, …]``.
    profiles : mapping of str to Profile
        Those that are asked.
    reference : Profile or Yours, optional
        What it is compared with.
    """
    name, index = _place(at, executor, len(next(iter(inputs.values()))))
    batch = {key: x[index[0] : index[0] + 1] for key, x in inputs.items()}
    expected: Mapping[str, Array] = {}
    if isinstance(reference, Yours):
        expected = {k: x[index[0] : index[0] + 1] for k, x in reference.integers.items()}
    elif reference is not None:
        with counted_from(index[0]):
            expected = Executor(executor.given, reference).run(batch, keep=executor.quant_params)
    forcing = {
        key: np.clip(x, executor.quant_params[key].low, executor.quant_params[key].high)
        for key, x in expected.items()
    }
    with counted_from(index[0]):
        made = executor.run(batch, forced=forcing)
    if name not in made:
        raise QmathError(
            f"{name} needs a layer that qmath cannot compute; give its outputs (--cut NAME=FILE)"
        )
    values = {**batch, **made, **forcing}
    step, inside = executor.program.step(name), (0, *index[1:])
    if isinstance(step, Requantize):
        found = _rounded(executor, step, index, values, profiles)
    else:
        assert not isinstance(step, FloatStep)  # which `_place` does not find
        found = _unweighted(executor, step, index, batch, forcing, profiles)
    notes = reference.notes if isinstance(reference, Yours) else ()
    yours = int(expected[name][inside]) if name in expected else None
    return replace(found, reference=yours, notes=notes)


def _place(at: str, executor: Executor, examples: int) -> tuple[str, tuple[int, ...]]:
    """Return the tensor and the index that a text means, the example first."""
    pattern = r"\s*(.*?)\s*\[\s*(-?\d{1,18}(?:\s*,\s*-?\d{1,18})*)\s*,?\s*\]\s*"
    match = re.fullmatch(pattern, at, re.DOTALL) if isinstance(at, str) else None
    if match is None:
        raise QmathError(f"{at!r} is no element; write TENSOR[i,j,…], as conv1/output[0,2,3,1]")
    name = tensor_named(executor.program, match[1])
    index = tuple(int(part) for part in match[2].split(","))
    shape = (examples, *executor.program.step(name).shape)
    if len(index) == len(shape) - 1:
        index = (0, *index)
    if len(index) != len(shape):
        raise QmathError(
            f"{name} has the shape {shape}, the examples first; give {len(shape)} indices in {at}, "
            f"or {len(shape) - 1} for the first example"
        )
    if not all(-n <= i < n for i, n in zip(index, shape, strict=True)):
        raise QmathError(f"{name} has the shape {shape}, the examples first; {at} lies outside")
    return name, tuple(i % n for i, n in zip(index, shape, strict=True))


def _rounded(
    executor: Executor,
    step: Requantize,
    index: tuple[int, ...],
    values: Mapping[str, Array],
    profiles: Mapping[str, Profile],
) -> Element:
    """Return an element that is rounded from accumulators."""
    inside = (0, *index[1:])
    sums = executor.accumulators(step, values)
    terms = step.value.terms
    y = _exactly(step, [total[inside] for total in sums], inside)
    low, high = (int(np.broadcast_to(end, step.shape)[inside[1:]]) for end in clamps(step))
    noise = np.broadcast_to(float32_noise(step, values), sums[0].shape)
    zero_point = step.params.zero_point
    return Element(
        step.name,
        index,
        step.params,
        {term.source: int(total[inside]) for term, total in zip(terms, sums, strict=True)},
        y,
        low + zero_point,
        high + zero_point,
        _by_profile(executor, step, values, inside, profiles),
        to_tie=_to_tie(y),
        noise=float(noise[inside]),
    )


def _unweighted(
    executor: Executor,
    step: QuantizeStep | MoveStep | TableStep | SoftmaxStep,
    index: tuple[int, ...],
    batch: Mapping[str, Array],
    forcing: Mapping[str, Array],
    profiles: Mapping[str, Profile],
) -> Element:
    """Return an element that is no sum: all but a softmax is every profile's alike."""
    params, inside = step.params, (0, *index[1:])
    found = executor.run(batch, forced=forcing)
    source = {**batch, **found, **forcing}[step.source]
    y, sources = None, {}
    integers: dict[str, int | str] = dict.fromkeys(profiles, int(found[step.name][inside]))
    if isinstance(step, QuantizeStep):
        x = float(source[inside])
        y, sources = Fraction(x) / Fraction(params.scale), {step.source: x}
    elif source.shape[1:] == step.shape:
        sources = {step.source: int(source[inside])}
    if isinstance(step, SoftmaxStep):
        for key, profile in profiles.items():
            made = Executor(executor.program, profile).apply(step, {step.source: source})
            integers[key] = int(made[inside])
    return Element(
        step.name,
        index,
        params,
        sources,
        y,
        params.low,
        params.high,
        integers,
        to_tie=None if y is None else _to_tie(y),
    )


def _to_tie(y: Fraction) -> float:
    return float(abs(y - math.floor(y) - Fraction(1, 2)))


def _exactly(step: Requantize, sums: list[Any], inside: tuple[int, ...]) -> Fraction:
    """Return the real result in steps, with an activation's slope, but not its clamps."""

    def at(array: Array) -> Fraction:
        return Fraction(float(np.broadcast_to(array, step.shape)[inside[1:]]))

    value = step.value
    total = at(value.offset)
    for term, accumulator in zip(value.terms, sums, strict=True):
        total += at(term.scale) * int(accumulator)
    if value.activation is not None and total < 0 and value.activation.leaks:
        total *= at(np.asarray(value.activation.slope))
    return total / Fraction(step.params.scale)


def _by_profile(
    executor: Executor,
    step: Requantize,
    values: Mapping[str, Array],
    inside: tuple[int, ...],
    profiles: Mapping[str, Profile],
) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    for name, profile in profiles.items():
        try:
            result = executor.under(profile, step, values)
        except QmathError as error:
            found[name] = str(error)
        else:
            found[name] = int(result[inside]) + step.params.zero_point
    return found
