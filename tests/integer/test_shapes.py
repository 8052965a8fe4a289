"""Shapes that contradict the weights, or that no computer holds, are errors of the lowering."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from qmath import Graph, Node, QatModel, QatTensor
from qmath.errors import QmathError
from qmath.integer import budget, deployment, ops
from qmath.integer.budget import MAX_BYTES, vectors_within
from qmath.integer.deployment import deploy
from qmath.integer.executor import Executor
from qmath.integer.lowering.lower import lower
from qmath.integer.program import MoveStep, Program, QuantizeStep
from tests.exports.models import DENSE, ranged, weight

Layer = tuple[str, dict[str, Any]]
VALID = {"padding": "valid"}


def model(shape: tuple[int, ...], *layers: Layer, **tensors: tuple[int, ...]) -> QatModel:
    """Return input → quantizer → `layers`; kernels are quantized, other tensors float."""
    found = [ranged("quantize/output", -1.0, 1.0, role="input")]
    for name, size in tensors.items():
        name = name.replace("__", "/")
        values = np.linspace(0.1, 1, math.prod(size), dtype=np.float32).reshape(size)
        is_kernel = name.endswith("kernel")
        found.append(weight(name, values, DENSE) if is_kernel else QatTensor(name, "float", values))
    nodes = [
        Node("image", "image", "InputLayer", (), {"batch_input_shape": [None, *shape]}),
        Node("quantize", "quantize", "QuantizeLayer", ("image",), {}),
    ]
    for i, (class_name, config) in enumerate(layers):
        inputs = tuple(config.get("inputs", (nodes[-1].name,)))
        nodes.append(Node(f"l{i}", f"l{i}", class_name, inputs, config))
    graph = Graph(tuple(nodes), ("image",), (nodes[-1].name,))
    return QatModel({tensor.name: tensor for tensor in found}, graph, source="model.h5")


IMAGE = (8, 8, 2)
KERNEL = {"l0__kernel": (3, 3, 2, 4)}


@pytest.mark.parametrize(
    ("shape", "layers", "tensors", "words"),
    [
        ((3,), [("Dense", {})], {"l0__kernel": (2, 4)}, "2 channels"),
        ((4,), [("Dense", {})], {"l0__kernel": (2, 4)}, "2 channels"),
        ((8, 8, 8), [("Conv2DTranspose", VALID)], KERNEL, "4 channels"),
        ((2,), [("Dense", {})], {"l0__kernel": (2, 4, 1)}, "has 2 axes"),
        ((2,), [("Dense", {})], {"l0__kernel": (2, 4), "l0__bias": (3,)}, "shape .3,., .* 4"),
        ((8, 8, 3), [("Conv2D", VALID)], KERNEL, "2 channels by its kernel"),
        ((8, 8, 4), [("Conv2D", VALID)], {"l0__kernel": (3, 3, 2, 3)}, "4 channels"),
        (IMAGE, [("Conv2D", {**VALID, "groups": 2})], KERNEL, "4 channels"),
        (IMAGE, [("Conv2D", {**VALID, "dilation_rate": 4})], KERNEL, "no elements"),
        ((2, 8, 2), [("Conv2D", VALID)], KERNEL, "no elements"),
        ((8, 2), [("Conv2D", VALID)], KERNEL, "3 axes"),
        ((8, 8, 8, 2), [("Conv2D", VALID)], KERNEL, "3 axes"),
        (IMAGE, [("DepthwiseConv2D", VALID)], {"l0__depthwise_kernel": (3, 3, 3, 1)}, "3 channels"),
        (IMAGE, [("Conv2DTranspose", VALID)], KERNEL, "4 channels"),
        (IMAGE, [("MaxPooling2D", {**VALID, "pool_size": 9})], {}, "no elements"),
        (IMAGE, [("AveragePooling1D", {**VALID, "pool_size": 2})], {}, "2 axes"),
        ((8, 2), [("GlobalAveragePooling2D", {})], {}, "3 axes"),
        (IMAGE, [("Reshape", {"target_shape": [5, 5]})], {}, "fills the shape"),
        (IMAGE, [("Reshape", {"target_shape": [-1, 3]})], {}, "fills the shape"),
        (IMAGE, [("Permute", {"dims": [2, 1]})], {}, "2 axes"),
        (IMAGE, [("BatchNormalization", {})], {"l0__gamma": (3,)}, "has 2 channels"),
        (IMAGE, [("BatchNormalization", {})], {"l0__moving_mean": (2, 1)}, "has 2 channels"),
        (IMAGE, [("UpSampling2D", {"size": [2**16, 2**16]})], {}, "GiB"),
        (IMAGE, [("ZeroPadding2D", {"padding": 2**16})], {}, "GiB"),
        (IMAGE, [("MaxPooling2D", {"padding": "same", "pool_size": 2, "strides": 2**16})], {}, ""),
        (IMAGE, [("Conv2D", {"padding": "same", "dilation_rate": 2**16})], KERNEL, "GiB"),
        (IMAGE, [("Conv2D", {"inputs": ["quantize", "quantize"]})], KERNEL, "takes 2 inputs"),
        (IMAGE, [("Add", {"inputs": []})], {}, "takes 0 inputs"),
        (IMAGE, [("Subtract", {"inputs": ["quantize"] * 3})], {}, "subtracts two"),
        (IMAGE, [("MaxPooling2D", {**VALID, "pool_size": 2}),
                 ("Add", {"inputs": ["quantize", "l0"]})], {}, "broadcast"),
        (IMAGE, [("MaxPooling2D", {**VALID, "pool_size": 2}),
                 ("Concatenate", {"inputs": ["quantize", "l0"]})], {}, "axis 3 only"),
        (IMAGE, [("Flatten", {}), ("Concatenate", {"inputs": ["quantize", "l0"]})], {}, "axis"),
        ((2**16, 2**15, 1), [], {}, "GiB"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_an_error(
    shape: tuple[int, ...], layers: list[Layer], tensors: dict[str, Any], words: str
) -> None:
    if not words:
        assert lower(model(shape, *layers, **tensors)).steps
        return
    with pytest.raises(QmathError, match=words) as caught:
        lower(model(shape, *layers, **tensors))
    message = str(caught.value)
    assert message.startswith(("l0", "l1", "image"))
    assert "not understood" not in message
    assert "\n" not in message


@pytest.mark.parametrize("padding", [1, [1, 1], [[1, 1], [1, 1]]])
def test_one_number_pads_both_axes(padding: Any) -> None:
    program = lower(model(IMAGE, ("ZeroPadding2D", {"padding": padding})))
    assert program.steps[-1].shape == (10, 10, 2)
    program = lower(model(IMAGE, ("UpSampling2D", {"size": 2})))
    assert program.steps[-1].shape == (16, 16, 2)


def test_sums_of_sums_do_not_grow_without_end() -> None:
    """Each layer adds what is before it to itself: 2**40 terms."""
    layers = [("Add", {"inputs": [f"l{i - 1}" if i else "quantize"] * 2}) for i in range(40)]
    with pytest.raises(QmathError, match="the constants of the model"):
        lower(model(IMAGE, *layers))


def test_constants_of_a_whole_shape_are_counted() -> None:
    """A pool with padding divides by a count of its own at each place, and so do those after."""
    pool = ("AveragePooling2D", {"padding": "same", "pool_size": 3, "strides": 1})
    assert lower(model((64, 64, 2), pool, pool)).steps
    with pytest.raises(QmathError, match="l0: the constants of the model would take more"):
        lower(model((2**13, 2**13, 1), pool))


def test_lack_of_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    pool = ("AveragePooling2D", {**VALID, "pool_size": 2})
    program = lower(model(IMAGE, pool))
    monkeypatch.setattr(ops, "pool", fails)
    with pytest.raises(QmathError, match="run fewer examples at once"):
        Executor(program).run({"image": np.zeros((1, *IMAGE), np.float32)})
    monkeypatch.setattr(ops, "pool_counts", fails)
    with pytest.raises(QmathError, match="l0: the memory that is left"):
        lower(model(IMAGE, pool))


@pytest.mark.parametrize("shape", [(7, 5), (1, 9), (8, 8)])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 5)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_counts_of_a_pool_are_what_it_sums_up(
    shape: tuple[int, int], size: tuple[int, int], strides: tuple[int, int]
) -> None:
    pads = ops.same_pads(shape, size, strides)
    ones = np.ones((1, *shape, 1))
    expected = ops.pool(ones, np.add, size, strides, pads, 0)[0]
    counts = ops.pool_counts(shape, size, strides, pads)
    assert counts.dtype == expected.dtype
    np.testing.assert_array_equal(counts, expected)


def test_large_images_are_convolved_in_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, (3, 9, 7, 2)).astype(np.float32)
    kernel = rng.integers(-9, 9, (3, 2, 2, 4)).astype(np.float32)
    expected = ops.conv2d(x, kernel, (2, 1), ((1, 1), (0, 1)))
    for most in (1, 200, 300):
        monkeypatch.setattr(ops, "_COLUMNS", 1)
        monkeypatch.setattr(ops, "_MOST_COLUMNS", most)
        np.testing.assert_array_equal(ops.conv2d(x, kernel, (2, 1), ((1, 1), (0, 1))), expected)


def test_vectors_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector holds its input and every integer; the largest step needs its windows, too."""
    of = model(IMAGE, ("Conv2D", VALID), **KERNEL)
    of = QatModel({**of.tensors, "l0/output": ranged("l0/output", -9, 9)}, of.graph, source="m")
    program = lower(of)
    monkeypatch.setattr(deployment, "lower", lambda *_, **__: program)
    pixels, results, windows = 8 * 8 * 2, 6 * 6 * 4, 6 * 6 * 18
    each = pixels * 4 + pixels + results + 4 * (pixels + results + windows)
    for budget_, count in ((5 * each, 5), (5 * each - 1, 4), (each - 1, 0)):
        monkeypatch.setattr(budget, "MAX_BYTES", budget_)
        assert vectors_within(program, 5)[0] == count
    deployed = deploy(of, 5, 31)
    assert deployed.options == {"vectors": 0}
    assert not deployed.vectors
    assert deployed.notes[-1].startswith("none of 5 test vectors are made: each takes 0 MiB")
    assert "--vectors 0" in deployed.notes[-1]
    monkeypatch.setattr(budget, "MAX_BYTES", 2 * each)
    deployed = deploy(of, 5, 31)
    assert deployed.options["vectors"] == 2
    whole = [x for name, x in deployed.vectors.items() if name.startswith("vectors/")]
    assert {len(array) for array in whole} == {2}


def test_an_input_of_4096_squared_gets_few_vectors() -> None:
    program: Program = lower(
        model((4096, 4096, 1), ("MaxPooling2D", {**VALID, "pool_size": 2, "strides": 1}))
    )
    assert [type(step) for step in program.steps] == [QuantizeStep, MoveStep]
    count, note = vectors_within(program, 1000)
    assert 1 <= count <= MAX_BYTES // (4096**2 * 4)
    assert note.startswith(f"{count} of 1000 test vectors are made: each takes ")
