"""Masked arrays: what lies under a mask is no data; without masked elements they are arrays."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from qmath.errors import QmathError
from tests.exports import networks

MASKED = np.ma.masked_greater(np.float32([[0.5, 3.0]]), 1.0)
STATE = {"min_var": np.float32(-1), "max_var": np.float32(1)}
ENTRIES = {
    "fake_quant": lambda x: qmath.fake_quant_with_min_max_vars(x, -1, 1),
    "a list": lambda x: qmath.fake_quant_with_min_max_args([x, x]),
    "out": lambda x: qmath.fake_quant_with_min_max_args(np.zeros((1, 2)), out=x),
    "quantize": lambda x: qmath.quantize(x, -1, 1, 8).values,
    "v2": lambda x: qmath.quantize_and_dequantize_v2(x, -1, 1, range_given=True),
    "gradient": lambda x: qmath.fake_quant_with_min_max_args_gradient(x, np.zeros((1, 2))),
    "recover": lambda x: qmath.recover(x).max_error_ulp,
    "channels": lambda x: qmath.fake_quant_with_min_max_vars_per_channel(
        np.zeros((1, 2)), -np.ones(2), np.reshape(x, -1)
    ),
    "pack": lambda x: qmath.pack(x.astype(np.int8), 4, "lsb"),
    "unpack": lambda x: qmath.unpack(x.astype(np.uint8)[0], 8, "lsb", 2, signed=True),
    "training": lambda x: qmath.LastValueQuantizer(8, False, False, False)(
        x, True, {"min_var": np.zeros((), np.float32), "max_var": np.zeros((), np.float32)}
    ),
    "a quantizer": lambda x: qmath.LastValueQuantizer(8, False, False, False).quantize(x, STATE),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_masked_elements_are_refused(entry: str) -> None:
    with pytest.raises(QmathError, match="must have no masked elements"):
        ENTRIES[entry](MASKED.copy())


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_mask_over_nothing_changes_nothing(entry: str) -> None:
    data = np.float32([[0.5, 3.0]])
    found, expected = ENTRIES[entry](np.ma.array(data.copy())), ENTRIES[entry](data.copy())
    if entry == "a quantizer":
        found, expected = found.values, expected.values
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


def test_masked_ranges_are_refused() -> None:
    quantizer = qmath.LastValueQuantizer(8, per_axis=False, symmetric=False, narrow_range=False)
    for key in STATE:
        with pytest.raises(QmathError, match=f"{key} must have no masked elements"):
            quantizer([0.5], training=True, weights=STATE | {key: np.ma.masked})
        with pytest.raises(QmathError, match=f"{key} must have no masked elements"):
            quantizer.quantize([0.5], STATE | {key: np.ma.masked})
    with pytest.raises(QmathError, match="w: min must have no masked elements"):
        qmath.quantize([0.5], np.ma.masked, 1.0, 8, name="w")


def test_masked_data_of_a_run_are_refused() -> None:
    model = networks.float_layers()
    data = np.random.default_rng(0).uniform(-1, 1, (2, 5, 5, 2)).astype(np.float32)
    expected = qmath.run(model, data).integers
    found = qmath.run(model, np.ma.array(data)).integers
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    with pytest.raises(QmathError, match=": the data must have no masked elements"):
        qmath.run(model, np.ma.masked_greater(data, 0.9))
    with pytest.raises(QmathError, match=": the data must have no masked elements"):
        qmath.diff(model, np.ma.masked_greater(data, 0.9), against="exact")
