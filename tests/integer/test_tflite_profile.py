"""TFLite's roundings, number by number, and how a step becomes operations; no TensorFlow needed."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath
from qmath.integer.executor import Executor
from qmath.integer.lowering import geometry
from qmath.integer.lowering.lower import lower
from qmath.integer.profiles import tflite_arithmetic as arithmetic
from qmath.integer.profiles.exact import Exact
from qmath.integer.profiles.tflite import Tflite, kernels
from qmath.integer.profiles.tflite_kernels import limit_of, quantization, stored_params
from qmath.integer.profiles.tflite_parts import parts
from qmath.integer.profiles.xnnpack import Xnnpack
from qmath.integer.program import (
    Activation,
    Linear,
    Normalization,
    Origin,
    QuantParams,
    Requantize,
    Term,
    UnroundedSum,
)
from tests.helpers import read_npz

REFERENCE = Path(__file__).parents[2] / "reference"
INT32 = st.integers(-(2**31) + 1, 2**31 - 1) | st.integers(-70_000, 70_000)
POSITIVE = st.integers(2**30, 2**31 - 1) | st.sampled_from([2**30, 2**31 - 1])
MULTIPLIER = POSITIVE | st.just(0)


# ---- the functions, against the C of gemmlowp and TFLite in Python's integers


def divided(a, b):
    """C's division, towards zero."""
    return abs(a) // b * (1 if a >= 0 else -1)


def srdhm(a, b):
    product = a * b
    return divided(product + (2**30 if product >= 0 else 1 - 2**30), 2**31)


def rdivpot(x, exponent):
    mask = (1 << exponent) - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


@given(INT32, MULTIPLIER)
def test_saturating_rounding_doubling_high_mul(a, b):
    got = arithmetic.saturating_rounding_doubling_high_mul(np.int64(a), np.int64(b))
    assert got == srdhm(a, b)


@pytest.mark.parametrize("exponent", range(12))
def test_rounding_divide_by_pot(exponent):
    x = np.arange(-5000, 5000)
    want = [rdivpot(int(each), exponent) for each in x]
    np.testing.assert_array_equal(arithmetic.rounding_divide_by_pot(x, exponent), want)


@given(INT32, MULTIPLIER, st.integers(-31, 12))
def test_multiply_by_quantized_multiplier(x, multiplier, shift):
    x = int(math.ldexp(x, -max(shift, 0)))  # has to fit after the shift to the left
    arguments = [np.int64(each) for each in (x, multiplier, shift)]
    double = arithmetic.multiply_by_quantized_multiplier(*arguments)
    assert double == rdivpot(srdhm(x << max(shift, 0), multiplier), max(-shift, 0))
    single = arithmetic.multiply_by_quantized_multiplier(*arguments, "single")
    assert single == math.floor(x * multiplier * Fraction(2) ** (shift - 31) + Fraction(1, 2))
    assert abs(single - double) <= 1


@given(st.floats(2.0**-33, 2.0**20) | st.sampled_from([1 - 2.0**-53, 1.0, 2 - 2.0**-52]))
def test_quantize_multiplier(real):
    multiplier, shift = map(int, arithmetic.quantize_multiplier(real))
    if real < 2.0**-32 * (1 - 2.0**-32):
        assert (multiplier, shift) == (0, 0)
        return
    assert 2**30 <= multiplier < 2**31
    error = abs(multiplier * Fraction(2) ** (shift - 31) - Fraction(real))
    assert error <= Fraction(2) ** (shift - 32)


def test_a_multiplier_of_zero():
    assert [int(x) for x in arithmetic.quantize_multiplier(0.0)] == [0, 0]


def test_round_half_away():
    halves = np.arange(-40, 40) / 2
    near = np.concatenate([halves, np.nextafter(halves, np.inf), np.nextafter(halves, -np.inf)])
    want = [math.copysign(math.floor(abs(Fraction(x)) + Fraction(1, 2)), x) for x in near]
    np.testing.assert_array_equal(arithmetic.round_half_away(near), want)
    assert arithmetic.round_half_away(np.float32(2.5)) == 3
    assert arithmetic.round_half_away(2.0**53 - 1) == 2.0**53 - 1


