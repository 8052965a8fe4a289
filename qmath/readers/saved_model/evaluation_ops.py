"""TensorFlow's ops on constants and weights, in NumPy: one function for each, by the op's name.

A function takes the op's node and the arrays of its inputs. Arithmetic on float32 counts subnormals
as zero, as TensorFlow's CPU kernels do. Of the ops in `INEXACT` the last bits depend on the build
of TensorFlow, so they also return by how much a result may be off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.kernels._float32 import flush, maximum, minimum, rounded
from qmath.kernels.fake_quant import (
    fake_quant_with_min_max_args,
    fake_quant_with_min_max_vars,
    fake_quant_with_min_max_vars_per_channel,
)
from qmath.kernels.quantize_and_dequantize import quantize_and_dequantize_v2

__all__ = ["EXACT", "INEXACT", "NotEvaluatedError", "attribute", "constant"]

Array = NDArray[Any]
_Exact = Callable[[Any, Sequence[Array]], Array]
_Inexact = Callable[[Any, Sequence[Array]], tuple[Array, Array]]

# DataType of types.proto → NumPy's, and the field of a TensorProto that holds short constants.
_DTYPES: Mapping[int, tuple[str, str]] = {
    1: ("<f4", "float_val"), 2: ("<f8", "double_val"), 3: ("<i4", "int_val"),
    9: ("<i8", "int64_val"), 10: ("?", "bool_val"),
}  # fmt: skip
_MOST_ELEMENTS = 1 << 26
# Largest error of TensorFlow's elementary functions, in units of the last place.
_ULPS: Mapping[str, int] = {
    "Exp": 2, "Log": 4, "Log1p": 4, "Pow": 2, "Rsqrt": 4, "Sigmoid": 4, "Softplus": 6, "Tanh": 8,
}  # fmt: skip
_UNIT = 2.0**-24
_INT = np.int32


class NotEvaluatedError(Exception):
    """A value is made by an op, or of a type, that is not in the table; the text names it."""


def attribute(node: Any, name: str, kind: str, default: Any) -> Any:
    """Return an attribute of an op, or the op's default if the file leaves it out."""
    return getattr(node.attr[name], kind) if name in node.attr else default


def constant(node: Any) -> Array:
    """Return what a ``Const`` holds."""
    tensor = node.attr["value"].tensor if "value" in node.attr else None
    if tensor is None or tensor.dtype not in _DTYPES:
        raise NotEvaluatedError(f"a constant of type {tensor.dtype if tensor else 'none'}")
    dtype, key = _DTYPES[tensor.dtype]
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    count = 1
    for size in shape:
        count *= max(size, 0)
        if count > _MOST_ELEMENTS:
            raise ValueError("a constant of more elements than any network's")
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    held = np.array(list(getattr(tensor, key))[:count] or [0], dtype)
    if held.size == 1:
        return np.broadcast_to(held[0], shape)
    # The last element stands for all that follow.
    return np.append(held, np.repeat(held[-1], count - held.size)).reshape(shape)


def _float_or_int(name: str, function: Callable[..., Any]) -> _Exact:
    """Return an op that rounds a float32 result once, and takes integers as they are."""

    def run(_: Any, inputs: Sequence[Array]) -> Array:
        arrays = _of_one_type(name, inputs)
        if arrays[0].dtype != np.float32:
            if arrays[0].dtype.kind not in "iu" or name in ("RealDiv", "Sqrt"):
                raise NotEvaluatedError(f"{name} of {arrays[0].dtype}")
            return np.asarray(function(*arrays))
        # A float64 holds what is rounded to float32 once.
        return rounded(function(*(flush(x).astype(np.float64) for x in arrays)))

    return run


def _of_one_type(name: str, inputs: Sequence[Array]) -> Sequence[Array]:
    if not inputs or len({x.dtype for x in inputs}) > 1:
        raise ValueError(f"{name} of {[str(x.dtype) for x in inputs]}")
    return inputs


def _plain(function: Callable[..., Any]) -> _Exact:
    return lambda _, inputs: np.asarray(function(*map(_flushed, inputs)))


