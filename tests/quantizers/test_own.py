"""The two quantizers that TFMOT does not have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qmath.errors import QmathError
from qmath.quantizers import FixedScaleQuantizer, PowerOfTwoQuantizer


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("half_even", [-2, -2, 0, 0, 2, 2]),
        ("half_up", [-2, -1, 0, 1, 2, 3]),
        ("half_away", [-3, -2, -1, 1, 2, 3]),
    ],
)
def test_ties(rounding: str, expected: list[int]) -> None:
    values = np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]) / 4
    quantizer = FixedScaleQuantizer(0.25, num_bits=4, rounding=rounding)
    quantized = quantizer.quantize(values)
    np.testing.assert_array_equal(quantized.values, expected)
    np.testing.assert_array_equal(quantizer(values), np.float32(expected) / 4)


def test_the_width_clips_around_the_zero_point() -> None:
    values = np.float32([-100, 0, 100])
    for narrow, lowest in ((False, -8), (True, -7)):
        quantized = FixedScaleQuantizer(1.0, 3, 4, narrow_range=narrow).quantize(values)
        np.testing.assert_array_equal(quantized.values, [lowest, 3, 7])
        np.testing.assert_array_equal(quantized.dequantize(), [lowest - 3, 0, 4])


def test_configs_describe_them() -> None:
    for quantizer in (FixedScaleQuantizer("kernel_scale", num_bits=4), PowerOfTwoQuantizer(5)):
        assert type(quantizer).from_config(quantizer.get_config()) == quantizer
    assert FixedScaleQuantizer(0.5) != FixedScaleQuantizer(0.25)
    assert FixedScaleQuantizer(0.5).build() == {}


@pytest.mark.parametrize(
    ("low", "power"), [(-0.3, 0.5), (-0.5, 0.5), (-1.0, 1), (-1.0000001, 2), (-3.0, 4), (-4.0, 4)]
)
def test_powers_of_two(low: float, power: float) -> None:
    assert PowerOfTwoQuantizer(4).snapped(np.float32(low)) == (-power, power * 0.875)
    assert PowerOfTwoQuantizer(4, narrow_range=True).snapped(np.float32(low)) == (-power, power)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedScaleQuantizer(1.0, rounding="up"), "rounding is one of half_even"),
        (lambda: FixedScaleQuantizer(1.0, zero_point=8, num_bits=4), "zero_point is a signed"),
        (lambda: FixedScaleQuantizer(1.0, num_bits=1), "num_bits"),
        (lambda: FixedScaleQuantizer("s").quantize([1.0]), "in the file, as 's'"),
        (lambda: FixedScaleQuantizer(-1.0).quantize([1.0]), "finite and positive"),
        (lambda: FixedScaleQuantizer(1.0).quantize([np.nan]), "NaN has no integer"),
        (lambda: FixedScaleQuantizer(1.0).quantize([1.0], [1.0, 2.0]), "2 scales do not fit"),
        (lambda: PowerOfTwoQuantizer(8).snapped(0.0), "is not negative"),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(QmathError, match=message):
        make()
