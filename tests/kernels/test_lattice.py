"""Integers from values: against a search that tries everything, and where they are known."""

from __future__ import annotations

import doctest
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

import qmath
from qmath.errors import QmathError
from qmath.kernels.lattice import recover
from tests.helpers import assert_same_bits

REFERENCE = Path(__file__).parents[2] / "reference"
PRODUCT = "(integers - zero_point) * scale"
QUOTIENT = "(integers - zero_point) / scale"
SHIFTED_QUOTIENT = "2 * (integers / scale) - 1"
SHIFTED_PRODUCT = "2 * (integers * scale) - 1"
F = np.float32


def real(form, integers, zero_point, scale):
    """Evaluate a form as its words say, in float32."""
    steps = (integers.astype(np.int32) - zero_point).astype(np.float32)
    if form == PRODUCT:
        return steps * scale
    if form == QUOTIENT:
        return steps / scale
    return F(2) * (steps / scale if form == SHIFTED_QUOTIENT else steps * scale) - F(1)


def assert_exact(found, values):
    """Assert that the integers give the values in every bit, but for the sign of zeros."""
    values = np.asarray(values, np.float32)
    again = np.asarray(real(found.form, found.integers, found.zero_point, found.scale))
    assert_same_bits(again, values + F(0))
    assert found.negative_zeros == (np.signbit(values) & (values == 0)).sum()
    highest = np.asarray(real(found.form, found.integers, found.zero_point, found.scale_max))
    assert_same_bits(highest, again)
    assert not found.max_error_ulp.any()


# --- a search that tries everything


def neighbours(scale, count=4):
    """Return the float32 numbers around each, `count` on either side."""
    bits = np.asarray(scale, F).view(np.int32)[:, np.newaxis] + np.arange(-count, count + 1)
    found = np.maximum(bits, 0).astype(np.int32).view(np.float32)
    return np.where(np.isfinite(found) & (found > 0), found, np.nan)


def searched(values, num_bits, form):
    """Return {largest integer: the scales that give all values}, by trying scales and integers."""
    values = np.unique(np.asarray(values, F).astype(np.float64))
    top = np.abs(values).max()
    span = 2**num_bits - 1
    largest = np.arange(1.0, span + 1)
    scales = neighbours(top / largest if form == PRODUCT else largest / top)
    fits, low, high = np.isfinite(scales), np.zeros(scales.shape), np.zeros(scales.shape)
    for value in values:
        exact = value / scales if form == PRODUCT else value * scales.astype(np.float64)
        hit = np.zeros(scales.shape, bool)
        for offset in (-1, 0, 1):
            k = np.rint(exact) + offset
            again = k.astype(F) * scales if form == PRODUCT else k.astype(F) / scales
            same = again == F(value)
            low, high = (
                np.where(same, np.minimum(low, k), low),
                np.where(same, np.maximum(high, k), high),
            )
            hit |= same
        fits &= hit
    fits &= high - low <= span
    fits &= np.maximum(high, -low) == largest[:, np.newaxis]
    return {int(largest[row]): scales[row][fits[row]] for row in np.flatnonzero(fits.any(axis=1))}


def searched_shifted(values, num_bits, form):
    """Return {the integer of 1: its scale}, by trying them all."""
    n = np.arange(1, 2**num_bits).astype(F)
    scale = n if form == SHIFTED_QUOTIENT else F(1) / n
    fits = np.ones(n.size, bool)
    for value in np.unique(values):
        hit = np.zeros(n.size, bool)
        for offset in (-1, 0, 1):
            q = np.rint((float(value) + 1) / 2 * n) + offset
            hit |= (real(form, q, 0, scale) == value) & (q >= 0) & (q <= n)
        fits &= hit
    return {int(key): np.array([scale]) for key, scale in zip(n[fits], scale[fits], strict=True)}


def largest_of(values, form, scale):
    """Return the integer that tells a lattice: of the largest magnitude, or of 1."""
    if "2 *" in form:
        return round(float(scale if form == SHIFTED_QUOTIENT else 1 / scale))
    top = float(np.abs(values).max())
    return round(top / float(scale) if form == PRODUCT else top * float(scale))