def _flushed(x: Array) -> Array:
    return flush(x) if x.dtype == np.float32 else x


def _rounding(function: Callable[..., Any]) -> _Exact:
    return lambda _, inputs: np.asarray(function(flush(_float32(inputs[0]))))


def _float32(x: Array) -> Array:
    if x.dtype != np.float32:
        raise NotEvaluatedError(f"a value of {x.dtype}, not float32")
    return x


def _larger(is_beyond: Callable[[Any, Any], Any]) -> _Exact:
    """Return an op that takes the first operand if it is beyond the second; NaNs stay."""

    def run(node: Any, inputs: Sequence[Array]) -> Array:
        a, b = map(_flushed, _of_one_type(node.op, inputs))
        first = is_beyond(a, b)
        return np.where(first | np.isnan(a) if a.dtype.kind == "f" else first, a, b)

    return run


def _axes(x: Array, axes: Array) -> tuple[int, ...]:
    found = tuple(int(axis) for axis in np.atleast_1d(axes))
    if any(not -x.ndim <= axis < x.ndim for axis in found):
        raise ValueError("an axis that is not there")
    return tuple({axis % x.ndim for axis in found})


def _reduced(function: Callable[..., Any]) -> _Exact:
    def run(node: Any, inputs: Sequence[Array]) -> Array:
        x, axes = inputs
        keep = bool(attribute(node, "keep_dims", "b", False))
        if np.isnan(x).any():
            raise NotEvaluatedError(f"{node.op} of NaN")
        return np.asarray(function(x, axis=_axes(x, axes), keepdims=keep))

    return run


def _cast(node: Any, inputs: Sequence[Array]) -> Array:
    wanted = attribute(node, "DstT", "type", 0)
    if wanted not in _DTYPES:
        raise NotEvaluatedError(f"a Cast to type {wanted}")
    dtype = np.dtype(_DTYPES[wanted][0])
    (x,) = inputs
    if x.dtype.kind == "f" and dtype.kind in "iu":
        limit = 2.0 ** (8 * dtype.itemsize - 1)
        if not (np.abs(x.astype(np.float64)) < limit).all():
            raise NotEvaluatedError("a Cast of what its type does not hold")
    return x.astype(dtype)


def _pack(node: Any, inputs: Sequence[Array]) -> Array:
    return np.stack(inputs, int(attribute(node, "axis", "i", 0)))


def _squeeze(node: Any, inputs: Sequence[Array]) -> Array:
    held = attribute(node, "squeeze_dims", "list", None)
    return np.squeeze(inputs[0], tuple(map(int, held.i)) if held and held.i else None)


def _gather(node: Any, inputs: Sequence[Array]) -> Array:
    x, indices, *rest = inputs
    axis = int(rest[0]) if rest else 0
    if attribute(node, "batch_dims", "i", 0):
        raise NotEvaluatedError("a GatherV2 with batch_dims")
    if indices.size and (indices.min() < 0 or indices.max() >= x.shape[axis]):
        raise ValueError("an index that is not there")
    if indices.size * x.size // max(x.shape[axis], 1) > _MOST_ELEMENTS:
        raise ValueError("a tensor of more elements than any network's")
    return np.take(x, indices, axis)


def _select(node: Any, inputs: Sequence[Array]) -> Array:
    condition, yes, no = inputs
    if node.op == "Select" and condition.ndim == 1 and yes.ndim > 1:
        condition = condition.reshape((-1,) + (1,) * (yes.ndim - 1))
    return np.where(condition, yes, no)


def _fill(_: Any, inputs: Sequence[Array]) -> Array:
    return _broadcast(_, [inputs[1], inputs[0]])


def _broadcast(_: Any, inputs: Sequence[Array]) -> Array:
    shape = tuple(int(size) for size in inputs[1])
    if np.prod(np.maximum(shape, 0), dtype=np.float64) > _MOST_ELEMENTS:
        raise ValueError("a tensor of more elements than any network's")
    return np.broadcast_to(inputs[0], shape)


def _shape(node: Any, inputs: Sequence[Array]) -> Array:
    is_long = attribute(node, "out_type", "type", 3) == 9
    return np.array(inputs[0].shape, np.int64 if is_long else _INT)


