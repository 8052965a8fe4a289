"""Quantizers in TensorFlow, eager and compiled: their integers come back from their floats."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from qmath.kernels.lattice import recover
from reference import oracle
from tests.helpers import assert_same_bits

tf = pytest.importorskip("tensorflow")

F = np.float32


def learnt_step(x, num_bits, step):
    """LSQ: its step is a variable."""
    half = 2 ** (num_bits - 1)
    q = tf.round(tf.clip_by_value(x / step, -half, half - 1))
    return q, q * step


def fixed_divisor(x, num_bits, step):
    del step
    half = 2 ** (num_bits - 1)
    q = tf.clip_by_value(tf.round(x * 10.7), -half, half - 1)
    return q, q / 10.7


def dorefa(x, num_bits, step):
    del step
    n = 2**num_bits - 1
    w = tf.tanh(x)
    q = tf.round((w / (2 * tf.reduce_max(tf.abs(w))) + 0.5) * n)
    return q, 2 * (q / n) - 1


def power_of_two(x, num_bits, step):
    half = 2 ** (num_bits - 1)
    step = 2.0 ** tf.round(tf.math.log(step) / tf.math.log(2.0))
    q = tf.clip_by_value(tf.round(x / step), -half + 1, half - 1)
    return q, q * step


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("quantizer", [learnt_step, fixed_divisor, dorefa, power_of_two])
def test_own_quantizers(quantizer, num_bits, compiled):
    """Without its range or step: from the floats alone, as a live layer returns them."""
    call = tf.function(quantizer) if compiled else quantizer
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = F(rng.normal(0, 1, 4000))
        step = F(rng.uniform(1, 4) / 2**num_bits)
        q, values = (part.numpy() for part in call(tf.constant(x), num_bits, tf.constant(step)))
        found = recover(values, max_bits=num_bits)
        assert found.form is not None
        factor = np.gcd.reduce(q.astype(int)) if "2 *" not in found.form else 1
        assert factor == 1 or not found.is_unique
        np.testing.assert_array_equal(found.integers * factor, q)
        assert found.negative_zeros == (np.signbit(values) & (values == 0)).sum()


@pytest.mark.parametrize("num_bits", [2, 4, 7, 8, 12, 16])
def test_tensorflows_kernels(num_bits):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        low, high = F(-rng.lognormal(0, 2, 5)), F(rng.lognormal(0, 2, 5))
        x = F(rng.uniform(-1.2, 1.2, (3000, 5)) * np.maximum(-low, high))
        values = oracle.fake_quant_with_min_max_vars_per_channel(x, low, high, num_bits)
        quantized = qmath.quantize(x, low, high, num_bits, per_axis=True)
        found = recover(values, max_bits=num_bits, axis=-1, zero_point=quantized.zero_point)
        again = (found.integers.astype(np.int32) - found.zero_point).astype(F) * found.scale
        assert_same_bits(again, values + F(0))
        certain = np.array([why == "" for why in found.ambiguities])
        np.testing.assert_array_equal(found.integers[:, certain], quantized.values[:, certain])
        if num_bits > 2:
            assert certain.any()
