"""`qmath.tf` against ``tf.quantization``: names, signatures, integers and bits."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import qmath
from qmath import tf
from reference import oracle
from tests.helpers import assert_same_bits
from tests.strategies import Case, cases, ordered_ranges

DTYPES = ["qint8", "quint8", "qint16", "quint16", "qint32"]
MODES = ["MIN_COMBINED", "MIN_FIRST", "SCALED"]
OTHERS = {"out", "onednn", "build"}  # parameters that TensorFlow has not


@given(
    cases(per_channel=True, pairs=ordered_ranges()),
    st.sampled_from(DTYPES),
    st.sampled_from(MODES),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.data(),
)
def test_integers_and_floats(
    case: Case, dtype: str, mode: str, to_even: bool, per_axis: bool, share: float, data
) -> None:
    axis = 1 if per_axis and mode != "MIN_FIRST" else None
    low, high = (end if axis else end[0] for end in (case.min, case.max))
    assume(np.isfinite(low).all() and np.isfinite(high).all())
    round_mode = "HALF_TO_EVEN" if to_even and mode == "SCALED" else "HALF_AWAY_FROM_ZERO"
    settings = (low, high, dtype, mode, round_mode, None, case.narrow_range, axis, share)
    try:
        actual = tf.quantize(case.numbers, *settings, onednn=oracle.ONEDNN)
    except qmath.QmathError as error:  # the only ones of finite ranges and floats
        assert "no finite scale" in str(error) or "no kernel of oneDNN" in str(error)
        return
    expected = oracle.quantize(case.numbers, *settings)
    assert actual.output.dtype == expected.output.dtype
    np.testing.assert_array_equal(actual.output, expected.output)
    for ours, theirs in zip(actual[1:], expected[1:], strict=True):
        assert_same_bits(ours, theirs, settings)
    if not actual.output.size:
        return  # TensorFlow aborts the process
    if dtype == "qint32" and mode == "SCALED" and oracle.ONEDNN and axis is None:
        return  # TensorFlow has no kernel
    limits = np.iinfo(actual.output.dtype)
    ends = st.sampled_from([limits.min, -1, 0, 1, limits.max - 64, limits.max])
    q = actual.output.copy()
    q.flat[0] = max(limits.min, data.draw(ends))
    settings = (low, high, mode, None, axis, case.narrow_range)
    actual = tf.dequantize(q, *settings, onednn=oracle.ONEDNN)
    assert_same_bits(actual, oracle.dequantize(q, *settings), settings)


@pytest.mark.slow
def test_the_other_kernels() -> None:
    """oneDNN is switched on and off when TensorFlow is imported."""
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": str(int(not oracle.ONEDNN))}
    command = [sys.executable, "-m", "reference.fuzz", "--only", "tf.quantize, tf.dequantize"]
    done = subprocess.run(
        [*command, "--elements", "200000"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_older_name() -> None:
    x = np.random.default_rng(0).normal(size=99).astype(np.float32)
    for settings in ((True, 5, True, "HALF_UP"), (False, 8, True), (True, 4, False)):
        actual = tf.quantize_and_dequantize(x, -1.0, 2.0, *settings)
        assert_same_bits(actual, oracle.quantize_and_dequantize(x, -1.0, 2.0, *settings))


@pytest.mark.parametrize("name", tf.__all__)
def test_signatures(name: str) -> None:
    theirs = getattr(oracle.tf.quantization, name)
    if name.startswith("fake_quant") or name == "quantize_and_dequantize":
        theirs = inspect.unwrap(theirs)
    ours = inspect.signature(getattr(tf, name)).parameters
    expected = inspect.signature(inspect.unwrap(theirs)).parameters
    assert [n for n in ours if n not in OTHERS] == list(expected)
    for parameter in expected.values():
        default = parameter.default
        if isinstance(default, oracle.tf.DType):
            default = default.as_numpy_dtype
        assert ours[parameter.name].default == default, parameter


def test_what_is_absent_is_named() -> None:
    theirs = {name for name in dir(oracle.tf.quantization) if not name.startswith("_")}
    assert theirs - set(tf.__all__) == {"quantized_concat", "experimental"}
    for name in theirs - set(tf.__all__):
        with pytest.raises(AttributeError, match="is not in qmath"):
            getattr(tf, name)
