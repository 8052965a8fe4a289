"""What ops take besides what flows through them: constants, weights, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Param", "batch_normalization", "constant", "is_all_rows", "shortest", "target_shape",
]  # fmt: skip

_MOST = 256
# DataType of types.proto → how constants hold it.
_CONSTANTS = {1: ("<f4", "float_val"), 3: ("<i4", "int_val"), 9: ("<i8", "int64_val")}


@dataclass(frozen=True, eq=False)  # compared, they could nest too deeply
class Param:
    """A value that no input of the model flows into.

    Attributes
    ----------
    op : str
        What makes it.
    args : tuple of Param
        What of.
    name : str
        Of a weight, its tensor.
    values : tuple of int or float, or None
        Of a small constant, its elements.
    scope : str
        The op's name with all scopes.
    """

    op: str
    args: tuple[Param, ...] = ()
    name: str = ""
    values: tuple[Any, ...] | None = None
    scope: str = ""


def constant(node: Any, inputs: Sequence[Param]) -> tuple[Any, ...] | None:
    """Return the elements of a small constant of numbers, ``None`` of anything else."""
    if node.op == "ConcatV2" and all(part.values for part in inputs):
        joined = [element for part in inputs[:-1] for element in part.values or ()]
        return tuple(joined) if len(joined) <= _MOST else None
    if node.op != "Const" or "value" not in node.attr:
        return None
    tensor = node.attr["value"].tensor
    count = math.prod(max(dim.size, 0) for dim in tensor.tensor_shape.dim)
    if tensor.dtype not in _CONSTANTS or count > _MOST:
        return None
    dtype, key = _CONSTANTS[tensor.dtype]
    if tensor.tensor_content:
        whole = len(tensor.tensor_content) == count * np.dtype(dtype).itemsize
        return tuple(np.frombuffer(tensor.tensor_content, dtype).tolist()) if whole else None
    found = list(getattr(tensor, key))[:count] or [0]
    # The last element stands for all that follow.
    return tuple(found + found[-1:] * (count - len(found)))


def target_shape(shape: Param) -> list[int] | None:
    """Return the shape that ``Reshape`` gives each example, ``None`` if it cannot be told."""
    if shape.values:
        first, *rest = shape.values
        return [int(n) for n in rest] if first == -1 and rest else None
    if shape.op != "Pack" or not shape.args:
        return None
    batch, *lengths = shape.args
    is_batch = batch.op == "StridedSlice" and bool(batch.args) and batch.args[0].op == "Shape"
    if not is_batch or any(not length.values or len(length.values) != 1 for length in lengths):
        return None
    return [int(length.values[0]) for length in lengths if length.values]


def is_all_rows(shape: Param) -> bool:
    """Tell whether ``Reshape`` to this shape puts all axes but the last together.

    That is how ``tf.tensordot`` begins, which runs a Dense layer on more than two axes.
    """
    if shape.op != "Pack" or len(shape.args) != 2:
        return False
    taken = []
    for product in shape.args:
        gathered = product.args[0] if product.op == "Prod" and product.args else product
        if gathered.op != "GatherV2" or not gathered.args or gathered.args[0].op != "Shape":
            return False
        taken.append(gathered.args[1].values or ())
    free, last = taken
    return free == tuple(range(len(free))) and last == (len(free),)


def batch_normalization(
    factor: object, shift: Param, name_of: Callable[[Param], str]
) -> tuple[str, float] | None:
    """Return layer and epsilon, if ``x * factor + shift`` normalizes a batch.

    ``factor`` is ``gamma / sqrt(variance + epsilon)``, ``shift`` is ``beta - mean * factor``.
    """
    if not isinstance(factor, Param):
        return None
    root, gamma = (factor, None) if factor.op == "Rsqrt" else _pair(factor, "Mul")
    if root is None or root.op != "Rsqrt" or len(root.args) != 1:
        return None
    variance, epsilon = _pair(root.args[0], "AddV2")
    if variance is None or epsilon is None or not epsilon.values:
        return None
    beta, product = _pair(shift, "Sub")
    mean, again = _pair(product, "Mul") if product is not None else (None, None)
    if mean is None or beta is None or again is None or again.scope != factor.scope:
        return None
    named = {"moving_variance": variance, "moving_mean": mean, "beta": beta}
    if gamma is not None:
        named["gamma"] = gamma
    layer = name_of(variance).rpartition("/")[0]
    if not all(name_of(param) == f"{layer}/{leaf}" for leaf, param in named.items()):
        return None
    return layer, shortest(epsilon.values[0])


def shortest(value: float) -> float:
    """Return the number that a config would hold of a float32: 0.001, not 0.0010000000475."""
    return float(str(np.float32(value)))


def _pair(param: Param, op: str) -> tuple[Param | None, Param | None]:
    if param.op != op or len(param.args) != 2:
        return None, None
    return param.args
