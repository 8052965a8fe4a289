"""Each op of the table that evaluates quantizers, against TensorFlow's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import tensorflow as tf

from qmath.containers import protos
from qmath.readers.saved_model.evaluation_ops import EXACT, INEXACT, constant
from tests.helpers import assert_same_bits

RAW = tf.raw_ops
F = np.float32
I = np.int32  # noqa: E741


def floats(*shape: int, seed: int = 0) -> Any:
    """Normal numbers of all sizes, zeros of both signs, and ties."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 10.0 ** rng.integers(-4, 4, shape)
    x = np.where(rng.random(shape) < 0.2, np.round(x * 2) / 2, x)
    return np.where(rng.random(shape) < 0.05, rng.choice([0.0, -0.0], shape), x).astype(F)


A, B = (floats(7, 12, 5, seed=seed) for seed in range(2))
SPECIAL = np.array(
    [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, 2.5, -2.5, 3.4e38, 1e-45, -1e-39, 2e-38], F
)
GRID = np.stack([x.ravel() for x in np.meshgrid(SPECIAL, SPECIAL)])

BINARY = ["Add", "AddV2", "Sub", "Mul", "RealDiv", "Div", "Maximum", "Minimum", "Greater",
          "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual"]  # fmt: skip
UNARY = ["Neg", "Abs", "Sign", "Square", "Sqrt", "Round", "Rint", "Floor", "Ceil", "Relu",
         "ZerosLike", "OnesLike"]  # fmt: skip


def node_of(op: str, call: Callable[..., Any], *arrays: Any) -> tuple[Any, list[Any], Any]:
    """The node that TensorFlow makes of a call, its inputs, and what it computes."""
    concrete = tf.function(lambda *inputs: call(*inputs)).get_concrete_function(
        *(tf.TensorSpec(x.shape, x.dtype) for x in arrays)
    )
    (made,) = [n for n in concrete.graph.as_graph_def().node if n.op == op]
    node = protos.parse("NodeDef", made.SerializeToString(), "")
    return node, list(arrays), concrete(*map(tf.constant, arrays)).numpy()


def check(op: str, call: Callable[..., Any], *arrays: Any) -> None:
    node, inputs, expected = node_of(op, call, *arrays)
    with np.errstate(all="ignore"):
        found = EXACT[op](node, inputs)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.dtype == F:
        nan = np.isnan(expected)
        assert np.array_equal(np.isnan(found), nan)
        assert_same_bits(found[~nan], expected[~nan])
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("op", BINARY)
def test_of_two(op: str) -> None:
    raw = getattr(RAW, op)
    for a, b in ((A, B), (A, B[:1]), (A, B[0, 0]), (A, F(3)), tuple(GRID)):
        check(op, lambda x, y: raw(x=x, y=y), np.asarray(a), np.asarray(b))
    if op not in ("RealDiv", "Div"):
        check(op, lambda x, y: raw(x=x, y=y), I([3, -4, 7]), I([2, 5, 7]))


@pytest.mark.parametrize("op", UNARY)
def test_of_one(op: str) -> None:
    name = {"Relu": "features"}.get(op, "x")
    # Of subnormals, which are zeros, Relu keeps a sign that it does not keep of zeros.
    special = SPECIAL[(SPECIAL == 0) | ~(np.abs(SPECIAL) < 1e-38)] if op == "Relu" else SPECIAL
    for a in (A, B[0], np.asarray(F(2.5)), special):
        check(op, lambda x: getattr(RAW, op)(**{name: x}), a)


AXES = [[0], [1, 2], [-1], [0, 1, 2], []]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("op", ["Max", "Min"])
def test_extremes(op: str, axes: list[int], keep: bool) -> None:
    raw = getattr(RAW, op)
    check(op, lambda x, a: raw(input=x, axis=a, keep_dims=keep), A, I(axes))


def test_choices() -> None:
    check("SelectV2", lambda c, x, y: RAW.SelectV2(condition=c, t=x, e=y), A > B, A, B[:1])
    check("Select", lambda c, x, y: RAW.Select(condition=c, x=x, y=y), A[:, 0, 0] > 0, A, B)
    check("ClipByValue",
          lambda x, a, b: RAW.ClipByValue(t=x, clip_value_min=a, clip_value_max=b),
          A, np.asarray(F(-1)), np.asarray(F(0.5)))  # fmt: skip
    for op in ("LogicalAnd", "LogicalOr"):
        check(op, lambda x, y, op=op: getattr(RAW, op)(x=x, y=y), A > 0, B > 0)
    check("LogicalNot", lambda x: RAW.LogicalNot(x=x), A > 0)


