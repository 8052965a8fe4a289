"""What XLA compiles for this CPU, with and without fused multiply-adds, in every bit."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from reference.builds.inputs import floats_near_steps
from reference.jit import Call, answers
from tests.helpers import assert_same_bits

ARGS, VARS = "fake_quant_with_min_max_args", "fake_quant_with_min_max_vars"
PER_CHANNEL = f"{VARS}_per_channel"
F = np.float32
# Of each a compilation, of about half a second.
RANGES = [
    (-6.0, 6.0, 8, False), (0.0, 6.0, 4, False), (-0.37, 1.91, 16, False), (-3.0, 3.0, 12, True),
    (0.0, 0.0, 8, False), (0.0, 1e-37, 8, False), (-np.inf, 1.0, 8, False), (2.0, 1.0, 8, True),
]  # fmt: skip
# The compiler computes what stands for the maximum in two ways.
SHORT_ROWS = Call(ARGS, (np.linspace(-2, 3, 600).astype(F).reshape(200, 3),), 8, False, (-1.3, 2.7))
ON_TIES = [((-0.5, 2.5), 2), ((-2.5, 0.5), 2), ((-0.1, 0.5), 8)]


def calls() -> list[Call]:
    rng = np.random.default_rng(5)
    found = []
    lows, highs = F([r[:2] for r in RANGES]).T
    with np.errstate(all="ignore"):
        columns = [
            floats_near_steps(rng, low, high, 8, False, 2048)
            for low, high in zip(lows, highs, strict=True)
        ]
        for low, high, bits, narrow in RANGES:
            x = floats_near_steps(rng, low, high, bits, narrow, 1 << 15)
            found.append(Call(VARS, (x, F(low), F(high)), bits, narrow))
    rows = np.stack(columns, 1)
    found.append(Call(PER_CHANNEL, (rows, lows, highs), 8, False))
    for column, (low, high, bits, narrow) in zip(columns, RANGES, strict=True):  # one channel
        found.append(Call(PER_CHANNEL, (column[:, np.newaxis], F([low]), F([high])), bits, narrow))
    low, high, bits, narrow = RANGES[0]
    x = floats_near_steps(rng, low, high, bits, narrow, 1 << 15)
    found += [
        Call(ARGS, (x,), bits, narrow, (low, high)),
        Call(ARGS, (x,), 16, narrow, (0.0, high)),
        # Exact zero points on ties that are not symmetric: to even here, away from zero elsewhere.
        *(Call(ARGS, (x,), bits, False, ends) for ends, bits in ON_TIES),
        *(Call(f"{ARGS}_gradient", (x[::-1], x), bits, False, ends) for ends, bits in ON_TIES),
        *(Call(VARS, (x, *F(ends)), bits, False) for ends, bits in ON_TIES),
        # Subnormal scales, below a subnormal end and a normal one.
        Call(ARGS, (x,), 2, False, (-3.840229e-39, 1.3014359e-38)),
        Call(ARGS, (x,), 8, True, (-3.25e-36, 4.875e-37)),
        Call(f"{ARGS}_gradient", (x[::-1], x), bits, narrow, (low, high)),
        # A range that is a constant of the program.
        Call(VARS, (x,), bits, narrow, (F(low), F(high))),
        Call(VARS, (x,), 16, narrow, (F(0), F(high))),
    ]
    g = rng.normal(size=5000).astype(F)
    found += [Call(f"{VARS}_gradient", (g[:n], x[-n:], F(low), F(high)), bits, narrow)
              for n in (33, 5000)]  # fmt: skip
    one = (g[:2048, np.newaxis], columns[2][:, np.newaxis], *(F([end]) for end in RANGES[2][:2]))
    found.append(Call(f"{PER_CHANNEL}_gradient", one, 8, False))
    # Sums of one element each, which XLA removes.
    odd = np.resize(F([1e-40, -0.0, 1.5, -1e-39]), (1, len(lows)))
    found.append(
        Call(f"{PER_CHANNEL}_gradient", (odd, F([[-9.0] * len(lows)]), lows, highs), 8, False)
    )
    found.append(Call(f"{VARS}_gradient", (odd[0, 1:2], F([9]), F(low), F(high)), bits, narrow))
    shape = (3, 40, 4, 8)
    inputs = rows[:480].reshape(shape)
    found.append(
        Call(f"{PER_CHANNEL}_gradient", (g[:3840].reshape(shape), inputs, lows, highs), 8, False)
    )
    return found


def computed(call: Call, build: str) -> tuple[np.ndarray, ...]:
    """Return what qmath computes; a constant range keeps NaN, and one from 0 on is that of args."""
    op = call.op
    arguments = (*call.arrays, *call.constants)
    is_constant = op == VARS and len(call.constants) == 2
    if is_constant and not call.constants[0]:
        op = ARGS
    found = getattr(qmath, op)(*arguments, call.num_bits, call.narrow_range, build=build)
    if is_constant:
        found = np.where(np.isnan(call.arrays[0]), call.arrays[0], found)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.slow
@pytest.mark.parametrize("build", ["xla-cpu", "xla-cpu-nofma"])
def test_xla(build: str) -> None:
    asked = [*calls(), SHORT_ROWS]
    *found, (rows,) = answers(asked, fma=build == "xla-cpu")
    for call, expected in zip(asked[:-1], found, strict=True):
        for ours, theirs in zip(computed(call, build), expected, strict=True):
            assert_same_bits(ours, theirs, (call.op, call.constants, call.num_bits))
    (x,), ends = SHORT_ROWS.arrays, SHORT_ROWS.constants
    recognized = qmath.recognize_build(rows, *ends, 8, inputs=x, op="args")
    assert build in recognized.builds
    flat = qmath.fake_quant_with_min_max_args(x.reshape(-1), *ends, build=build).reshape(x.shape)
    if build == "xla-cpu":
        assert {float(y) for y in rows[rows != flat]} == {F(2.698039).item()}
        with pytest.raises(qmath.QmathError, match="rows of 3, 5 or 7, XLA makes"):
            qmath.fake_quant_with_min_max_args(x, *ends, build=build)
    else:
        assert_same_bits(flat, rows)
