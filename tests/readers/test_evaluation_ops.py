"""The ops that are evaluated, each on an example; bit for bit, tests/parity compares them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qmath.readers.saved_model.evaluation_ops import EXACT, INEXACT, NotEvaluatedError, constant
from tests.helpers import assert_same_bits

pytest.importorskip("google.protobuf")

from tests.containers.bundles import message

F, I = np.float32, np.int32  # noqa: E741
X = F([[1.5, -2.5, 0.5], [-0.0, 2.0, -3.0]])
TINY = F(1e-39)


def node(op: str, **attributes: Any) -> Any:
    """An op with attributes, each given with the field that holds it."""
    made = message("NodeDef", name="n", op=op)
    for name, (field, value) in attributes.items():
        if field == "list":
            made.attr[name].list.i.extend(value)
        else:
            setattr(made.attr[name], field, value)
    return made


KEEP = {"keep_dims": ("b", True)}
EXAMPLES: list[tuple[str, dict[str, Any], list[Any], Any]] = [
    ("AddV2", {}, [X, F(1)], X + 1),
    ("AddV2", {}, [I([1, 2]), I([3, 4])], I([4, 6])),
    ("Mul", {}, [TINY, F(1e30)], F(0)),
    ("RealDiv", {}, [X, F(0.5)], X * 2),
    ("Maximum", {}, [X, F(0)], np.where(X > 0, X, F(0))),
    ("Minimum", {}, [I([1, 5]), I([3, 4])], I([1, 4])),
    ("ClipByValue", {}, [X, F(-1), F(1)], np.clip(X, -1, 1)),
    ("Relu", {}, [X], np.where(X > 0, X, F(0))),
    ("Sign", {}, [X], F([[1, -1, 1], [0, 1, -1]])),
    ("Neg", {}, [X], -X),
    ("Abs", {}, [X], np.abs(X)),
    ("Round", {}, [X], F([[2, -2, 0], [-0.0, 2, -3]])),
    ("Floor", {}, [X], F([[1, -3, 0], [-0.0, 2, -3]])),
    ("Ceil", {}, [X], F([[2, -2, 1], [-0.0, 2, -3]])),
    ("Ceil", {}, [TINY], F(0)),
    ("Max", {}, [X, I([-1])], F([1.5, 2])),
    ("Min", KEEP, [X, I([0])], F([[-0.0, -2.5, -3]])),
    ("Greater", {}, [TINY, F(0)], np.bool_(False)),
    ("LogicalNot", {}, [X > 0], X <= 0),
    ("SelectV2", {}, [X > 0, X, F(7)], np.where(X > 0, X, F(7))),
    ("Select", {}, [np.array([True, False]), X, X * 2], np.stack([X[0], X[1] * 2])),
    ("Cast", {"DstT": ("type", 3)}, [X], I([[1, -2, 0], [0, 2, -3]])),
    ("Reshape", {}, [X, I([3, -1])], X.reshape(3, 2)),
    ("Transpose", {}, [X, I([1, 0])], X.T),
    ("ExpandDims", {}, [X, I(1)], X[:, None]),
    ("Squeeze", {"squeeze_dims": ("list", [1])}, [X[:, None]], X),
    ("Squeeze", {}, [X[:, None]], X),
    ("GatherV2", {}, [X, I([2, 0]), I(1)], X[:, [2, 0]]),
    ("Gather", {}, [X, I([1])], X[[1]]),
    ("BroadcastTo", {}, [F(2), I([2, 2])], np.full((2, 2), F(2))),
    ("Fill", {}, [I([2, 2]), F(2)], np.full((2, 2), F(2))),
    ("Pack", {"axis": ("i", 1)}, [X, X], np.stack([X, X], 1)),
    ("ConcatV2", {}, [X, X, I(0)], np.concatenate([X, X])),
    ("Shape", {}, [X], I([2, 3])),
    ("Shape", {"out_type": ("type", 9)}, [X], np.int64([2, 3])),
    ("StridedSlice", {"shrink_axis_mask": ("i", 1), "end_mask": ("i", 2)},
     [X, I([1, 1]), I([2, 0]), I([1, 1])], X[1, 1:]),
    ("FakeQuantWithMinMaxArgs", {"num_bits": ("i", 2), "min": ("f", 0), "max": ("f", 3)},
     [X], F([[2, 0, 1], [0, 2, 0]])),
    ("FakeQuantWithMinMaxVars", {"num_bits": ("i", 2)}, [X, F(0), F(3)], F([[2, 0, 1], [0, 2, 0]])),
    ("FakeQuantWithMinMaxVarsPerChannel", {"num_bits": ("i", 2)},
     [X, F([0, -3, 0]), F([3, 0, 3])], F([[2, -2, 1], [0, 0, 0]])),
    ("QuantizeAndDequantizeV2", {"range_given": ("b", True), "num_bits": ("i", 3)},
     [X, F(-4), F(3)], F([[2, -2, 0], [0, 2, -3]])),
    ("QuantizeAndDequantizeV3", {}, [X, F(-4), F(3), I(3)], F([[2, -2, 0], [0, 2, -3]])),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attributes", "inputs", "expected"), EXAMPLES)
def test_an_example(op: str, attributes: Any, inputs: list[Any], expected: Any) -> None:
    found = EXACT[op](node(op, **attributes), [np.asarray(x) for x in inputs])
    assert found.dtype == np.asarray(expected).dtype
    if found.dtype == F and op not in ("QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3"):
        assert_same_bits(found, np.asarray(expected))
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("op", "inputs", "expected", "is_sure"),
    [
        ("Pow", [F(2), F(-3)], 0.125, True),
        ("Pow", [F(3), F(0.5)], 3**0.5, False),
        ("Log", [F(1)], 0, True),
        ("Exp", [F(0)], 1, True),
        ("Tanh", [F(0.5)], np.tanh(0.5), False),
        ("Sigmoid", [F(0.5)], 1 / (1 + np.exp(-0.5)), False),
        ("Rsqrt", [F(4)], 0.5, False),
        ("Sum", [X, I([0, 1])], -1.5, False),
        ("Mean", [X, I([0, 1])], -0.25, False),
        ("Sum", [X[:1, :1], I([0, 1])], 1.5, True),
    ],
)
def test_how_sure_a_result_is(op: str, inputs: list[Any], expected: Any, is_sure: bool) -> None:
    found, error = INEXACT[op](node(op), [np.asarray(x) for x in inputs])
    assert found == F(expected)
    assert bool(error.any()) != is_sure


@pytest.mark.parametrize(
    ("op", "attributes", "inputs"),
    [
        ("RealDiv", {}, [I([3]), I([2])]),
        ("Round", {}, [np.float64([0.5])]),
        ("Max", {}, [F([np.nan]), I([0])]),
        ("Cast", {"DstT": ("type", 7)}, [X]),
        ("Cast", {"DstT": ("type", 3)}, [F([1e30])]),
        ("Gather", {"batch_dims": ("i", 1)}, [X, I([0])]),
        ("StridedSlice", {"ellipsis_mask": ("i", 1)}, [X, I([0]), I([1]), I([1])]),
    ],
)
def test_what_is_not_evaluated(op: str, attributes: Any, inputs: list[Any]) -> None:
    with pytest.raises(NotEvaluatedError):
        EXACT[op](node(op, **attributes), inputs)


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("AddV2", [X, I(1)]),
        ("Max", [X, I([2])]),
        ("Gather", [X, I([2])]),
        ("Fill", [I([1 << 30, 1 << 30]), F(1)]),
        ("Gather", [np.broadcast_to(F(1), (1, 1 << 20)), np.zeros(1 << 10, I)]),
    ],
)
def test_what_tensorflow_refuses_or_no_network_needs(op: str, inputs: list[Any]) -> None:
    with pytest.raises((ValueError, IndexError)):
        EXACT[op](node(op), [np.asarray(x) for x in inputs])


def test_constants() -> None:
    made = node("Const")
    tensor = made.attr["value"].tensor
    tensor.dtype = 1
    tensor.float_val.extend([1.5, 2.5])
    tensor.tensor_shape.dim.add(size=4)
    assert constant(made).tolist() == [1.5, 2.5, 2.5, 2.5]
    tensor.float_val.pop()
    assert constant(made).tolist() == [1.5] * 4
    tensor.tensor_shape.dim[0].size = 1 << 40
    with pytest.raises(ValueError, match="more elements"):
        constant(made)
    tensor.dtype = 7
    with pytest.raises(NotEvaluatedError, match="type 7"):
        constant(made)
