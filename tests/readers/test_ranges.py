"""The ratio of a symmetric wide range tells its width, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmath.readers.settings.ranges import is_mirrored, width_from_ratio

widths = st.integers(2, 16)
# Largest weights, from far above the subnormals to anything a network holds.
maxima = st.floats(2.0**-100, 2.0**100, width=32)


def by_division(top: np.ndarray, num_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the range TFMOT leaves when the largest weight is positive."""
    ratio = np.float32(-((1 << num_bits) - 2) / (1 << num_bits))
    return top / ratio, top


def by_reciprocal(top: np.ndarray, num_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the same as a compiler may rewrite it."""
    ratio = np.float32(-((1 << num_bits) - 2) / (1 << num_bits))
    return top * (np.float32(1) / ratio), top


def by_product(bottom: np.ndarray, num_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the range TFMOT leaves when the largest weight is negative."""
    ratio = np.float32(-((1 << num_bits) - 2) / (1 << num_bits))
    return -bottom, -bottom * ratio


@pytest.mark.parametrize("make", [by_division, by_reciprocal, by_product])
@pytest.mark.parametrize("num_bits", range(2, 17))
def test_every_width_is_recognised(make, num_bits: int) -> None:
    top = np.random.default_rng(num_bits).uniform(1e-3, 3, 20_000).astype(np.float32)
    low, high = make(top, num_bits)
    assert width_from_ratio(low, high) == num_bits
    assert not is_mirrored(low, high)


@given(
    st.lists(maxima, min_size=1, max_size=8),
    widths,
    st.sampled_from([by_division, by_reciprocal, by_product]),
)
def test_ranges_of_any_size(tops: list[float], num_bits: int, make) -> None:
    low, high = make(np.array(tops, np.float32), num_bits)
    assert width_from_ratio(low, high) == num_bits


@given(maxima, widths, widths)
def test_channels_must_agree(top: float, first: int, second: int) -> None:
    ranges = [by_division(np.float32(top), bits) for bits in (first, second)]
    low, high = (np.array(ends) for ends in zip(*ranges, strict=True))
    assert width_from_ratio(low, high) == (first if first == second else None)


@given(  # -6 to 6 is untrained
    st.floats(2.0**-100, 6, width=32, exclude_max=True)
    | st.floats(6, 2.0**100, width=32, exclude_min=True)
)
def test_symmetric_narrow_says_nothing_of_the_width(top: float) -> None:
    low, high = -np.float32(top), np.float32(top)
    assert width_from_ratio(low, high) is None
    assert is_mirrored(low, high)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 0),
        (-6, 6),
        (0, 1),
        (-1, 0),
        (-1, 0.9),
        (-1e-38, 0.875e-38),
        (-1e-45, 1e-45),
        (-0.875, 1),
        ([0, -6], [0, 6]),
        ([-0.8, 0], [0.7, 1]),
    ],
)
def test_no_evidence(low, high) -> None:
    assert width_from_ratio(np.array(low, np.float32), np.array(high, np.float32)) is None


def test_channels_without_evidence_are_skipped() -> None:
    low = np.array([-0.8, 0, -6, -1.6], np.float32)
    high = np.array([0.7, 0, 6, 1.4], np.float32)
    assert width_from_ratio(low, high) == 4


@pytest.mark.slow
def test_chance_hits_are_rare() -> None:
    rng = np.random.default_rng(0)
    low = -rng.uniform(0.1, 1, 20_000).astype(np.float32)
    high = rng.uniform(0.1, 1, 20_000).astype(np.float32)
    hits = [width_from_ratio(*pair) for pair in zip(low, high, strict=True)]
    assert sum(hit is not None for hit in hits) <= 2