def _strided_slice(node: Any, inputs: Sequence[Array]) -> Array:
    """Mirror a slice with masks, but for ellipses and new axes."""
    x, begin, end, strides = inputs
    masks = {
        name: int(attribute(node, f"{name}_mask", "i", 0))
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    if masks["ellipsis"] or masks["new_axis"]:
        raise NotEvaluatedError("a StridedSlice with an ellipsis")
    places: list[Any] = []
    for i, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        if masks["shrink_axis"] >> i & 1:
            places.append(int(first))
        else:
            start = None if masks["begin"] >> i & 1 else int(first)
            places.append(slice(start, None if masks["end"] >> i & 1 else int(last), int(step)))
    return np.asarray(x[tuple(places)])


def _clip(_: Any, inputs: Sequence[Array]) -> Array:
    x, low, high = inputs
    return np.asarray(maximum(minimum(x, high), low))


def _relu(_: Any, inputs: Sequence[Array]) -> Array:
    x = flush(_float32(inputs[0]))
    return np.where((x > 0) | np.isnan(x), x, np.float32(0))


def _sign(_: Any, inputs: Sequence[Array]) -> Array:
    x = _float32(inputs[0])
    return np.where(flush(x) == 0, np.float32(0), np.sign(x))


def _fake_quant(node: Any, inputs: Sequence[Array]) -> Array:
    num_bits = int(attribute(node, "num_bits", "i", 8))
    narrow = bool(attribute(node, "narrow_range", "b", False))
    x = _float32(inputs[0])
    if node.op == "FakeQuantWithMinMaxArgs":
        low, high = (attribute(node, *end) for end in (("min", "f", -6.0), ("max", "f", 6.0)))
        return fake_quant_with_min_max_args(x, low, high, num_bits, narrow)
    per_channel = node.op.endswith("PerChannel")
    kernel = (
        fake_quant_with_min_max_vars_per_channel if per_channel else fake_quant_with_min_max_vars
    )
    return kernel(x, _float32(inputs[1]), _float32(inputs[2]), num_bits, narrow)


def _quantize_and_dequantize(node: Any, inputs: Sequence[Array]) -> Array:
    x, low, high, *rest = inputs
    is_v3 = node.op == "QuantizeAndDequantizeV3"
    axis = int(attribute(node, "axis", "i", -1))
    mode = attribute(node, "round_mode", "s", b"HALF_TO_EVEN").decode()
    return quantize_and_dequantize_v2(
        _float32(x), low, high, bool(attribute(node, "signed_input", "b", True)),
        int(rest[0]) if is_v3 and rest else int(attribute(node, "num_bits", "i", 8)),
        bool(attribute(node, "range_given", "b", is_v3)), mode, None,
        bool(attribute(node, "narrow_range", "b", False)), None if axis == -1 else axis,
    )  # fmt: skip


EXACT: Mapping[str, _Exact] = {
    **dict.fromkeys(("Add", "AddV2"), _float_or_int("Add", np.add)),
    "Sub": _float_or_int("Sub", np.subtract),
    "Mul": _float_or_int("Mul", np.multiply),
    "RealDiv": _float_or_int("RealDiv", np.divide),
    "Div": _float_or_int("RealDiv", np.divide),
    "Square": _float_or_int("Square", np.square),
    "Sqrt": _float_or_int("Sqrt", np.sqrt),
    "Neg": lambda _, inputs: np.negative(inputs[0]),
    "Abs": lambda _, inputs: np.abs(inputs[0]),
    "Sign": _sign,
    "Maximum": _larger(np.greater),
    "Minimum": _larger(np.less),
    "ClipByValue": _clip,
    "Relu": _relu,
    **dict.fromkeys(("Round", "Rint"), _rounding(np.rint)),
    "Floor": _rounding(np.floor),
    "Ceil": _rounding(np.ceil),
    "Max": _reduced(np.max),
    "Min": _reduced(np.min),
    "Greater": _plain(np.greater),
    "GreaterEqual": _plain(np.greater_equal),
    "Less": _plain(np.less),
    "LessEqual": _plain(np.less_equal),
    "Equal": _plain(np.equal),
    "NotEqual": _plain(np.not_equal),
    "LogicalAnd": _plain(np.logical_and),
    "LogicalOr": _plain(np.logical_or),
    "LogicalNot": _plain(np.logical_not),
    **dict.fromkeys(("Select", "SelectV2"), _select),
    "Cast": _cast,
    "Reshape": lambda _, inputs: inputs[0].reshape([int(n) for n in inputs[1]]),
    "Transpose": lambda _, inputs: np.transpose(inputs[0], [int(n) for n in inputs[1]]),
    "ExpandDims": lambda _, inputs: np.expand_dims(inputs[0], int(inputs[1].item())),
    "Squeeze": _squeeze,
    **dict.fromkeys(("Gather", "GatherV2"), _gather),
    "BroadcastTo": _broadcast,
    "Fill": _fill,
    "Pack": _pack,
    "ConcatV2": lambda _, inputs: np.concatenate(inputs[:-1], int(inputs[-1].item())),
    "Shape": _shape,
    "StridedSlice": _strided_slice,
    "ZerosLike": _plain(np.zeros_like),
    "OnesLike": _plain(np.ones_like),
    **dict.fromkeys(
        ("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel", "FakeQuantWithMinMaxArgs"),
        _fake_quant,
    ),
    **dict.fromkeys(
        tuple(f"QuantizeAndDequantizeV{n}" for n in (2, 3, 4)), _quantize_and_dequantize
    ),
}


def _elementary(name: str, function: Callable[..., Any]) -> _Inexact:
    """Return a function computed in float64, with the largest error of TensorFlow's."""

    def run(_: Any, inputs: Sequence[Array]) -> tuple[Array, Array]:
        arrays = [flush(_float32(x)).astype(np.float64) for x in inputs]
        exact = np.asarray(function(*arrays))
        result = rounded(exact)
        sure = ~np.isfinite(result) | (result == 0)
        if name == "Pow":  # of powers of two and integers: kernels return the exact result
            base, exponent = arrays
            sure |= (np.frexp(np.abs(base))[0] == 0.5) & (exponent == np.rint(exponent))
        elif name in ("Exp", "Log"):
            sure |= arrays[0] == (name == "Log")
        error = np.where(sure, 0, _ULPS[name] * np.spacing(np.abs(result)))
        return result, error.astype(np.float32)  # NumPy 1 makes scalars float64

    return run


def _summed(node: Any, inputs: Sequence[Array]) -> tuple[Array, Array]:
    """Return a sum or mean; its order of addition bounds its error."""
    x, axes = _float32(inputs[0]), _axes(inputs[0], inputs[1])
    keep = bool(attribute(node, "keep_dims", "b", False))
    wide = x.astype(np.float64)
    count = int(np.prod([x.shape[axis] for axis in axes])) if axes else 1
    total = wide.sum(axis=axes, keepdims=keep)
    # Whole tensors are summed by eight lanes at least four at a time, columns one after the other.
    depth = count if len(axes) < x.ndim else min(count, count // 4 + 16)
    bound = (depth if count > 1 else 0) * _UNIT * np.abs(wide).sum(axis=axes, keepdims=keep)
    if node.op == "Mean":
        total, bound = total / max(count, 1), bound / max(count, 1)
    result = rounded(total)
    error = bound.astype(np.float32) + (np.spacing(np.abs(result)) if count > 1 else 0)
    return result, np.where(bound == 0, np.float32(0), error).astype(np.float32)


INEXACT: Mapping[str, _Inexact] = {
    "Exp": _elementary("Exp", np.exp),
    "Log": _elementary("Log", np.log),
    "Log1p": _elementary("Log1p", np.log1p),
    "Pow": _elementary("Pow", np.power),
    "Rsqrt": _elementary("Rsqrt", lambda x: 1 / np.sqrt(x)),
    "Sigmoid": _elementary("Sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    "Softplus": _elementary("Softplus", lambda x: np.logaddexp(0, x)),
    "Tanh": _elementary("Tanh", np.tanh),
    "Sum": _summed,
    "Mean": _summed,
}
