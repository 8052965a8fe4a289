"""The one comparison of this test suite: float32 bit patterns. And the half of a matrix."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from numpy.typing import ArrayLike


def assert_same_bits(actual: ArrayLike, expected: ArrayLike, context: object = "") -> None:
    """Assert equal shapes, dtypes and bits; NaN equals NaN, whatever its payload."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype == np.float32, (actual.dtype, expected.dtype)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    a, e = np.atleast_1d(actual), np.atleast_1d(expected)
    differs = (bits(a) != bits(e)) & ~(np.isnan(a) & np.isnan(e))
    if differs.any():
        first = tuple(int(i) for i in np.argwhere(differs)[0])
        flipped = np.bitwise_xor(bits(a), bits(e))[differs]
        raise AssertionError(
            f"{differs.sum()} of {a.size} elements differ in "
            f"{sum(int(f).bit_count() for f in flipped)} bits; first at {first}: "
            f"{a[first]!r} ({bits(a)[first]:#010x}), expected {e[first]!r} "
            f"({bits(e)[first]:#010x}) {context}"
        )


def assert_same_state(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Assert equal bits of a quantizer's state; zeros are equal whatever their sign.

    The sign of a zero minimum depends on the vector width of TensorFlow's reduction, and changes
    no output.
    """
    assert actual.keys() == expected.keys()
    for key in actual:
        # -0.0 + 0.0 is +0.0, and adding +0.0 changes nothing else.
        assert_same_bits(actual[key] + np.float32(0), expected[key] + np.float32(0), key)


def bits(x: np.ndarray) -> np.ndarray:
    """Return the bit patterns of a float32 array."""
    return np.ascontiguousarray(x).view(np.uint32)


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file, and leave it closed."""
    with np.load(path) as file:
        return dict(file)


def halved(*settings: Iterable[object]) -> list[ParameterSet]:
    """Return all cells of a matrix of three settings or more; every second is nightly.

    In the other half any two values of different settings still meet.
    """
    cells = product(*(enumerate(values) for values in settings))
    return [
        pytest.param(
            *(value for _, value in cell),
            marks=[pytest.mark.nightly] * (sum(number for number, _ in cell) % 2),
        )
        for cell in cells
    ]
