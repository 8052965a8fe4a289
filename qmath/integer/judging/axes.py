"""The shapes of anyone's arrays, in the order of axes that is stated, or asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.judging.names import tensor_named
from qmath.integer.program import Program, Shape

__all__ = ["LETTERS", "Axes", "arranged"]

Array = NDArray[Any]
Axes = str | Mapping[str, str]

# Of arrays with so many axes, as qmath has them.
LETTERS = {1: "N", 2: "NC", 3: "NWC", 4: "NHWC", 5: "NDHWC"}


def arranged(
    program: Program, arrays: Mapping[str, Array], examples: int, axes: Axes | None
) -> tuple[dict[str, Array], list[str]]:
    """Return arrays in the program's shapes, and what is to be noted.

    Raises
    ------
    QmathError
        A shape does not fit, or only in an order that is not stated.
    """
    if not isinstance(axes, (str, Mapping, type(None))) or (
        isinstance(axes, Mapping) and not all(isinstance(x, str) for x in (*axes, *axes.values()))
    ):
        raise QmathError(f"axes must be an order, 'NCHW', or {{TENSOR: order}}, got {axes!r}")
    stated = {"": axes} if isinstance(axes, str) else dict(axes or {})
    common = stated.pop("", None)
    orders = {tensor_named(program, name): order for name, order in stated.items()}
    for name in orders:
        if name not in arrays:
            raise QmathError(f"the axes of {name} are stated, but it is not in what is compared")
    shapes = {step.name: (examples, *step.shape) for step in program.steps if step.name in arrays}
    known = {LETTERS.get(len(shape), "") for shape in shapes.values()}
    if common is not None and sorted(common) not in map(sorted, known):
        raise QmathError(
            f"no tensor here has the axes {common!r}; give {' or '.join(sorted(known))} in the "
            "order of yours"
        )
    found: dict[str, Array] = {}
    flat: list[str] = []
    for name, shape in shapes.items():
        fits = common is not None and sorted(common) == sorted(LETTERS.get(len(shape), ""))
        order = orders.get(name, common if fits else None)
        if order is not None:
            found[name] = _stated(arrays[name], shape, name, order)
            continue
        found[name] = _unstated(arrays[name], shape, name)
        if len(shape) > 2 and _is_flat(arrays[name], shape):
            flat.append(name)
    words = "flat arrays are read in qmath's order, channels last, as --axes may change"
    return found, [f"{words}: {', '.join(flat)}"] if flat else []


def _is_flat(array: Array, shape: Shape) -> bool:
    """Whether an array has the elements of `shape`, but not its axes."""
    is_flat = array.ndim == 1 or (array.ndim == 2 and len(array) == shape[0])
    return is_flat and array.size == math.prod(shape)


def _stated(array: Array, shape: Shape, name: str, order: str) -> Array:
    letters = LETTERS.get(len(shape), "")
    if sorted(order) != sorted(letters):
        raise QmathError(
            f"{name}: its axes are {letters}, N the examples and C the channels; {order!r} is no "
            "order of them"
        )
    theirs = tuple(shape[letters.index(letter)] for letter in order)
    if array.shape == theirs[1:] and theirs[0] == 1:
        array = array[np.newaxis]
    if array.shape != theirs and _is_flat(array, theirs):
        array = array.reshape(theirs)
    if array.shape != theirs:
        raise QmathError(
            f"{name}: yours has the shape {array.shape}; in the order {order} it must be {theirs}"
        )
    return np.asarray(array.transpose([order.index(letter) for letter in letters]))


def _unstated(array: Array, shape: Shape, name: str) -> Array:
    if array.shape == shape:
        return array
    is_same = [n for n in array.shape if n != 1] == [n for n in shape if n != 1]
    if is_same or _is_flat(array, shape):
        return array.reshape(shape)
    letters = LETTERS.get(len(shape), "")
    orders = [
        "".join(order)
        for order in permutations(letters)
        if tuple(shape[letters.index(letter)] for letter in order) == array.shape
    ]
    orders = [order for order in orders if order.find("H") <= order.find("W")] or orders
    if orders:
        raise QmathError(
            f"{name}: yours has the shape {array.shape}, qmath's is {shape}, in the order "
            f"{letters}; state yours: --axes {name}={' or '.join(orders)}"
        )
    raise QmathError(
        f"{name}: yours has the shape {array.shape}; {shape[0]} examples of the data make {shape}"
    )
