"""What float layers compute, in other words; with Keras they are compared elsewhere."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from qmath.integer import ops
from qmath.integer.lowering.float_layers.layer import Call, Computation
from qmath.integer.lowering.float_layers.rule import FLOAT_LAYERS
from qmath.model import Node

RNG = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


def computation(
    class_name: str, *shapes: tuple[int, ...], weights: dict[str, Any] | None = None, **config: Any
) -> Computation | None:
    node = Node("u", "u", class_name, tuple("abc"[: len(shapes)]), config)
    return FLOAT_LAYERS[class_name](Call(node, shapes, weights or {}))


def made(class_name: str, x: Any, *others: Any, **settings: Any) -> np.ndarray[Any, Any]:
    parts = [part.astype(np.float64) for part in (x, *others)]
    found = computation(class_name, *(part.shape[1:] for part in parts), **settings)
    assert found is not None
    result = found.apply(*parts)
    assert result.shape[1:] == found.shape
    return result


@pytest.mark.parametrize(("axis", "axes"), [(-1, (3,)), ([1, 2], (1, 2)), ([3], (3,))])
def test_a_unit_normalization_makes_lengths_of_one(axis: Any, axes: tuple[int, ...]) -> None:
    x = drawn(3, 4, 5, 6)
    x[0] = 0
    found = made("UnitNormalization", x, axis=axis)
    np.testing.assert_allclose(np.square(found[1:]).sum(axes), 1)
    assert not found[0].any()
    assert computation("UnitNormalization", (4, 5), axis=0) is None


@pytest.mark.parametrize("scale", [None, drawn(4)])
def test_additive_attention_scores_sums(scale: Any) -> None:
    q, v, k = drawn(2, 3, 4), drawn(2, 5, 6), drawn(2, 5, 4)
    weights = {} if scale is None else {"scale": scale}
    found = made("AdditiveAttention", q, v, k, weights=weights)
    factor = np.ones(4) if scale is None else scale
    for n, i in itertools.product(range(2), range(3)):
        scores = np.exp([np.tanh(q[n, i] + k[n, j]) @ factor for j in range(5)])
        np.testing.assert_allclose(found[n, i], scores / scores.sum() @ v[n], rtol=1e-4, atol=1e-6)
    assert computation("AdditiveAttention", (3, 4), (5, 4), causal=True) is None
    assert computation("AdditiveAttention", (3, 4), (5, 6)) is None


@pytest.mark.parametrize(
    ("shape", "size", "strides"), [((9, 3), (3,), (2,)), ((6, 7, 2), (2, 3), (2, 1))]
)
def test_each_place_has_a_kernel_of_its_own(
    shape: tuple[int, ...], size: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    out = tuple((n - k) // s + 1 for n, k, s in zip(shape, size, strides, strict=False))
    kernel = drawn(int(np.prod(out)), int(np.prod(size)) * shape[-1], 4)
    bias, x = drawn(*out, 4), drawn(2, *shape)
    name = f"LocallyConnected{len(size)}D"
    settings: dict[str, Any] = {"kernel_size": list(size), "strides": list(strides)}
    found = made(name, x, weights={"kernel": kernel, "bias": bias}, **settings)
    for number, at in enumerate(np.ndindex(*out)):
        window = tuple(slice(i * s, i * s + k) for i, s, k in zip(at, strides, size, strict=True))
        part = x[(slice(None), *window)].reshape(2, -1)
        np.testing.assert_allclose(
            found[(slice(None), *at)], part @ kernel[number] + bias[at], rtol=1e-4, atol=1e-5
        )
    sparse = {"kernel": drawn(*shape[:-1], 2, *out, 4)}  # of another implementation
    assert computation(name, shape, weights=sparse, **settings) is None
    assert computation(name, (*shape[:-1], 7), weights={"kernel": kernel}, **settings) is None


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [(1, 2, 3), (2, 1, 1)])
def test_a_transposed_convolution_is_the_adjoint_of_one(
    padding: str, strides: tuple[int, ...]
) -> None:
    kernel, x = drawn(2, 3, 1, 4, 5), drawn(2, 3, 4, 2, 5)
    settings = {"strides": strides, "padding": padding}
    found = made("Conv3DTranspose", x, weights={"kernel": kernel}, **settings)
    y = drawn(*found.shape)
    pads = ((0, 0),) * 3
    if padding == "same":
        pads = ops.same_pads(found.shape[1:4], kernel.shape[:3], strides)
    forward = ops.conv3d(y.astype(np.float64), kernel, strides, pads, (1, 1, 1))
    assert forward.shape == x.shape
    np.testing.assert_allclose((forward * x).sum(), (y * found).sum(), rtol=1e-4)
    biased = made("Conv3DTranspose", x, weights={"kernel": kernel, "bias": drawn(4)}, **settings)
    assert np.ptp(biased - found, axis=(0, 1, 2, 3)).max() < 1e-5
    for other in ({"dilation_rate": 2}, {"data_format": "channels_first"}):
        assert computation("Conv3DTranspose", x.shape[1:], weights={"kernel": kernel},
                           **settings, **other) is None  # fmt: skip


@pytest.mark.parametrize(("class_name", "gates"), [("GRU", 3), ("LSTM", 4), ("SimpleRNN", 1)])
def test_a_layer_of_a_cell_is_the_layer_of_that_class(class_name: str, gates: int) -> None:
    x, settings = drawn(2, 5, 3), {"return_sequences": True, "go_backwards": True}
    weights = {"kernel": drawn(3, 4 * gates), "recurrent_kernel": drawn(4, 4 * gates)}
    of_cell = {"activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": False}
    cell = {"class_name": f"{class_name}Cell", "config": of_cell}
    found = made("RNN", x, weights=weights, cell=cell, **settings)
    whole = made(class_name, x, weights=weights, **of_cell, **settings)
    np.testing.assert_array_equal(found, whole)
    for other in (
        None,
        {**cell, "class_name": f"Mine>{class_name}Cell"},
        {**cell, "class_name": 1},
    ):
        assert computation("RNN", (5, 3), weights=weights, cell=other, **settings) is None