def check_against_search(values, num_bits):
    """Compare what is found of one scale with all lattices that there are."""
    with np.errstate(all="ignore"):
        lattices = {form: searched(values, num_bits, form) for form in (PRODUCT, QUOTIENT)}
        for form in (SHIFTED_QUOTIENT, SHIFTED_PRODUCT):
            lattices[form] = searched_shifted(values, num_bits, form)
    if np.abs(values[values != 0]).min() < 2.0**-100:
        lattices[QUOTIENT] = {}  # not tried
    found = recover(values, max_bits=num_bits)
    assert found.form == next((form for form, some in lattices.items() if some), None)
    if found.form is None:
        return
    assert_exact(found, values)
    first = min(lattices[found.form])
    scales = lattices[found.form][first]
    assert (found.scale, found.scale_max) == (scales.min(), scales.max())
    assert largest_of(values, found.form, found.scale) == first
    chosen = relative(values, found.form, found.scale)
    others = set()
    for form, some in lattices.items():
        kind = "2 *" in form
        others |= {
            (largest, kind)
            for largest, scales in some.items()
            if not np.array_equal(relative(values, form, scales[0]), chosen)
        }
    named = [(largest_of(values, form, scale), form) for form, scale, *_ in found.alternatives[0]]
    assert [(largest, "2 *" in form) for largest, form in named] == sorted(others)[:8]
    assert found.is_unique == (not others)
    for (largest, form), other in zip(named, found.alternatives[0], strict=True):
        assert other.scale == lattices[form][largest].min()
        alike = ("2 *" in form) == ("2 *" in found.form)
        assert other.factor == (largest // first if alike and largest % first == 0 else None)


@st.composite
def few_values(draw):
    """Draw values of a lattice of few or many bits, some of them off it."""
    num_bits = draw(st.integers(2, 16))
    span = 2**num_bits - 1
    size = draw(st.integers(1, 6))
    k = draw(st.lists(st.integers(1, span), min_size=size, max_size=size))
    k = np.array(k) * draw(st.sampled_from([1, 1, -1]))
    form = draw(st.sampled_from([PRODUCT, PRODUCT, QUOTIENT]))
    scale = draw(
        st.one_of(
            st.floats(2.0**-20, 2.0**20, width=32),
            st.floats(2.0**-149, 2.0**-120, width=32),
            st.floats(2.0**100, 2.0**127, width=32),
            st.integers(1, 100).map(float),
        )
    )
    with np.errstate(all="ignore"):
        values = k.astype(F) * F(scale) if form == PRODUCT else k.astype(F) / F(scale)
    values = np.where(np.isfinite(values), values, F(1))
    if draw(st.integers(0, 4)) == 0:
        values[0] = np.nextafter(values[0], F(np.inf))
        values = np.where(np.isfinite(values), values, F(1))
    return np.append(values, F(1) if not values.any() else values[-1]), num_bits


@given(few_values())
@example((F([2.0**-149, 2.0**-148]), 8))
@example((F([3 * 2.0**-149, 5 * 2.0**-126]), 16))
@example((F([3.4028235e38, 1.7014117e38]), 4))
@example((F([3.4028235e38, -3.4028235e38]), 3))
@example((F([65534 * 0.3, 65535 * 0.3]), 16))
@example((F([1.0000001, 1.0]), 16))
def test_all_lattices_and_scales_are_those_of_an_exhaustive_search(case):
    check_against_search(*case)


# --- tensors whose integers are known


@dataclass
class Made:
    """Floats, and the integers of a quantizer that made them."""

    values: np.ndarray  # (n, channels), or (n,) for one scale
    integers: np.ndarray  # relative to the zero point; in the shifted forms from 0 on
    form: str
    num_bits: int
    zero_point: np.ndarray
    steps: np.ndarray  # of 1 in the shifted forms


def fake_quantized(rng, num_bits, size, channels):
    """Quantize floats by ranges: symmetric and narrow, symmetric, asymmetric, beyond the values."""
    narrow = bool(rng.integers(2))
    high = F(rng.lognormal(0, 3, channels))
    low = -high if rng.integers(2) else F(-high * rng.random(channels))
    x = F(rng.normal(0, rng.choice([0.02, 0.3, 2]), (size, channels)) * high)
    ends = (low, high) if channels > 1 else (low[0], high[0])
    if channels == 1:
        x = x[:, 0]
    quantized = qmath.quantize(x, *ends, num_bits, narrow_range=narrow, per_axis=channels > 1)
    suffix = "_per_channel" if channels > 1 else ""
    kernel = getattr(qmath, f"fake_quant_with_min_max_vars{suffix}")
    values = kernel(x, *ends, num_bits, narrow)
    integers = quantized.values.astype(int) - quantized.zero_point
    return Made(values, integers, PRODUCT, num_bits, quantized.zero_point, np.ones(channels))


def random_integers(rng, num_bits, shape):
    """Draw integers of a width: uniform, near zero, multiples, of one sign, one value, or none."""
    half = 2 ** (num_bits - 1)
    kind = rng.integers(6)
    k = rng.integers(-half, half, shape)
    if kind == 1:
        k = np.clip(np.rint(rng.normal(0, half / 4, shape)), -half, half - 1).astype(int)
    if kind == 2:
        factor = rng.integers(1, half + 1)
        k = k // factor * factor
        k[k < -half] = 0
    if kind == 3:
        k = np.minimum(np.abs(k), half - 1)
    if kind == 4:
        k = np.where(rng.random(shape) < 0.5, k.flat[0], 0)
    if kind == 5 and rng.integers(3) == 0:
        k = np.zeros(shape, int)
    return k


def multiplied(rng, num_bits, size, channels):
    """Return integers times a scale, or divided by one: ``round(x * S) / S``."""
    shape = (size, channels) if channels > 1 else (size,)
    k = random_integers(rng, num_bits, shape)
    form = str(rng.choice([PRODUCT, QUOTIENT]))
    scale = F(2.0 ** rng.uniform(-20, 20, channels))
    if rng.integers(3) == 0:
        scale = F(rng.integers(1, 300, channels))
    scale = scale if channels > 1 else scale[0]
    zero = np.zeros(channels, int) if channels > 1 else np.array(0)
    return Made(real(form, k, 0, scale), k, form, num_bits, zero, np.ones(channels))


def shifted(rng, num_bits, size, channels):
    """Return DoReFa's integers, in 2**n - 1 steps or another number of them."""
    n = np.full(channels, 2**num_bits - 1)
    if rng.integers(3) == 0:
        n = rng.integers(1, 2**num_bits, channels)
    q = rng.integers(0, n + 1, (size, channels))
    form = str(rng.choice([SHIFTED_QUOTIENT, SHIFTED_PRODUCT]))
    scale = F(n) if form == SHIFTED_QUOTIENT else F(1) / F(n)
    values = real(form, q, 0, scale)
    if channels == 1:
        values, q = values[:, 0], q[:, 0]
    return Made(values, q, form, num_bits, np.zeros(channels, int), n)


def made(rng):
    num_bits = int(rng.integers(2, 17))
    size = int(rng.choice([1, 2, 3, 4, 5, 8, 20, 100]))
    channels = int(rng.choice([1, 1, 1, 2, 5]))
    maker = [fake_quantized, multiplied, shifted][rng.choice([0, 0, 1, 1, 2])]
    return maker(rng, num_bits, size, channels)


def check_made(tensor, max_bits):
    axis = tensor.values.ndim - 1 if tensor.values.ndim > 1 else None
    found = recover(tensor.values, max_bits=max_bits, axis=axis)
    assert found.form is not None
    assert found.num_bits <= max_bits
    assert_exact(found, tensor.values)
    channels = tensor.steps.size
    columns = [
        np.reshape(x, (-1, channels)).T for x in (tensor.values, found.integers, tensor.integers)
    ]
    for channel, (values, integers, truth) in enumerate(zip(*columns, strict=True)):
        truth = truth - tensor.steps[channel] / 2 if "2 *" in tensor.form else truth
        lattices = [(found.form, np.reshape(found.scale, -1)[min(channel, found.scale.size - 1)])]
        lattices += [(other.form, other.scale) for other in found.alternatives[channel]]
        named = [relative(values, *lattice) for lattice in lattices]
        check_channel(found.ambiguities[channel], integers, truth, named)
    assert found.is_unique == (not any(found.ambiguities))
    if tensor.form == found.form == PRODUCT and found.is_unique:
        assert (found.zero_point_min <= tensor.zero_point).all()
        assert (tensor.zero_point <= found.zero_point_max).all()


def relative(values, form, scale):
    """Return the integers of a lattice relative to real zero."""
    values, scale = values.astype(float), float(scale)
    if "2 *" in form:
        steps = scale if form == SHIFTED_QUOTIENT else round(1 / scale)
        return np.rint((values + 1) / 2 * steps) - steps / 2
    if not scale:
        return values
    return np.rint(values / scale if form == PRODUCT else values * scale)


def check_channel(ambiguity, integers, truth, named):
    """Assert that a quantizer's own integers are found, or that they are among those named."""
    if ambiguity == "":
        np.testing.assert_array_equal(named[0], truth)
    elif ambiguity == "all zero":
        assert not truth.any()
    elif len(named) <= 8:  # all of them
        assert any(np.array_equal(other, truth) for other in named)
    elif ambiguity == "one magnitude":
        assert np.unique(np.abs(truth[truth != 0])).size == 1
    else:
        assert ambiguity in ("multiples", "other integers")
        if ambiguity == "multiples":
            largest = np.abs(integers.astype(int)).argmax()
            np.testing.assert_array_equal(truth * named[0][largest], named[0] * truth[largest])


@given(st.integers(0, 2**40))
def test_integers_that_are_known_are_found_or_named(seed):
    """2,000 tensors; 50,000 with ``--hypothesis-profile=thorough``."""
    rng = np.random.default_rng(seed)
    for _ in range(10):
        tensor = made(rng)
        check_made(tensor, min(16, tensor.num_bits + int(rng.choice([0, 0, 0, 1, 3]))))


@pytest.mark.parametrize("ulps", [-1, 1])
def test_one_bit_off_in_a_full_lattice_is_no_lattice(ulps):
    """Not even by one unit in the last place of one value."""
    rng = np.random.default_rng(0)
    for num_bits in (4, 8, 12):
        scale = F(rng.uniform(0.01, 1))
        values = np.arange(-(2 ** (num_bits - 1)), 2 ** (num_bits - 1)).astype(F) * scale
        assert recover(values, max_bits=num_bits).is_unique
        index = rng.integers(values.size // 2)
        values[index] = (values[index : index + 1].view(np.int32) + ulps).view(F)[0]
        found = recover(values, max_bits=num_bits)
        assert found.form is None
        assert found.integers is None
        assert found.scale is None
        assert 0 < found.max_error_ulp < 3
        assert repr(found).startswith(f"<RecoveredLattice: none of {num_bits} bits, off by ")


def test_a_tolerance_would_take_random_floats_and_bits_do_not():
    values = F(np.random.default_rng(1).normal(size=(30, 4)))
    for axis in (None, 0, 1):
        found = recover(values, axis=axis)
        assert found.form is None
        assert (found.max_error_ulp > 1).all()
        assert found.max_error_ulp.size == (1 if axis is None else values.shape[axis])


def test_more_values_than_integers():
    values = np.arange(1, 2**16 + 10).astype(F)
    assert recover(values).form is None
    assert recover(values[: 2**16 - 1]).is_unique
    assert recover(np.append(values[: 2**16 - 1], F(0))).num_bits == 16


# --- the zero point


def test_the_zero_points_that_a_width_allows():
    values = np.array([-3, 0, 5], F) * F(0.1)
    found = recover(values, max_bits=4)
    assert (found.num_bits, found.zero_point) == (4, 0)
    assert (found.zero_point_min, found.zero_point_max) == (-5, 2)
    unsigned = recover(values, max_bits=4, signed=False)
    assert (unsigned.zero_point_min, unsigned.zero_point_max) == (3, 10)
    wide = recover(values)
    assert (wide.zero_point_min, wide.zero_point_max) == (3 - 2**15, 2**15 - 6)
    for zero_point in range(-5, 3):
        given_one = recover(values, max_bits=4, zero_point=zero_point)
        assert given_one.integers.tolist() == [zero_point - 3, zero_point, zero_point + 5]
        assert given_one.integers.dtype == np.int8
        assert_exact(given_one, values)
    for zero_point in (-6, 3):
        assert recover(values, max_bits=4, zero_point=zero_point).form is None


def test_a_zero_point_makes_integers_those_of_quantize():
    x = F(np.random.default_rng(0).normal(size=(50, 3)))
    low, high = F([-1, -2, -0.3]), F([2, 0.7, 0.3])
    for signed, dtype in ((True, np.int8), (False, np.uint8)):
        made = qmath.quantize(x, low, high, 6, per_axis=True, signed=signed)
        found = recover(
            made.dequantize(), max_bits=6, axis=-1, zero_point=made.zero_point, signed=signed
        )
        assert found.integers.dtype == dtype
        np.testing.assert_array_equal(found.integers, made.values)
        assert_same_bits(found.scale, made.scale)
        assert found.is_unique


def test_a_zero_point_takes_room_from_coarser_and_finer_lattices():
    values = np.array([-1, 1], F)
    assert recover(values, max_bits=3, zero_point=0).alternatives[0][-1].factor == 3
    assert recover(values, max_bits=3, zero_point=2).is_unique
    assert recover(values, max_bits=3, zero_point=2).num_bits == 3
    assert recover(values, max_bits=3, zero_point=4, signed=False).num_bits == 3


# --- zeros, one value, nothing, extremes


def test_all_zero():
    found = recover(np.zeros((2, 3), F))
    assert found.form == PRODUCT
    assert not found.is_unique
    assert found.ambiguities == ("all zero",)
    assert (found.scale, found.num_bits) == (0, 1)
    assert not found.integers.any()


def test_a_dead_channel_is_named_and_the_others_are_found():
    values = np.array([[-7, 0, 3], [6, 0, 2]], F) * F([0.1, 1, 0.7])
    found = recover(values, max_bits=4, axis=1)
    assert found.ambiguities == ("", "all zero", "multiples")
    assert found.integers.tolist() == [[-7, 0, 3], [6, 0, 2]]
    assert_same_bits(found.scale, F([0.1, 0, 0.7]))
    assert [other.factor for other in found.alternatives[2]] == [2, 3, 4, 5]
    divided = np.array([[-49, 0], [99, 0], [28, 0]], F) / F([100, 1])
    found = recover(divided, max_bits=8, axis=1)
    assert found.form == QUOTIENT
    assert found.scale.tolist() == [100, 1]
    assert found.ambiguities == ("", "all zero")


def test_one_magnitude():
    found = recover(F([0.3, -0.3, 0]), max_bits=4)
    assert found.integers.tolist() == [1, -1, 0]
    assert found.ambiguities == ("one magnitude",)
    assert [other.factor for other in found.alternatives[0]] == [2, 3, 4, 5, 6, 7]
    for values in (F(0.3), np.array(0.3, F), F(0)):
        alone = recover(values)
        for array in (alone.integers, alone.scale, alone.zero_point, alone.zero_point_min):
            assert isinstance(array, np.ndarray)
            assert array.shape == ()
    assert recover(F([0.3, -0.3]), max_bits=2).is_unique  # -2 and 2 do not fit


def test_common_factors_are_divided_out_and_named():
    values = np.array([-6, 0, 4], F) * F(0.1)
    found = recover(values, max_bits=4)
    assert found.integers.tolist() == [-3, 0, 2]
    assert found.ambiguities == ("multiples",)
    double, triple = found.alternatives[0]
    assert (double.factor, double.num_bits, double.form) == (2, 4, PRODUCT)
    assert_same_bits(np.rint(values / double.scale), F([-6, 0, 4]))
    assert triple.factor == 3
    assert len(recover(values).alternatives[0]) == 8


def test_neighbouring_scales_are_no_other_lattice():
    values = F([47, 81]) * F(1.6369617)
    found = recover(values, max_bits=7)
    assert found.is_unique
    assert np.nextafter(found.scale, F(2)) == found.scale_max
    assert_same_bits(F([47, 81]) * found.scale_max, values)
    assert found.scale <= F(1.6369617) <= found.scale_max


def test_other_integers():
    found = recover(F([65534 * 0.3, 65535 * 0.3]))
    assert found.ambiguities == ("other integers",)
    assert found.alternatives[0][0].factor is None


def test_the_sign_of_a_zero_is_counted_and_lost():
    values = np.round(F([-0.2, 0.2, -1.4, 2.9])) * F(0.3)
    assert np.signbit(values[0])
    found = recover(values, max_bits=3)
    assert found.negative_zeros == 1
    assert found.integers.tolist() == [0, 0, -1, 3]
    assert_exact(found, values)


def test_subnormal_scales_and_values():
    for scale in (2.0**-149, 3 * 2.0**-149, 2.0**-126, 1.1e-38):
        k = np.array([-127, 3, 5, 126])
        found = recover(k.astype(F) * F(scale), max_bits=8)
        assert found.integers.tolist() == k.tolist()
        assert found.is_unique
        assert found.scale == F(scale)


def test_the_largest_floats():
    largest = np.finfo(F).max
    found = recover([F(-largest), largest, F(0)], max_bits=2)
    assert found.integers.tolist() == [-1, 1, 0]
    found = recover(F([largest, largest / 127]), max_bits=8)
    assert_exact(found, F([largest, largest / 127]))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_no_values(shape):
    values = np.zeros(shape, F)
    found = recover(values)
    assert found.integers.shape == shape
    assert found.ambiguities == ("empty",)
    for axis in range(len(shape)):
        found = recover(values, axis=axis)
        assert found.integers.shape == shape
        assert found.scale.size == shape[axis]
        assert found.ambiguities == ("empty",) * shape[axis]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_every_axis(axis):
    rng = np.random.default_rng(3)
    k = rng.integers(-8, 8, (3, 4, 5))
    scale = F(rng.random(k.shape[axis]))
    values = np.moveaxis(np.moveaxis(k, axis, -1).astype(F) * scale, -1, axis)
    found = recover(values, axis=axis, max_bits=5)
    assert_exact(found, values)
    assert found.axis == axis % 3
    for channel in range(k.shape[axis]):
        part, truth = (np.take(x, channel, axis).astype(int) for x in (found.integers, k))
        np.testing.assert_array_equal(part * np.gcd.reduce(truth, axis=None), truth)


def test_the_smallest_dtype():
    cases = {
        (-128, 127): np.int8, (0, 127): np.int8, (0, 255): np.uint8, (-129, 5): np.int16,
        (-1, 128): np.int16, (-32768, 32767): np.int16, (0, 65535): np.uint16,
        (-1, 65534): np.int32,
    }  # fmt: skip
    for (low, high), dtype in cases.items():
        values = np.array([low, high, high - 1], F) * F(0.1)
        assert recover(values).integers.dtype == dtype


# --- formulas that round twice


def test_dorefa():
    for num_bits in range(2, 9):
        n = 2**num_bits - 1
        q = np.arange(n + 1)
        for form, scale in ((SHIFTED_QUOTIENT, F(n)), (SHIFTED_PRODUCT, F(1) / F(n))):
            values = real(form, q, 0, scale)
            found = recover(values, max_bits=num_bits)
            assert_exact(found, values)
            np.testing.assert_array_equal(found.integers, q)
            assert found.integers.dtype == np.uint8
            assert found.is_unique
            assert found.zero_point_min is None
            assert recover(values, max_bits=num_bits, zero_point=0).form is None
    assert recover(values, max_bits=16).alternatives[0][0].factor == 2


def test_a_rounded_quotient():
    q = np.arange(-127, 128)
    for divisor in (100, 127, 12.7, 3e-5):
        values = q.astype(F) / F(divisor)
        found = recover(values, max_bits=8)
        assert_exact(found, values)
        np.testing.assert_array_equal(found.integers, q)
        assert found.is_unique
        assert found.scale <= F(divisor) <= found.scale_max
        assert (found.zero_point_min, found.zero_point_max) == (-1, 0)


def test_other_formulas_are_no_lattice_and_off_by_a_bit_or_by_much():
    k = np.arange(-127, 128).astype(F)
    twice = recover(k / F(127) * F(0.7), max_bits=8)
    assert twice.form is None
    assert twice.max_error_ulp == 1
    mixed = np.stack([k * F(0.7), k / F(127) * F(0.7)], axis=1)
    assert recover(mixed, max_bits=8, axis=1).max_error_ulp.tolist() == [0, 1]
    values = np.arange(-127, 128).astype(F) * F(0.3) + F(0.1)
    found = recover(values, max_bits=8)
    assert found.form is None


# --- dtypes, layouts, errors


def test_dtypes_that_hold_float32_exactly():
    expected = np.array([-3, 1, 2], F) * F(0.1)
    for variant in (
        expected.astype(np.float64), expected.astype(np.longdouble), expected.astype(">f4"),
        expected.tolist(), np.repeat(expected, 2)[::2], np.ma.array(expected),
    ):  # fmt: skip
        found = recover(variant, max_bits=3)
        assert found.integers.tolist() == [-3, 1, 2]
        assert found.scale.dtype == F
    half = np.float16([0.25, -0.5, 0.75])
    assert recover(half, max_bits=3).integers.tolist() == [1, -2, 3]
    fortran = np.asfortranarray(np.array([[1, 2, 3], [3, 1, -2]], F) * F(0.1))
    for axis in (None, 0, 1):
        assert recover(fortran, axis=axis).integers.tolist() == [[1, 2, 3], [3, 1, -2]]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0.1, 0.2], {}, r"w: the value at \(0,\), 0.1, is no float32"),
        ([1e300], {}, r"is no float32"),
        ([1e-60], {}, r"is no float32"),
        (F([[1, np.nan]]), {}, r"w: the value at \(0, 1\) is nan"),
        (F([1, -np.inf]), {"axis": 0}, r"the value at \(1,\) is -inf"),
        (F(np.nan), {}, r"the value at \(\) is nan"),
        ([1, 2], {}, "int64; pass the floats"),
        (["a"], {}, "pass the floats"),
        ([1j], {}, "complex128; pass the floats"),
        (np.array([[1.0], 2], object), {}, "object; pass the floats"),
        ([[1.0], [2.0, 3.0]], {}, "must be an array: "),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), {}, "w: values must have no masked elements"),
        (F([1]), {"axis": 1}, "axis=1 of values of 1 dimensions"),
        (F([1]), {"axis": -2}, "axis=-2"),
        (F([1]), {"axis": 0.0}, "axis=0.0"),
        (F([1]), {"axis": np.array([0])}, r"axis=array\(\[0\]\)"),
        (F(1), {"axis": 0}, "of 0 dimensions"),
        (F([1]), {"max_bits": 1}, "between 2 and 16"),
        (F([1]), {"max_bits": 17}, "between 2 and 16"),
        (F([1]), {"signed": 1}, "w: signed must be True or False"),
        (F([1]), {"zero_point": 0.0}, "zero_point must be an integer, got 0.0"),
        (F([1]), {"zero_point": [0]}, "zero_point must be an integer, got"),
        (F([1, 2]), {"zero_point": [0], "axis": 0}, "an integer or 2 of them"),
        (F([1]), {"zero_point": 128, "max_bits": 8}, "not in -128 … 127, the signed integers"),
        (F([1]), {"zero_point": -1, "signed": False}, "not in 0 … 65535, the unsigned integers"),
    ],
)
def test_errors_name_the_value_and_the_remedy(values, options, message):
    with pytest.raises(QmathError, match=message):
        recover(values, name="w", **options)


