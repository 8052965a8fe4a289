"""`quantize_and_dequantize_v2` and its gradient against TensorFlow, in every bit."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qmath
from reference import oracle
from tests.helpers import assert_same_bits
from tests.strategies import Case, cases, gradients, ordered_ranges

MODES = ["HALF_TO_EVEN", "HALF_UP"]


def narrowest(num_bits: int) -> float:
    """Return what the data have to reach for their range to have a finite scale.

    Below it results are zeros, whose sign depends on Eigen's vectors. Only the positive side of
    unsigned integers counts.
    """
    return 2.0 ** (num_bits - 127)


@given(
    cases(pairs=ordered_ranges()),
    st.booleans(),
    st.integers(1, 61),
    st.sampled_from(MODES),
    st.data(),
)
def test_given_range(case: Case, signed: bool, num_bits: int, mode: str, data) -> None:
    settings = (case.min, case.max, signed, num_bits, True, mode, None, case.narrow_range)
    actual = qmath.quantize_and_dequantize_v2(case.inputs, *settings)
    expected = oracle.quantize_and_dequantize_v2(case.inputs, *settings)
    assert_same_bits(actual, expected, (case, settings))
    g = data.draw(gradients(case))
    actual = qmath.quantize_and_dequantize_v2_gradient(g, case.inputs, case.min, case.max)
    expected = oracle.quantize_and_dequantize_v2_gradient(g, case.inputs, case.min, case.max)
    assert actual._fields == expected._fields
    for ours, theirs in zip(actual, expected, strict=True):
        assert_same_bits(ours, theirs, case)


@given(
    cases(per_channel=True),
    st.booleans(),
    st.integers(1, 61),
    st.sampled_from(MODES),
    st.data(),
)
def test_range_of_the_data(case: Case, signed: bool, num_bits: int, mode: str, data) -> None:
    far = st.floats(narrowest(num_bits), width=32) | st.floats(1, 8, width=32)
    reach = data.draw(hnp.arrays(np.float32, case.min.shape, elements=far))
    if signed:
        reach = np.where(data.draw(hnp.arrays(np.bool_, reach.shape)), -reach, reach)
    place = data.draw(st.integers(0, len(case.inputs)))
    inputs = np.insert(case.numbers, place, reach, axis=0)
    for axis in (None, 1):
        settings = (0.0, 0.0, signed, num_bits, False, mode, None, case.narrow_range, axis)
        actual = qmath.quantize_and_dequantize_v2(inputs, *settings)
        expected = oracle.quantize_and_dequantize_v2(inputs, *settings)
        assert_same_bits(actual, expected, (case, settings))


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40),
    st.booleans(),
    st.integers(1, 61),
    st.sampled_from(MODES),
)
def test_a_range_of_the_data_that_is_too_narrow(
    factors: list[float], signed: bool, num_bits: int, mode: str
) -> None:
    x = np.float32(factors) * np.float32(narrowest(num_bits))
    x = x if signed else np.append(x, np.float32(-1))
    settings = (0.0, 0.0, signed, num_bits, False, mode)
    actual = qmath.quantize_and_dequantize_v2(x, *settings)
    expected = oracle.quantize_and_dequantize_v2(x, *settings)
    np.testing.assert_array_equal(actual, expected)  # -0 equals 0


@given(
    cases(per_channel=True, pairs=ordered_ranges()), st.booleans(), st.integers(1, 61), st.data()
)
def test_given_range_per_axis(case: Case, signed: bool, num_bits: int, data) -> None:
    settings = (case.min, case.max, signed, num_bits, True, MODES[0], None, case.narrow_range, 1)
    actual = qmath.quantize_and_dequantize_v2(case.inputs, *settings)
    expected = oracle.quantize_and_dequantize_v2(case.inputs, *settings)
    assert_same_bits(actual, expected, (case, settings))
    g = data.draw(gradients(case))
    actual = qmath.quantize_and_dequantize_v2_gradient(g, case.inputs, case.min, case.max, 1)
    expected = oracle.quantize_and_dequantize_v2_gradient(g, case.inputs, case.min, case.max, 1)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_same_bits(ours, theirs, case)


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -4])
def test_every_axis(axis: int | None) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    settings = (0.0, 0.0, True, 4, False, "HALF_UP", None, True, axis)
    assert_same_bits(
        qmath.quantize_and_dequantize_v2(x, *settings),
        oracle.quantize_and_dequantize_v2(x, *settings),
    )


@pytest.mark.parametrize(("signed", "num_bits"), [(True, 0), (True, 62), (False, 63)])
def test_widths_that_tensorflow_refuses_are_refused(signed: bool, num_bits: int) -> None:
    for module, error in ((oracle, Exception), (qmath, qmath.QmathError)):
        with pytest.raises(error, match="num_bits"):
            module.quantize_and_dequantize_v2([1.0], 0.0, 1.0, signed, num_bits, True)


def test_what_nan_does_depends_on_its_place_in_tensorflow() -> None:
    first, middle = (
        oracle.quantize_and_dequantize_v2(np.float32(x), 0.0, 0.0)
        for x in ([3, 1, np.nan], [1, np.nan, 3])
    )
    assert np.isnan(first).sum() != np.isnan(middle).sum()


def test_names_order_and_defaults_are_tensorflows() -> None:
    ours = inspect.signature(qmath.quantize_and_dequantize_v2).parameters
    function = inspect.unwrap(oracle.tf.quantization.quantize_and_dequantize_v2)
    theirs = inspect.signature(function).parameters
    assert [(n, p.default) for n, p in ours.items() if n != "out"] == [
        (n, p.default) for n, p in theirs.items()
    ]
