"""What the ops promise besides TensorFlow's bits: `out`, refusals, and no cost for the usual."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from qmath.errors import QmathError
from tests.helpers import assert_same_bits

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 7, 5)).astype(np.float32) * 4
LOW, HIGH = np.float32([-3, -1, 0, 0, -1e-38]), np.float32([2, 1, 6, 0, 1e-38])


@pytest.mark.parametrize(
    "op",
    [
        lambda x, **out: qmath.fake_quant_with_min_max_args(x, **out),
        lambda x, **out: qmath.fake_quant_with_min_max_vars(x, -1, 2, 4, **out),
        lambda x, **out: qmath.fake_quant_with_min_max_vars(x, 0, 1e-38, 4, **out),
        lambda x, **out: qmath.fake_quant_with_min_max_vars_per_channel(x, LOW, HIGH, 4, **out),
        lambda x, **out: qmath.fake_quant_with_min_max_args_gradient(x, X, **out),
    ],
)
def test_out_may_be_new_or_the_input_itself(op) -> None:
    expected = op(X)
    out = np.empty_like(X)
    assert op(X, out=out) is out
    assert_same_bits(out, expected)
    in_place = X.copy()
    op(in_place, out=in_place)
    assert_same_bits(in_place, expected)


def test_gradient_out() -> None:
    expected = qmath.fake_quant_with_min_max_vars_per_channel_gradient(X, X, LOW, HIGH)
    g = X.copy()
    actual = qmath.fake_quant_with_min_max_vars_per_channel_gradient(g, X, LOW, HIGH, out=g)
    assert actual.backprops_wrt_input is g
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(a, e)


@pytest.mark.parametrize(
    "out", [np.empty(X.shape), np.empty(3, np.float32), np.empty((5, 7, 300), np.float32).T, [0.0]]
)
def test_a_bad_out_is_refused(out) -> None:
    with pytest.raises(QmathError, match="out must be"):
        qmath.fake_quant_with_min_max_args(X, out=out)


OPS = {
    "args": lambda x, **k: qmath.fake_quant_with_min_max_args(x, -1, 1, **k),
    "vars": lambda x, **k: qmath.fake_quant_with_min_max_vars(x, -1, 1, **k),
    "per_channel": lambda x, **k: qmath.fake_quant_with_min_max_vars_per_channel(
        x, [-1] * 5, [1] * 5, **k
    ),
}
GRADIENTS = {
    "args": lambda g, x, **k: (qmath.fake_quant_with_min_max_args_gradient(g, x, -1, 1, **k),),
    "vars": lambda g, x, **k: qmath.fake_quant_with_min_max_vars_gradient(g, x, -1, 1, **k),
    "per_channel": lambda g, x, **k: qmath.fake_quant_with_min_max_vars_per_channel_gradient(
        g, x, [-1] * 5, [1] * 5, **k
    ),
}
SHIFTS = [(slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("read", "written"), SHIFTS)
def test_out_may_overlap_the_input(op, read, written) -> None:
    buffer = RNG.normal(size=(40_000, 5)).astype(np.float32)
    expected = OPS[op](buffer[read].copy())
    assert_same_bits(OPS[op](buffer[read], out=buffer[written]), expected)


@pytest.mark.parametrize("op", GRADIENTS)
@pytest.mark.parametrize("overlapping", [0, 1])
@pytest.mark.parametrize(("read", "written"), SHIFTS)
def test_a_gradient_may_overlap_what_it_reads(op, overlapping, read, written) -> None:
    buffer = RNG.normal(size=(40_000, 5)).astype(np.float32)
    arguments = [RNG.normal(size=(39_999, 5)).astype(np.float32)] * 2
    arguments[overlapping] = buffer[read].copy()
    expected = GRADIENTS[op](*arguments)
    arguments[overlapping] = buffer[read]
    for a, e in zip(GRADIENTS[op](*arguments, out=buffer[written]), expected, strict=True):
        assert_same_bits(a, e)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("inputs", [[1j] * 5, np.ones((2, 5), np.complex64)])
def test_complex_inputs_are_refused_where_tensorflow_drops_a_part(op, inputs) -> None:
    message = "must hold real numbers, got dtype complex"
    with pytest.raises(QmathError, match=f"inputs {message}"):
        OPS[op](inputs)
    real = np.real(inputs)
    with pytest.raises(QmathError, match=f"inputs {message}"):
        GRADIENTS[op](real, inputs)
    with pytest.raises(QmathError, match=f"gradients {message}"):
        GRADIENTS[op](inputs, real)


@pytest.mark.parametrize("inputs", [[[1.0], [2.0, 3.0]], [None], np.array([0.5], object), {}, "a"])
def test_what_is_no_array_of_numbers_is_refused_by_name(inputs) -> None:
    with pytest.raises(QmathError, match="inputs must "):
        qmath.fake_quant_with_min_max_vars(inputs, -1, 1)
    with pytest.raises(QmathError, match="gradients must "):
        qmath.fake_quant_with_min_max_vars_gradient(inputs, [0.0], -1, 1)
    with pytest.raises(QmathError, match="w: max must "):
        qmath.quantize([0.0], -1, inputs, 4, name="w")


@pytest.mark.parametrize(
    "num_bits",
    [np.nan, np.inf, -np.inf, np.float32("nan"), "4", True, 1j, np.array([8]), np.array(8.0)],
)
def test_widths_that_are_no_numbers_are_refused(num_bits) -> None:
    with pytest.raises(QmathError, match="num_bits must be"):
        qmath.quantize(X, -1, 1, num_bits)
    for op in OPS.values():
        with pytest.raises(QmathError, match="num_bits must be"):
            op(X, num_bits=num_bits)


@pytest.mark.parametrize("narrow_range", [2, 0, 1.0, 0.5, "False", "", [True], np.int64(1)])
def test_flags_that_are_no_bools_are_refused(narrow_range) -> None:
    for op in OPS.values():
        with pytest.raises(QmathError, match="narrow_range must be True or False"):
            op(X, narrow_range=narrow_range)


def test_per_channel_rank_0_is_refused_where_tensorflow_aborts() -> None:
    with pytest.raises(QmathError, match="rank 1 or more, got rank 0"):
        qmath.fake_quant_with_min_max_vars_per_channel(0.5, [-1.0], [1.0])


@pytest.mark.parametrize("range", [(1, 1), (2, 1), (np.nan, 1), (0, 1e-45), (1e-40, 1e-39)])
def test_args_needs_an_ordered_range(range: tuple[float, float]) -> None:
    with pytest.raises(QmathError, match=r"min has to be smaller than max, was: .* >= "):
        qmath.fake_quant_with_min_max_args([0.0], *range)


def test_ordinary_ranges_take_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def careful(*_args: object) -> None:
        raise AssertionError("the careful path ran")

    monkeypatch.setattr("qmath.kernels._eager.Steps.exact_floats", careful)
    x = np.float32([1e-45, -1e-40, 0.0, 1.0])
    qmath.fake_quant_with_min_max_vars(x, 0, 6)
    qmath.fake_quant_with_min_max_args(x, -1e-20, 1e-20)
    with pytest.raises(AssertionError):
        qmath.fake_quant_with_min_max_vars(x, 0, 1e-37)


def test_inputs_stay_as_they_are() -> None:
    x = X.copy()
    x.setflags(write=False)
    qmath.fake_quant_with_min_max_vars(x, -1, 1)
    qmath.fake_quant_with_min_max_vars_gradient(x, x, 0, 0)
    qmath.quantize(x, -1, 1, 4)


def test_gradients_per_channel_are_those_of_each_channel() -> None:
    rng = np.random.default_rng(0)
    g, x = rng.normal(size=(2, 50, 3)).astype(np.float32)
    low, high = np.float32([-1, -0.5, 0]), np.float32([1, 2, 0])
    found = qmath.fake_quant_with_min_max_vars_per_channel_gradient(g, x, low, high, 4)
    for c in range(3):
        one = qmath.fake_quant_with_min_max_vars_gradient(g[:, c], x[:, c], low[c], high[c], 4)
        np.testing.assert_array_equal(found[0][:, c], one[0])
        np.testing.assert_allclose([found[1][c], found[2][c]], one[1:], rtol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 33, 71, 4095, 8192, 8205, 24_584, 65_536, 100_003])
@pytest.mark.parametrize("odd", ["", "subnormal", "infinite", "zero"])
def test_the_sums_of_one_channel_are_those_of_one_of_two(size: int, odd: str) -> None:
    # They are added in one way for one channel, in another for several: both in Eigen's order.
    rng = np.random.default_rng(size)
    g, x = rng.normal(size=(2, size)).astype(np.float32)
    if odd == "subnormal":
        g *= np.float32(2.0**-126)
    elif odd == "infinite":
        g[size // 2], x[size // 3] = np.inf, np.nan
    elif odd == "zero":
        g *= np.float32(-0.0)
    one = qmath.fake_quant_with_min_max_vars_gradient(g, x, -0.5, 1)
    two = qmath.fake_quant_with_min_max_vars_per_channel_gradient(
        np.stack([g, g], axis=1), np.stack([x, x], axis=1), [-0.5, -0.5], [1, 1]
    )
    for single, double in zip(one, two, strict=True):
        assert_same_bits(double[..., 0], single)


def test_gradients_have_the_shape_of_the_inputs() -> None:
    with pytest.raises(QmathError, match=r"the same shape, got \(2,\), \(3,\)"):
        qmath.fake_quant_with_min_max_vars_gradient(np.ones(2), np.ones(3), -1, 1)
