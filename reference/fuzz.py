"""Count differing bits between qmath and TensorFlow on random, mostly nasty inputs.

``python -m reference.fuzz --elements 1000000 --seed 0`` compares at least that many elements for
every function and quantizer, and exits with status 1 if a bit differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

import numpy as np

import qmath
from qmath import tf
from qmath.kernels._float32 import flush
from qmath.kernels._nudge import nudge
from reference import oracle

TINY = [1e-45, 1e-39, 2.0**-126, 1e-37]
USUAL = [0, 1, 6, 127.5, 3.4028235e38, np.inf, np.nan]
SPECIAL = np.float32([sign * x for x in TINY + USUAL for sign in (1, -1)])
BATCH = 20_000
Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, bool]
Pair = tuple[np.ndarray, np.ndarray]


def floats(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return float32 of any bit pattern, special values, or usual ones, at random."""
    kind = rng.integers(4)
    if kind == 0:
        return rng.integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
    if kind == 1:
        return rng.choice(SPECIAL, size)
    if kind == 2:
        return np.float32(rng.normal(0, 3, size))
    with np.errstate(over="ignore"):
        return np.float32(rng.normal(size=size) * 10.0 ** rng.uniform(-45, 38, size))


def batch(rng: np.random.Generator, channels: int) -> Batch:
    """Return inputs ``(n, C)`` with gradients, ranges ``(C,)``, a width and narrowness."""
    num_bits, narrow_range = int(rng.integers(2, 17)), bool(rng.integers(2))
    low, high = floats(rng, channels), floats(rng, channels)
    kind = rng.integers(8)
    if kind < 5:
        low, high = np.fmin(low, high), np.fmax(low, high)
    if kind in (2, 3):
        low, high = -np.abs(np.float32(rng.normal(size=(2, channels)))) * np.float32([[1], [-1]])
    if kind == 4:
        low = np.zeros_like(low)
    shape = (BATCH // channels, channels)
    inputs = floats(rng, shape[0] * channels).reshape(shape)
    if rng.integers(4):  # what decides: values within a few ulp of a tie
        with np.errstate(all="ignore"):
            nudged = nudge(low, high, num_bits, narrow_range)
            half_steps = rng.integers(-2, 2 ** (num_bits + 1), shape) / 2
            ties = np.float32(nudged.min + half_steps * nudged.scale)
        near = (ties.view(np.int32) + rng.integers(-3, 4, shape, dtype=np.int32)).view(np.float32)
        inputs = np.where(rng.integers(4, size=shape) > 0, near, inputs)
    return inputs, floats(rng, inputs.size).reshape(shape), low, high, num_bits, narrow_range


def op(name: str) -> Callable[[np.random.Generator], Iterator[Pair]]:
    """Return what yields qmath's and TensorFlow's outputs of a function."""
    per_channel, gradient = "per_channel" in name, name.endswith("gradient")

    def pairs(rng: np.random.Generator) -> Iterator[Pair]:
        x, g, low, high, *settings = batch(rng, int(rng.integers(1, 9)) if per_channel else 1)
        if not per_channel:
            low, high = low[0], high[0]
        if "args" in name and not flush(low) < flush(high):
            low, high = np.float32(-1.7), np.float32(2.3)  # TensorFlow refuses the others
        arguments = (*((g, x) if gradient else (x,)), low, high, *settings)
        ours, theirs = getattr(qmath, name)(*arguments), getattr(oracle, name)(*arguments)
        yield from zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]

    return pairs


def integers(rng: np.random.Generator) -> Iterator[Pair]:
    """Yield dequantized integers and TensorFlow's fake quantization."""
    x, _, low, high, num_bits, narrow_range = batch(rng, 4)
    try:
        q = qmath.quantize(x, low, high, num_bits, narrow_range=narrow_range, per_axis=True)
    except qmath.QmathError:
        return
    expected = oracle.fake_quant_with_min_max_vars_per_channel(x, low, high, num_bits, narrow_range)
    yield q.dequantize(), expected


def quantize_and_dequantize(rng: np.random.Generator) -> Iterator[Pair]:
    """Yield the function's and TensorFlow's outputs, of data wide enough for a finite scale."""
    axis = 1 if rng.integers(2) else None
    x, g, low, high, _, narrow_range = batch(rng, int(rng.integers(2, 9)) if axis else 1)
    low, high = np.fmin(low, high), np.fmax(low, high)
    if not axis:
        x, g, low, high = x[:, 0], g[:, 0], low[0], high[0]
    signed, given = bool(rng.integers(2)), bool(rng.integers(2))
    mode = "HALF_TO_EVEN" if (given and axis) or rng.integers(2) else "HALF_UP"
    settings = (signed, int(rng.integers(1, 62)), given, mode, None, narrow_range, axis)
    if given and np.isnan(low).any():
        return
    if not given:
        x = np.where(np.isnan(x), np.float32(0), x)
        reach = np.abs(x) if signed else x
        if not (reach.max(axis=0) >= 2.0 ** (settings[1] - 127)).all():
            return
    yield (
        qmath.quantize_and_dequantize_v2(x, low, high, *settings),
        oracle.quantize_and_dequantize_v2(x, low, high, *settings),
    )
    yield from zip(
        qmath.quantize_and_dequantize_v2_gradient(g, x, low, high, axis),
        oracle.quantize_and_dequantize_v2_gradient(g, x, low, high, axis),
        strict=True,
    )


