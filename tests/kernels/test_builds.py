"""The builds but the default one: TF-free, so against exact arithmetic and their plain formulas."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmath
from qmath.errors import QmathError
from qmath.kernels import exact
from qmath.kernels._from_minimum import fused
from qmath.kernels.affine import scale_and_zero_point
from qmath.kernels.builds import BUILDS, arithmetic_of
from qmath.verification import definition
from tests.helpers import assert_same_bits
from tests.strategies import Case, any_ranges, cases, finite_float32, usable_ranges

OTHERS = [name for name in BUILDS if name != "tf"]
XLA = ["xla-cpu", "xla-cpu-nofma"]
F = np.float32


def nearest_float32(value: Fraction) -> np.float32:
    """Round a rational once, ties to even; what is tiny becomes 0."""
    if not value:
        return F(0)
    exponent = -126
    magnitude = abs(value)
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - 23)
    while magnitude < Fraction(2) ** exponent and unit > Fraction(2) ** -300:  # as if unbounded
        exponent -= 1
        unit /= 2
    result = round(magnitude / unit) * unit
    if result < Fraction(2) ** -126:
        return F(0)
    with np.errstate(over="ignore"):
        return F(float(result)) * (F(-1) if value < 0 else F(1))


normal = finite_float32.filter(lambda x: x == 0 or abs(x) >= 2.0**-126)


@given(normal, normal, normal, st.booleans(), st.integers(-2, 2))
def test_a_fused_multiply_add_rounds_once(
    a: float, b: float, c: float, cancels: bool, ulps: int
) -> None:
    if cancels and 2.0**-100 < abs(a * b) < 2.0**100:  # where the last bits of the product decide
        c = float((F(-a * b).view(np.int32) + np.int32(ulps)).view(F))
    found = fused(F(a), F(b), F(c))
    expected = nearest_float32(Fraction(a) * Fraction(b) + Fraction(c))
    assert_same_bits(np.asarray(found) + F(0), np.asarray(expected) + F(0), (a, b, c))


def naive(x: np.ndarray, case: Case, build: str, op: str) -> np.ndarray:
    """Fake-quantize with an ordinary range, one NumPy operation for each of the formula's."""
    low, high = case.min, case.max
    first, last = F(case.narrow_range), F(2**case.num_bits - 1)
    is_xla = build in XLA
    if is_xla and op != "args":
        scale = (high - low) * (F(1) / (last - first))
    else:
        scale = (high - low) / (last - first)
    sees_through = is_xla and op == "per_channel" and low.shape == (1,)
    below = low * (last - first) / (high - low) if sees_through else low / scale
    zero = np.clip(first - below, first, last)
    zero = np.trunc(zero.astype(np.float64) + 0.5).astype(F)
    bottom, top = (first - zero) * scale, (last - zero) * scale
    clamped = np.maximum(np.minimum(x, top), bottom)
    if is_xla and op != "args":
        clamped = np.where(np.isnan(clamped), bottom, clamped)
    shifted = clamped - bottom
    is_direct = sees_through or (is_xla and op == "args")
    inverse = (last - first) / (high - low) if is_direct else F(1) / scale
    if build == "xla-cpu":
        steps = np.floor(fused(shifted, inverse, 0.5))
        return fused(steps, scale, bottom)
    divides = build == "tf<2.6" and op != "args"
    steps = np.floor((shifted / scale if divides else shifted * inverse) + F(0.5))
    return steps * scale + bottom


FUNCTIONS = {
    "vars": qmath.fake_quant_with_min_max_vars,
    "args": qmath.fake_quant_with_min_max_args,
    "per_channel": qmath.fake_quant_with_min_max_vars_per_channel,
}


@settings(max_examples=50)
@given(st.sampled_from(OTHERS), st.sampled_from(list(FUNCTIONS)), st.data())
def test_the_formula_of_each_build(build: str, op: str, data: st.DataObject) -> None:
    ends = st.tuples(st.floats(-9, 0, width=32), st.floats(2.0**-20, 9, width=32))
    case = data.draw(cases(per_channel=op == "per_channel", pairs=ends))
    found = FUNCTIONS[op](case.inputs, *case.range, build=build)
    with np.errstate(all="ignore"):
        assert_same_bits(found, naive(case.inputs, case, build, op), case)


@settings(max_examples=50)
@given(st.sampled_from(OTHERS), cases(per_channel=True, pairs=any_ranges))
def test_careful_arithmetic_gives_what_plain_arithmetic_gives(build: str, case: Case) -> None:
    found = qmath.fake_quant_with_min_max_vars_per_channel(case.inputs, *case.range, build=build)
    arithmetic = arithmetic_of(build)
    with np.errstate(all="ignore"):
        nudged = arithmetic.nudge(*case.range, "per_channel")
        expected = arithmetic.steps(nudged, "per_channel").exact_floats(case.inputs, nudged)
    subnormal = 2.0**-126
    is_zero = (abs(case.min) < subnormal) & (abs(case.max) < subnormal)
    if arithmetic.keeps_zero_ranges:
        expected = np.where(is_zero, F(0), expected)
    assert_same_bits(found, expected, case)