@pytest.mark.parametrize("count", range(1, 12))
def test_average(count):
    total = np.arange(-300, 300)
    half = count // 2
    want = [divided(int(t) + half if t > 0 else int(t) - half, count) for t in total]
    np.testing.assert_array_equal(arithmetic.average(total, np.int64(count)), want)


@given(POSITIVE, st.integers(-20, 10), st.integers(1, 5000))
def test_mean_multiplier(multiplier, shift, count):
    room = min(count.bit_length() - 1, 32, 31 + shift)
    got = arithmetic.mean_multiplier(np.int64(multiplier), np.int64(shift), count)
    assert tuple(map(int, got)) == ((multiplier << room) // count, shift - room)
    assert 0 <= got[0] < 2**31


def test_xnnpack_rounds_ties_to_even():
    got = arithmetic.xnnpack_fp32_requantize(np.arange(-5, 6), np.float32(0.5))
    np.testing.assert_array_equal(got, [-2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2])


@given(st.floats(2.0**-10, 255, width=32), st.floats(2.0**-10, 255, width=32))
def test_xnnpack_add_multipliers(a, b):
    *multipliers, shift = arithmetic.xnnpack_add_multipliers(np.float32(a), np.float32(b))
    assert 2**20 <= max(multipliers) <= 2**21
    for multiplier, scale in zip(multipliers, (a, b), strict=True):
        assert multiplier == round(Fraction(scale) * 2**shift)  # Python rounds ties to even too


# ---- numbers that users reported


def products(accumulator, multiplier, shift):
    arguments = [np.int64(each) for each in (accumulator, multiplier, shift)]
    return {
        rounding: int(arithmetic.multiply_by_quantized_multiplier(*arguments, rounding))
        for rounding in ("double", "single")
    }


def test_tensorflow_102943_is_float32_rounding():
    # "Understanding the math behind TFLite quantization": an accumulator of 585 and an output zero
    # point of -126. The user's multiplication gave -119, TFLite -120: TFLite ran XNNPACK.
    source, weight, output = np.float32([0.05296124517917633, 0.024093778803944588,
                                         0.11484327912330627])  # fmt: skip
    real = np.float64(source) * np.float64(weight) / np.float64(output)
    assert real == 0.011111111910680305
    multiplier, shift = map(int, arithmetic.quantize_multiplier(real))
    assert (multiplier, shift) == (1527099593, -6)
    assert products(585, multiplier, shift) == {"double": 7, "single": 7}  # -119
    assert arithmetic.round_half_away(585 * real) == 7  # 6.50000047
    single = source * weight / output
    assert np.float32(585) * single == 6.5
    assert arithmetic.xnnpack_fp32_requantize(np.array([585]), single) == [6]  # -120
    # Float32 alone does not explain it: the quotient has to be float32 at every step.
    assert arithmetic.xnnpack_fp32_requantize(np.array([585]), np.float32(real)) == [7]


def test_tensorflow_25087_is_the_second_rounding():
    # "Two roundings in MultiplyByQuantizedMultiplier": 11.4991 becomes 11.5 first, then 12.
    assert 11.4991 < 7984 * 1583594044 * 2.0**-40 < 11.4992
    assert products(7984, 1583594044, -9) == {"double": 12, "single": 11}


@pytest.mark.parametrize(
    ("accumulator", "multiplier", "result"),
    [(-1032852841, 1578349059, -759122106), (-966241705, 1373157221, -617840222)],
)
def test_without_a_shift_both_roundings_agree(accumulator, multiplier, result):
    # tensorflow #103028 reports one less for "double": its transcription, not TFLite's arithmetic.
    assert products(accumulator, multiplier, 0) == {"double": result, "single": result}


def test_tensorflow_63271_is_the_product_with_the_inverse():
    # fake_quant_with_min_max_args of 2.0 in [-6, 6]: 2.0235 on the CPU, 1.9765 on the GPU.
    x = np.float32([0, 1, 2, 3, 4])
    cpu = qmath.fake_quant_with_min_max_args(x, -6, 6)
    np.testing.assert_allclose(cpu, [0, 0.9882353, 2.0235295, 3.0117648, 4], rtol=1e-7)
    # The same range by the op that divides: the GPU's numbers.
    gpu = [0, 0.9882353, 1.9764706, 3.0117648, 4]
    np.testing.assert_allclose(qmath.fake_quant_with_min_max_vars(x, -6, 6), gpu, rtol=1e-7)
    # And by the CPU op's own steps, the product with the inverse and the sum rounded only once.
    scale, inverse = np.float32(12) / np.float32(255), np.float32(255) / np.float32(12)
    nudged_min = np.float32(-128) * scale
    shifted = (x - nudged_min).astype(np.float64)
    once = (shifted * np.float64(inverse) + (0.5 - 128)).astype(np.float32)
    np.testing.assert_allclose(np.floor(once) * scale, gpu, rtol=1e-7)
    twice = (x - nudged_min) * inverse - np.float32(128) + np.float32(0.5)
    np.testing.assert_array_equal(np.floor(twice) * scale, cpu)


# ---- a trained model, against what TFLite made of it


@pytest.fixture(scope="module")
def sample():
    pytest.importorskip("h5py")
    with np.load(REFERENCE / "golden" / "tflite.npz") as archive:
        golden = dict(archive)
    images = read_npz(REFERENCE / "samples" / "digits_test.npz")["images"]
    program = lower(qmath.load(REFERENCE / "samples" / "default8.h5"))
    return program, golden, {"image": images[: len(golden["reference/flatten"])]}


def test_the_converter_s_integers(sample):
    program, golden, _ = sample
    steps = [step for step in program.steps if isinstance(step, Requantize)]
    assert len(steps) == 3
    for step in steps:
        (kernel,) = kernels(step)
        (term,) = step.value.terms
        want = golden[kernel.weights]
        weights = np.asarray(term.ops[0].weights)
        if kernel.op == "DEPTHWISE_CONV_2D":
            weights = weights.reshape(1, 3, 3, 16) * kernel.weight_sign
        else:
            weights = np.moveaxis(weights * kernel.weight_sign, -1, 0)
        np.testing.assert_array_equal(weights, want)
        np.testing.assert_array_equal(kernel.bias, golden[f"{kernel.weights}.bias"])
        np.testing.assert_allclose(kernel.weight_scale, golden[f"{kernel.weights}.scale"], 5e-7)
        assert kernel.weight_bits == 8


@pytest.mark.parametrize("profile", [Tflite(), Xnnpack()], ids=lambda profile: profile.name)
def test_the_resolvers_activations(sample, profile):
    program, golden, inputs = sample
    resolver = "reference" if profile.name == "tflite" else "default"
    expected = {
        step.name: golden[f"{resolver}/{step.name}"] for step in program.steps
        if f"{resolver}/{step.name}" in golden
    }  # fmt: skip
    assert len(expected) == 5
    results = Executor(program, profile).run(inputs, forced=expected)
    for name, want in expected.items():
        np.testing.assert_array_equal(results[name], want, err_msg=name)


@pytest.mark.parametrize("name", ["default8", "nbit4"])
@pytest.mark.parametrize("profile", [Tflite(), Tflite("single"), Xnnpack()])
def test_at_most_one_step_from_exact(name, profile):
    pytest.importorskip("h5py")
    program = lower(qmath.load(REFERENCE / "samples" / f"{name}.h5"))
    images = {"image": read_npz(REFERENCE / "samples" / "digits_test.npz")["images"][:16]}
    exact = Executor(program, Exact()).run(images)
    got = Executor(program, profile).run(images, forced=exact)
    for step in program.steps:
        if isinstance(step, Requantize):
            difference = np.abs(got[step.name].astype(int) - exact[step.name])
            assert difference.max() <= 1


# ---- steps by hand


UNIT = QuantParams(1 / 16, 128, 0, 255, 8, -8.0, 7.9375)
WEIGHTS = np.array([[3, -4], [-128, 1]])


def step(terms, activation=None, params=UNIT, offset=0.0, shape=(2,)):
    terms = tuple(terms)
    return Requantize(
        "y", UnroundedSum(terms, np.asarray(offset, float), shape, activation), params
    )


def identity(params=UNIT, ops=(), scale=None):
    return Term("x", ops, np.asarray(params.scale if scale is None else scale), params)


def dense(gamma=None, weights=WEIGHTS, params=UNIT, ops=(), bias=(0.5, -0.25), kind="dense"):
    linear = Linear(kind, np.matmul, (weights.shape[-1],), weights, "layer/kernel")
    normalizations = ()
    if gamma is not None:
        zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
        normalizations = (Normalization(np.float32(gamma), zeros, zeros, ones, 0.0),)
    origin = Origin(np.float64(255 / 16), 255, np.float32(bias), normalizations)
    return Term("x", (linear, *ops), np.asarray(params.scale / 16), params, origin)


def pool(count=4, ops=(), **attributes):
    linear = Linear("pool_sum", np.sum, (2,), gain=count, attributes=attributes)
    return Term("x", (linear, *ops), np.asarray(UNIT.scale / count), UNIT)


def test_the_numbers_of_a_dense_layer():
    (kernel,) = kernels(step([dense()], Activation(limit=6.0)))
    assert (kernel.op, kernel.weights) == ("FULLY_CONNECTED", "layer/kernel")
    assert kernel.inputs[0][:4] == (1 / 16, 0, -128, 127)
    assert kernel.output[:4] == (1 / 16, 0, 0, 96)  # clamped at 0 and at 6 * 16
    assert kernel.bias.tolist() == [128, -64]  # of 1/256
    assert kernel.weight_scale == 1 / 16
    assert [int(x) for x in (*kernel.multipliers, *kernel.shifts)] == [2**30, -3]
    assert kernel.weight_bits == 8


def test_gammas_of_both_signs_and_zero():
    (kernel,) = kernels(step([dense([-2.0, 0.0])]))
    assert kernel.weight_sign.tolist() == [-1, 0]
    assert kernel.weight_scale.tolist() == [1 / 8, 1 / 16]
    assert kernel.bias.tolist() == [-128, 0]
    assert kernel.weight_bits == 9  # -128 became 128
    x = np.array([[1.0, 2.0]])
    got = Tflite(converts=False).requantize(step([dense([-2.0, 0.0])]), [x @ WEIGHTS], [])
    exact = -2 * ((x @ WEIGHTS)[0, 0] / 256 + 0.5) * 16
    assert got.tolist() == [[np.floor(exact + 0.5), 0]]


def test_three_roundings_of_a_convolution():
    term = dense(weights=np.array([[[[1]]]]), bias=0.0, kind="conv2d")
    made = step([term], shape=(1, 1, 1))  # multiplies by 1/16: by 1/2 at 31 bits, then by 2**-3
    sums = [np.array([7.0, 8, 24, -7, -8, -24])[:, None, None, None]]
    rounded = {
        profile: profile.requantize(made, sums, []).ravel().tolist()
        for profile in (Tflite(), Tflite("single"), Xnnpack())
    }
    assert list(rounded.values()) == [
        [1, 1, 2, 0, -1, -2],  # 7/16: 3.5 becomes 4, and 4/8 becomes 1
        [0, 1, 2, 0, 0, -1],
        [0, 0, 2, 0, 0, -2],
    ]


def test_a_concatenation_is_what_it_joins():
    # Channels 0-1: a dense layer. 2-3: a sum. 4-5: a tensor as it is.
    def placed(term, before, after):
        pad = geometry.zero_pad([(before, after)], (2,))
        scale = pad.apply(np.broadcast_to(term.scale, (1, 2)), None)[0]
        return Term(term.source, (*term.ops, pad), scale, term.params, term.origin)

    terms = [placed(dense(), 0, 4), placed(identity(), 2, 2), placed(identity(), 2, 2),
             placed(identity(), 4, 0)]  # fmt: skip
    joined = step(terms, shape=(6,), offset=[0.5, -0.25, 0, 0, 0, 0])
    assert [kernel.op for kernel in kernels(joined)] == ["FULLY_CONNECTED", "ADD", "QUANTIZE"]
    regions = [part.region for part in parts(joined)]
    assert regions == [(slice(0, 2),), (slice(2, 4),), (slice(4, 6),)]
    x = np.array([[5.0, -7.0]])
    values = [x @ WEIGHTS, x, x, x]
    sums = [term.ops[-1].apply(v, None) for v, term in zip(values, terms, strict=True)]
    for profile in (Tflite(), Xnnpack()):
        got = profile.requantize(joined, sums, [])[0]
        alone = profile.requantize(step([dense()]), [x @ WEIGHTS], [])[0]
        np.testing.assert_array_equal(got, [*alone, 10, -14, 5, -7])
    # With a ReLU of the sum, and a leaky one of the last tensor.
    slope, limit = np.array([1, 1, 0, 0, 0.5, 0.5]), np.full(6, np.inf)
    activated = step(terms, Activation(slope, limit), shape=(6,), offset=joined.value.offset)
    assert [kernel.op for kernel in kernels(activated)] == ["FULLY_CONNECTED", "ADD", "LEAKY_RELU"]
    got = Tflite().requantize(activated, sums, [])[0]
    np.testing.assert_array_equal(got, [*alone, 10, 0, 5, -3])  # without a shift a half goes up


def test_values_moved_before_they_are_rounded_keep_their_channels_numbers():
    flat = geometry.reshape((6,))
    linear = Linear("conv2d", np.matmul, (3, 1, 2), WEIGHTS[None, None], "layer/kernel")
    still = dense([-2.0, 1.0])
    scale = np.tile(still.scale * np.array([-2.0, 1.0]), 3)
    moved = Term("x", (linear, flat), scale, UNIT, still.origin)
    x = np.arange(6.0).reshape(1, 3, 2) - 3
    for profile in (Tflite(), Xnnpack()):
        conv = Term("x", (linear,), still.scale, UNIT, still.origin)
        total = (x @ WEIGHTS).reshape(1, 3, 1, 2)
        want = profile.requantize(step([conv], shape=(3, 1, 2)), [total], [])
        got = profile.requantize(step([moved], shape=(6,)), [total.reshape(1, 6)], [])
        np.testing.assert_array_equal(got, want.reshape(1, 6))


def test_an_average_pool_rounds_on_its_input_s_grid_and_again():
    half = QuantParams(1 / 8, 128, 0, 255, 8, -16.0, 15.875)
    pooled = step([pool()], params=half)
    assert [kernel.op for kernel in kernels(pooled)] == ["AVERAGE_POOL_2D", "QUANTIZE"]
    # 5/4 of the input are 0.625 of the output; rounded to 1 first they are a tie, which goes up.
    got = Tflite().requantize(pooled, [np.array([[5.0, -5.0]])], [])
    np.testing.assert_array_equal(got, [[1, 0]])
    (mean,) = kernels(step([pool(**{"global": True})], params=half))
    assert mean.op == "MEAN"


@pytest.mark.parametrize("bits", range(2, 17))
def test_every_width_has_the_same_rules(bits):
    top = 2**bits - 1
    params = QuantParams(1 / 16, 1, 0, top, bits, -1 / 16, (top - 1) / 16)
    weights = np.array([[1, -1], [2, 1]])
    made = step([dense(weights=weights, params=params, bias=0.0)], params=params)
    (kernel,) = kernels(made)
    assert kernel.output.zero_point == 1 - 2 ** (bits - 1)
    assert kernel.limits == (-1, top - 1)
    sums = np.array([[35.0, -20.0]])
    want = np.clip([2, -1], -1, top - 1)
    np.testing.assert_array_equal(Tflite().requantize(made, [sums], []), [want])
    added = step([identity(params), identity(params)], params=params)
    assert kernels(added)[0].left_shift == (20 if bits <= 8 else 15)
    x = np.array([[top - 1.0, -1.0]])
    np.testing.assert_array_equal(Tflite().requantize(added, [x, x], []), [[top - 1, -1]])


# ---- what is refused


WIDE = QuantParams(1 / 16, 0, 0, 65535, 16, 0.0, 65535 / 16)
FINE = QuantParams(2.0**-40, 128, 0, 255, 8, -128 * 2.0**-40, 127 * 2.0**-40)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (step([dense(), identity()]), "a sum with the output of layer/kernel"),
        (step([dense(ops=pool().ops)]), "an average of the output of layer/kernel"),
        (step([dense()], Activation(slope=0.1)), "a leaky ReLU of the output of layer/kernel"),
        (step([dense()], Activation(limit=4.0)), "an activation bounded at 4"),
        (step([identity()], Activation(0.1, 6.0)), "an activation bounded at 6"),
        (step([identity()], Activation(np.array([0, 0.5]))), "differs from channel to channel"),
        (step([identity()], Activation(slope=-0.1)), "a leaky ReLU with the slope -0.1"),
        (step([identity()], offset=[0.5, 0.0]), "batch normalization without a convolution"),
        (step([identity(scale=[1.0, 2.0])]), "batch normalization without a convolution"),
        (step([identity(scale=-UNIT.scale), identity()]), "or an average"),
        (step([identity()] * 3), "a sum of 3 tensors"),
        (step([identity()] * 2, Activation(slope=0.1)), "a sum of 2 tensors and a leaky ReLU"),
        (step([pool()], Activation()), "an average together with what follows it"),
        (step([pool(), identity()]), "an average together with what follows it"),
        (step([identity()] * 2, params=FINE), "so much finer than its inputs'"),
        (step([dense(weights=WEIGHTS * 600, params=WIDE)]), "can reach 5.*32 bits"),
        (step([identity()], params=FINE), "32 bits"),
        (step([Term("x", dense().ops, np.ones(()), UNIT)]), "batch normalization after moving"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("profile", [Tflite(), Xnnpack()], ids=lambda profile: profile.name)
def test_what_tflite_does_not_compute(profile, made, message):
    sums = [np.zeros((1, 2))] * len(made.value.terms)
    with pytest.raises(qmath.QmathError, match=rf"y: .*{message}"):
        profile.requantize(made, sums, [])


def test_a_range_with_zero_between_two_integers():
    # TensorFlow's float32 takes the integer below, TFLite's float64 the one above.
    params = QuantParams(2 / 255, 127, 0, 255, 8, -1.0, 1.0)
    with pytest.raises(qmath.QmathError, match="TensorFlow takes 127 and TFLite 128"):
        quantization(params, "x")


@given(st.floats(2.0**-30, 2.0**20, width=32), st.data(), st.sampled_from([8, 16]))
def test_scales_of_a_file_come_back(scale, data, num_bits):
    half = 2 ** (num_bits - 1)
    zero_point = data.draw(st.integers(-half, half - 1))
    found = quantization(stored_params(scale, zero_point, num_bits), "x")
    assert found[:4] == (np.float32(scale), zero_point, -half, half - 1)


def test_an_unknown_rounding():
    with pytest.raises(qmath.QmathError, match="'double' or 'single', got 'triple'"):
        Tflite("triple")


def test_a_limit_on_a_subnormal_scale() -> None:
    assert limit_of(6.0, np.float32(0.1)) == 60
    assert limit_of(6.0, np.float32(1e-44)) == 2**30