@pytest.mark.parametrize(
    ("op", "call", "arrays"),
    [
        ("Reshape", lambda x, s: RAW.Reshape(tensor=x, shape=s), (A, I([5, -1]))),
        ("Transpose", lambda x, p: RAW.Transpose(x=x, perm=p), (A, I([2, 0, 1]))),
        ("ExpandDims", lambda x, a: RAW.ExpandDims(input=x, axis=a), (A, np.asarray(I(-2)))),
        ("Squeeze", lambda x: RAW.Squeeze(input=x, axis=[0, 2]), (A[:1, :, :1],)),
        ("Squeeze", lambda x: RAW.Squeeze(input=x), (A[:1, :, :1],)),
        ("GatherV2", lambda x, i, a: RAW.GatherV2(params=x, indices=i, axis=a),
         (A, I([[1, 4], [0, 0]]), np.asarray(I(1)))),
        ("Gather", lambda x, i: RAW.Gather(params=x, indices=i), (A, I([6, 0]))),
        ("BroadcastTo", lambda x, s: RAW.BroadcastTo(input=x, shape=s), (A[0], I([3, 12, 5]))),
        ("Fill", lambda s, x: RAW.Fill(dims=s, value=x), (I([3, 2]), np.asarray(F(7)))),
        ("Pack", lambda x, y: RAW.Pack(values=[x, y], axis=1), (A, B)),
        ("ConcatV2", lambda x, y, a: RAW.ConcatV2(values=[x, y], axis=a),
         (A, B, np.asarray(I(-1)))),
        ("Shape", lambda x: RAW.Shape(input=x), (A,)),
        ("Shape", lambda x: RAW.Shape(input=x, out_type=tf.int64), (A,)),
        ("Cast", lambda x: RAW.Cast(x=x, DstT=tf.int32), (A,)),
        ("Cast", lambda x: RAW.Cast(x=x, DstT=tf.float32), (I([3, -(2**30) - 7]),)),
        ("Cast", lambda x: RAW.Cast(x=x, DstT=tf.bool), (A,)),
        ("Cast", lambda x: RAW.Cast(x=x, DstT=tf.float64), (A,)),
        ("StridedSlice", lambda x, b, e, s: RAW.StridedSlice(input=x, begin=b, end=e, strides=s),
         (A, I([1, -3]), I([6, -1]), I([2, 1]))),
        ("StridedSlice",
         lambda x, b, e, s: RAW.StridedSlice(
             input=x, begin=b, end=e, strides=s, shrink_axis_mask=1, end_mask=2, begin_mask=4),
         (A, I([-2, 3, 9]), I([7, 0, 2]), I([1, 2, 1]))),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)  # fmt: skip
def test_shapes(op: str, call: Callable[..., Any], arrays: tuple[Any, ...]) -> None:
    check(op, call, *arrays)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("num_bits", [2, 5, 8, 16])
def test_fake_quant(num_bits: int, narrow: bool) -> None:
    options = {"num_bits": num_bits, "narrow_range": narrow}
    ends = np.asarray(F(-1.3)), np.asarray(F(2.9))
    raw = RAW.FakeQuantWithMinMaxVars
    check(
        "FakeQuantWithMinMaxVars", lambda x, a, b: raw(inputs=x, min=a, max=b, **options), A, *ends
    )
    each = -np.abs(B[0, 0]) - F(0.5), np.abs(B[0, 0]) + F(0.25)
    per = RAW.FakeQuantWithMinMaxVarsPerChannel
    check(
        "FakeQuantWithMinMaxVarsPerChannel",
        lambda x, a, b: per(inputs=x, min=a, max=b, **options),
        A,
        *each,
    )
    args = RAW.FakeQuantWithMinMaxArgs
    check("FakeQuantWithMinMaxArgs", lambda x: args(inputs=x, min=-1.3, max=2.9, **options), A)
    if num_bits == 8 and not narrow:
        check("FakeQuantWithMinMaxArgs", lambda x: args(inputs=x), A)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "op", ["QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3", "QuantizeAndDequantizeV4"]
)
def test_quantize_and_dequantize(op: str, signed: bool, given: bool) -> None:
    raw = getattr(RAW, op)
    options = {"signed_input": signed, "range_given": given, "narrow_range": True}
    ends = np.asarray(F(-1.3)), np.asarray(F(2.9))
    if op.endswith("V3"):
        check(op,
              lambda x, a, b, n: raw(input=x, input_min=a, input_max=b, num_bits=n, **options),
              A, *ends, np.asarray(I(5)))  # fmt: skip
        return
    for mode in ("HALF_TO_EVEN", "HALF_UP"):
        check(op,
              lambda x, a, b, mode=mode: raw(
                  input=x, input_min=a, input_max=b, num_bits=5, round_mode=mode, **options),
              A, *ends)  # fmt: skip