@settings(max_examples=50)
@given(st.sampled_from(OTHERS), cases(per_channel=True, pairs=usable_ranges()), st.booleans())
def test_integers_are_those_of_the_floats(build: str, case: Case, signed: bool) -> None:
    dead = case.max - case.min < 2.0**-125
    if build in XLA and dead.any():
        with pytest.raises(QmathError, match=r"channel \d becomes NaN under this build"):
            qmath.quantize(case.numbers, *case.range[:3], per_axis=True, build=build)
        return
    settings = {"narrow_range": case.narrow_range, "per_axis": True, "signed": signed}
    q = qmath.quantize(case.numbers, *case.range[:3], **settings, build=build)
    floats = qmath.fake_quant_with_min_max_vars_per_channel(case.numbers, *case.range, build=build)
    relative = q.values.astype(np.int64) - q.zero_point
    with np.errstate(all="ignore"):
        steps = np.where(dead, 0, floats.astype(np.float64) / q.scale)
    np.testing.assert_allclose(relative, steps, atol=0.02, err_msg=str(case))


@settings(max_examples=50)
@given(st.sampled_from(list(BUILDS)), cases(pairs=usable_ranges()))
def test_what_is_no_near_tie_is_exact(build: str, case: Case) -> None:
    if case.max - case.min < 2.0**-100:
        return
    x, settings = case.numbers, {"narrow_range": case.narrow_range}
    q = qmath.quantize(x, *case.range[:3], **settings, signed=False, build=build)
    zero, near = exact.zero_points(*case.range[:3], **settings, build=build)
    assert near or zero == q.zero_point
    found = exact.relative_integers(
        x, *case.range[:3], **settings, zero_point=q.zero_point, build=build
    )
    differs = found.integers != q.values.astype(np.int64) - q.zero_point
    assert not (differs & ~found.near_tie).any()
    ties = exact.near_ties(x, *case.range[:3], **settings, zero_point=q.zero_point, build=build)
    np.testing.assert_array_equal(ties, found.near_tie)


def test_the_tie_that_xla_misses() -> None:
    """The exact zero point of -6 to 6 is 127.5; the reciprocal of 255 makes it 127.499985."""
    zero_points = {build: int(scale_and_zero_point(-6, 6, 8, signed=False, build=build)[1])
                   for build in BUILDS}  # fmt: skip
    assert zero_points == {"tf": 128, "tf<2.6": 128, "xla-cpu": 127, "xla-cpu-nofma": 127}
    assert scale_and_zero_point(-6, 6, 8, signed=False, build="xla-cpu", op="args")[1] == 128


def test_what_becomes_of_nan() -> None:
    found = {build: qmath.fake_quant_with_min_max_vars([np.nan], -1, 0.75, 3, build=build)[0]
             for build in BUILDS}  # fmt: skip
    assert np.isnan([found["tf"], found["tf<2.6"]]).all()
    assert found["xla-cpu"] == found["xla-cpu-nofma"] == -1
    for build in BUILDS:
        assert np.isnan(qmath.fake_quant_with_min_max_args([np.nan], -1, 0.75, 3, build=build))
        with pytest.raises(QmathError, match="is NaN, which no integer stands for"):
            qmath.quantize([0, np.nan], -1, 0.75, 3, build=build)


@pytest.mark.parametrize("build", ["xla", "TF", "", None, 3, ["tf"]])
def test_an_unknown_build_lists_them(build: object) -> None:
    known = "'tf', 'tf<2.6', 'xla-cpu', 'xla-cpu-nofma'"
    for call in (
        lambda: qmath.fake_quant_with_min_max_args([0.0], build=build),
        lambda: qmath.fake_quant_with_min_max_vars_gradient([0.0], [0.0], -1, 1, build=build),
        lambda: qmath.quantize([0.0], -1, 1, 8, name="w", build=build),
    ):
        with pytest.raises(QmathError, match=f"build must be one of {known}, got "):
            call()


def test_gradients_that_a_build_does_not_cover_are_refused() -> None:
    x = np.zeros(5001, F)
    for build in XLA:
        with pytest.raises(QmathError, match="known up to 5000 elements"):
            qmath.fake_quant_with_min_max_vars_gradient(x, x, -1, 1, build=build)
        qmath.fake_quant_with_min_max_vars_gradient(x[1:], x[1:], -1, 1, build=build)
    with pytest.raises(QmathError, match=r"before 2\.6 added up .* is not known"):
        qmath.fake_quant_with_min_max_vars_gradient([0.0], [0.0], -1, 1, build="tf<2.6")


