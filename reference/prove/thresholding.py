"""Every float near a place where the output steps, for thousands of ranges of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import qmath
from qmath.kernels._nudge import quant_limits
from qmath.kernels.affine import scale_and_zero_point
from qmath.kernels.builds import Build, arithmetic_of
from reference.builds.twins import TWINS, Twin
from reference.prove.tally import Tally, Tick

__all__ = [
    "FAMILIES",
    "bisect",
    "descriptions",
    "elements",
    "groups",
    "numbered",
    "ordinal",
    "threshold_floats",
    "thresholds",
]

OPS = ("args", "vars", "vars_per_channel")
REACH = 64  # ulp on each side
CHANNELS = 4  # ranges of one group, which the per-channel op takes at once
BLOCK = 2**20  # elements
INFINITY = 0x7F800000  # as the bit pattern, and so as the ordinal
FAMILIES = ("symmetric", "asymmetric", "one-sided", "off zero", "tiny", "huge")


class Group(NamedTuple):
    """Ranges of one width: float32 of shape ``(CHANNELS,)``."""

    num_bits: int
    narrow_range: bool
    min: np.ndarray
    max: np.ndarray


def groups(num_bits: int, quick: bool = False, against: str = "tf") -> Iterator[Group]:
    """Yield the groups of one width, the same in every run; fewer against slower kernels."""
    repeats = 1 if quick or num_bits > 14 else 2 if num_bits > 12 else 4 if num_bits > 10 else 10
    repeats = repeats if against == "tf" else min(repeats, 2)
    for repeat in range(repeats):
        for number, family in enumerate(FAMILIES):
            rng = np.random.default_rng([num_bits, repeat, number])
            for narrow_range in (False, True):
                yield Group(num_bits, narrow_range, *ranges(family, rng))


def elements(num_bits: int, quick: bool = False, against: str = "tf") -> int:
    """Return how many outputs `thresholds` compares, about."""
    count = sum(1 for _ in groups(num_bits, quick, against))
    return count * len(OPS) * CHANNELS * (129 << num_bits)


def ranges(family: str, rng: np.random.Generator) -> np.ndarray:
    """Return the lower and the upper ends of ranges at random, float32."""
    exponents = {"tiny": (-37, -30), "huge": (30, 38.5)}.get(family, (-4, 4))
    size = 10.0 ** rng.uniform(*exponents, CHANNELS)
    other = size * 10.0 ** rng.uniform(-2, 2, CHANNELS)
    zero = np.zeros(CHANNELS)
    low, high = {
        "symmetric": (-size, size),
        "one-sided": (zero, size) if rng.integers(2) else (-size, zero),
        "off zero": (size, size + other) if rng.integers(2) else (-size - other, -size),
    }.get(family, (-size, other))
    largest = float(np.finfo(np.float32).max)
    return np.float32(np.clip([low, high], -largest, largest))


def ordinal(x: np.ndarray) -> np.ndarray:
    """Return the place of each float in their order, int64: of both zeros 0, then ±1, ±2 …."""
    pattern = x.view(np.int32).astype(np.int64)
    return np.where(pattern < 0, -(pattern & 0x7FFFFFFF), pattern)


def numbered(ordinals: np.ndarray) -> np.ndarray:
    """Return the floats of these numbers; beyond the infinities, the infinities."""
    ordinals = np.clip(ordinals, -INFINITY, INFINITY)
    return np.where(ordinals < 0, 0x80000000 - ordinals, ordinals).astype(np.uint32).view("f4")


def bisect(function: Callable[[np.ndarray], np.ndarray], levels: np.ndarray) -> np.ndarray:
    """Return the ordinal of the last float whose output is not above a level, for each level."""
    low, high = np.full(levels.shape, -INFINITY), np.full(levels.shape, INFINITY)
    while (high - low > 1).any():
        middle = (low + high) // 2
        below = function(numbered(middle)) <= levels
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def threshold_floats(of: Group, op: str, build: Build = "tf") -> Iterator[np.ndarray]:
    """Yield blocks of shape ``(n, CHANNELS)``: all floats near each step and the range's ends."""
    kind: Any = op.replace("vars_per_channel", "per_channel")
    settings = (of.min, of.max, of.num_bits, of.narrow_range, kind)
    nudged = arithmetic_of(build).nudge(*settings)
    first, last = quant_limits(of.num_bits, of.narrow_range)
    # Half a step above what each stands for: not every build returns multiples of the scale.
    above = 0.0 if build == "tf" else 0.5
    with np.errstate(all="ignore"):  # ranges without a scale have no levels, only ends
        counts = np.arange(first, last)[:, np.newaxis] - nudged.zero_point
        levels = (counts + above) * nudged.scale
        steps = bisect(lambda x: _ours(op, x, of, build), np.float32(levels))
    bounds = [of.min, of.max, nudged.min, nudged.max]
    normal = np.finfo(np.float32).tiny
    ends = [np.full(CHANNELS, x) for x in np.float32([0, normal, -normal, np.inf, -np.inf])]
    centres = np.concatenate([steps, ordinal(np.nan_to_num(np.stack(bounds + ends), nan=0.0))])
    offsets = np.arange(-REACH, REACH + 1)[:, np.newaxis]
    at_once = BLOCK // (offsets.size * CHANNELS)
    for start in range(0, len(centres), at_once):
        near = centres[start : start + at_once, np.newaxis] + offsets
        yield numbered(near.reshape(-1, CHANNELS))


