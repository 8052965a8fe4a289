"""Strategies and assertions: what they draw, what a failure says, and that it shrinks."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, find, given, settings
from hypothesis import strategies as st

import qmath
from qmath import testing
from qmath.errors import QmathError
from qmath.testing import (
    Geometry,
    Layer,
    Tensor,
    assert_same_bits,
    assert_same_integers,
    floats_near_ends,
    floats_near_ties,
    floats_of_range,
    layers,
    make_layer,
    quantized_tensors,
    ranges,
    specs,
    subnormals,
)
from qmath.testing.arithmetic import PROFILES
from qmath.testing.floats import Range, to_tie
from qmath.testing.layer import CLASSES

FEW = settings(max_examples=40)
SHRINKING = settings(max_examples=2000, derandomize=True, database=None, deadline=None)


@FEW
@given(ranges(), st.integers(2, 16), st.booleans())
def test_ranges_determine_integers(ends, num_bits, narrow_range):
    low, high = ends
    assert low < high
    assert np.float32(low) == low
    qmath.quantize([0.0], low, high, num_bits, narrow_range=narrow_range)


@FEW
@given(specs(per_axis=True))
def test_specs_are_complete(spec):
    assert spec.is_complete
    assert spec.per_axis


@FEW
@given(st.data(), ranges(), st.integers(2, 16), st.sampled_from(["vars", "args"]))
def test_floats_near_ties_are(data, ends, num_bits, function):
    strategy = floats_near_ties(*ends, num_bits, function=function)
    x = data.draw(strategy)
    # What qmath.kernels.exact calls a near-tie, for every range but the narrowest.
    assume(Range(*ends, num_bits).step > 2.0**-90)
    assert to_tie(x, Range(*ends, num_bits)) <= 8 * 2.0 ** (num_bits - 24)


@FEW
@given(floats_near_ends(-1.0, 3.0) | subnormals() | floats_of_range(-1.0, 3.0, 8))
def test_floats_are_float32(x):
    assert np.float32(x) == x


@FEW
@given(quantized_tensors())
def test_tensors_hold_what_is_expected(tensor):
    assert tensor.inputs.dtype == np.float32
    assert not np.isnan(tensor.inputs).any()
    assert_same_integers(tensor.quantized.values, tensor.quantized_by(tensor.function).values)
    dequantized = tensor.quantized.dequantize()
    assert_same_bits(dequantized + np.float32(0), tensor.fake_quantized + np.float32(0), tensor)
    for _, other in tensor.other_integers():
        assert other.shape == tensor.inputs.shape


@pytest.mark.parametrize("op", CLASSES)
@pytest.mark.parametrize("profile", PROFILES)
def test_layers_have_constants_and_results(op, profile):
    @settings(max_examples=12)
    @given(layers(op, profile=profile))
    def check(layer):
        got = layer.expected(profile)
        assert got.shape == (len(layer.inputs[0]), *layer.geometry.output)
        assert got.dtype == np.int8
        constants = layer.constants(profile)
        assert ("output_zero_point" in constants) == (op != "max_pool")
        assert repr(layer).startswith("Layer(Geometry(op=")

    check()


@FEW
@given(layers("dense", num_bits=4, signed=False, geometry=Geometry("dense", (3,), 2)))
def test_a_layer_of_one_s_own_shape(layer):
    assert layer.inputs[0].dtype == np.uint8
    assert layer.inputs[0].max() < 16
    assert layer.weights.shape == (3, 2)
    assert layer.expected().max() < 16


def test_an_unknown_profile_is_refused():
    with pytest.raises(QmathError, match="there is no profile 'float'"):
        find(layers("conv", profile="float"), lambda _: True)


# ---- they find what is wrong, and make it small


def naive(x, low, high):
    """Quantize as most would: divide, round half to even, add the zero point."""
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero_point = round(-low / float(scale)) - 128
    x = np.clip(np.float32(x), np.float32(low), np.float32(high))
    return np.clip(np.rint(x / scale) + zero_point, -128, 127).astype(np.int8)


def naive_is_wrong(x):
    return (naive(x, -1.3, 2.7) != qmath.quantize(x, -1.3, 2.7, 8).values).any()


def calls_to_find(strategy):
    """Return how many examples it takes to see that `naive` is wrong."""
    calls = []

    @settings(max_examples=4000, derandomize=True, database=None, deadline=None, phases=PHASES)
    @given(strategy)
    def search(x):
        calls.append(x)
        assert not naive_is_wrong([x])

    with pytest.raises(AssertionError):
        search()
    return len(calls)


PHASES = [phase for phase in settings.default.phases if phase.name in ("generate",)]


def test_near_ties_find_a_wrong_quantizer_at_once():
    assert calls_to_find(floats_near_ties(-1.3, 2.7, 8)) < 30
    assert calls_to_find(floats_of_range(-1.3, 2.7, 8)) < 100


def test_a_wrong_layer_shrinks_to_one_product():
    layer = find(
        layers("dense"),
        lambda layer: (layer.expected("tflite") != layer.expected("exact")).any(),
        settings=SHRINKING,
    )
    assert layer.geometry == Geometry("dense", (1,), 1)
    assert len(layer.inputs[0]) == 1


def test_the_same_counterexample_each_time():
    found = {
        find(floats_near_ties(-1.3, 2.7, 8), lambda x: naive_is_wrong([x]), settings=SHRINKING)
        for _ in range(2)
    }
    assert len(found) == 1


# ---- assertions


TENSOR = Tensor(np.float32([0.06249994, 0.5]), np.float32(-1)[...], np.float32(0.875)[...], 4)
LAYER = make_layer(
    Geometry("dense", (2,), 2),
    [[[1, -2], [3, 4]]],
    [(-8.0, 7.9375)],
    (-1.0, 0.9921875),
    weights=[[32, 3], [40, 5]],
    weight_range=127 / 128,
    bias=[0.0, 0.0],
)


def message(function, *arguments):
    with pytest.raises(AssertionError) as caught:
        function(*arguments)
    return str(caught.value)


def test_equal_results_pass():
    assert_same_integers(LAYER.expected(), LAYER.expected(), LAYER)
    assert_same_bits(TENSOR.fake_quantized, TENSOR.fake_quantized, TENSOR)
    assert_same_bits([np.nan], np.float64([-np.nan]))


@pytest.mark.parametrize(
    ("mine", "expected", "words"),
    [
        (np.int32([1]), np.int8([1]), "expected int8 of shape (1,), got int32 of shape (1,)"),
        (np.int8([[1]]), np.int8([1]), "expected int8 of shape (1,), got int8 of shape (1, 1)"),
        (np.int8([1]), np.float32([1]), "what is expected has to be integers, got float32"),
    ],
)
def test_another_dtype_or_shape_says_what_was_expected(mine, expected, words):
    assert message(assert_same_integers, mine, expected) == words


def test_a_failure_names_place_tie_and_pattern():
    want = LAYER.expected("exact")
    wrong = want + np.int8([[0, 1], [0, 1]])
    text = message(assert_same_integers, wrong, want, LAYER)
    assert text.startswith("2 of 4 integers differ\n  at [0,1]: ")
    assert "steps from a rounding tie" in text
    assert text.endswith("all in channel 1\neach is 1 too high")


def test_a_failure_names_the_profile_that_agrees():
    half = make_layer(
        Geometry("dense", (1,), 1), [[[1], [3]]], [(-8.0, 7.9375)], (-16.0, 15.875),
        weights=[[64]], weight_range=127 / 64,
    )  # fmt: skip
    text = message(assert_same_integers, half.expected("xnnpack"), half.expected("exact"), half)
    assert "all agree under profile xnnpack" in text
    assert ", 0 steps from a rounding tie" in text
    assert "profile exact" not in text


def test_a_failure_names_the_arithmetic_of_a_quantizer():
    naive_values = np.rint(TENSOR.inputs / np.float32(0.125)).astype(np.int8)
    text = message(assert_same_integers, naive_values, TENSOR.quantized.values, TENSOR)
    assert text.splitlines()[:2] == [
        "1 of 2 integers differ",
        "  at [0]: 0, expected 1, 4.77e-07 steps from a rounding tie",
    ]
    assert "all agree under round(x / scale) by rounding half to even" in text


def test_floats_show_their_bits():
    text = message(assert_same_bits, np.float32([0.5, -0.0]), np.float32([0.5, 0.0]))
    assert text == "1 of 2 floats differ\n  at [1]: -0 (80000000), expected 0 (00000000)"
    other = TENSOR.fake_quantized_by("args") + np.float32([0.125, 0])
    assert "differ" in message(assert_same_bits, other, TENSOR.fake_quantized, TENSOR)


@pytest.mark.parametrize(
    ("mine", "expected", "words"),
    [
        ([1, 2], [3, 5], ["every element differs"]),
        ([1, 2, 0], [2, 1, 0], ["each is off by 1"]),
        ([9, 9, 0, 1], [3, 5, 0, 1], ["the result is always 9"]),
        ([90, 91, 0, 1], [127, 127, 0, 1], ["expected is always 127, the highest"]),
        ([90, 91, 0, 1], [-128, -128, 0, 1], ["expected is always -128, the lowest"]),
        ([90, 91, 0, 1], [-1, -1, 0, -2], []),
        ([1, 2], [1, 3], []),
    ],
)
def test_patterns(mine, expected, words):
    text = message(assert_same_integers, np.int64(mine), np.int64(expected))
    found = [line for line in text.splitlines()[1:] if not line.startswith("  at ")]
    assert found == words


# ---- what is imported


def test_only_strategies_need_hypothesis():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from qmath.testing import Layer, assert_same_integers, check_exporter\n"
        "import qmath\n"
        "try:\n    from qmath.testing import layers\n"
        "except qmath.MissingExtraError as error:\n    print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "pip install 'qmath-tfmot[testing]'" in said


def test_every_name_exists():
    assert [name for name in testing.__all__ if not hasattr(testing, name)] == []
    assert set(testing.__all__) <= set(dir(testing))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        testing.nothing  # noqa: B018
    assert isinstance(LAYER, Layer)