@pytest.mark.parametrize("build", XLA)
def test_xla_selects_gradients_and_sums_them_in_a_tree(build: str) -> None:
    x = F([0, 9, -9, 9, np.nan])
    g = F([1e-40, -2, 3, np.inf, np.nan])
    dx, low, high = qmath.fake_quant_with_min_max_vars_gradient(g, x, -1, 1, build=build)
    assert_same_bits(dx, F([1e-40, 0, 0, 0, 0]))
    assert low == 3
    assert high == np.inf
    # A window of 33 begins with 15 zeros: 17 elements, and then the other 16.
    values = F([1, *[2.0**-24] * 16, *[2.0**-24] * 16])
    _, low, _ = qmath.fake_quant_with_min_max_vars_gradient(values, -9 - values, -1, 1, build=build)
    assert low == F(1) + F(2.0**-20)


def test_subnormal_gradients_do_not_count_in_sums() -> None:
    for build in XLA:
        g, x = F([1e-39, 2.0**-126]), F([-9, -9])
        found = qmath.fake_quant_with_min_max_vars_gradient(g, x, -1, 1, build=build)
        assert found.backprop_wrt_min == F(2.0**-126)


@pytest.mark.parametrize("build", OTHERS)
def test_large_arrays_in_blocks_are_as_their_parts(build: str) -> None:
    x = np.random.default_rng(0).normal(size=(1 << 12, 75)).astype(F)
    low, high = F([-1, -0.5, -2] * 25), F([1, 2, 0.5] * 25)
    whole = qmath.fake_quant_with_min_max_vars(x, -1, 1.5, build=build)
    assert_same_bits(
        whole[1000:1001], qmath.fake_quant_with_min_max_vars(x[1000:1001], -1, 1.5, build=build)
    )
    per_channel = qmath.fake_quant_with_min_max_vars_per_channel(x, low, high, build=build)
    for c in (0, 1, 74):
        one = qmath.fake_quant_with_min_max_vars(x[:, c], low[c], high[c], build=build)
        assert_same_bits(np.ascontiguousarray(per_channel[:, c]), one)
    out = x.copy()
    qmath.fake_quant_with_min_max_vars(out, -1, 1.5, build=build, out=out)
    assert_same_bits(out, whole)


@pytest.mark.parametrize("build", ["xla-cpu", "xla-cpu-nofma"])
def test_xla_rounds_zero_points_of_args_half_to_even(build: str) -> None:
    """As tests/parity/test_builds.py sees it; ties that are not symmetric tell the rules apart."""
    x = np.float32([-9, 9])
    assert_same_bits(
        qmath.fake_quant_with_min_max_args(x, -0.5, 2.5, 2, build=build), np.float32([0, 3])
    )
    assert_same_bits(
        qmath.fake_quant_with_min_max_vars(x, -0.5, 2.5, 2, build=build), np.float32([-1, 2])
    )
    passed = qmath.fake_quant_with_min_max_args_gradient(
        np.ones(2), np.float32([-1, 2.5]), -0.5, 2.5, 2, build=build
    )
    assert_same_bits(passed, np.float32([1, 0]))
    assert_same_bits(
        qmath.fake_quant_with_min_max_args(x, -0.1, 0.5, 8, build=build),
        np.float32([-0.09882353, 0.5011765]),
    )
    for ends in ((-0.5, 2.5), (-2.5, 0.5), (-3.840229e-39, 1.3014359e-38)):
        kernel = qmath.fake_quant_with_min_max_args(x, *ends, 2, build=build)
        defined = definition.fake_quant(
            x, *np.float32(ends), 2, narrow_range=False, op="args", build=build
        )
        assert_same_bits(kernel, defined)


def test_a_maximum_that_xla_computes_in_two_ways_is_refused_only_where_it_is_met() -> None:
    def made(x: np.ndarray, max: float = 2.7, build: str = "xla-cpu") -> np.ndarray:
        return qmath.fake_quant_with_min_max_args(x, -1.3, max, build=build)

    x = np.full((20, 1, 3, 1), np.float32(2.6))
    assert made(x).shape == x.shape  # not the maximum
    x[7, 0, 1] = 2.695
    with pytest.raises(QmathError, match=r"shape \(20, 1, 3, 1\), of rows of 3, 5 or 7"):
        made(x)
    assert made(x, 2.6).max() == made(x.reshape(-1), 2.6).max()  # both ways give the same
    assert np.ptp([made(x.reshape(-1)).max(), made(x, build="xla-cpu-nofma").max()]) > 0
    assert made(x.reshape(20, 3).T).shape == (3, 20)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_nothing_stays_nothing(build: str, shape: tuple[int, ...]) -> None:
    ends = np.zeros(shape[-1:], F) - 1, np.ones(shape[-1:], F)
    x = np.zeros(shape, F)
    found = qmath.fake_quant_with_min_max_vars_per_channel(x, *ends, build=build)
    assert found.shape == shape
    assert qmath.quantize(x, *ends, 8, per_axis=True, build=build).values.shape == shape
    assert qmath.fake_quant_with_min_max_vars(x, -1, 1, build=build).shape == shape