def thresholds(
    num_bits: int, tick: Tick, quick: bool = False, against: str = "tf"
) -> list[dict[str, Any]]:
    """Compare all groups of one width; return a record for each op."""
    twin = TWINS[against]
    tallies = {op: Tally() for op in OPS}
    refused = dict.fromkeys(OPS, 0)
    steps = 0
    for group in groups(num_bits, quick, against):
        steps += CHANNELS * (2**num_bits - 1 - group.narrow_range)
        usable = [_has_integers(group, channel) for channel in range(CHANNELS)]
        for op, tally in tallies.items():
            refused[op] += CHANNELS - sum(usable)
            for x in threshold_floats(group, op, twin.build):
                expected = _theirs(op, x, group, twin)
                tally.outputs(_ours(op, x, group, twin.build), expected)
                tally.digest(expected)
                if twin.build == "tf":
                    for q, real in _quantized(op, x, group, usable, expected):
                        tally.reconstructed(q, real)
                tick(x.size)
    return [
        {
            **described,
            "without_integers": refused[op],
            "thresholds": steps,
            **tallies[op].record(),
        }
        for op, described in zip(OPS, descriptions(num_bits, quick, against), strict=True)
    ]


def descriptions(num_bits: int, quick: bool = False, against: str = "tf") -> list[dict[str, Any]]:
    """Return what each record says of its configurations."""
    count = CHANNELS * sum(1 for _ in groups(num_bits, quick, against))
    return [
        {"op": f"fake_quant_with_min_max_{op}", "num_bits": num_bits, "configurations": count}
        for op in OPS
    ]


def _ours(op: str, x: np.ndarray, of: Group, build: Build) -> np.ndarray:
    """Fake-quantize every column by its range."""
    function = getattr(qmath, f"fake_quant_with_min_max_{op}")
    return _by_column(partial(function, build=build), op, x, of)


def _theirs(op: str, x: np.ndarray, of: Group, twin: Twin) -> np.ndarray:
    """Let the twin do the same."""

    def function(x: np.ndarray, *settings: Any) -> np.ndarray:
        (found,) = twin.outputs(f"fake_quant_with_min_max_{op}", (x,), settings)
        return found

    return _by_column(function, op, x, of)


def _by_column(
    function: Callable[..., np.ndarray], op: str, x: np.ndarray, of: Group
) -> np.ndarray:
    if op == "vars_per_channel":
        return function(x, of.min, of.max, of.num_bits, of.narrow_range)
    columns = np.ascontiguousarray(x.T)
    found = [
        function(column, low[...], high[...], of.num_bits, of.narrow_range)
        for column, low, high in zip(columns, of.min, of.max, strict=True)
    ]
    return np.ascontiguousarray(np.stack(found, axis=1))


def _has_integers(of: Group, channel: int) -> bool:
    """Whether `qmath.quantize` takes the range of a channel."""
    ends = of.min[channel], of.max[channel]
    try:
        scale_and_zero_point(*ends, of.num_bits, narrow_range=of.narrow_range)
    except qmath.QmathError:
        return False
    return True


def _quantized(
    op: str, x: np.ndarray, of: Group, usable: list[bool], expected: np.ndarray
) -> Iterator[tuple[qmath.QuantizedTensor, np.ndarray]]:
    """Quantize the columns that have integers; yield these with what they have to stand for."""
    if not any(usable):
        return
    x, expected = (np.ascontiguousarray(a[:, usable]) for a in (x, expected))
    low, high = of.min[usable], of.max[usable]
    if op == "vars_per_channel":
        yield (
            qmath.quantize(x, low, high, of.num_bits, narrow_range=of.narrow_range, per_axis=True),
            expected,
        )
        return
    for column, real, *ends in zip(x.T, expected.T, low, high, strict=True):
        yield (
            qmath.quantize(column, *ends, of.num_bits, narrow_range=of.narrow_range, op=op),
            np.ascontiguousarray(real),
        )
