"""Inputs of the whole model that golden vectors start from: drawn, or the user's own."""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.integer.executor import Executor
from qmath.integer.program import Program, QuantizeStep

__all__ = ["MOST_VECTORS", "Vectors", "check_vectors", "drawn", "given", "recorded", "restored"]

Array = NDArray[Any]
# How many inputs to draw, or the user's own: for the one input of the model, or each by its name.
Vectors = int | Mapping[str, ArrayLike] | ArrayLike
MOST_VECTORS = 1 << 16
_MOST_BYTES = 1 << 26  # of the user's own, which the manifest keeps


def check_vectors(vectors: Vectors) -> None:
    """Raise unless `vectors` are a number in range, or arrays.

    Raises
    ------
    QmathError
        A number of inputs is negative or too large, or they are neither.
    """
    if isinstance(vectors, (bool, np.bool_, float, str, bytes, os.PathLike)):
        raise QmathError(
            f"vectors must be how many test vectors to draw, or arrays of inputs, got {vectors!r}"
        )
    if isinstance(vectors, int) and not 0 <= vectors <= MOST_VECTORS:
        raise QmathError(f"the number of test vectors must be 0 to {MOST_VECTORS}, got {vectors}")


def drawn(program: Program, count: int) -> dict[str, Array]:
    """Draw inputs evenly from the ranges of a program's inputs, and of its cut points."""
    ranges = {s.source: s.params for s in program.steps if isinstance(s, QuantizeStep)}
    # The stream of this generator is frozen: every NumPy draws the same numbers.
    rng = np.random.RandomState(0)
    inputs = {}
    for name, shape in program.feeds.items():
        params = ranges.get(name)
        low, high = (params.min, params.max) if params else (-1.0, 1.0)
        inputs[name] = rng.uniform(low, high, (count, *shape)).astype(np.float32)
    return inputs


def given(executor: Executor, vectors: Mapping[str, ArrayLike] | ArrayLike) -> dict[str, Array]:
    """Return the user's own inputs by name.

    Raises
    ------
    QmathError
        They are not the model's, there are none, or more than a manifest keeps.
    """
    names = list(executor.program.inputs)
    if not isinstance(vectors, Mapping):
        if len(names) != 1:
            raise QmathError(f"the model has the inputs {', '.join(names)}: give vectors for each")
        vectors = {names[0]: vectors}
    arrays = executor.checked(vectors)
    count = len(next(iter(arrays.values())))
    if not 0 < count <= MOST_VECTORS:
        raise QmathError(f"the number of test vectors must be 1 to {MOST_VECTORS}, got {count}")
    size = sum(x.nbytes for x in arrays.values())
    if size > _MOST_BYTES:
        raise QmathError(
            f"{count} test vectors take {size} bytes, and the manifest keeps up to {_MOST_BYTES}: "
            f"give the first {_MOST_BYTES * count // size}"
        )
    return arrays


def recorded(inputs: Mapping[str, Array]) -> dict[str, Any]:
    """Return inputs as JSON values, from which `restored` makes them again.

    Examples
    --------
    >>> recorded({"image": np.float32([[0.5, 1.0]])})
    {'image': {'shape': [1, 2], 'float32': 'AAAAPwAAgD8='}}
    """
    return {
        name: {
            "shape": list(x.shape),
            "float32": base64.b64encode(x.astype("<f4").tobytes()).decode(),
        }
        for name, x in inputs.items()
    }


def restored(record: object) -> int | dict[str, Array]:
    """Return what a manifest says of vectors: their number, or the inputs.

    Raises
    ------
    QmathError
        It says neither.
    """
    if type(record) is int:
        return record
    try:
        if not isinstance(record, dict) or not record:
            raise ValueError("they are neither a number nor arrays")
        found = {}
        for name, entry in record.items():
            data = base64.b64decode(entry["float32"], validate=True)
            shape = entry["shape"]
            if not all(type(n) is int and n >= 0 for n in shape) or 4 * math.prod(shape) != len(
                data
            ):
                raise ValueError(f"the shape of {name} does not fit its size")
            found[name] = np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)
    except (ValueError, TypeError, KeyError, binascii.Error) as error:
        raise QmathError(f"its test vectors are damaged ({error})") from error
    return found
