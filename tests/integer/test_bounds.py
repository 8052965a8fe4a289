"""Accumulator bounds: no input can exceed them, and some input reaches them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qmath.errors import QmathError
from qmath.integer import ops
from qmath.integer.bounds import accumulator_bits, exact_dtype, interval
from qmath.integer.program import Linear, QuantParams, Term


def params(low: int, high: int) -> QuantParams:
    return QuantParams(1.0, -low, 0, high - low, 8, float(low), float(high))


def same(x: np.ndarray, _weights: object) -> np.ndarray:
    return x


def dense(weights: np.ndarray) -> Linear:
    return Linear("dense", lambda x, w: x @ w, weights.shape[1:], weights)


@given(
    hnp.arrays(np.int32, (3, 2), elements=st.integers(-8, 7)), st.integers(-5, 0), st.integers(0, 5)
)
def test_the_interval_of_a_dense_layer_is_tight(weights: np.ndarray, low: int, high: int) -> None:
    found = interval(Term("x", (dense(weights),), np.ones(()), params(low, high)))
    every_input = np.array(list(itertools.product((low, 0, high), repeat=3)))
    sums = every_input @ weights
    assert found == (min(sums.min(), 0), max(sums.max(), 0))


def test_the_interval_of_convolutions() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.integers(-8, 8, (3, 3, 2, 4))
    x = rng.integers(-3, 6, (50, 5, 5, 2)).astype(np.float64)
    for kind, weights, sums in (
        ("conv2d", kernel, ops.conv2d(x, kernel.astype(float), (1, 1), ())),
        ("depthwise_conv2d", kernel, ops.depthwise_conv2d(x, kernel.astype(float), (1, 1), ())),
    ):
        linear = Linear(kind, same, sums.shape[1:], weights)
        low, high = interval(Term("x", (linear,), np.ones(()), params(-3, 5)))
        assert low <= sums.min() <= sums.max() <= high
        axes = (0, 1, 2) if kind == "conv2d" else (0, 1)
        best = np.maximum(kernel * 5, kernel * -3).sum(axes).max()
        assert high == best


@pytest.mark.parametrize(
    ("kind", "axes"),
    [("dense", (0, 1)), ("depthwise_conv2d", (0, 1)), ("conv2d_transpose", (0, 1, 3))],
)
@given(st.sampled_from([np.int8, np.int16, np.int32]), st.data())
def test_sums_of_positive_and_of_negative_weights(
    kind: str, axes: tuple[int, ...], dtype: type[np.integer], data: st.DataObject
) -> None:
    shape = (2, 3, 2, 2) if kind != "dense" else (4, 3, 2)
    weights = data.draw(hnp.arrays(dtype, shape))
    exact = weights.astype(object)
    above, below = Linear(kind, same, (), weights).signed_sums
    assert above.dtype == below.dtype == np.int64
    assert above.tolist() == np.where(exact > 0, exact, 0).sum(axes).ravel().tolist()
    assert below.tolist() == np.where(exact < 0, exact, 0).sum(axes).ravel().tolist()


def test_sums_that_32_bits_do_not_hold() -> None:
    for dtype, rows in ((np.int8, (1 << 24) + 1), (np.int16, (1 << 16) + 1)):
        lowest = np.iinfo(dtype).min
        column = np.broadcast_to(dtype(lowest), (rows, 1))
        assert dense(column).signed_sums[1].tolist() == [lowest * rows]


def test_sums_multiply_the_interval() -> None:
    pool = Linear("pool_sum", same, (1,), gain=9)
    assert interval(Term("x", (pool,), np.ones(()), params(-3, 5))) == (-27, 45)


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [(0, 0, 1), (-1, 0, 1), (-1, 1, 2), (-2, 1, 2), (-2, 2, 3), (-128, 127, 8), (-129, 0, 9)],
)
def test_accumulator_bits(low: int, high: int, bits: int) -> None:
    assert accumulator_bits(low, high) == bits
    assert -(2 ** (bits - 1)) <= low <= high < 2 ** (bits - 1)


def test_the_dtype_is_the_first_that_is_exact() -> None:
    assert exact_dtype(-(2**24) + 1, 5, "x") is np.float32
    assert exact_dtype(-(2**24), 5, "x") is np.float64
    with pytest.raises(QmathError, match=r"x: its accumulator can reach \d+, more than 53 bits"):
        exact_dtype(0, 2**53, "x")
