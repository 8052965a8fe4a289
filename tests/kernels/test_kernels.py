"""What the kernels take for granted to be fast: shortcuts against what they replace."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath
from qmath.errors import QmathError
from qmath.kernels import _nudge
from qmath.kernels._blocks import each_block
from qmath.kernels._eager import TF, Steps
from qmath.kernels._range import range_of
from tests.helpers import assert_same_bits
from tests.strategies import any_ranges, widths

HALF = np.float32(0.5)


@pytest.mark.parametrize("zero", [0, 1, 2, 3, 7, 8, 127, 128, 129, 255, 2047, 32767, 32768, 65535])
def test_the_half_may_be_subtracted_from_the_zero_point(zero: int) -> None:
    ties = np.arange(0, 65537, 1 if zero < 256 else 17, dtype=np.float32)[:, None] * HALF
    ulps = np.arange(-70, 70, dtype=np.int32)
    t = np.abs((ties.view(np.int32) + ulps).view(np.float32))
    t = np.concatenate([t[np.isfinite(t)], np.float32([0.0, 1e-45, 1e-30, np.inf, np.nan])])
    kernel = np.floor((t - np.float32(zero)) + HALF)
    fused = np.floor(t - (np.float32(zero) - HALF))
    differs = ~((fused == kernel) | np.isnan(kernel))
    # The one zero point that needs both passes, and is given both.
    assert differs.any() == (zero == 1)


@given(st.lists(any_ranges, min_size=1, max_size=6), widths, st.booleans())
def test_plain_nudging_is_exact_nudging(pairs: list, num_bits: int, narrow_range: bool) -> None:
    low, high = np.float32(pairs).T
    with np.errstate(all="ignore"):
        plain = _nudge._plain_nudge(low, high, num_bits, narrow_range)
        careful = _nudge._exact_nudge(low, high, num_bits, narrow_range)
    ordinary = _nudge.is_ordinary(plain)
    np.testing.assert_array_equal(ordinary, _nudge.is_ordinary(careful))
    for ours, expected in zip(plain, careful, strict=True):
        # + 0: the sign of a zero is lost in the next step
        assert_same_bits(ours[ordinary] + np.float32(0), expected[ordinary] + np.float32(0))


def test_a_kept_range_cannot_be_changed() -> None:
    low, high = np.float32([-1, 0]), np.float32([1, 6])
    kept = range_of(low, high, 8, False, TF, "vars")
    assert range_of(low.copy(), high.copy(), 8, False, TF, "vars") is kept
    with pytest.raises(ValueError, match="read-only"):
        kept.nudged.scale[0] = 1
    low[0] = -0.0  # which is another range than 0.0, if only by its bits
    assert range_of(low, high, 8, False, TF, "vars") is not kept


def test_a_positive_sum_is_truncated() -> None:
    assert Steps(_nudge.nudge(np.float32(0), np.float32(6), 8, False), True).truncates
    assert not Steps(_nudge.nudge(np.float32(-1), np.float32(6), 8, False), True).truncates


MANY = [(0, 4), (1, 300_000), (3, 100_000), (64, 5000), (127, 3000), (129, 600), (1000, 300)]


@pytest.mark.parametrize(
    ("channels", "rows"),
    [*itertools.product([0, 1, 3, 64, 8191, 8192, 8193, 32_769], [1, 2, 33]), *MANY],
)
def test_blocks_cover_all_with_their_constants(channels: int, rows: int) -> None:
    constants = np.arange(channels) if channels else np.asarray(7)
    size = rows * (channels or 131_073)
    seen = np.zeros(size, np.int64)

    def work(block: slice, part: np.ndarray, negative: np.ndarray) -> None:
        seen[block] += 2 * part + negative + 1

    each_block(work, size, [constants, -constants])
    expected = np.broadcast_to(constants + 1, (rows, channels or 131_073))
    np.testing.assert_array_equal(seen.reshape(expected.shape), expected)


@pytest.fixture
def threads():
    yield qmath.set_num_threads
    qmath.set_num_threads(None)


def test_threads_change_nothing(threads) -> None:
    x = np.random.default_rng(0).normal(size=(1 << 14, 77)).astype(np.float32)
    low, high = np.float32([-1]).repeat(77), np.float32([2]).repeat(77)
    results = []
    for number in (1, 3):
        threads(number)
        results.append(
            [
                qmath.fake_quant_with_min_max_vars(x, -1, 2),
                qmath.fake_quant_with_min_max_vars_per_channel(x, low, high),
                qmath.quantize(x, low, high, 8, per_axis=True).dequantize(),
                *qmath.fake_quant_with_min_max_vars_gradient(x, x, -1, 2),
                *qmath.fake_quant_with_min_max_vars_per_channel_gradient(x, x, low, high),
            ]
        )
    for one, three in zip(*results, strict=True):
        assert_same_bits(three, one)


def test_an_error_in_a_thread_names_the_first_value(threads) -> None:
    threads(2)
    x = np.zeros(1 << 20, np.float32)
    x[[600_000, 900_000]] = np.nan
    with pytest.raises(QmathError, match=r"the input at \(600000,\) is NaN"):
        qmath.quantize(x, -1, 1, 8)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2", np.array([2]), None])
def test_the_number_of_threads_is_checked(number, threads, monkeypatch) -> None:
    monkeypatch.setenv("QMATH_NUM_THREADS", "5")
    if number is None:
        threads(3)
        threads(number)
        assert qmath.get_num_threads() == 5
    else:
        with pytest.raises(QmathError, match="num_threads must be a positive integer, got "):
            threads(number)
    monkeypatch.setenv("QMATH_NUM_THREADS", "many")
    with pytest.raises(QmathError, match="QMATH_NUM_THREADS must be a positive integer, got 'm"):
        qmath.get_num_threads()
    monkeypatch.delenv("QMATH_NUM_THREADS")
    assert qmath.get_num_threads() >= 1


@pytest.mark.parametrize("num_bits", [4, 8, 12])
@pytest.mark.parametrize("signed", [False, True])
def test_quantize_writes_where_it_is_asked_to(num_bits: int, signed: bool) -> None:
    x = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    expected = qmath.quantize(x, -1, 1, num_bits, signed=signed).values
    out = np.empty_like(expected)
    assert qmath.quantize(x, -1, 1, num_bits, signed=signed, out=out).values is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "out", [np.empty(3, np.uint8), np.empty((2, 2), np.int8), [0, 0, 0], np.empty(6, np.int8)[::2]]
)
def test_quantize_refuses_another_out(out) -> None:
    with pytest.raises(QmathError, match="w: out must be"):
        qmath.quantize(np.zeros(3), -1, 1, 8, name="w", out=out)


def test_quantize_refuses_to_overwrite_its_inputs() -> None:
    x = np.zeros(8, np.float32)
    with pytest.raises(QmathError, match="apart from the inputs"):
        qmath.quantize(x, -1, 1, 8, out=x.view(np.int8)[:8])
