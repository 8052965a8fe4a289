"""Names of variables by position against Keras's own, for every layer that `slots_of` knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import tensorflow as tf

from qmath.readers.architecture.variables import _LAYERS
from qmath.readers.keras.live import from_keras
from qmath.readers.loading import load

keras = tf.keras
layers = keras.layers

CELLS: dict[str, Any] = {
    "GRUCell": layers.GRUCell,
    "LSTMCell": layers.LSTMCell,
    "SimpleRNNCell": layers.SimpleRNNCell,
}
# Each layer with the shape of its input.
BUILT: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: layers.BatchNormalization(), (4,)),
    (lambda: layers.BatchNormalization(scale=False), (4, 3)),
    (lambda: layers.BatchNormalization(center=False, axis=[1, 2]), (4, 3)),
    (lambda: layers.Bidirectional(layers.LSTM(3)), (4, 2)),
    (lambda: layers.Bidirectional(layers.GRU(3), backward_layer=layers.GRU(
        3, go_backwards=True, use_bias=False, name="other")), (4, 2)),
    (lambda: layers.Conv1D(3, 2), (6, 2)),
    (lambda: layers.Conv1DTranspose(3, 2), (6, 2)),
    (lambda: layers.Conv2D(3, (2, 1), use_bias=False), (6, 6, 2)),
    (lambda: layers.Conv2D(4, 2, groups=2), (6, 6, 2)),
    (lambda: layers.Conv2DTranspose(3, (2, 1)), (6, 6, 2)),
    (lambda: layers.Conv3D(3, 2), (4, 4, 4, 2)),
    (lambda: layers.Conv3DTranspose(3, 2, use_bias=False), (4, 4, 4, 2)),
    (lambda: layers.ConvLSTM1D(3, 2), (4, 6, 2)),
    (lambda: layers.ConvLSTM2D(3, 2), (4, 6, 6, 2)),
    (lambda: layers.ConvLSTM3D(3, 2, use_bias=False), (2, 4, 4, 4, 2)),
    (lambda: layers.Dense(3), (4,)),
    (lambda: layers.Dense(3, use_bias=False), (4,)),
    (lambda: layers.DepthwiseConv1D(2, depth_multiplier=2), (6, 2)),
    (lambda: layers.DepthwiseConv2D(2, use_bias=False), (6, 6, 2)),
    (lambda: layers.EinsumDense("ab,bc->ac", 3, bias_axes="c"), (4,)),
    (lambda: layers.EinsumDense("ab,bc->ac", 3), (4,)),
    (lambda: layers.Embedding(5, 3), (4,)),
    (lambda: layers.GRU(3), (4, 2)),
    (lambda: layers.GRU(3, reset_after=False, use_bias=False), (4, 2)),
    (lambda: layers.GroupNormalization(2), (4,)),
    (lambda: layers.LSTM(3), (4, 2)),
    (lambda: layers.LayerNormalization(), (4,)),
    (lambda: layers.LayerNormalization(axis=[1, 2], center=False), (4, 3)),
    (lambda: layers.LocallyConnected1D(3, 2), (6, 2)),
    (lambda: layers.LocallyConnected2D(3, 2, use_bias=False), (6, 6, 2)),
    (lambda: layers.Normalization(), (4,)),
    (lambda: layers.PReLU(), (4, 3)),
    *[(lambda cell=cell: layers.RNN(cell(3, name="mine")), (4, 2)) for cell in CELLS.values()],
    (lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2), layers.GRUCell(4)]), (4, 2)),
    (lambda: layers.SeparableConv1D(3, 2, depth_multiplier=2), (6, 2)),
    (lambda: layers.SeparableConv2D(3, 2, use_bias=False), (6, 6, 2)),
    (lambda: layers.SimpleRNN(3), (4, 2)),
    (lambda: layers.TimeDistributed(layers.Dense(3)), (4, 2)),
    (lambda: layers.TimeDistributed(layers.Conv2D(3, 2, name="inner")), (4, 6, 6, 2)),
]  # fmt: skip


def attention() -> Any:
    flow = layers.Input((4, 6))
    return keras.Model(flow, layers.MultiHeadAttention(2, 3, name="layer")(flow, flow))


def scores() -> Any:
    flow = layers.Input((4, 6))
    made = [
        layers.Attention(use_scale=True, score_mode="concat", name="both")([flow, flow]),
        layers.Attention(score_mode="concat", name="concat")([flow, flow]),
        layers.Attention(use_scale=True, name="scaled")([flow, flow]),
        layers.Attention(name="none")([flow, flow]),
        layers.AdditiveAttention(name="additive")([flow, flow]),
        layers.AdditiveAttention(use_scale=False, name="unscaled")([flow, flow]),
    ]
    return keras.Model(flow, layers.Add()(made))


def sync() -> Any:
    return keras.Sequential([layers.Input((4,)), layers.BatchNormalization(synchronized=True)])


def filled(model: Any) -> Any:
    """Give every variable values of its own."""
    rng = np.random.default_rng(0)
    model.set_weights([rng.integers(1, 100, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def check(model: Any, path: Path) -> None:
    filled(model).save(path)
    loaded, live = load(path), from_keras(model)
    assert {key: np.shape(t.values) for key, t in loaded.tensors.items()} == {
        key: np.shape(t.values) for key, t in live.tensors.items()
    }
    for name, tensor in loaded.tensors.items():
        other = np.asarray(live.tensors[name].values)
        assert np.asarray(tensor.values).tobytes() == other.tobytes(), name


@pytest.mark.parametrize(("make", "shape"), BUILT, ids=map(str, range(len(BUILT))))
def test_layers(make: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    check(keras.Sequential([layers.Input(shape), make()]), tmp_path / "model.keras")


@pytest.mark.parametrize("make", [attention, scores, sync])
def test_other_layers(make: Any, tmp_path: Path) -> None:
    check(make(), tmp_path / "model.keras")


def test_all_are_tested() -> None:
    built = {type(make()).__name__ for make, _ in BUILT}
    inside = {*CELLS, "ConvLSTMCell", "StackedRNNCells"}
    joined = {"AdditiveAttention", "Attention", "MultiHeadAttention"}
    assert built | inside | joined | {"SyncBatchNormalization"} == set(_LAYERS)
