"""Mistakes after the sum: rounding, bias, multiplier, clamps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.judging.mistakes.case import Case, Mistake
from qmath.integer.profiles.exact import Exact, Profile, unrounded
from qmath.integer.profiles.fixed import Integer
from qmath.integer.profiles.litert import Litert
from qmath.integer.profiles.tflite import Tflite
from qmath.integer.profiles.tflite_arithmetic import (
    quantize_multiplier,
    round_half_away,
    rounding_divide_by_pot,
)
from qmath.integer.profiles.tflm import Tflm
from qmath.integer.profiles.xnnpack import Xnnpack
from qmath.integer.program import (
    Requantize,
    UnroundedSum,
)

__all__ = [
    "biases",
    "double_rounding",
    "is_same",
    "missing_clamps",
    "multipliers",
    "named_profiles",
    "other_profiles",
    "roundings",
]

Array = NDArray[Any]


def roundings(case: Case) -> Iterator[Mistake]:
    """Yield other roundings of the real result."""
    if case.y is None:
        return
    zero_point = case.step.params.zero_point
    signed = zero_point - (1 << (case.step.params.num_bits - 1))
    for name, words, function in _ROUNDINGS:
        yield Mistake(name, words, partial(_rounded_by, function=function))
    for name, words, function in _ROUNDINGS[:3]:
        for offset in dict.fromkeys((zero_point, signed)):
            if offset:
                yield Mistake(
                    name, f"{words}, after the zero point {offset} was added",
                    partial(_rounded_by, function=function, offset=offset),
                )  # fmt: skip


def _rounded_by(case: Case, function: Callable[[Array], Array], offset: float = 0) -> Array:
    assert case.y is not None
    return case.clamped(function(case.y + offset) - offset)


_ROUNDINGS: tuple[tuple[str, str, Callable[[Array], Array]], ...] = (
    ("half-even", "ties are rounded to even, not up", np.rint),
    ("half-away", "ties are rounded away from zero, not up", round_half_away),
    ("truncation", "it is truncated toward zero, not rounded to the nearest", np.trunc),
    ("floor", "it is rounded down, without the half, not to the nearest", np.floor),
    ("ceiling", "it is rounded up, not to the nearest", np.ceil),
    ("half-down", "ties are rounded down, not up", lambda y: np.ceil(y - 0.5)),
)


def double_rounding(case: Case) -> Iterator[Mistake]:
    """Yield a product rounded twice: to 31 bits, and then to an integer, away from zero."""
    if isinstance(case.step, Requantize) and len(case.step.value.terms) == 1:
        words = "it is rounded twice: the high half of the product, and then the shift"
        yield Mistake("double rounding", words, _rounded_twice)


def _rounded_twice(case: Case) -> Array:
    assert isinstance(case.step, Requantize)
    assert case.y is not None
    scale = np.abs(case.step.value.terms[0].scale) / case.step.params.scale
    bits = np.maximum(-quantize_multiplier(scale)[1], 0)
    high = np.floor(np.ldexp(case.y, bits.astype(np.int32)) + 0.5)
    twice = rounding_divide_by_pot(high.astype(np.int64), bits)
    return case.clamped(twice)


def biases(case: Case) -> Iterator[Mistake]:
    """Yield what may become of the bias, which batch normalization is a part of."""
    step = case.step
    if not isinstance(step, Requantize) or not step.value.offset.any():
        return
    yield Mistake("bias missing", "the bias is missing", partial(_with_offset, factor=0.0))
    yield Mistake("bias subtracted", "the bias is subtracted", partial(_with_offset, factor=-1.0))
    yield Mistake("bias twice", "the bias is added twice", partial(_with_offset, factor=2.0))
    if len(step.value.terms) == 1 and step.value.terms[0].scale.all():
        words = "the bias was added before the multiply, rounded to steps of the accumulator"
        yield Mistake("bias before the multiply", words, _bias_before)
    words = "the bias was added after the product was rounded, rounded by itself"
    yield Mistake("bias after rounding", words, _bias_after)


def _offset(step: Requantize, offset: Array) -> Requantize:
    return replace(step, value=replace(step.value, offset=np.asarray(offset)))


def _with_offset(case: Case, factor: float) -> Array:
    assert isinstance(case.step, Requantize)
    step = _offset(case.step, case.step.value.offset * factor)
    return case.rounded(unrounded(step, case.sums))


def _bias_before(case: Case) -> Array:
    step = case.step
    assert isinstance(step, Requantize)
    bias = np.rint(step.value.offset / step.value.terms[0].scale)
    return case.rounded(unrounded(_offset(step, np.zeros(())), [case.sums[0] + bias]))


def _bias_after(case: Case) -> Array:
    step = case.step
    assert isinstance(step, Requantize)
    product = np.floor(unrounded(_offset(step, np.zeros(())), case.sums) + 0.5)
    return case.clamped(product + np.floor(step.value.offset / step.params.scale + 0.5))


@functools.cache
def named_profiles() -> dict[str, Profile]:
    """Return every profile that anyone's integers may be of, the likeliest first."""
    return {
        "tflite": Tflite(),
        "xnnpack": Xnnpack(),
        "tflm": Tflm(),
        "litert": Litert(),
        "xnnpack with INT4 weights": Xnnpack(int4="litert"),
        "tflite with --rounding single": Tflite("single"),
        "tflm with --rounding single": Tflm("single"),
        "exact": Exact(),
        "integer": Integer(),
    }


