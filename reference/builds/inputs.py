"""What the builds compute: ranges and floats where the arithmetic of builds differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import qmath
from qmath.kernels.builds import Build

__all__ = ["OPS", "Case", "cases", "floats_near_steps"]

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-39, 2.0**-126, -(2.0**-126)]
WIDTHS = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16)
CHANNELS = 16
SUMMED = 4096  # elements of a gradient
OPS = {
    "vars": "FakeQuantWithMinMaxVars",
    "per_channel": "FakeQuantWithMinMaxVarsPerChannel",
    "args": "FakeQuantWithMinMaxArgs",
    "args gradient": "FakeQuantWithMinMaxArgsGradient",
    "vars gradient": "FakeQuantWithMinMaxVarsGradient",
    "per_channel gradient": "FakeQuantWithMinMaxVarsPerChannelGradient",
}
FUNCTIONS = {
    "vars": qmath.fake_quant_with_min_max_vars,
    "per_channel": qmath.fake_quant_with_min_max_vars_per_channel,
    "args": qmath.fake_quant_with_min_max_args,
    "args gradient": qmath.fake_quant_with_min_max_args_gradient,
    "vars gradient": qmath.fake_quant_with_min_max_vars_gradient,
    "per_channel gradient": qmath.fake_quant_with_min_max_vars_per_channel_gradient,
}


@dataclass(frozen=True)
class Case:
    """One call of an op: the gradients and inputs, and a range."""

    op: str
    arrays: tuple[np.ndarray, ...]
    min: np.ndarray
    max: np.ndarray
    num_bits: int
    narrow_range: bool

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        """What the op takes as tensors."""
        return self.arrays if self.op.startswith("args") else (*self.arrays, self.min, self.max)

    @property
    def attributes(self) -> dict[str, Any]:
        """What the op takes besides."""
        ends = {"min": float(self.min), "max": float(self.max)} if self.op[:4] == "args" else {}
        return {"num_bits": self.num_bits, "narrow_range": self.narrow_range, **ends}

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the outputs."""
        with_range = self.op in ("vars gradient", "per_channel gradient")
        return [self.arrays[0].shape, *[self.min.shape] * (2 * with_range)]

    def computed(self, build: Build) -> tuple[np.ndarray, ...]:
        """Return what qmath computes."""
        settings = (self.min, self.max, self.num_bits, self.narrow_range)
        found: Any = FUNCTIONS[self.op](*self.arrays, *settings, build=build)  # type: ignore[operator]
        return tuple(found) if isinstance(found, tuple) else (found,)


def floats_near_steps(
    rng: np.random.Generator, low: float, high: float, num_bits: int, narrow: bool, size: int
) -> np.ndarray:
    """Return floats: half of them near steps and ties, the others uniform, any bits, or special."""
    steps = 2**num_bits - 1 - narrow
    near = rng.integers(-2, steps + 3, size // 2) + rng.choice([0, 0.5], size // 2)
    ties = (near * ((high - low) / steps) + low).astype(np.float32)
    ties = (ties.view(np.int32) + rng.integers(-6, 7, ties.size, dtype=np.int32)).view(np.float32)
    uniform = rng.uniform(-0.2, 1.2, size // 4) * (high - low) + low
    rest = size - ties.size - uniform.size
    bits = rng.integers(0, 2**32, rest, dtype=np.uint32).view(np.float32)
    found = np.concatenate([ties, uniform.astype(np.float32), bits])
    found[: len(SPECIAL)] = np.float32(SPECIAL)[:size]
    return rng.permutation(found)


def cases(number: int, size: int) -> Iterator[Case]:
    """Yield `number` cases of each op, of `size` elements; those of gradients are smaller."""
    rng = np.random.default_rng(11)
    for index in range(number):
        bits, narrow = WIDTHS[index % len(WIDTHS)], bool(index // len(WIDTHS) & 1)
        low, high = np.float32(_range(rng, index // 2))
        x = floats_near_steps(rng, float(low), float(high), bits, narrow, size)
        g = rng.permutation(x)[:SUMMED]
        ends = [_range(rng, index + channel) for channel in range(CHANNELS)]
        lows, highs = np.float32(ends).T
        columns = [floats_near_steps(rng, *end, bits, narrow, size // CHANNELS) for end in ends]
        rows = np.stack(columns, 1)
        one, each = (low[...], high[...], bits, narrow), (lows, highs, bits, narrow)
        finite = np.where(np.isfinite(g), g, np.float32(1)).astype(np.float32)
        yield Case("vars", (x,), *one)
        yield Case("args", (x,), *one)
        yield Case("per_channel", (rows,), *each)
        yield Case("args gradient", (g, x[:SUMMED]), *one)
        yield Case("vars gradient", (np.clip(finite, -9, 9), x[:SUMMED]), *one)
        some = SUMMED // CHANNELS
        gradients = np.clip(finite, -9, 9).reshape(some, CHANNELS)
        yield Case("per_channel gradient", (gradients, rows[:some]), *each)


def _range(rng: np.random.Generator, kind: int) -> tuple[float, float]:
    size = float(np.float32(10.0 ** rng.uniform(-6, 6)))
    return [
        (-size, size * float(rng.uniform(0.1, 3))),
        (0.0, size),
        (-size, size),
        (-size * float(rng.uniform(0.01, 1)), size),
    ][kind % 4]
