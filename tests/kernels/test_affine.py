"""Properties and refusals of the integer mapping that need no TensorFlow."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath
from qmath.errors import QmathError
from qmath.kernels.affine import NanError, scale_and_zero_point
from tests.helpers import assert_same_bits
from tests.strategies import Case, cases, usable_ranges

usual_ranges = st.one_of(
    st.tuples(st.floats(-100, -(2.0**-10), width=32), st.floats(0, 100, width=32)),
    st.tuples(st.floats(-100, 0, width=32), st.floats(2.0**-10, 100, width=32)),
)
settings = st.fixed_dictionaries(
    {"num_bits": st.integers(2, 16), "narrow_range": st.booleans(), "signed": st.booleans()}
)


@given(cases(per_channel=True, pairs=usable_ranges()))
def test_integers_reproduce_fake_quant(case: Case) -> None:
    low, high, num_bits, narrow_range = case.range
    q = qmath.quantize(case.numbers, low, high, num_bits, narrow_range=narrow_range, per_axis=True)
    expected = qmath.fake_quant_with_min_max_vars_per_channel(case.numbers, *case.range)
    assert_same_bits(q.dequantize(), expected, case)


@given(usual_ranges, settings)
def test_order_zero_and_ends(range: tuple[float, float], settings: dict) -> None:
    x = np.sort(np.float32([-np.inf, -1e9, *np.linspace(-120, 120, 201), 1e9, np.inf, 0.0, -0.0]))
    q = qmath.quantize(x, *range, **settings)
    assert (np.diff(q.values.astype(np.int64)) >= 0).all()
    assert (q.values[x == 0] == q.zero_point).all()
    lowest = settings["narrow_range"] - 2 ** (settings["num_bits"] - 1) * settings["signed"]
    assert q.values[0] == lowest
    assert q.values[-1] == lowest + 2 ** settings["num_bits"] - 1 - settings["narrow_range"]


@given(usual_ranges, settings)
def test_quantizing_again_changes_nothing(range: tuple[float, float], settings: dict) -> None:
    q = qmath.quantize(np.linspace(-120, 120, 301), *range, **settings)
    again = qmath.quantize(q.dequantize(), *range, **settings)
    np.testing.assert_array_equal(q.values, again.values)


@given(usual_ranges, settings)
def test_unsigned_is_signed_shifted(range: tuple[float, float], settings: dict) -> None:
    x = np.linspace(-120, 120, 301)
    shift = 2 ** (settings["num_bits"] - 1)
    signed = qmath.quantize(x, *range, **{**settings, "signed": True})
    unsigned = qmath.quantize(x, *range, **{**settings, "signed": False})
    np.testing.assert_array_equal(signed.values.astype(int) + shift, unsigned.values)
    assert signed.zero_point + shift == unsigned.zero_point


@given(st.floats(2.0**-60, 2.0**60, width=32), st.integers(2, 16))
def test_symmetric_narrow_ranges_have_zero_point_zero(limit: float, num_bits: int) -> None:
    q = qmath.quantize([limit, -limit], -limit, limit, num_bits, narrow_range=True)
    assert q.zero_point == 0
    assert q.values.tolist() == [2 ** (num_bits - 1) - 1, 1 - 2 ** (num_bits - 1)]


@given(usual_ranges, st.integers(2, 8), st.floats(-120, 120, width=32))
def test_integers_are_the_nearest_up_to_float32(
    range: tuple[float, float], n: int, x: float
) -> None:
    q = qmath.quantize(x, *range, n, signed=False)
    low, high = map(Fraction, range)
    exact = Fraction(x) * (2**n - 1) / (high - low) + int(q.zero_point)
    clipped = min(max(exact, 0), 2**n - 1)
    assert abs(clipped - int(q.values)) <= Fraction(1, 2) + Fraction(2**n, 2**20)


def test_channels_are_independent() -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3, 64, 40_000):
        x = rng.normal(size=(5, channels)).astype(np.float32)
        low, high = -np.abs(rng.normal(size=(2, channels))).astype(np.float32) * [[1], [-1]]
        q = qmath.quantize(x, low, high, 5, per_axis=True)
        assert q.axis == 1
        for c in (0, channels - 1):
            # per axis multiplies by the inverse, as `args` does
            one = qmath.quantize(x[:, c], low[c], high[c], 5, op="args")
            np.testing.assert_array_equal(q.values[:, c], one.values)
            assert (q.scale[c], q.zero_point[c]) == (one.scale, one.zero_point)


@pytest.mark.parametrize("signed", [False, True])
def test_a_dead_range_gives_the_zero_point(signed: bool) -> None:
    q = qmath.quantize(
        [[1.0, 2.0], [-3.0, 0.5]], [0.0, -1.0], [0.0, 1.0], 4, per_axis=True, signed=signed
    )
    assert q.scale[0] == 0
    assert (q.values[:, 0] == q.zero_point[0]).all()
    assert q.zero_point[0] == (0 if signed else 8)
    np.testing.assert_array_equal(q.dequantize()[:, 0], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0, np.nan], -1, 1, 4), r"w: the input at \(1,\) is NaN"),
        (([[0.0], [np.nan]], [0.0], [0.0], 4, True), r"w: the input at \(1, 0\) is NaN"),
        (([0.0], 1, -1, 4), r"w: the range \[1.0, -1.0\] is inverted"),
        (([0.0], 1, 1, 4), r"w: the range \[1.0, 1.0\] is too narrow"),
        (([0.0], 0, 1e-40, 4), None),
        (([0.0], 0, 1e-37, 8), r"is too narrow"),
        (([0.0], -3e38, 3e38, 8), r"is too wide"),
        (([0.0], 0, 3e38, 2), r"is too wide"),
        (([np.inf], 0, 3.4028235e38, 15), r"is too wide"),  # the nudged maximum overflows
        # both nudged ends are finite, but an input at the maximum would be an infinite step
        (([np.inf], -1.7014117e38, 1.7014118e38, 8), r"is too wide"),
        (([[0, 9e37]], [-1, -1.7014117e38], [1, 1.7014118e38], 8, True), r"channel 1 is too wide"),
        (([0.0], -np.inf, 1, 8), r"\[-inf, 1.0\] is not finite"),
        (([0.0], np.nan, 1, 8), r"is not finite"),
        (([[0.0, 0.0]], [-1, 2], [1, 1], 8, True), r"\[2.0, 1.0\] of channel 1 is inverted"),
        (([0.0], [-1], 1, 8), r"w: min must have shape \(\), got \(1,\)"),
        (([[0.0, 0.0]], [-1], [1], 8, True), r"w: min must have shape \(2,\), got \(1,\)"),
        ((0.0, [-1], [1], 8, True), r"rank 1 or more, got rank 0"),
        (([0.0], -1, 1, 1), r"between 2 and 16, inclusive, got 1"),
        (([0.0], -1, 1, 4.0), r"integer between 2 and 16, inclusive, got 4.0"),
        (([0.0], -1, 1, True), r"integer between 2 and 16"),
        (([1j], -1, 1, 4), r"w: inputs must hold real numbers, got dtype complex128"),
        ((["1"], -1, 1, 4), r"w: inputs must hold real numbers"),
    ],
)  # fmt: skip
def test_refusals_name_the_tensor_the_value_and_why(arguments: tuple, message: str | None) -> None:
    x, low, high, num_bits, *per_axis = arguments

    def quantize() -> qmath.QuantizedTensor:
        return qmath.quantize(x, low, high, num_bits, per_axis=bool(per_axis), name="w")

    if message is None:  # subnormal ends count as zero: a dead range
        assert quantize().scale == 0
    else:
        with pytest.raises(QmathError, match=message):
            quantize()


def test_op_is_checked() -> None:
    with pytest.raises(QmathError, match="op must be 'vars' or 'args', got 'per_channel'"):
        qmath.quantize([0.0], -1, 1, 4, op="per_channel")


def test_the_op_matters() -> None:
    divided, multiplied = (qmath.quantize(2.0, -6, 6, 8, op=op).values for op in ("vars", "args"))
    assert int(multiplied) - int(divided) == 1


@pytest.mark.parametrize("order", ["C", "F"])
def test_any_memory_layout(order: str) -> None:
    x = np.asarray(np.random.default_rng(0).normal(size=(50, 60, 7)), np.float32, order=order)
    expected = qmath.quantize(x.copy("C"), -1, 1, 4).values
    np.testing.assert_array_equal(qmath.quantize(x, -1, 1, 4).values, expected)
    np.testing.assert_array_equal(
        qmath.quantize(x[::2, ::-1], -1, 1, 4).values, expected[::2, ::-1]
    )
    np.testing.assert_array_equal(qmath.quantize(x.tolist(), -1, 1, 4).values, expected)


@pytest.mark.parametrize("flag", ["narrow_range", "signed", "per_axis"])
@pytest.mark.parametrize("value", [2, 1, 0, 0.5, "False", "", None, [True], np.array(True)])
def test_flags_are_bools(flag: str, value: object) -> None:
    with pytest.raises(QmathError, match=f"w: {flag} must be True or False, got "):
        qmath.quantize([-1, 0.3, 1], -1, 1, 4, name="w", **{flag: value})
    if flag != "per_axis":
        with pytest.raises(QmathError, match=f"w: {flag} must be True or False, got "):
            scale_and_zero_point(-1, 1, 4, name="w", **{flag: value})


@pytest.mark.parametrize("flag", ["narrow_range", "signed"])
@pytest.mark.parametrize("value", [False, True])
def test_numpy_bools_are_bools(flag: str, value: bool) -> None:
    expected = qmath.quantize([-1, 0.3, 1], -1, 1, 4, **{flag: value})
    q = qmath.quantize([-1, 0.3, 1], -1, 1, 4, **{flag: np.bool_(value)})
    np.testing.assert_array_equal(q.values, expected.values)
    assert getattr(q, flag) is value


def test_an_error_of_nan_can_be_quoted_and_sent_to_another_process():
    with pytest.raises(NanError, match=r"^the input at \(0, 1\) is NaN") as caught:
        qmath.quantize([[0.0, np.nan]], -1, 1, 8)
    for error in (caught.value, NanError(f"file: {caught.value}")):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
