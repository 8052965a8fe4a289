"""Rounding: float64 and fixed point agree but for ties, and constants never overflow."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath
from qmath.errors import QmathError
from qmath.exports.bundle import quantize_model
from qmath.integer.api import element, profile_named
from qmath.integer.profiles.exact import Exact
from qmath.integer.profiles.fixed import FixedPoint, Integer, constants
from qmath.integer.program import Activation, QuantParams, Requantize, Term, UnroundedSum
from tests.exports.integer_networks import of_powers_of_two

widths = st.integers(2, 16)
scales = st.floats(2.0**-40, 2.0**10)
ACTIVATIONS = [
    None,
    Activation(),
    Activation(limit=6.0),
    Activation(slope=0.3),
    Activation(slope=-0.5),
]
ACTIVATIONS += [Activation(slope=1.75), Activation(slope=0.25, limit=6.0)]


def step(
    scale: float, offset: float, num_bits: int, zero_point: int, activation: Activation | None
) -> Requantize:
    """Return a step with one term of `scale`, to a scale of 0.5."""
    params = QuantParams(0.5, zero_point, 0, 2**num_bits - 1, num_bits, 0.0, 1.0)
    term = Term("x", (), np.float64(scale), params)
    return Requantize("y", UnroundedSum((term,), np.float64(offset), (), activation), params)


def real(a: int, scale: float, offset: float, activation: Activation | None) -> Fraction:
    """Return the exact result in steps of the output."""
    y = Fraction(a) * Fraction(scale) + Fraction(offset)
    if activation is not None:
        y = max(y, 0) + Fraction(activation.slope) * min(y, 0)
        if np.isfinite(activation.limit):
            y = min(y, Fraction(activation.limit))
    return y / Fraction(1, 2)


@given(
    scales, st.floats(-100, 100), widths, st.sampled_from(ACTIVATIONS),
    st.lists(st.integers(-(2**23), 2**23), min_size=1, max_size=20), st.data(),
)  # fmt: skip
def test_profiles_round_the_real_result(
    scale: float, offset: float, num_bits: int, activation: Activation | None, a: list[int],
    data: st.DataObject,
) -> None:  # fmt: skip
    zero_point = data.draw(st.integers(0, 2**num_bits - 1))
    y = step(scale, offset, num_bits, zero_point, activation)
    sums = [np.array(a, np.float64)]
    low, high = y.params.limits
    fixed_point = Integer().constants(y, [(-(2**23), 2**23)])[0]
    for profile in (Exact(), Integer()):
        found = profile.requantize(y, sums, [(-(2**23), 2**23)])
        slack = Fraction(float(fixed_point.error)) if profile.name == "integer" else Fraction(0)
        for value, accumulator in zip(found, a, strict=True):
            exact = real(accumulator, scale, offset, activation)
            nearest = min(max(exact, low), high)
            assert low <= value <= high
            error = Fraction(1, 2) + slack + abs(exact) * Fraction(1, 2**50)
            assert abs(int(value) - nearest) <= error


@given(st.floats(2.0**-30, 1.0), st.floats(-1e4, 1e4), st.integers(8, 31), st.integers(1, 2**30))
def test_fixed_point_constants_fit_their_widths(
    scale: float, offset: float, multiplier_bits: int, largest: int
) -> None:
    y = step(scale, offset, 8, 0, None)
    (fixed,) = Integer(multiplier_bits).constants(y, [(-largest, largest)])
    assert all((np.abs(m) < 2**multiplier_bits).all() for m in fixed.multipliers)
    assert (fixed.shift >= 1).all()
    assert largest * abs(int(fixed.multipliers[0])) + abs(int(fixed.addend)) < 2**63
    exact = Fraction(scale) * 2
    error = abs(Fraction(int(fixed.multipliers[0]), 2 ** int(fixed.shift)) - exact) * largest
    assert error <= Fraction(float(fixed.error))


def test_multipliers_that_round_up_to_the_next_power_of_two_fit() -> None:
    (fixed,) = Integer(8).constants(step(0.499, 0.0, 8, 0, None), [(-9, 9)])  # 0.998 * 2**8
    assert fixed.multipliers[0] < 256


def test_half_is_rounded_up() -> None:
    y = step(0.25, 0.0, 8, 128, None)  # half a step for each unit
    for profile in (Exact(), Integer()):
        found = profile.requantize(y, [np.array([-3.0, -1.0, 1.0, 3.0])], [(-3, 3)])
        assert found.tolist() == [-1, 0, 1, 2]


def test_refusals() -> None:
    with pytest.raises(QmathError, match="multiplier_bits must be 8 to 31, got 7"):
        Integer(7)
    with pytest.raises(QmathError, match="no bits are left for rounding"):
        Integer().constants(step(1e12, 0.0, 8, 0, None), [(-(2**30), 2**30)])
    with pytest.raises(QmathError, match="there is no profile 'fast'; use one of: exact, integer"):
        profile_named("fast")
    with pytest.raises(QmathError, match="the profile 'exact' has no option 'multiplier_bits'"):
        profile_named("exact", multiplier_bits=8)


@pytest.mark.parametrize("value", ["8", None, [31], 8.0, 8.5, np.array([12]), np.float32(9)])
def test_multiplier_bits_that_are_no_whole_number_are_refused(value: Any) -> None:
    words = f"multiplier_bits must be a whole number, 8 to 31, got {value!r}"
    model, x = qmath.load("reference/samples/default8.h5"), np.zeros((1, 8, 8, 1), np.float32)
    for call in (
        lambda: qmath.run(model, x, multiplier_bits=value),
        lambda: qmath.diff(model, x, multiplier_bits=value),
        lambda: element(model, x, "conv1[0,0,0]", multiplier_bits=value),
        lambda: quantize_model(model, multiplier_bits=value),
    ):
        with pytest.raises(QmathError, match=re.escape(words)):
            call()


def test_multiplier_bits_of_numpy_are_those_of_python() -> None:
    for value in (np.int8(12), np.uint64(12), np.array(12)):
        assert type(Integer(value).multiplier_bits) is int
    model = qmath.load("reference/samples/default8.h5")
    found = quantize_model(model, multiplier_bits=np.int64(12))
    assert found.manifest == quantize_model(model, multiplier_bits=12).manifest
    json.dumps(found.manifest)


@pytest.mark.parametrize(
    ("profile", "option", "value", "words"),
    [
        ("xnnpack", "packed", 3, "packed must be {TENSOR: bits}, with bits of 2, 4 or 8, got 3"),
        ("xnnpack", "packed", {"k": "4"}, "with bits of 2, 4 or 8; it has '4' for 'k'"),
        ("xnnpack", "packed", {"k": 3}, "with bits of 2, 4 or 8; it has 3 for 'k'"),
        ("xnnpack", "packed", {"k": [4]}, "with bits of 2, 4 or 8; it has [4] for 'k'"),
        ("xnnpack", "packed", {3: 4}, "with bits of 2, 4 or 8; it has 4 for 3"),
        ("xnnpack", "int4", np.arange(2), "int4 must be 'tensorflow' or 'litert', got array("),
        ("tflm", "rounding", np.arange(2), "rounding must be 'double' or 'single', got array("),
        ("litert", "stored", 3, "stored must be {STEP: {TENSOR: TfliteStored}}, got 3"),
        ("tflite", "stored", {"s": {"k": 3}}, "TfliteStored}}; it has {'k': 3} for 's'"),
        ("tflite", "stored", {"s": 3}, "TfliteStored}}; it has 3 for 's'"),
        ("tflite", "converts", "no", "converts must be True or False, got 'no'"),
    ],
)
def test_options_of_another_type_are_refused(
    profile: str, option: str, value: object, words: str
) -> None:
    with pytest.raises(QmathError, match=re.escape(words)):
        profile_named(profile, **{option: value})


def test_an_element_is_named_by_a_text() -> None:
    with pytest.raises(QmathError, match=re.escape("3 is no element; write TENSOR[i,j,…]")):
        element("reference/samples/default8.h5", np.zeros((1, 8, 8, 1)), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [8, 24, 31])
def test_a_power_of_two_is_a_shift_alone(bits: int) -> None:
    (fixed,) = constants(quantize_model(of_powers_of_two()).program, bits)["conv2d2/output"]
    bias, shift = fixed.shift_only
    assert sorted(shift.tolist()) == [6, 7, 8]  # from scales of 2**-7 and 2**-5, -6, -7 to 2**-6
    a = np.arange(-70_000, 70_000)[:, np.newaxis]
    expected = (a * fixed.multipliers[0] + fixed.addend) >> fixed.shift
    np.testing.assert_array_equal((a + bias) >> shift, expected)


@pytest.mark.parametrize(
    ("multipliers", "shift"),
    [(([3],), [5]), (([4, 5],), [6, 6]), (([-4],), [6]), (([0],), [6]), (([8], [8]), [6]),
     (([8],), [2])],
)  # fmt: skip
def test_other_multipliers_are_no_shift_alone(
    multipliers: tuple[list[int], ...], shift: list[int]
) -> None:
    arrays = tuple(np.array(m, np.int64) for m in multipliers)
    shifts = np.array(shift, np.int64)
    fixed = FixedPoint(arrays, np.full_like(shifts, 9), shifts, (shifts,) * len(arrays), 0.0)
    assert fixed.shift_only is None
