"""Worst cases: those nearest to a rounding tie, and those that float32 decides otherwise.

No seed changes them. `reference/worst` holds what they are today.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.profiles.tflite_arithmetic import (
    multiply_by_quantized_multiplier,
    quantize_multiplier,
)
from qmath.testing.floats import Range, neighbours, thresholds
from qmath.testing.pipe.judge import op_of
from qmath.testing.pipe.records import dtype_of, write_cases
from qmath.testing.pipe.settings import Settings

__all__ = ["RANGES", "SCALES", "worst_cases", "worst_of_range"]

Array = NDArray[Any]
WIDTHS = range(2, 17)
RANGES = (
    (-1.0, 1.0), (-6.0, 6.0), (0.0, 6.0), (0.0, 1.0), (-1.0, 0.9921875), (-0.1, 0.3),
    (-1.3, 2.7), (1.0, 2.0), (-0.001, 1000.0), (-(2.0**-108), 2.0**-107),
)  # fmt: skip
SCALES = (0.75, 0.5, 0.1, 0.0625, 0.03, 0.0117, 0.0078125, 0.003, 0.0009, 0.0001)
_EACH = 3  # of each kind, for a range and width
_ACCUMULATORS = 1 << 18


def worst_cases(settings: Settings, *, is_binary: bool = False) -> Iterator[bytes]:
    """Yield the stream of worst cases of fake_quant, quantize, or requantize under tflite.

    Raises
    ------
    QmathError
        The op has none.
    """
    if settings.op in ("fake_quant", "quantize"):
        rows = list(_of_ranges(settings))
    elif settings.op == "requantize" and settings.profile == "tflite":
        rows = list(_of_scales(settings))
    else:
        raise QmathError(
            "worst cases are those of fake_quant, of quantize, and of requantize under the "
            f"profile tflite; not of {settings.op}"
        )
    op = op_of(settings)
    records = np.array(rows, dtype_of(op.case))
    bits = 0 if settings.op == "requantize" else settings.bits
    settings = replace(settings, bits=bits, count=len(records), seed=0)
    yield from write_cases(settings, records, op.result, is_binary=is_binary)


def _widths(settings: Settings) -> range:
    all_widths = settings.op in ("fake_quant", "quantize") and not settings.bits
    return WIDTHS if all_widths else range(settings.bits, settings.bits + 1)


def _of_ranges(settings: Settings) -> Iterator[tuple[Any, ...]]:
    for bits in _widths(settings):
        for ends in RANGES:
            low, high = (float(np.float32(end)) for end in ends)
            for x in worst_of_range(Range(low, high, bits, False, settings.function)):
                yield x, low, high, bits, 0


def worst_of_range(range: Range) -> Array:
    """Return the floats of a range that are hardest to quantize, at most six.

    First the three that lie nearest to an exact tie without being one, then the three farthest
    from one whose integer float32 arithmetic decides otherwise than exact arithmetic.

    Examples
    --------
    >>> worst_of_range(Range(-1.0, 1.0, 2))
    array([-0.33333334,  0.33333334, -0.3333333 , -0.3333334 ,  0.3333333 ],
          dtype=float32)
    """
    low, high = range.ends
    integers = np.arange(low, high)
    step = float(range.step)
    middle = np.float32((integers + 0.5) * step)
    ulps = np.arange(-_EACH, _EACH + 1)
    near = np.unique(neighbours(middle[:, np.newaxis], ulps))
    steps = near.astype(np.float64) / step
    distance = np.abs(steps - np.floor(steps) - 0.5)
    inside = (distance > 0) & (steps > low) & (steps < high)
    order = np.argsort(np.where(inside, distance, 1), kind="stable")[:_EACH]
    nearest = near[order[inside[order]]]
    crossing = thresholds(integers, range)
    # The float that is decided otherwise is the first above, or the last below.
    above = crossing.astype(np.float64) / step < integers + 0.5
    other = np.where(above, crossing, neighbours(crossing, -1))
    off = np.abs(other.astype(np.float64) / step - (integers + 0.5))
    is_other = range.relative(other) != np.floor(other.astype(np.float64) / step + 0.5)
    order = np.argsort(-np.where(is_other, off, 0), kind="stable")[:_EACH]
    return np.concatenate([nearest, other[order[is_other[order]]]])


def _of_scales(settings: Settings) -> Iterator[tuple[Any, ...]]:
    accumulators = np.arange(-_ACCUMULATORS, _ACCUMULATORS)
    for scale in SCALES:
        multiplier, shift = quantize_multiplier(scale)
        # A tie is half way between two multiples of 2**places.
        places = 31 - int(shift)
        product = accumulators * multiplier
        distance = np.abs((product & ((1 << places) - 1)) - (1 << (places - 1)))
        double, single = (
            multiply_by_quantized_multiplier(accumulators, multiplier, shift, rounding)
            for rounding in ("double", "single")
        )
        nearest = np.argsort(np.where(distance == 0, 1 << 62, distance), kind="stable")[:4096]
        separating = np.flatnonzero(double != single)
        farthest = separating[np.argsort(-distance[separating], kind="stable")]
        for bits in WIDTHS:
            offset = int(settings.signed) << (bits - 1)
            low, high = -offset, (1 << bits) - 1 - offset
            for order in (nearest, farthest):
                inside = order[(single[order] > low) & (single[order] < high)][:2]
                for acc in accumulators[inside]:
                    yield acc, 0, multiplier, shift, 0, low, high