def quantize_v2(rng: np.random.Generator) -> Iterator[Pair]:
    """Yield ``tf.quantization``'s integers and ranges, and floats of random integers."""
    dtype = str(rng.choice(["qint8", "quint8", "qint16", "quint16", "qint32"]))
    mode = str(rng.choice(["MIN_COMBINED", "MIN_FIRST", "SCALED"]))
    to_even = mode == "SCALED" and bool(rng.integers(2))
    axis = 1 if mode != "MIN_FIRST" and rng.integers(2) else None
    x, _, low, high, _, narrow = batch(rng, int(rng.integers(1, 9)) if axis else 1)
    low, high = (np.nan_to_num(end, nan=1, posinf=2, neginf=-2) for end in (low, high))
    low, high = np.minimum(low, high), np.maximum(low, high)
    x = np.where(np.isnan(x), np.float32(0), x)
    if not axis:
        low, high = low[0], high[0]
    share = float(rng.choice([0.0, 0.01, 0.5]))
    round_mode = "HALF_TO_EVEN" if to_even else "HALF_AWAY_FROM_ZERO"
    settings = (low, high, dtype, mode, round_mode, None, narrow, axis, share)
    try:
        ours = tf.quantize(x, *settings, onednn=oracle.ONEDNN)
    except qmath.QmathError:  # of no finite scale, or where oneDNN has no kernel
        return
    theirs = oracle.quantize(x, *settings)
    yield _halves(ours.output), _halves(theirs.output)
    yield from zip(ours[1:], theirs[1:], strict=True)
    limits = np.iinfo(ours.output.dtype)
    q = rng.integers(limits.min, limits.max, x.shape, ours.output.dtype, endpoint=True)
    q.flat[:2] = limits.min, limits.max
    settings = (low, high, mode, None, axis, narrow)
    try:
        ours = tf.dequantize(q, *settings, onednn=oracle.ONEDNN)
    except qmath.QmathError:
        return
    yield ours, oracle.dequantize(q, *settings)


def _halves(integers: np.ndarray) -> np.ndarray:
    """Return integers as pairs of floats that hold them exactly, and are never NaN."""
    wide = integers.astype(np.int64)
    return np.stack([wide >> 16, wide & 0xFFFF]).astype(np.float32)


def training(name: str) -> Callable[[np.random.Generator], Iterator[Pair]]:
    """Return what yields outputs and states of a quantizer over a few steps."""

    def pairs(rng: np.random.Generator) -> Iterator[Pair]:
        flags = [bool(rng.integers(2)) for _ in range(3)]
        per_axis = flags[0] and name == "LastValueQuantizer"
        quantizer = getattr(qmath, name)(int(rng.integers(2, 17)), per_axis, *flags[1:])
        twin = oracle.twin(quantizer)
        state, expected = quantizer.build((500, 8)), twin.build((500, 8))
        for step in range(5):
            x = floats(rng, 4000).reshape(500, 8)
            yield quantizer(x, step < 4, state), twin(x, step < 4, expected)
            for key in state:  # + 0: the sign of a zero in the state is not TensorFlow's to decide
                yield state[key] + np.float32(0), expected[key] + np.float32(0)

    return pairs


OPS = [f"fake_quant_with_min_max_{range}" for range in ("args", "vars", "vars_per_channel")]
CHECKS = {
    **{name: op(name) for name in [*OPS, *(f"{forward}_gradient" for forward in OPS)]},
    "quantize": integers,
    "quantize_and_dequantize_v2": quantize_and_dequantize,
    "tf.quantize, tf.dequantize": quantize_v2,
    **{
        name: training(name)
        for name in ("LastValueQuantizer", "MovingAverageQuantizer", "AllValuesQuantizer")
    },
}


def differing_bits(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Return how many bits differ; NaN equals NaN."""
    if ours.shape != theirs.shape:
        raise AssertionError(f"shapes differ: {ours.shape} and {theirs.shape}")
    flips = np.atleast_1d(ours).view(np.uint32) ^ np.atleast_1d(theirs).view(np.uint32)
    flips = np.where(np.isnan(ours) & np.isnan(theirs), 0, flips).astype(np.uint32)
    return int(np.unpackbits(flips.view(np.uint8)).sum())


def main(arguments: list[str] | None = None) -> int:
    """Run every check, print a line for each, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reference.fuzz", description=__doc__)
    parser.add_argument("--elements", type=int, default=1_000_000, help="at least, per function")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CHECKS, metavar="FUNCTION", help="one of them")
    options = parser.parse_args(arguments)
    total = 0
    print(f"{'function':50} {'elements':>10} {'differing bits':>14}")
    checks = {options.only: CHECKS[options.only]} if options.only else CHECKS
    for name, check in checks.items():
        rng = np.random.default_rng([options.seed, *name.encode()])
        elements = differing = 0
        while elements < options.elements:
            for ours, theirs in check(rng):
                elements += ours.size
                differing += differing_bits(ours, theirs)
        print(f"{name:50} {elements:10} {differing:14}", flush=True)
        total += differing
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
