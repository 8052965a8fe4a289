"""The six ops against TensorFlow, in every bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath
from qmath.errors import QmathError
from reference import oracle
from tests.helpers import assert_same_bits
from tests.strategies import Case, cases, gradients

VARS = "fake_quant_with_min_max_vars"
PER_CHANNEL = "fake_quant_with_min_max_vars_per_channel"
ARGS = "fake_quant_with_min_max_args"


@given(cases())
def test_vars(case: Case) -> None:
    actual = qmath.fake_quant_with_min_max_vars(case.inputs, *case.range)
    assert_same_bits(actual, oracle.fake_quant_with_min_max_vars(case.inputs, *case.range), case)


@given(cases(per_channel=True))
def test_per_channel(case: Case) -> None:
    actual = qmath.fake_quant_with_min_max_vars_per_channel(case.inputs, *case.range)
    expected = oracle.fake_quant_with_min_max_vars_per_channel(case.inputs, *case.range)
    assert_same_bits(actual, expected, case)


@given(cases(), st.data())
def test_args_and_gradient(case: Case, data: st.DataObject) -> None:
    g = data.draw(gradients(case))
    try:
        expected = oracle.fake_quant_with_min_max_args(case.inputs, *case.range)
    except Exception as error:
        with pytest.raises(QmathError, match="min has to be smaller than max"):
            qmath.fake_quant_with_min_max_args(case.inputs, *case.range)
        with pytest.raises(QmathError, match="min has to be smaller than max"):
            qmath.fake_quant_with_min_max_args_gradient(g, case.inputs, *case.range)
        assert "smaller than max" in str(error)
        return
    assert_same_bits(qmath.fake_quant_with_min_max_args(case.inputs, *case.range), expected, case)
    actual = qmath.fake_quant_with_min_max_args_gradient(g, case.inputs, *case.range)
    expected = oracle.fake_quant_with_min_max_args_gradient(g, case.inputs, *case.range)
    assert_same_bits(actual, expected, (case, g))


@given(st.sampled_from([VARS, PER_CHANNEL]), st.data())
def test_gradients(op: str, data: st.DataObject) -> None:
    case = data.draw(cases(per_channel=op == PER_CHANNEL))
    g = data.draw(gradients(case))
    actual = getattr(qmath, f"{op}_gradient")(g, case.inputs, *case.range)
    expected = getattr(oracle, f"{op}_gradient")(g, case.inputs, *case.range)
    assert type(actual).__name__ == type(expected).__name__
    assert actual._fields == expected._fields
    for field in actual._fields:
        assert_same_bits(getattr(actual, field), getattr(expected, field), (field, case, g))


@pytest.mark.parametrize("shape", [(131_073,), (90_000, 3), (2000, 331), (9, 33_000)])
@pytest.mark.parametrize("odd", [False, True])
def test_arrays_of_several_blocks(shape: tuple[int, ...], odd: bool) -> None:
    rng = np.random.default_rng(len(shape))
    x = rng.normal(size=shape).astype(np.float32)
    high = rng.uniform(0.5, 3, shape[-1]).astype(np.float32)
    if odd:
        high[::2] = np.resize(np.float32([0, np.inf, 1e-42, 1]), high[::2].shape)
    actual = qmath.fake_quant_with_min_max_vars_per_channel(x, -high, high)
    expected = oracle.fake_quant_with_min_max_vars_per_channel(x, -high, high)
    assert_same_bits(actual, expected)
    low, high = (-1e-42, 1e-42) if odd else (-1.5, 2.0)
    actual = qmath.fake_quant_with_min_max_vars(x, low, high, 5)
    assert_same_bits(actual, oracle.fake_quant_with_min_max_vars(x, low, high, 5))


@pytest.mark.parametrize("size", [*range(1, 80), 8191, 8192, 8193, 8199, 16385, 50_003, 400_013])
def test_gradient_sums_follow_eigens_order(size: int) -> None:
    rng = np.random.default_rng(size)
    g = (rng.normal(size=size) * 10.0 ** rng.uniform(-3, 3, size)).astype(np.float32)
    x = rng.uniform(-9, 9, size).astype(np.float32)
    actual = qmath.fake_quant_with_min_max_vars_gradient(g, x, -6.0, 6.0)
    expected = oracle.fake_quant_with_min_max_vars_gradient(g, x, -6.0, 6.0)
    for field in actual._fields:
        assert_same_bits(getattr(actual, field), getattr(expected, field), field)


@pytest.mark.parametrize(
    "shape", [(3, 1), (9000, 3), (40_000, 2), (17, 64), (5, 5, 5, 7), (37, 9000)]
)
@pytest.mark.parametrize("exponent", [0, -36])
def test_per_channel_gradient_sums(shape: tuple[int, ...], exponent: int) -> None:
    rng = np.random.default_rng(len(shape))
    g = (rng.normal(size=shape) * 10.0**exponent).astype(np.float32)
    x = rng.uniform(-9, 9, shape).astype(np.float32)
    low, high = np.full(shape[-1], -6, np.float32), np.full(shape[-1], 6, np.float32)
    actual = qmath.fake_quant_with_min_max_vars_per_channel_gradient(g, x, low, high)
    expected = oracle.fake_quant_with_min_max_vars_per_channel_gradient(g, x, low, high)
    for field in actual._fields:
        assert_same_bits(getattr(actual, field), getattr(expected, field), field)


@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (0, 3), (3, 0), (2, 0, 4), (1, 2, 1, 2, 1, 2, 1, 2)]
)
def test_every_rank_and_empty_arrays(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert_same_bits(
        qmath.fake_quant_with_min_max_vars(x, -1, 1),
        oracle.fake_quant_with_min_max_vars(x, -1.0, 1.0),
    )
    assert_same_bits(qmath.fake_quant_with_min_max_args(x), oracle.fake_quant_with_min_max_args(x))
    actual = qmath.fake_quant_with_min_max_vars_gradient(x, x, -1, 1)
    for a, e in zip(
        actual, oracle.fake_quant_with_min_max_vars_gradient(x, x, -1.0, 1.0), strict=True
    ):
        assert_same_bits(a, e)
    if shape:
        low, high = np.full((2, shape[-1]), 1, np.float32) * np.float32([[-1], [1]])
        actual = qmath.fake_quant_with_min_max_vars_per_channel(x, low, high)
        assert_same_bits(actual, oracle.fake_quant_with_min_max_vars_per_channel(x, low, high))
        actual = qmath.fake_quant_with_min_max_vars_per_channel_gradient(x, x, low, high)
        expected = oracle.fake_quant_with_min_max_vars_per_channel_gradient(x, x, low, high)
        for a, e in zip(actual, expected, strict=True):
            assert_same_bits(a, e)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int64, np.uint8, np.bool_])
def test_inputs_are_cast_as_tensorflow_casts_them(dtype: type) -> None:
    x = (np.random.default_rng(1).normal(size=100) * 3).astype(dtype)
    assert_same_bits(
        qmath.fake_quant_with_min_max_vars(x, -2, 2),
        oracle.fake_quant_with_min_max_vars(x, -2.0, 2.0),
    )
    wide = np.float64([1e-46, 1e-40, 1e39, -1e39, 1 + 2**-24, 1 + 2**-24 + 2**-50])
    assert_same_bits(
        qmath.fake_quant_with_min_max_vars(wide, 0, 1e-38, 2),
        oracle.fake_quant_with_min_max_vars(wide, 0.0, 1e-38, 2),
    )


@pytest.mark.parametrize("num_bits", [-1, 0, 1, 17, True, 8.5, 16.9, 1.9])
def test_num_bits_are_checked_as_tensorflow_does(num_bits: float) -> None:
    for name, args in ((ARGS, ()), (VARS, (-1.0, 1.0))):
        try:
            expected = getattr(oracle, name)([0.3], *args, num_bits=num_bits)
        except Exception as error:
            assert "between 2 and 16" in str(error)
            with pytest.raises(QmathError, match="between 2 and 16"):
                getattr(qmath, name)([0.3], *args, num_bits=num_bits)
        else:
            assert_same_bits(getattr(qmath, name)([0.3], *args, num_bits=num_bits), expected)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (VARS, ([1.0], [-1.0], 1.0)),
        (VARS, ([1.0], -1.0, [1.0])),
        (PER_CHANNEL, ([1.0, 2.0], -1.0, 1.0)),
        (PER_CHANNEL, ([1.0, 2.0], [-1.0], [1.0])),
        (PER_CHANNEL, ([1.0, 2.0], [-1.0, -1.0], [1.0, 1.0, 1.0])),
        (f"{VARS}_gradient", ([1.0, 2.0], [1.0], -1.0, 1.0)),
        (f"{PER_CHANNEL}_gradient", ([[1.0], [2.0]], [1.0], [-1.0], [1.0])),
        (f"{ARGS}_gradient", ([1.0, 2.0], [1.0])),
    ],
)
def test_shape_errors_are_errors_in_tensorflow_too(op: str, args: tuple) -> None:
    with pytest.raises(Exception, match=r"rank|size|shape"):
        getattr(oracle, op)(*args)
    with pytest.raises(QmathError, match="shape"):
        getattr(qmath, op)(*args)


def test_tf_function_gives_the_same_bits_as_eager() -> None:
    tf = oracle.tf
    x = np.random.default_rng(3).normal(size=5000).astype(np.float32)
    for bits in (2, 5, 8, 16):
        graph = tf.function(
            lambda t, n=bits: tf.quantization.fake_quant_with_min_max_vars(t, -1.7, 2.1, n)
        )
        assert_same_bits(qmath.fake_quant_with_min_max_vars(x, -1.7, 2.1, bits), graph(x).numpy())


def test_names_order_and_defaults_are_tensorflows() -> None:
    import inspect

    for op in (
        ARGS,
        VARS,
        PER_CHANNEL,
        f"{ARGS}_gradient",
        f"{VARS}_gradient",
        f"{PER_CHANNEL}_gradient",
    ):
        ours = inspect.signature(getattr(qmath, op)).parameters
        theirs = inspect.signature(inspect.unwrap(getattr(oracle.tf.quantization, op))).parameters
        keyword_only = [name for name, p in ours.items() if p.kind is p.KEYWORD_ONLY]
        assert keyword_only == ["out", "build"]
        assert [(n, p.default) for n, p in ours.items() if n not in keyword_only] == [
            (n, p.default) for n, p in theirs.items()
        ]


@pytest.mark.parametrize("op", [ARGS, VARS])
@pytest.mark.parametrize(
    "attributes",
    [{"narrow_range": None}, {"narrow_range": True}, {"num_bits": None}, {"num_bits": 4.7},
     {"num_bits": np.float32(4)}, {"num_bits": np.int64(5)}],
    ids=str,
)  # fmt: skip
def test_attributes_are_read_as_tensorflow_reads_them(op: str, attributes: dict) -> None:
    x = np.linspace(-1.2, 1.2, 99, dtype=np.float32)
    actual = getattr(qmath, op)(x, -0.9, 1.0, **attributes)
    assert_same_bits(actual, getattr(oracle, op)(x, -0.9, 1.0, **attributes))


@pytest.mark.parametrize("op", [ARGS, VARS])
@pytest.mark.parametrize(
    "attributes",
    [{"narrow_range": 2}, {"narrow_range": 0}, {"narrow_range": "False"}, {"narrow_range": 0.5},
     {"num_bits": np.nan}, {"num_bits": np.inf}, {"num_bits": "4"}, {"num_bits": True}],
    ids=str,
)  # fmt: skip
def test_attributes_that_tensorflow_refuses_are_refused(op: str, attributes: dict) -> None:
    with pytest.raises(Exception, match=r"Expected|convert|num_bits"):
        getattr(oracle, op)([0.0], -1.0, 1.0, **attributes)
    with pytest.raises(QmathError, match=next(iter(attributes))):
        getattr(qmath, op)([0.0], -1.0, 1.0, **attributes)
