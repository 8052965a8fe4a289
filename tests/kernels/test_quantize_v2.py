"""What `qmath.tf.quantize` and `qmath.tf.dequantize` promise besides TensorFlow's bits."""

from __future__ import annotations

import numpy as np
import pytest

from qmath import tf
from qmath.errors import QmathError

X = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
LOW, HIGH = np.float32([-3, -1, -2, -9, -1]), np.float32([2, 1, 6, 1, 3])


@pytest.mark.parametrize("mode", ["MIN_COMBINED", "SCALED"])
def test_an_axis_is_a_range_for_each_index(mode: str) -> None:
    result = tf.quantize(X, LOW, HIGH, "quint8", mode, axis=-2)
    floats = tf.dequantize(result.output, LOW, HIGH, mode, axis=1)
    for c, (low, high) in enumerate(zip(LOW, HIGH, strict=True)):
        one = tf.quantize(X[:, c], low, high, "quint8", mode)
        np.testing.assert_array_equal(result.output[:, c], one.output)
        assert (result.output_min[c], result.output_max[c]) == one[1:]
        np.testing.assert_array_equal(floats[:, c], tf.dequantize(one.output, low, high, mode))


@pytest.mark.parametrize("dtype", [np.int8, "int8", "qint8", np.dtype("i1")])
def test_dtypes_are_named_as_in_tensorflow_or_numpy(dtype: object) -> None:
    assert tf.quantize(X, -1, 1, dtype).output.dtype == np.int8


def test_traps_that_are_kept() -> None:
    assert tf.quantize([0.0], -1, 1, "qint8").output == -1
    assert tf.quantize([2.0], -1, 1, "qint32").output == -(2**31)
    assert tf.quantize([0.0], 1, 2, "quint8").output_min == 0
    scaled = [tf.quantize([1.0], -1, 1, "qint8", "SCALED", mode).output for mode in
              ("HALF_TO_EVEN", "HALF_AWAY_FROM_ZERO")]  # fmt: skip
    assert scaled == [127, 127]
    half = [tf.quantize([0.5], -1, 1, "qint8", "SCALED", "HALF_TO_EVEN", onednn=on).output
            for on in (True, False)]  # fmt: skip
    assert half == [64, 64]
    third = [tf.quantize([0.71], -1, 1, "qint8", "SCALED", "HALF_TO_EVEN", onednn=on).output
             for on in (True, False)]  # fmt: skip
    assert third == [91, 90]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (([1, np.nan], -1, 1, "qint8"), {}, r"input at \(1,\) is NaN"),
        (([1.0], 2, 1, "qint8"), {}, "min_range 2.0 > max_range 1.0"),
        (([1.0], -np.inf, 1, "qint8"), {}, "min_range must be finite, got -inf"),
        (([1.0], [0, 1], 1, "qint8"), {}, r"min_range must have shape \(\)"),
        (([1.0], 0, 0, "qint8"), {"ensure_minimum_range": 0}, "no finite scale"),
        (([1.0], -3.4e38, 3.4e38, "quint8"), {"mode": "MIN_FIRST"}, "no finite scale"),
        (([1.0], -3.4e38, 3.4e38, "qint8"), {"mode": "MIN_FIRST"}, "no finite scale"),
        (([1.0], -3.4e38, 3.4e38, "qint8"), {}, "no finite scale"),
        ((-3.4e38, -3.4e38, 3.4e38, "quint8"), {"mode": "MIN_FIRST"}, "no finite scale"),
        (
            ([1.0], -3.4e38, 5.3e14, "quint8"),
            {"mode": "MIN_FIRST", "ensure_minimum_range": 2},
            "no finite scale",
        ),
        (
            ([1.0], -3.4e38, 5.3e14, "qint8"),
            {"mode": "SCALED", "round_mode": "HALF_TO_EVEN", "ensure_minimum_range": 2},
            "no finite scale",
        ),
        (([1.0], 0, 1, "qint8"), {"ensure_minimum_range": -1}, "a number from 0 on, got -1"),
        (([1.0], 0, 1, "qint4"), {}, "T must be one of qint8, quint8"),
        (([1.0], 0, 1, np.int64), {}, "T must be one of"),
        (([1.0], 0, 1, "qint8"), {"mode": "MIN"}, "mode must be one of"),
        (([1.0], 0, 1, "qint8"), {"round_mode": "HALF_UP"}, "round_mode must be one of"),
        (([1.0], 0, 1, "qint8"), {"round_mode": "HALF_TO_EVEN"}, "needs mode='SCALED'"),
        (([1.0], [0], [1], "qint8"), {"mode": "MIN_FIRST", "axis": 0}, "has no axis"),
        (([1.0], [0], [1], "qint8"), {"axis": 1}, "axis=1 of an input of 1 dimensions"),
        (([1.0], [0], [1], "qint8"), {"axis": 0.5}, "axis must be an integer"),
        (
            (0.5, 0, 1, "qint8"),
            {"mode": "SCALED", "round_mode": "HALF_TO_EVEN"},
            "dimensions, got 0",
        ),
        ((2.0, 0, 1, "quint8"), {"mode": "MIN_FIRST"}, "does not clamp a scalar"),
        (([1.0], 0, 1, "qint32"), {"mode": "SCALED", "round_mode": "HALF_TO_EVEN"}, "no kernel"),
    ],
)
def test_what_quantize_refuses(arguments: tuple, settings: dict, message: str) -> None:
    with pytest.raises(QmathError, match=message):
        tf.quantize(*arguments, **settings)


@pytest.mark.parametrize(
    ("input", "settings", "message"),
    [
        ([1, 2], {}, "input must be int8, uint8, int16, uint16 or int32, got int64"),
        (np.int8([1]), {"dtype": np.float16}, "dtype must be float32, got float16"),
        (np.int32([1]), {"mode": "SCALED"}, "no kernel of oneDNN for qint32"),
        (np.int8(1), {"mode": "SCALED"}, "takes 1 to 5 dimensions, got 0"),
        (np.int8([1]), {"axis": 1}, "axis=1 of an input of 1 dimensions"),
        (np.int8([[1, 2]]), {"mode": "MIN_FIRST", "axis": 0}, "has no axis|must have shape"),
    ],
)
def test_what_dequantize_refuses(input: object, settings: dict, message: str) -> None:
    with pytest.raises(QmathError, match=message):
        tf.dequantize(input, 0, 1, **settings)


def test_a_scalar_is_truncated_by_onednn() -> None:
    assert tf.quantize(0.3, -1.0, 1.0, "quint8", "MIN_FIRST").output == 165
    assert tf.quantize(0.3, -1.0, 1.0, "quint8", "MIN_FIRST", onednn=False).output == 166


def test_the_widest_ranges_that_have_a_scale() -> None:
    scaled = tf.quantize([-3e38, 3e38], -3e38, 3e38, "qint8", "SCALED").output
    assert scaled.tolist() == [-127, 127]  # which needs no width
    for onednn in (True, False):
        q = tf.quantize([-1e38, 2e38], -1e38, 2e38, "quint8", "MIN_FIRST", onednn=onednn).output
        assert q.tolist() == [0, 255]
        none = tf.quantize([0.0], 0, 0, "qint8", "MIN_FIRST", ensure_minimum_range=0).output
        assert none.tolist() == [-128]  # TensorFlow's scale of an empty range is 0


def test_nothing_of_no_elements() -> None:
    assert tf.quantize(np.zeros((0, 3)), -1, 1, "qint8").output.shape == (0, 3)
    assert tf.dequantize(np.zeros((0, 3), np.int8), -1, 1, "SCALED").shape == (0, 3)
