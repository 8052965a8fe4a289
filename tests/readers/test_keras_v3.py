"""Variables by position: Keras's newer format, with and without its archive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmath.errors import FileFormatError, QmathError
from qmath.readers.loading import load
from tests.helpers import assert_same_bits
from tests.readers.builders import TOLD, entry, functional, quantizer, sequential, wrapped, write_v3

Array = np.ndarray[Any, Any]
Variables = list[Any]

rng = np.random.default_rng(0)
STEP = np.int32(-1)
KERNEL, BIAS = rng.normal(size=(3, 4)).astype(np.float32), np.zeros(4, np.float32)


def span(low: float = -0.8, high: float = 0.7) -> Variables:
    return [np.float32(low), np.float32(high)]


def draw(*shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.keras"


def read(path: Path, own: Variables, inner: Variables, layer: Any = None, **groups: Any) -> Any:
    """Load a model of one wrapped layer, by default a Dense one, with these variables."""
    prefix = "layers/quantize_wrapper_v2"
    inside = {f"{prefix}/layer{place}": values for place, values in groups.items()}
    stored = {prefix: own, f"{prefix}/layer": inner, **inside}
    config = sequential(layer or wrapped("d", TOLD, units=4, use_bias=True))
    return load(write_v3(path, stored, config)).tensors


# The two layouts.


def test_layout_a(path: Path) -> None:
    tensors = read(path, [KERNEL, BIAS, KERNEL, STEP, *span(), *span(0, 6)], [BIAS])
    assert {name: tensor.role for name, tensor in tensors.items()} == {
        "d/kernel": "weight",
        "d/bias": "float",
        "d/post_activation": "activation",
    }
    assert_same_bits(np.asarray(tensors["d/kernel"].values), KERNEL)
    assert (tensors["d/kernel"].min, tensors["d/kernel"].max) == tuple(span())
    assert (tensors["d/post_activation"].min, tensors["d/post_activation"].max) == (0, 6)


def test_layout_b(path: Path) -> None:
    """The naive reading of layout A, two weights and a pair less, would be plausible and wrong."""
    tensors = read(path, [KERNEL, STEP, *span(), *span(0, 6)], [BIAS])
    assert [tensors[f"d/{name}"].role for name in ("kernel", "bias")] == ["weight", "float"]
    assert_same_bits(np.asarray(tensors["d/bias"].values), BIAS)
    assert (tensors["d/post_activation"].min, tensors["d/post_activation"].max) == (0, 6)


@pytest.mark.parametrize("layout", "AB")
def test_outputs(path: Path, layout: str) -> None:
    own = [KERNEL, BIAS] if layout == "A" else []
    tensors = read(path, [*own, KERNEL, STEP, *span(), *span(0, 6), *span(-1, 1)], [BIAS])
    assert (tensors["d/output"].role, tensors["d/output"].max) == ("output", 1)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_kernel_and_bias(path: Path, order: tuple[int, int]) -> None:
    """The ranges are in the order in which the config quantizes, whichever that is."""
    weights, ranges = [KERNEL, BIAS + 1], [span(), span(-2, 2)]
    again = [weights[i] for i in order]
    ends = [end for i in order for end in ranges[i]]
    for own in (weights, []):
        tensors = read(path, [*own, *again, STEP, *ends, *span(0, 6)], [])
        assert (tensors["d/kernel"].max, tensors["d/bias"].max) == (np.float32(0.7), 2)


def test_nothing_quantized(path: Path) -> None:
    gamma, beta, mean, variance = (draw(4) for _ in range(4))
    inner = [gamma, beta, mean, variance]
    layer = wrapped("b", {}, "NoOpQuantizeConfig", "BatchNormalization", activation=None)
    for own in ([gamma, beta, STEP], [STEP]):
        tensors = read(path, own, inner, layer)
        assert list(tensors) == ["b/gamma", "b/beta", "b/moving_mean", "b/moving_variance"]
        assert_same_bits(np.asarray(tensors["b/moving_mean"].values), mean)


def test_weights_of_one_shape_are_told_by_their_bits(path: Path) -> None:
    kernel, recurrent, bias = draw(3, 12), draw(3, 12), draw(12)
    kernels = {"kernel": quantizer(), "recurrent_kernel": quantizer()}
    layer = wrapped("l", kernels, class_name="LSTM", units=3, activation=None)
    for quantized, other, name in ((kernel, recurrent, "kernel"), (recurrent, kernel, "recurrent")):
        own = [kernel, recurrent, bias, quantized, STEP, *span()]
        tensors = read(path, own, [], layer, **{"/cell": [other, bias]})
        roles = {key.rpartition("/")[2]: tensor.role for key, tensor in tensors.items()}
        assert roles == {"kernel": "float", "recurrent_kernel": "float", "bias": "float"} | {
            "kernel" if name == "kernel" else "recurrent_kernel": "weight"
        }
    with pytest.raises(FileFormatError, match="leave open which"):
        read(path, [quantized, STEP, *span()], [], layer, **{"/cell": [other, bias]})
    own = [kernel, kernel, bias, kernel, STEP, *span()]
    with pytest.raises(FileFormatError, match="leave open which"):
        read(path, own, [], layer, **{"/cell": [kernel, bias]})


def test_cells(path: Path) -> None:
    """The second cell's kernel is quantized, whose range by name would be the first one's."""
    cells = [{"class_name": "SimpleRNNCell", "config": {"name": f"c{i}", "units": 2 + i}}
             for i in range(2)]  # fmt: skip
    stack = {"class_name": "StackedRNNCells", "config": {"name": "stack", "cells": cells}}
    parts = [draw(5, 2), draw(2, 2), draw(2), draw(2, 3), draw(3, 3), draw(3)]
    tensors = read(
        path,
        [*parts, parts[3], STEP, *span()],
        [],
        wrapped("r", TOLD, class_name="RNN", activation=None, cell=stack),
        **{"/cell/cells/simple_rnn_cell": parts[:3], "/cell/cells/simple_rnn_cell_1": parts[4:]},
    )
    assert {name for name, tensor in tensors.items() if tensor.role == "weight"} == {
        "r/stack/c1/kernel"
    }
    assert_same_bits(np.asarray(tensors["r/stack/c0/recurrent_kernel"].values), parts[1])


# What does not add up.


OTHERS = sequential(wrapped("d", units=9, use_bias=True))


@pytest.mark.parametrize(
    ("own", "inner", "words"),
    [
        ([KERNEL, BIAS, KERNEL, *span()], [BIAS], "keeps an integer there"),
        ([KERNEL, BIAS, KERNEL, STEP, STEP, *span()], [BIAS], "keeps an integer there"),
        ([KERNEL, BIAS, KERNEL, STEP, *span(), *span()], [BIAS, BIAS], "has the variables"),
        ([KERNEL, BIAS, STEP, *span(), *span()], [BIAS], "do not fit"),
        ([BIAS, STEP, *span(), *span()], [KERNEL[0]], "has the variables"),
        ([KERNEL, BIAS, KERNEL + 1, STEP, *span(), *span()], [BIAS], "has the variables"),
        ([KERNEL, BIAS + 1, KERNEL, STEP, *span(), *span()], [BIAS], "has the variables"),
        ([KERNEL.T, BIAS, KERNEL.T, STEP, *span(), *span()], [BIAS], "has the variables"),
        ([KERNEL, BIAS, KERNEL, STEP, *span()], [BIAS], "1 range does not fit"),
        ([KERNEL, BIAS, KERNEL, STEP, *span() * 4], [BIAS], "do not fit"),
        ([KERNEL, BIAS, KERNEL, STEP, *span(), *span(), 1.0], [BIAS], "a range has two ends"),
        ([KERNEL, BIAS, KERNEL, STEP, *span(1, -1), *span()], [BIAS], "min > max"),
        ([KERNEL, BIAS, KERNEL, STEP, *span(), *span(0, np.inf)], [BIAS], "not finite"),
    ],
)
def test_wrappers_that_do_not_add_up(
    path: Path, own: Variables, inner: Variables, words: str
) -> None:
    with pytest.raises(FileFormatError, match=words) as caught:
        read(path, own, inner)
    assert str(path) in str(caught.value)
    assert "d" in str(caught.value)


def test_classes_whose_variables_keras_does_not_define(path: Path) -> None:
    own = [KERNEL, BIAS, KERNEL, STEP, *span()]
    with pytest.raises(FileFormatError, match="MyDense is not one of Keras's layers"):
        read(path, own, [BIAS], wrapped("d", class_name="MyDense"))
    config = sequential(entry("MyLayer", "mine"), entry("Dense", "d", units=4))
    groups = {"layers/my_layer": [BIAS], "layers/my_layer/part": [KERNEL], "layers/dense": []}
    with pytest.raises(FileFormatError, match="Dense of this config has the variables kernel"):
        load(write_v3(path, groups, config))
    groups["layers/dense"] = [KERNEL, BIAS]
    model = load(write_v3(path, groups, config))
    assert list(model.tensors) == ["mine/0", "mine/part/0", "d/kernel", "d/bias"]
    assert any("they are numbered" in note and "mine" in note for note in model.notes)
    groups["layers/my_layer/quantize_wrapper_v2"] = own
    with pytest.raises(FileFormatError, match="may be quantized"):
        load(write_v3(path, groups, config))


def test_subclassed_models(path: Path) -> None:
    config = {"class_name": "MyModel", "config": {}}
    with pytest.raises(FileFormatError, match=r"no Sequential or Functional .* save it as \.h5"):
        load(write_v3(path, {"body/dense": [KERNEL, BIAS]}, config))


def test_lambda_layers_are_not_run(path: Path) -> None:
    code = {"class_name": "__lambda__", "config": {"value": "4wEAAAAAAAAA"}}
    model = load(write_v3(path, {}, sequential(entry("Lambda", "l", function=code))))
    assert any("Lambda" in note for note in model.notes)
    assert model.graph is not None
    assert all("4wEAAAAAAAAA" not in str(node) for node in model.graph.nodes)


def test_model_inputs(path: Path) -> None:
    config = sequential(entry("QuantizeLayer", "q", quantizer=quantizer("MovingAverageQuantizer")))
    group = "layers/quantize_layer"
    model = load(write_v3(path, {group: [*span(), STEP]}, config))
    assert (model.tensors["q/output"].role, model.tensors["q/output"].min) == ("input", span()[0])
    for variables in ([STEP], [*span(), STEP, 1.0], [1.0, STEP], [*span()]):
        with pytest.raises(FileFormatError, match="q"):
            load(write_v3(path, {group: variables}, config))


# Which group is which layer.


def dense(name: str, units: int = 4) -> Any:
    return entry("Dense", name, units=units)


def groups_of(*names: str, container: str = "layers") -> dict[str, Variables]:
    """Variables that tell where they were stored: the bias counts."""
    return {
        f"{container}/{name}": [KERNEL, np.full(4, i, np.float32)] for i, name in enumerate(names)
    }


def biases(path: Path) -> dict[str, float]:
    tensors = load(path).tensors
    return {
        name.removesuffix("/bias"): float(np.asarray(tensor.values)[0])
        for name, tensor in tensors.items()
        if name.endswith("bias")
    }


@pytest.mark.parametrize("container", ["layers", "_layer_checkpoint_dependencies"])
@pytest.mark.parametrize("gap", [1, 2, 5])
def test_numbers_tell_the_order_and_may_have_gaps(path: Path, container: str, gap: int) -> None:
    names = ["dense", *(f"dense_{i * gap}" for i in range(1, 12))]
    config = sequential(*(dense(f"d{i}") for i in range(12)))
    write_v3(path, groups_of(*names, container=container), config)
    assert biases(path) == {f"d{i}": i for i in range(12)}


def test_classes_are_counted_apart(path: Path) -> None:
    config = sequential(
        dense("a"), entry("ReLU", "r"), entry("Bias>MyDense", "b"), dense("c"), entry("ReLU", "s")
    )
    groups = groups_of("dense", "my_dense", "dense_1") | {"layers/re_lu": [], "layers/re_lu_1": []}
    write_v3(path, groups, config)
    assert biases(path) == {"a": 0, "c": 2}


def inner(name: str, *layers: Any) -> Any:
    model = sequential(*layers)
    model["name"] = model["config"]["name"] = name
    return model


def test_nested_models(path: Path) -> None:
    config = sequential(inner("m", dense("a"), inner("n", dense("b"))), dense("c"), inner("o"))
    groups = groups_of(
        "sequential/layers/dense", "sequential/layers/sequential/layers/dense", "dense"
    )
    write_v3(path, groups | {"layers/sequential_1": []}, config)
    assert biases(path) == {"m/a": 0, "m/n/b": 1, "c": 2}


def test_models_that_are_stored_where_they_were_met_first(path: Path) -> None:
    shared = inner("s", dense("d"))
    config = sequential(inner("m", shared), shared, dense("c"), inner("n", shared))
    groups = groups_of("sequential/layers/sequential/layers/dense", "dense")
    write_v3(path, groups | {"layers/sequential_1": []}, config)
    assert biases(path) == {"m/s/d": 0, "s/d": 0, "c": 1, "n/s/d": 0}


def test_layers_without_variables_are_stored_nowhere(path: Path) -> None:
    twice = [entry("InputLayer", "x"), entry("InputLayer", "x")]
    write_v3(path, groups_of("dense"), sequential(*twice, dense("d")))
    assert biases(path) == {"d": 0}


def test_equal_names_are_not_the_same_layer(path: Path) -> None:
    config = sequential(inner("m", dense("d")), inner("n", dense("d")), dense("d"))
    groups = groups_of("sequential/layers/dense", "sequential_1/layers/dense", "dense")
    write_v3(path, groups, config)
    assert biases(path) == {"m/d": 0, "n/d": 1, "d": 2}
    del groups["layers/dense"]  # the last one is one of the two, and nobody knows which
    with pytest.raises(FileFormatError, match="one of several layers of that name"):
        load(write_v3(path, groups, config))


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (groups_of("dense"), "has 2 layers of class Dense, and the file the weights of 1"),
        (groups_of("dense", "dense_1", "dense_2"), "2 layers of class Dense, .* of 3"),
        (groups_of("dense", "dense_1", "conv2d"), "a layer that the model does not have"),
        ({"layers/dense": [KERNEL], "layers/dense_1": [KERNEL, BIAS]}, "has the variables"),
        ({}, "has the variables"),
    ],
)
def test_other_models(path: Path, groups: dict[str, Variables], words: str) -> None:
    with pytest.raises(FileFormatError, match=words):
        load(write_v3(path, groups, sequential(dense("a"), dense("b"))))


def test_missing_numbers(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    config = path.with_name("config.json")
    config.write_text(json.dumps(sequential(dense("a"))))
    write_v3(path, groups_of("dense"))
    with h5py.File(path, "a") as file:
        file.move("layers/dense/vars/0", "layers/dense/vars/2")
    with pytest.raises(FileFormatError, match="numbered from 0, and holds 1, 2"):
        load(path, architecture=config)


def test_a_model_without_its_weights(path: Path) -> None:
    config = sequential(inner("m", dense("d")))
    with pytest.raises(FileFormatError, match="weights of the model m are missing"):
        load(write_v3(path, {}, config))


# With an architecture from elsewhere.


def test_weights_need_an_architecture(path: Path) -> None:
    write_v3(path, groups_of("dense"))
    with pytest.raises(FileFormatError, match="--architecture MODEL"):
        load(path)
    config = path.with_name("config.json")
    config.write_text(json.dumps(sequential(dense("a"))))
    archive = write_v3(path.with_name("other.keras"), groups_of("dense"), sequential(dense("a")))
    one, other = load(path, architecture=config), load(path, architecture=archive)
    assert list(one.tensors) == list(other.tensors) == ["a/kernel", "a/bias"]
    assert one.graph == other.graph is not None
    assert one.sha256 != other.sha256
    with pytest.raises(QmathError, match="holds its own architecture"):
        load(archive, architecture=config)


@pytest.mark.parametrize(
    "config", [sequential(dense("a", units=5)), sequential(dense("a"), dense("b")),
               functional([entry("Conv2D", "c")], ["c"], ["c"])],
)  # fmt: skip
def test_an_architecture_of_another_model(path: Path, config: Any) -> None:
    write_v3(path, groups_of("dense"))
    beside = path.with_name("config.json")
    beside.write_text(json.dumps(config))
    with pytest.raises(FileFormatError) as caught:
        load(path, architecture=beside)
    assert str(path) in str(caught.value)
    assert str(beside) in str(caught.value)
