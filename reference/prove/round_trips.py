"""``quantize(dequantize(q)) == q`` for every integer and every zero point of a width."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import qmath
from qmath.kernels._nudge import quant_limits
from qmath.kernels.affine import scale_and_zero_point, smallest_dtype
from reference.prove.tally import Tick

__all__ = ["WIDTHS", "descriptions", "elements", "round_trips", "spans"]

OPS = ("vars_per_channel", "vars", "args")
WIDTHS = range(2, 13)
ELEMENTS = 2**26  # of a width whose spans are samples
BLOCK = 2**20
CALLS = 2**13  # of the per-tensor ops, for a width


def spans(num_bits: int, quick: bool = False) -> Iterator[np.ndarray]:
    """Yield blocks of range widths, float32: ``max - min``, which decides the scale.

    Up to 3 bits, all 2**23 significands; a power of two changes neither integers nor rounding.
    From 4 bits on as many at random, of any exponent, as keep the number of elements bounded.
    """
    at_once = max(1, BLOCK >> 2 * num_bits)
    if num_bits <= 3 and not quick:
        for start in range(0, 2**23, at_once):
            yield (np.arange(start, start + at_once, dtype=np.uint32) + 0x3F800000).view(np.float32)
        return
    blocks = 1 if quick else (ELEMENTS >> 2 * num_bits) // at_once
    rng = np.random.default_rng(num_bits)
    for _ in range(blocks):
        yield np.float32(2.0 ** rng.uniform(-90, 90, at_once))


def elements(num_bits: int, quick: bool = False) -> int:
    """Return how many integers `round_trips` tries, about."""
    widths = sum(described["range_widths"] for described in descriptions(num_bits, quick))
    return widths << 2 * num_bits


def _blocks(op: str, num_bits: int, quick: bool) -> Iterator[np.ndarray]:
    """Yield range widths: all of `spans` for the per-channel op, few where each takes a call."""
    blocks = spans(num_bits, quick)
    if op == "vars_per_channel":
        yield from blocks
    else:
        yield next(blocks)[: max(1, CALLS >> (num_bits + 5 * quick))]


def round_trips(num_bits: int, tick: Tick, quick: bool = False) -> list[dict[str, Any]]:
    """Run the round trips of a width; return a record for each op."""
    records = []
    for op, described in zip(OPS, descriptions(num_bits, quick), strict=True):
        digest, counts = hashlib.sha256(), np.zeros(2, np.int64)
        for narrow_range in (False, True):
            for block in _blocks(op, num_bits, quick):
                counts += _run(op, num_bits, narrow_range, block, digest)
                tick(block.size << 2 * num_bits)
        compared, differing = map(int, counts)
        outcome = {"compared": compared, "differing": differing, "sha256": digest.hexdigest()}
        records.append({**described, **outcome})
    return records


def descriptions(num_bits: int, quick: bool = False) -> list[dict[str, Any]]:
    """Return what each record says of its configurations: wide and narrow ranges."""
    return [
        {
            "op": f"fake_quant_with_min_max_{op}",
            "num_bits": num_bits,
            "range_widths": 2 * sum(block.size for block in _blocks(op, num_bits, quick)),
        }
        for op in OPS
    ]


def _run(
    op: str, num_bits: int, narrow_range: bool, widths: np.ndarray, digest: Any
) -> tuple[int, int]:
    """Try every zero point at each range width; return integers, and differing ones."""
    first, last = quant_limits(num_bits, narrow_range)
    half = 2 ** (num_bits - 1)
    zeros = np.arange(first, last + 1)
    fractions = np.float32((first - zeros) / (last - first))
    low = (widths[:, np.newaxis] * fractions).reshape(-1)
    high = (widths[:, np.newaxis] + low.reshape(widths.size, -1)).reshape(-1)
    scale, zero_point = scale_and_zero_point(low, high, num_bits, narrow_range=narrow_range)
    if not np.array_equal(zero_point, np.tile(zeros - half, widths.size)):
        raise AssertionError(f"{num_bits} bits: the ranges do not reach every zero point")
    digest.update(scale.astype("<f4"))
    integers = np.arange(first - half, last + 1 - half).astype(smallest_dtype(num_bits, True))
    if op == "vars_per_channel":
        values = np.repeat(integers[:, np.newaxis], low.size, axis=1)
        found = _again(values, scale, zero_point, low, high, num_bits, narrow_range, op)
        return values.size, int(np.count_nonzero(found != values))
    differing = 0
    for channel in zip(scale, zero_point, low, high, strict=True):
        parts = map(np.asarray, channel)
        found = _again(integers, *parts, num_bits, narrow_range, op)
        differing += int(np.count_nonzero(found != integers))
    return low.size * integers.size, differing


def _again(
    values: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, low: np.ndarray,
    high: np.ndarray, num_bits: int, narrow_range: bool, op: str,
) -> np.ndarray:  # fmt: skip
    """Return what `values` become once they are dequantized and quantized."""
    per_axis = op == "vars_per_channel"
    axis = 1 if per_axis else None
    tensor = qmath.QuantizedTensor(
        values, scale, zero_point, num_bits, narrow_range, signed=True, axis=axis
    )
    return qmath.quantize(
        tensor.dequantize(), low, high, num_bits, narrow_range=narrow_range,
        per_axis=per_axis, op="args" if op == "args" else "vars",
    ).values  # fmt: skip
