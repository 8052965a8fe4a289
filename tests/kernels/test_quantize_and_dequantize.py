"""What `quantize_and_dequantize_v2` promises besides TensorFlow's bits."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from qmath.errors import QmathError
from tests.helpers import assert_same_bits

X = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
LOW, HIGH = np.float32([-3, -1, -2, -9, -1]), np.float32([2, 1, 6, 1, 3])
quantize = qmath.quantize_and_dequantize_v2


@pytest.mark.parametrize("given", [False, True])
def test_an_axis_is_a_range_for_each_index(given: bool) -> None:
    result = quantize(X, LOW, HIGH, num_bits=4, range_given=given, axis=1)
    assert_same_bits(quantize(X, LOW, HIGH, num_bits=4, range_given=given, axis=-2), result)
    dx = qmath.quantize_and_dequantize_v2_gradient(X, X, LOW, HIGH, 1).input_backprop
    for c, (low, high) in enumerate(zip(LOW, HIGH, strict=True)):
        one = quantize(X[:, c], low, high, num_bits=4, range_given=given)
        assert_same_bits(result[:, c], one)
        one = qmath.quantize_and_dequantize_v2_gradient(X[:, c], X[:, c], low, high)
        assert_same_bits(dx[:, c], one.input_backprop)


@pytest.mark.parametrize("axis", [None, 1])
def test_out_may_be_the_input_itself(axis: int | None) -> None:
    low, high = (LOW, HIGH) if axis else (np.float32(-1), np.float32(2))
    expected = quantize(X, low, high, range_given=True, axis=axis)
    x = X.copy()
    assert quantize(x, low, high, range_given=True, axis=axis, out=x) is x
    assert_same_bits(x, expected)


@pytest.mark.parametrize("num_bits", [2, 8, 24])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("mode", ["HALF_TO_EVEN", "HALF_UP"])
def test_results_are_whole_multiples_and_stay(num_bits: int, signed: bool, mode: str) -> None:
    once = quantize(X, -1, 2, signed, num_bits, True, mode)
    limit = max(2, 2**num_bits)
    steps = np.unique(once).size
    assert 1 < steps <= limit
    if num_bits < 24:
        assert_same_bits(quantize(once, -1, 2, signed, num_bits, True, mode), once)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (([1, np.nan, 3], 0, 0), {}, r"input at \(1,\) is NaN, so it has no range"),
        (([[1, 2], [3, np.nan]], 0, 0), {"axis": 0}, r"input at \(1, 1\) is NaN"),
        (([1.0], 2, 1), {"range_given": True}, "input_min 2.0 > input_max 1.0"),
        (([1.0], np.nan, 1), {"range_given": True}, "input_min nan > input_max 1.0"),
        (([1.0], [0, 3], [1, 2]), {"range_given": True}, r"input_min must have shape \(\)"),
        (([[1.0, 1]], [0], [1]), {"range_given": True, "axis": 1}, r"have shape \(2,\), got \(1,"),
        (([[1.0, 1]], [0, 3], [1, 2]), {"range_given": True, "axis": 1}, "3.0 > input_max 2.0"),
        (([1.0], 0, 1), {"num_bits": 62}, r"between 1 and 61 \(signed\), got 62"),
        (([1.0], 0, 1), {"num_bits": 63, "signed_input": False}, r"between 1 and 62 \(unsig"),
        (([1.0], 0, 1), {"num_bits": 0}, "got 0"),
        (([1.0], 0, 1), {"num_bits": True}, "got True"),
        (([1.0], 0, 1), {"num_bits": 4.0}, "num_bits must be an integer, got 4.0"),
        (([1.0], 0, 1), {"round_mode": "HALF_DOWN"}, "round_mode must be"),
        (([1.0], 0, 1), {"axis": 1}, "axis=1 of an input of 1 dimensions"),
        ((1.0, 0, 1), {"axis": 0}, "axis=0 of an input of 0 dimensions"),
        (([1.0], 0, 1), {"signed_input": 1}, "signed_input must be True or False"),
        (([1.0], 0, 1), {"range_given": None}, "range_given must be True or False"),
        (([1j], 0, 1), {}, "input must hold real numbers"),
    ],
)  # fmt: skip
def test_refusals(arguments: tuple, settings: dict, message: str) -> None:
    with pytest.raises(QmathError, match=message):
        quantize(*arguments, **settings)


def test_the_gradient_checks_shapes() -> None:
    with pytest.raises(QmathError, match="the same shape"):
        qmath.quantize_and_dequantize_v2_gradient([1.0, 2.0], [1.0], 0, 1)
    with pytest.raises(QmathError, match=r"input_max must have shape \(\), got \(1,\)"):
        qmath.quantize_and_dequantize_v2_gradient([1.0], [1.0], 0, [1])


def test_no_data_have_no_range() -> None:
    assert qmath.quantize_and_dequantize_v2(np.zeros((0, 3)), 0.0, 0.0).shape == (0, 3)
