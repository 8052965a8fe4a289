"""What to draw: ranges, widths and inputs where float32 arithmetic is most likely to differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qmath.kernels._nudge import nudge

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 2.0**-126, -(2.0**-126), 2.0**-102, 1.0, -1.0]
SPECIAL += [6.0, -6.0, 127.5, 255.0, 65535.0, 3.4028235e38, -3.4028235e38, np.inf, -np.inf, np.nan]

any_float32 = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from(SPECIAL).map(lambda x: float(np.float32(x))),
    st.floats(-8, 8, width=32),
)
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


@st.composite
def ranges(draw: st.DrawFn) -> tuple[float, float]:
    """Draw any pair, mostly sorted; symmetric, one-sided and equal ones often."""
    kind = draw(st.sampled_from(["any", "sorted", "symmetric", "relu", "equal", "usual"]))
    if kind == "usual":
        return draw(st.floats(-10, 0, width=32)), draw(st.floats(0, 10, width=32))
    a, b = draw(any_float32), draw(any_float32)
    if kind == "symmetric":
        return -abs(a), abs(a)
    if kind == "relu":
        return 0.0, abs(a)
    if kind == "equal":
        return a, a
    return (min(a, b), max(a, b)) if kind == "sorted" else (a, b)


@st.composite
def cases(draw: st.DrawFn, per_channel: bool = False) -> Case:
    """Draw a case; of shape ``(n, C)`` with ranges of shape ``(C,)`` where `per_channel`."""
    channels = draw(st.integers(1, 4)) if per_channel else 1
    pairs = draw(st.lists(ranges(), min_size=channels, max_size=channels))
    low, high = np.float32(pairs).T
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
