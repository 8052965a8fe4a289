"""Layers that qmath computes in float32, against Keras: the forward pass of a quantized model.

Every layer is between two dense ones, the second quantized, with a config that quantizes its output
and, where it has a kernel, its weights. Both sides start from the same integers.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.integer.api import program_of
from qmath.integer.executor import Executor

pytest.importorskip("tensorflow_model_optimization")
from reference import models

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot

keras, K = tf.keras, tfmot.quantization.keras
annotate = K.quantize_annotate_layer
L, Q = keras.layers, K.quantizers
STEPS, CHANNELS, COUNT = 9, 6, 16
# What Keras's float32 is off from the real numbers, of the largest value: sums of a few products,
# and a recurrence of a few steps.
BOUND = 16 * 2.0**-24


class Quantized(K.QuantizeConfig):
    """Quantizes the weights that `paths` name, and the output."""

    def __init__(self, paths=(), bits=8):
        self.paths, self.bits = tuple(paths), bits

    def get_weights_and_quantizers(self, layer):
        quantizer = functools.partial(
            Q.LastValueQuantizer, self.bits, per_axis=False, symmetric=True, narrow_range=True
        )
        return [(_get(layer, path), quantizer()) for path in self.paths]

    def get_activations_and_quantizers(self, _):
        return []

    def set_quantize_weights(self, layer, weights):
        for path, weight in zip(self.paths, weights, strict=True):
            *before, last = path.split(".")
            setattr(_get(layer, ".".join(before)) if before else layer, last, weight)

    def set_quantize_activations(self, layer, activations):
        pass

    def get_output_quantizers(self, _):
        return [Q.MovingAverageQuantizer(8, per_axis=False, symmetric=False, narrow_range=False)]

    def get_config(self):
        return {"paths": list(self.paths), "bits": self.bits}


def _get(layer, path):
    for name in path.split("."):
        layer = getattr(layer, name)
    return layer


RECURRENT = ("cell.kernel", "cell.recurrent_kernel")
# By name: the layer, which of its weights are quantized, and how often it takes its input.
CASES: dict[str, tuple[Any, tuple[str, ...], int]] = {
    "layer_normalization": (lambda: L.LayerNormalization(name="u"), (), 1),
    "layer_normalization_of_two_axes": (
        lambda: L.LayerNormalization(axis=[1, 2], epsilon=1e-5, center=False, name="u"), (), 1),
    "layer_normalization_of_the_first_axis": (
        lambda: L.LayerNormalization(axis=1, scale=False, name="u"), (), 1),
    "group_normalization": (lambda: L.GroupNormalization(3, name="u"), (), 1),
    "group_normalization_of_each_channel": (
        lambda: L.GroupNormalization(-1, scale=False, name="u"), (), 1),
    "einsum_dense": (
        lambda: L.EinsumDense("abc,cd->abd", (STEPS, 5), bias_axes="d", name="u"), ("kernel",), 1),
    "einsum_dense_of_any_axes": (
        lambda: L.EinsumDense("...x,xy->...y", 5, activation="relu", name="u"), ("kernel",), 1),
    "einsum_dense_of_heads": (
        lambda: L.EinsumDense("abc,cde->abde", (STEPS, 2, 4), bias_axes="de", name="u"),
        ("kernel",), 1),
    "dot": (lambda: L.Dot(2, name="u"), (), 2),
    "dot_of_other_axes": (lambda: L.Dot((1, 1), normalize=True, name="u"), (), 2),
    "simple_rnn": (lambda: L.SimpleRNN(4, return_sequences=True, name="u"), RECURRENT, 1),
    "simple_rnn_backwards": (
        lambda: L.SimpleRNN(4, go_backwards=True, activation="relu", use_bias=False, name="u"),
        (), 1),
    "gru": (lambda: L.GRU(4, return_sequences=True, name="u"), RECURRENT, 1),
    "gru_of_old": (
        lambda: L.GRU(4, reset_after=False, recurrent_activation="hard_sigmoid", name="u"),
        RECURRENT, 1),
    "gru_without_bias": (lambda: L.GRU(4, use_bias=False, name="u"), (), 1),
    "lstm": (lambda: L.LSTM(4, return_sequences=True, name="u"), RECURRENT, 1),
    "lstm_backwards": (
        lambda: L.LSTM(4, go_backwards=True, return_sequences=True, use_bias=False, name="u"),
        (), 1),
    "bidirectional": (
        lambda: L.Bidirectional(L.LSTM(4, return_sequences=True), name="u"),
        ("forward_layer.cell.kernel", "backward_layer.cell.kernel"), 1),
    "bidirectional_sum": (lambda: L.Bidirectional(L.GRU(4), merge_mode="sum", name="u"), (), 1),
    "bidirectional_of_two": (
        lambda: L.Bidirectional(
            L.SimpleRNN(4, return_sequences=True), merge_mode="ave",
            backward_layer=L.SimpleRNN(
                4, return_sequences=True, go_backwards=True, activation="relu", name="other"),
            name="u"), (), 1),
    "time_distributed": (
        lambda: L.TimeDistributed(L.Dense(5, activation="relu"), name="u"), ("layer.kernel",), 1),
    "attention": (lambda: L.Attention(name="u"), (), 2),
    "attention_with_a_key": (lambda: L.Attention(use_scale=True, name="u"), (), 3),
    "additive_attention": (lambda: L.AdditiveAttention(name="u"), (), 2),
    "unit_normalization": (lambda: L.UnitNormalization(axis=[1, 2], name="u"), (), 1),
    "rnn_of_gru": (lambda: L.RNN(L.GRUCell(4), name="u"), RECURRENT, 1),
    "rnn_of_lstm": (
        lambda: L.RNN(L.LSTMCell(4, recurrent_activation="hard_sigmoid"), return_sequences=True,
                      go_backwards=True, name="u"), (), 1),
    "locally_connected1d": (
        lambda: L.LocallyConnected1D(4, 3, strides=2, activation="relu", name="u"), ("kernel",), 1),
    "locally_connected2d": (
        lambda: L.LocallyConnected2D(4, (2, 3), name="u"), ("kernel",), 1),
    "conv3d_transpose": (
        lambda: L.Conv3DTranspose(4, (2, 3, 2), (1, 2, 3), "same", name="u"), ("kernel",), 1),
    "conv3d_transpose_valid": (
        lambda: L.Conv3DTranspose(2, (1, 2, 3), (2, 1, 1), activation="relu", name="u"),
        ("kernel",), 1),
}  # fmt: skip
RESHAPED = {  # what the layer takes in place of the sequence
    "locally_connected2d": (3, 3, CHANNELS), "conv3d_transpose": (3, 3, 2, 3),
    "conv3d_transpose_valid": (3, 3, 2, 3),
}  # fmt: skip


@functools.cache
def quantized(name):
    """Return a quantized model with a layer in its middle."""
    make, paths, count = CASES[name]
    keras.utils.set_random_seed(0)
    with K.quantize_scope({"Quantized": Quantized}):
        image = L.Input((STEPS, 8), name="image")
        x = annotate(L.Dense(CHANNELS, name="before"), Quantized(["kernel"]))(image)
        x = L.Reshape(RESHAPED.get(name, (STEPS, CHANNELS)))(x)
        x = annotate(make(), Quantized(paths))([x] * count if count > 1 else x)
        x = annotate(L.Dense(3, name="after"), Quantized(["kernel"]))(x)
        return calibrated(K.quantize_apply(keras.Model(image, x)), models.images)


def calibrated(model, data):
    """Give the weights that begin as ones and zeros other values, and run a few batches."""
    for weight in model.weights:  # gamma, beta and biases are ones and zeros
        if any(part in weight.name for part in ("gamma", "beta", "bias")):
            weight.assign_add(np.random.default_rng(0).normal(size=weight.shape) * 0.3)
    for seed in range(5):
        model(data(model.input_shape[1:], COUNT, seed), training=True)
    return model


def compared(model, x):
    """Return what Keras gives to the layer `u`, and what it makes of it before its quantizer."""
    tapped = keras.Model(model.input, [_layer(model, "before").output, model.output])
    before, _ = (array.numpy() for array in tapped(x, training=False))
    wrapper = _layer(model, "u")
    count = len(tf.nest.flatten(wrapper.inbound_nodes[0].input_tensors))
    # When it ran, the wrapper has put the fake-quantized weights into the layer.
    given = tf.reshape(before, (-1, *wrapper.input_shape[1:])) if count == 1 else before
    made = wrapper.layer([tf.constant(before)] * count if count > 1 else given)
    return before, made.numpy()


def _layer(model, name):
    return next(layer for layer in model.layers if layer.name in (name, f"quant_{name}"))


@pytest.mark.parametrize("name", CASES)
def test_a_float_layer_is_keras_own_within_its_bound(name, tmp_path):
    model = quantized(name)
    x = models.images((STEPS, 8), COUNT, 1000)
    live = qmath.from_keras(model)
    program = program_of(live)
    assert not program.cuts
    held = [t for t in live.tensors.values() if t.name.startswith("u/") and t.role == "weight"]
    assert len(held) == len(CASES[name][1])
    before, expected = compared(model, x)
    results = Executor(program).run({"image": x})
    params = Executor(program).quant_params
    real = params["before/output"].dequantize(results["before/output"])
    if name == "time_distributed":  # a Dense of the last axis: integers
        assert "u" not in program.float_layers
        return
    same = (real == before).reshape(COUNT, -1).all(1)
    assert same.sum() >= COUNT // 2  # others differ by a tie before the layer
    made = results.get("u/activation", results["u"])
    assert np.abs(made - expected)[same].max() < BOUND * np.abs(expected).max()
    if name == "bidirectional":  # Keras's own .h5 would hold two ranges of one name
        return
    model.save(tmp_path / "model.h5")
    loaded = qmath.load(tmp_path / "model.h5", {
        "Quantized.output": qmath.MovingAverageQuantizer(
            8, per_axis=False, symmetric=False, narrow_range=False),
        "Quantized.weights": qmath.LastValueQuantizer(
            8, per_axis=False, symmetric=True, narrow_range=True),
    })  # fmt: skip
    again = Executor(program_of(loaded)).run({"image": x})
    for step, array in results.items():
        np.testing.assert_array_equal(array, again[step], step)


def of_heads(**call):
    """Return a model whose attention is left float: TFMOT wraps none that has two inputs."""
    keras.utils.set_random_seed(0)
    with K.quantize_scope({"Quantized": Quantized}):
        image = L.Input((STEPS, 8), name="image")
        x = annotate(L.Dense(CHANNELS, name="before"), Quantized(["kernel"]))(image)
        x = L.MultiHeadAttention(2, 3, value_dim=4, output_shape=5, name="u")(x, x, **call)
        x = annotate(L.Dense(3, name="after"), Quantized(["kernel"]))(x)
        return calibrated(K.quantize_apply(keras.Model(image, x)), models.images)


def test_multi_head_attention_is_keras_own_within_its_bound():
    model, x = of_heads(), models.images((STEPS, 8), COUNT, 1000)
    program = program_of(qmath.from_keras(model))
    assert list(program.float_layers) == ["u", "after"]
    # The first call of the layer was in the model before quantization.
    taps = [_layer(model, "before").output, _layer(model, "u").get_output_at(-1)]
    tapped = keras.Model(model.input, taps)
    before, expected = (array.numpy() for array in tapped(x, training=False))
    results = Executor(program).run({"image": x})
    real = Executor(program).quant_params["before/output"].dequantize(results["before/output"])
    same = (real == before).reshape(COUNT, -1).all(1)
    assert same.sum() >= COUNT // 2
    assert np.abs(results["u"] - expected)[same].max() < BOUND * np.abs(expected).max()


def test_what_a_call_asks_for_besides_is_a_cut_point():
    shapes = {"u": (STEPS, 5)}
    live = qmath.from_keras(of_heads(use_causal_mask=True), shapes=shapes)
    (cut,) = program_of(live).cuts
    assert (cut.name, cut.class_name) == ("u", "MultiHeadAttention")


@pytest.mark.parametrize("mask_zero", [False, True])
def test_an_embedding_looks_up_what_keras_looks_up(mask_zero):
    keras.utils.set_random_seed(0)

    def numbers(shape, count, seed):
        return np.random.default_rng(seed).integers(0, 12, (count, *shape)).astype(np.float32)

    with K.quantize_scope({"Quantized": Quantized}):
        image = L.Input((STEPS,), name="image")
        rows = keras.initializers.RandomUniform(-5, 5, seed=0)
        lookup = L.Embedding(12, 5, rows, mask_zero=mask_zero, name="u")
        x = annotate(lookup, Quantized(["embeddings"]))(image)
        x = annotate(L.GRU(4, name="gru"), Quantized(RECURRENT))(x)
        x = annotate(L.Dense(3, name="after"), Quantized(["kernel"]))(x)
        model = calibrated(K.quantize_apply(keras.Model(image, x)), numbers)
    program = program_of(qmath.from_keras(model))
    # Under a mask a recurrent layer skips steps, which qmath leaves to whoever runs it.
    assert [cut.name for cut in program.cuts] == ["gru"] * mask_zero
    x = numbers((STEPS,), COUNT, 1000)
    tapped = keras.Model(model.input, _layer(model, "u").output)
    results = Executor(program).run({"image": x})
    real = Executor(program).quant_params["u/output"].dequantize(results["u/output"])
    np.testing.assert_array_equal(real, tapped(x, training=False).numpy())
    assert len(np.unique(results["u/output"])) > 10
