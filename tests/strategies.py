"""What to draw: ranges, widths and inputs where float32 arithmetic is most likely to differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qmath.kernels._nudge import nudge

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 2.0**-126, -(2.0**-126), 2.0**-102, 1.0, -1.0]
SPECIAL += [6.0, -6.0, 127.5, 255.0, 65535.0, 3.4028235e38, -3.4028235e38]


def float32s(*others: float) -> st.SearchStrategy[float]:
    """Draw finite numbers, special ones often, and `others` among these."""
    return st.one_of(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.sampled_from([*SPECIAL, *others]).map(lambda x: float(np.float32(x))),
        st.floats(-8, 8, width=32),
    )


finite_float32 = float32s()
ordered_float32 = float32s(np.inf, -np.inf)
any_float32 = float32s(np.inf, -np.inf, np.nan)
widths = st.integers(2, 16)


@dataclass
class Case:
    """A range per channel, a width and inputs near what decides between two integers."""

    inputs: np.ndarray
    min: np.ndarray
    max: np.ndarray
    num_bits: int
    narrow_range: bool

    @property
    def range(self) -> tuple[np.ndarray, np.ndarray, int, bool]:
        return self.min, self.max, self.num_bits, self.narrow_range

    @property
    def numbers(self) -> np.ndarray:
        """The inputs with zeros in place of NaN."""
        return np.where(np.isnan(self.inputs), np.float32(0), self.inputs)


Pairs = st.SearchStrategy[tuple[float, float]]


@st.composite
def ordered_ranges(
    draw: st.DrawFn, ends: st.SearchStrategy[float] = ordered_float32
) -> tuple[float, float]:
    """Draw sorted pairs; symmetric, one-sided and equal ones often."""
    kind = draw(st.sampled_from(["sorted", "symmetric", "relu", "equal", "usual"]))
    if kind == "usual":
        return draw(st.floats(-10, 0, width=32)), draw(st.floats(0, 10, width=32))
    a, b = draw(ends), draw(ends)
    if kind == "symmetric":
        return -abs(a), abs(a)
    if kind == "relu":
        return 0.0, abs(a)
    if kind == "equal":
        return a, a
    return min(a, b), max(a, b)


@st.composite
def usable_ranges(draw: st.DrawFn) -> tuple[float, float]:
    """Draw pairs that determine integers of every width: dead, or neither narrow nor wide."""
    kind = draw(st.sampled_from(["sided", "symmetric", "relu", "usual", "dead", "above", "below"]))
    if kind == "usual":
        return draw(st.floats(-10, -0.5, width=32)), draw(st.floats(0.5, 10, width=32))
    if kind == "dead":
        subnormal = 2.0**-127
        return draw(st.sampled_from([0.0, -subnormal])), draw(st.sampled_from([0.0, subnormal]))
    # With 2 to 16 bits, scale and inverse of a width in 2**-110 ... 2**127 are normal numbers.
    a, b = (draw(st.floats(2.0**-108, 2.0**125, width=32)) for _ in range(2))
    if kind == "above":  # a range that misses zero, at least a quarter of its lower end wide
        return a, float(np.float32(a * draw(st.floats(1.25, 2))))
    if kind == "below":
        return float(np.float32(-a * draw(st.floats(1.25, 2)))), -a
    return (0.0 if kind == "relu" else -a), (a if kind == "symmetric" else b)


any_ranges = st.one_of(st.tuples(any_float32, any_float32), ordered_ranges(any_float32))


@st.composite
def cases(draw: st.DrawFn, per_channel: bool = False, pairs: Pairs = any_ranges) -> Case:
    """Draw a case; of shape ``(n, C)`` with ranges of shape ``(C,)`` where `per_channel`.

    Its ranges are drawn from `pairs`; inputs hold NaN whatever they are.
    """
    channels = draw(st.integers(1, 4)) if per_channel else 1
    drawn = draw(st.lists(pairs, min_size=channels, max_size=channels))
    low, high = np.float32(drawn).T
    num_bits, narrow_range = draw(widths), draw(st.booleans())
    rows = draw(st.integers(0, 40))
    shape = (rows, channels)
    wild = draw(hnp.arrays(np.float32, shape, elements=any_float32))
    near_ties = draw(hnp.arrays(np.bool_, shape))
    half_steps = draw(hnp.arrays(np.int64, shape, elements=st.integers(-2, 2 ** (num_bits + 1))))
    ulps = draw(hnp.arrays(np.int8, shape, elements=st.integers(-3, 3)))
    with np.errstate(all="ignore"):
        nudged = nudge(low, high, num_bits, narrow_range)
        on_ties = np.float32(nudged.min + half_steps * np.float64(0.5) * nudged.scale)
        on_ties = (on_ties.view(np.int32) + ulps).view(np.float32)
    inputs = np.where(near_ties, on_ties, wild)
    if not per_channel:
        return Case(inputs[:, 0], low[0, ...], high[0, ...], num_bits, narrow_range)
    return Case(inputs, low, high, num_bits, narrow_range)


def gradients(case: Case) -> st.SearchStrategy[np.ndarray]:
    """Draw gradients for the inputs of a case."""
    return hnp.arrays(np.float32, case.inputs.shape, elements=any_float32)
