"""The integers against TensorFlow: dequantized, they are its fake quantization, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath
from qmath.errors import QmathError
from reference import oracle
from tests.helpers import assert_same_bits
from tests.strategies import Case, cases

RECONSTRUCTION = "(values.astype(np.int32) - zero_point).astype(np.float32) * scale"


def check_integers(q: qmath.QuantizedTensor, fake_quantized: np.ndarray, context: object) -> None:
    names = {"np": np, "values": q.values, "zero_point": q.zero_point, "scale": q.scale}
    assert_same_bits(np.asarray(eval(RECONSTRUCTION, names)), fake_quantized, context)
    assert_same_bits(q.dequantize(), fake_quantized, context)
    lowest = -(2 ** (q.num_bits - 1)) * q.signed + q.narrow_range
    if q.values.size:
        assert lowest <= q.values.min()
        assert q.values.max() < 2**q.num_bits - 2 ** (q.num_bits - 1) * q.signed
    assert q.values.dtype.itemsize == (1 if q.num_bits <= 8 else 2)
    assert q.values.dtype.kind == ("i" if q.signed else "u")
    assert (q.scale.dtype, q.zero_point.dtype) == (np.float32, np.int32)
    assert q.scale.shape == q.zero_point.shape


@given(st.sampled_from(["vars", "args", "per_axis"]), st.booleans(), st.data())
def test_integers_reproduce_fake_quantization(op: str, signed: bool, data: st.DataObject) -> None:
    case = data.draw(cases(per_channel=op == "per_axis"))
    settings = {"narrow_range": case.narrow_range, "signed": signed}
    if op == "per_axis":
        settings["per_axis"] = True
    else:
        settings["op"] = op
    try:
        q = qmath.quantize(case.inputs, case.min, case.max, case.num_bits, **settings)
    except QmathError as error:
        assert refused(case, str(error))
        return
    if op == "args" and not q.scale:  # a dead range: TensorFlow's op refuses it, the others give 0
        assert max(abs(case.min), abs(case.max)) < np.finfo(np.float32).tiny
        return
    fake_quant = getattr(
        oracle, f"fake_quant_with_min_max_{op.replace('per_axis', 'vars_per_channel')}"
    )
    check_integers(q, fake_quant(case.inputs, *case.range), case)


def refused(case: Case, message: str) -> bool:
    """Whether the message says what is really the matter with the case."""
    low, high = case.min.astype(np.float64), case.max.astype(np.float64)
    if "NaN" in message:
        return bool(np.isnan(case.inputs).any())
    if "not finite" in message:
        return not np.isfinite([low, high]).all()
    if "inverted" in message:
        return bool((low > high).any())
    span = (high - low) / (2**case.num_bits - 1 - case.narrow_range)
    if "too wide" in message:
        return bool((span > 2.0**110).any())
    return "too narrow" in message and bool((span < 2.0**-125).any())


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("narrow_range", [False, True])
@pytest.mark.parametrize(
    "range", [(-1, 1), (-1, 0.75), (-6, 6), (0, 6), (-0.31, 2.9), (1, 2), (-2, -1)]
)
def test_all_float16_values(num_bits: int, narrow_range: bool, range: tuple[float, float]) -> None:
    x = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    x = x[~np.isnan(x)]
    for op in ("vars", "args"):
        q = qmath.quantize(x, *range, num_bits, narrow_range=narrow_range, op=op)
        fake_quant = getattr(oracle, f"fake_quant_with_min_max_{op}")
        check_integers(q, fake_quant(x, *map(float, range), num_bits, narrow_range), range)


@pytest.mark.parametrize("num_bits", range(2, 17))
def test_every_tie_and_its_neighbours(num_bits: int) -> None:
    rng = np.random.default_rng(num_bits)
    for low, high in [
        (-1.0, 1.0),
        (0.0, 6.0),
        *(np.sort(rng.normal(size=(4, 2)), axis=1) * 3 + [[-1, 1]]),
    ]:
        low, high = np.float32(low), np.float32(high)
        for narrow_range in (False, True):
            q = qmath.quantize(0.0, low, high, num_bits, narrow_range=narrow_range, signed=False)
            ties = (np.arange(2**num_bits) - q.zero_point + 0.5) * q.scale.astype(np.float64)
            x = (ties.astype(np.float32).view(np.int32)[:, None] + np.arange(-4, 5)).astype(
                np.int32
            )
            x = x.view(np.float32)
            q = qmath.quantize(x, low, high, num_bits, narrow_range=narrow_range)
            expected = oracle.fake_quant_with_min_max_vars(x, low, high, num_bits, narrow_range)
            check_integers(q, expected, (low, high))