def test_callers_may_raise_on_float_errors_and_inputs_stay():
    values = np.array([-3, 1, 2, 0], F) * F(1e-38)
    values.flags.writeable = False
    before = values.copy()
    with np.errstate(all="raise"):
        assert recover(values, max_bits=3).integers.tolist() == [-3, 1, 2, 0]
        assert recover(F([1e38, 3e-38, 0.3])).form is None
    assert_same_bits(values, before)


# --- the samples


def sample_weights():
    pytest.importorskip("h5py")
    for name in ("question", "integer4", "default8", "nbit4"):
        for key, tensor in qmath.load(REFERENCE / "samples" / f"{name}.h5").tensors.items():
            if tensor.role == "weight":
                yield f"{name}/{key}", tensor.quantize()


def test_the_samples_integers_from_tensorflows_floats():
    """The golden floats are TensorFlow's own; its integers come back, or halved and named so."""
    ranges = certain = 0
    with np.load(REFERENCE / "golden" / "samples.npz") as golden:
        for name, quantized in sample_weights():
            values = golden[name]
            assert_same_bits(values, quantized.dequantize())
            found = recover(values, max_bits=quantized.num_bits, axis=quantized.axis)
            assert_exact(found, values)
            truth = quantized.values.astype(int) - quantized.zero_point
            scales = np.broadcast_to(quantized.scale, found.scale.shape).reshape(-1)
            lines = (np.reshape(x, (-1, scales.size)).T for x in (truth, found.integers))
            for channel, (expected, integers) in enumerate(zip(*lines, strict=True)):
                factor = np.gcd.reduce(expected)
                np.testing.assert_array_equal(integers * factor, expected)
                ranges += 1
                certain += found.ambiguities[channel] == ""
                if factor > 1:
                    factors = [other.factor for other in found.alternatives[channel]]
                    assert factor in factors
                else:
                    assert found.scale.flat[channel] <= scales[channel]
                    assert scales[channel] <= found.scale_max.flat[channel]
    assert ranges == 41
    assert certain > 30


def test_the_page():
    page = REFERENCE.parent / "docs" / "recover.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 8
    assert not result.failed