# ---- ops whose last bits depend on the build


INEXACT_INPUTS = {
    "Exp": [floats(50_000) % 80], "Log": [np.abs(floats(50_000)) + F(1e-30)],
    "Log1p": [np.abs(floats(50_000))], "Rsqrt": [np.abs(floats(50_000)) + F(1e-30)],
    "Sigmoid": [floats(50_000) % 30], "Softplus": [floats(50_000) % 30],
    "Tanh": [floats(50_000) % 9],
    "Pow": [np.abs(floats(50_000)) + F(1e-3), floats(50_000, seed=1) % 4],
}  # fmt: skip


@pytest.mark.parametrize("op", INEXACT_INPUTS)
def test_elementary_functions_are_as_near_as_the_table_says(op: str) -> None:
    raw = getattr(RAW, op)
    names = {"Pow": ("x", "y"), "Softplus": ("features",)}.get(op, ("x",))
    node, inputs, expected = node_of(
        op, lambda *xs: raw(**dict(zip(names, xs, strict=True))), *INEXACT_INPUTS[op]
    )
    with np.errstate(all="ignore"):
        found, error = INEXACT[op](node, inputs)
    finite = np.isfinite(expected) & np.isfinite(found)
    assert np.array_equal(np.isfinite(expected), np.isfinite(found))
    distance = np.abs(found.astype(np.float64) - expected)[finite]
    assert (distance <= error[finite]).all()
    assert distance.max() > 0  # else the op belongs among the exact ones


def test_powers_of_two_are_exact() -> None:
    exponents = np.arange(-126, 128, dtype=F)
    for base in (2.0, 0.5, 4.0, 2.0**-3):
        y = exponents[np.abs(exponents * np.log2(base)) <= 126]
        node, inputs, expected = node_of(
            "Pow", lambda x, y: RAW.Pow(x=x, y=y), np.full_like(y, base), y
        )
        found, error = INEXACT["Pow"](node, inputs)
        assert_same_bits(found, expected)
        assert not error.any()
    for op, x, y in (("Exp", 0.0, 1.0), ("Log", 1.0, 0.0)):
        node, inputs, expected = node_of(
            op, lambda x, op=op: getattr(RAW, op)(x=x), np.full(9, x, F)
        )
        found, error = INEXACT[op](node, inputs)
        assert_same_bits(found, expected)
        assert set(found) == {F(y)}
        assert not error.any()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("op", ["Sum", "Mean"])
def test_sums_are_within_their_bounds(op: str, axes: list[int], keep: bool) -> None:
    raw = getattr(RAW, op)
    for x in (A, floats(300, 20, 50, seed=5)):
        node, inputs, expected = node_of(
            op, lambda x, a: raw(input=x, axis=a, keep_dims=keep), x, I(axes)
        )
        found, error = INEXACT[op](node, inputs)
        assert found.shape == expected.shape
        assert (np.abs(found.astype(np.float64) - expected) <= error).all()
        assert axes or not error.any()


@pytest.mark.parametrize(
    "value",
    [F(2.5), A, np.zeros((3, 4), F), I([1, -2]), np.int64(2**40), np.float64([0.1]),
     np.array([True, False]), np.full(50, 7, np.int32), np.zeros((0, 3), F)],
    ids=lambda x: f"{x.dtype}{x.shape}",
)  # fmt: skip
def test_constants(value: Any) -> None:
    proto = tf.make_tensor_proto(value)
    made = tf.compat.v1.NodeDef(name="c", op="Const")
    made.attr["value"].tensor.CopyFrom(proto)
    found = constant(protos.parse("NodeDef", made.SerializeToString(), ""))
    assert found.dtype == value.dtype
    np.testing.assert_array_equal(found, value)


def test_a_constant_of_one_element_for_all() -> None:
    made = tf.compat.v1.NodeDef(name="c", op="Const")
    made.attr["value"].tensor.CopyFrom(tf.make_tensor_proto([1.5, 2.5], shape=[2]))
    made.attr["value"].tensor.tensor_content = b""
    made.attr["value"].tensor.float_val.extend([1.5, 2.5])
    made.attr["value"].tensor.tensor_shape.dim[0].size = 5
    found = constant(protos.parse("NodeDef", made.SerializeToString(), ""))
    assert found.tolist() == [1.5, 2.5, 2.5, 2.5, 2.5]


def test_every_op_of_the_table_is_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [op for op in (*EXACT, *INEXACT) if f'"{op}"' not in text] == []
