from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmath.kernels import affine, exact
from tests.strategies import cases, finite_float32, ordered_ranges, usable_ranges

HALF = Fraction(1, 2)


def brute_force(x, low, high, num_bits, narrow_range, zero_point):
    """One element, in the words of the module: no float64, no filter."""
    first, last = int(narrow_range), 2**num_bits - 1
    low, high = (Fraction(0) if abs(e) < 2.0**-126 else Fraction(float(e)) for e in (low, high))
    if low == high:
        return 0, False
    bounds = (Fraction(first - zero_point), Fraction(last - zero_point))
    if np.isinf(x):
        steps = bounds[int(x > 0)]
    else:
        steps = min(max(Fraction(float(x)) * (last - first) / (high - low), bounds[0]), bounds[1])
    tolerance = 7 * Fraction(2) ** (num_bits - 24)
    tolerance += Fraction(2) ** -125 * (last - first) / (high - low)
    return (steps + HALF) // 1, abs(steps % 1 - HALF) <= tolerance


@pytest.mark.slow
@given(cases(per_channel=True, pairs=ordered_ranges(finite_float32)))
def test_integers_and_near_ties_are_those_of_fractions(case):
    low, high, num_bits, narrow_range = case.range
    x = case.numbers
    zero, _ = exact.zero_points(low, high, num_bits, narrow_range=narrow_range)
    found = exact.relative_integers(
        x, low, high, num_bits, narrow_range=narrow_range, zero_point=zero
    )
    for index in np.ndindex(x.shape):
        c = index[1]
        integer, near = brute_force(x[index], low[c], high[c], num_bits, narrow_range, int(zero[c]))
        assert found.near_tie[index] == near
        # On the tie itself either is right, and float64 may have rounded to it.
        assert near or found.integers[index] == integer


@pytest.mark.slow
@given(cases(per_channel=True, pairs=usable_ranges()), st.booleans())
def test_float32_differs_at_near_ties_only(case, per_axis):
    low, high, num_bits, narrow_range = case.range
    x = case.numbers
    if not per_axis:
        x, low, high = x[:, 0], low[0, ...], high[0, ...]
    quantized = affine.quantize(
        x, low, high, num_bits, narrow_range=narrow_range, per_axis=per_axis, signed=False
    )
    zero = quantized.zero_point
    found = exact.relative_integers(
        x, low, high, num_bits, narrow_range=narrow_range, zero_point=zero
    )
    differs = quantized.values.astype(np.int32) - zero != found.integers
    assert not (differs & ~found.near_tie).any()
    zeros = exact.zero_points(low, high, num_bits, narrow_range=narrow_range)
    assert not ((zeros.zero_point != zero) & ~zeros.near_tie).any()


@pytest.mark.parametrize("num_bits", range(2, 17))
def test_the_tolerance_is_not_far_above_what_happens(num_bits):
    """TensorFlow's kernels do decide against the exact integer: at a fraction of the tolerance."""
    rng = np.random.default_rng(num_bits)
    low, high = np.float32(-rng.uniform(0.5, 1)), np.float32(rng.uniform(0.5, 1))
    step = (float(high) - float(low)) / (2**num_bits - 1)
    ties = (rng.integers(-(2 ** (num_bits - 1)), 2 ** (num_bits - 1), 4000) + 0.5) * step
    x = (ties + rng.normal(size=ties.size) * step * 2.0 ** (num_bits - 24)).astype(np.float32)
    quantized = affine.quantize(x, low, high, num_bits, signed=False)
    found = exact.relative_integers(
        x, low, high, num_bits, narrow_range=False, zero_point=quantized.zero_point
    )
    differs = quantized.values.astype(np.int32) - quantized.zero_point != found.integers
    assert differs.any()
    assert found.near_tie[differs].all()


def test_dead_ranges_have_no_ties():
    found = exact.relative_integers(
        np.float32([[1, 2]]), np.float32([0, -1]), np.float32([0, 1]), 4, narrow_range=False,
        zero_point=[8, 8])  # fmt: skip
    assert found.integers.tolist() == [[0, 7]]
    assert not found.near_tie[0, 0]


def test_arrays_larger_than_a_chunk():
    x = np.linspace(-1, 1, 600_001, dtype=np.float32)
    found = exact.relative_integers(x, -1, 1, 8, narrow_range=True, zero_point=128)
    assert found.integers[[0, 300_000, -1]].tolist() == [-127, 0, 127]
    whole = exact.relative_integers(
        np.stack([x, x], -1), [-1, -1], [1, 1], 8, narrow_range=True, zero_point=[128, 128]
    )
    np.testing.assert_array_equal(whole.integers[:, 1], found.integers)
    np.testing.assert_array_equal(whole.near_tie[:, 0], found.near_tie)


@pytest.mark.slow
@given(cases(per_channel=True, pairs=ordered_ranges(finite_float32)), st.booleans())
def test_the_quick_way_to_near_ties_is_the_exact_one(case, per_axis):
    low, high, num_bits, narrow_range = case.range
    x = case.numbers
    if not per_axis:
        x, low, high = x[:, 0], low[0, ...], high[0, ...]
    zero, _ = exact.zero_points(low, high, num_bits, narrow_range=narrow_range)
    settings = {"narrow_range": narrow_range, "zero_point": zero}
    expected = exact.relative_integers(x, low, high, num_bits, **settings).near_tie
    np.testing.assert_array_equal(exact.near_ties(x, low, high, num_bits, **settings), expected)


@pytest.mark.parametrize("num_bits", range(2, 17))
def test_every_near_tie_near_every_half_integer_is_found(num_bits):
    rng = np.random.default_rng(num_bits)
    low, high = np.float32(-0.7), np.float32(1.9)
    zero, _ = exact.zero_points(low, high, num_bits, narrow_range=False)
    half = rng.integers(0, 2**num_bits - 1, 500) + 0.5 - float(zero)
    centre = np.float32(half * (float(high) - float(low)) / (2**num_bits - 1))
    offset = np.arange(-40, 41, dtype=np.int32)
    x = (centre.view(np.int32)[:, None] + offset).view(np.float32)
    settings = {"narrow_range": False, "zero_point": zero}
    expected = exact.relative_integers(x, low, high, num_bits, **settings).near_tie
    assert expected.any()
    np.testing.assert_array_equal(exact.near_ties(x, low, high, num_bits, **settings), expected)