def is_same(profile: Profile, other: Profile) -> bool:
    """Whether two profiles round alike: of one kind, with the same options."""
    options = ("rounding", "multiplier_bits", "int4")
    return profile.name == other.name and all(
        getattr(profile, option, None) == getattr(other, option, None) for option in options
    )


def other_profiles(case: Case) -> Iterator[Mistake]:
    """Yield the profiles but for exactly the one that is judged: its options may be others."""
    if not isinstance(case.step, Requantize):
        return
    for name, profile in named_profiles().items():
        if not is_same(profile, case.executor.profile):
            words = f"computed under the profile {name}"
            yield Mistake(f"profile {name}", words, partial(_under, profile=profile))


def _under(case: Case, profile: Profile) -> Array:
    step = case.step
    assert isinstance(step, Requantize)
    return case.executor.under(profile, step, case.values)


def missing_clamps(case: Case) -> Iterator[Mistake]:
    """Yield clamps that are missing, of the range or of an activation."""
    if case.y is None:
        return
    for name, ends in (
        ("above", (True, False)),
        ("below", (False, True)),
        ("both", (False, False)),
    ):
        where = (
            "clamps are missing on both sides" if name == "both" else f"the clamp {name} is missing"
        )
        yield Mistake(f"clamp missing {name}", where, partial(_clamped_at, ends=ends))
    step = case.step
    if isinstance(step, Requantize) and step.value.activation is not None:
        yield Mistake("activation missing", "the activation is missing", _without_activation)
    for bits in dict.fromkeys((step.params.num_bits, 8, 16)):
        for ends in ((True, False), (False, True), (False, False)):
            words = f"results wrap at {bits} bits where a clamp is missing"
            yield Mistake("clamp missing, wraps", words, partial(_wrapped, bits=bits, ends=ends))
        if bits > step.params.num_bits:
            words = f"it is clamped to {bits} bits, not to its range"
            yield Mistake("clamp of the storage", words, partial(_stored, bits=bits))


def _clamped_at(case: Case, ends: tuple[bool, bool]) -> Array:
    """Return the result clamped below, above, or not at all."""
    assert case.y is not None
    y = np.floor(case.y + 0.5)
    y = np.maximum(y, case.limits[0]) if ends[0] else y
    return np.minimum(y, case.limits[1]) if ends[1] else y


def _without_activation(case: Case) -> Array:
    step = case.step
    assert isinstance(step, Requantize)
    plain = replace(step, value=replace(step.value, activation=None))
    return np.clip(np.floor(unrounded(plain, case.sums) + 0.5), *step.params.limits)


def _wrapped(case: Case, bits: int, ends: tuple[bool, bool]) -> Array:
    zero_point = case.step.params.zero_point
    stored = _clamped_at(case, ends) + zero_point
    return np.asarray(np.mod(stored, 2.0**bits) - zero_point)


def _stored(case: Case, bits: int) -> Array:
    zero_point = case.step.params.zero_point
    return np.clip(_clamped_at(case, (False, False)), -zero_point, (1 << bits) - 1 - zero_point)


def multipliers(case: Case) -> Iterator[Mistake]:
    """Yield multipliers of few bits."""
    if not isinstance(case.step, Requantize):
        return
    for bits in (16, 15, 8, 7):
        words = f"the multiplier is truncated to {bits} bits"
        yield Mistake("multiplier truncated", words, partial(_with_multiplier, bits=bits))
        words = f"the multiplier is rounded to {bits} bits"
        yield Mistake("multiplier rounded", words, partial(_with_multiplier, bits=bits, to=np.rint))
        if bits >= 8:
            words = f"multiplier and bias are those of --multiplier-bits {bits}"
            profile = Integer(bits)
            yield Mistake("multiplier rounded", words, partial(_under, profile=profile))


def _with_multiplier(case: Case, bits: int, to: Callable[[Array], Array] = np.floor) -> Array:
    step = case.step
    assert isinstance(step, Requantize)
    terms = []
    for term in step.value.terms:
        mantissa, exponent = np.frexp(np.abs(term.scale) / step.params.scale)
        few = np.ldexp(to(np.ldexp(mantissa, bits)), exponent - bits) * np.sign(term.scale)
        terms.append(replace(term, scale=np.asarray(few * step.params.scale)))
    value = UnroundedSum(tuple(terms), step.value.offset, step.value.shape, step.value.activation)
    return case.rounded(unrounded(replace(step, value=value), case.sums))
