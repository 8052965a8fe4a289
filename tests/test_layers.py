"""The table of layer classes: what the rooms that ask it make of every row."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qmath import Graph, Node, QatModel, QatTensor
from qmath.errors import OutputError
from qmath.exports.bundle import quantize_model
from qmath.inspection.report import inspect
from qmath.integer.lowering.activations import PIECEWISE, SMOOTH
from qmath.integer.lowering.lower import lower
from qmath.layers import ACTIVATIONS, LAYERS, NORMALIZATION, activation_of, kind_of
from qmath.readers.architecture.variables import slots_of
from qmath.verification import contents
from tests.exports.models import DENSE, ranged, unknown, weight

CONFIGS: dict[str, dict[str, Any]] = {
    "Activation": {"activation": "tanh"},
    "CenterCrop": {"height": 2, "width": 3},
    "Resizing": {"height": 8, "width": 4, "interpolation": "nearest"},
    "Cropping1D": {"cropping": 1},
    "Cropping2D": {"cropping": 1},
    "Cropping3D": {"cropping": 1},
    "RepeatVector": {"n": 3},
    "AveragePooling3D": {"pool_size": 2},
    "MaxPooling3D": {"pool_size": 2},
    "Normalization": {"axis": -1, "mean": [0.1, 0.2], "variance": [1.0, 2.0]},
    "Rescaling": {"scale": 0.5, "offset": 0.1},
    "UpSampling3D": {"size": [2, 2, 2]},
    "ZeroPadding3D": {"padding": 1},
    "AveragePooling1D": {"pool_size": 2},
    "AveragePooling2D": {"pool_size": 2},
    "MaxPooling1D": {"pool_size": 2},
    "MaxPooling2D": {"pool_size": 2},
    "Permute": {"dims": [2, 1, 3]},
    "Reshape": {"target_shape": [-1, 2]},
    "UpSampling1D": {"size": 2},
    "UpSampling2D": {"size": [2, 2], "interpolation": "nearest"},
    "ZeroPadding1D": {"padding": 1},
    "ZeroPadding2D": {"padding": 1},
}
LENGTHS = {"D": 1, "H": 1, "W": 1, "I": 2, "O": 2, "M": 1}
JOINS = ("sum", "product", "extreme", "concatenation")


def network(class_name: str, *, is_last: bool, is_quantized: bool) -> QatModel:
    """Return a model with one layer of a class, and a dense layer beside it, which it ignores."""
    kind, row = kind_of(class_name), LAYERS[class_name]
    shape = [None, 4, 4, 2]
    if "1D" in class_name or "3D" in class_name:
        shape = [None, 4, 2] if "1D" in class_name else [None, 4, 4, 4, 2]
    shape = {"RepeatVector": [None, 2], "SeparableConvSqueeze": [None, 1, 4, 2]}.get(
        class_name, shape
    )
    tensors = [ranged("quantize/output", -1.0, 1.0, role="input")]
    nodes = [
        Node("image", "image", "InputLayer", (), {"batch_input_shape": shape}),
        Node("quantize", "quantize", "QuantizeLayer", ("image",), {}),
    ]

    def add(name: str, class_name: str, *inputs: str, **config: Any) -> None:
        nodes.append(Node(name, name, class_name, inputs, config))

    def dense(name: str, source: str, channels: int = 2) -> None:
        add(name, "Dense", source, activation="linear")
        kernel = np.tile(np.float32([[0.5, -1.0], [0.25, 1.0]]), (channels // 2, 1))
        tensors.append(weight(f"{name}/kernel", kernel, DENSE))
        tensors.append(ranged(f"{name}/post_activation", -3.0, 3.0))

    if kind != "input":
        inputs = ("quantize",) * (2 if kind in JOINS else 1)
        config = {"padding": "valid", **CONFIGS.get(class_name, {})}
        add("layer", class_name, *inputs, **config)
        if row.kernel:
            lengths = [LENGTHS[letter] for letter in row.axes or "IO"]
            values = np.linspace(-1, 1, math.prod(lengths), dtype=np.float32).reshape(lengths)
            tensors.append(weight(f"layer/{row.kernel}", values, DENSE))
        if row.then:
            values = np.linspace(-1, 1, 4, dtype=np.float32).reshape(*lengths[:-2], 2, 2)
            tensors.append(weight(f"layer/{row.then}", values, DENSE))
        if class_name == "PReLU":
            slopes = np.full((1, 1, 2), 0.25, np.float32)
            tensors.append(QatTensor("layer/alpha", "float", slopes))
        if is_quantized:
            tensors.append(ranged("layer/output", -2.0, 2.5, role="output"))
    if not is_last:
        dense("after", nodes[-1].name, {"Flatten": 32, "Concatenate": 4}.get(class_name, 2))
    ends = nodes[-1].name
    dense("other", "quantize")
    graph = Graph(tuple(nodes), ("image",), (ends, "other"))
    return QatModel({tensor.name: tensor for tensor in tensors}, graph, source="model.h5")


def judgement(model: QatModel) -> tuple[bool | None, list[tuple[str, str, str, str]]]:
    """Return the verdict, and the advice on the flow of integers."""
    report = inspect(model)
    advice = [
        (item.kind, item.where, item.message, item.remedy)
        for item in report.warnings
        if item.kind.startswith("float-")
    ]
    return report.verdict.integer_only, advice


def with_tensor(model: QatModel, tensor: QatTensor) -> QatModel:
    return replace(model, tensors={**model.tensors, tensor.name: tensor})


@pytest.mark.parametrize("is_quantized", [True, False], ids=["quantized", "unquantized"])
@pytest.mark.parametrize("is_last", [True, False], ids=["last", "middle"])
@pytest.mark.parametrize("class_name", LAYERS)
def test_one_unknown_width_changes_neither_verdict_nor_advice(
    class_name: str, is_last: bool, is_quantized: bool
) -> None:
    model = network(class_name, is_last=is_last, is_quantized=is_quantized)
    expected = judgement(model)
    assert judgement(with_tensor(model, unknown("other/post_activation"))) == expected
    kernel = model.tensors["other/kernel"]
    without_width = replace(kernel, spec=replace(kernel.spec, num_bits=None))
    assert judgement(with_tensor(model, without_width)) == expected


def opened(model: QatModel) -> QatModel:
    """Return the model without its input's shape, so that it cannot be lowered."""
    assert model.graph is not None
    image, *others = model.graph.nodes
    image = replace(image, config={"batch_input_shape": [None, None]})
    return replace(model, graph=replace(model.graph, nodes=(image, *others)))


@pytest.mark.parametrize("class_name", [n for n, row in LAYERS.items() if row.kind != "float"])
def test_the_graph_alone_tells_what_the_program_does(class_name: str) -> None:
    """Where nothing can be lowered, here for an open shape, the table says the same."""
    model = network(class_name, is_last=False, is_quantized=True)
    assert judgement(opened(model)) == judgement(model)


@pytest.mark.parametrize(
    ("class_name", "config"),
    [("MaxPooling2D", {"pool_size": 2}), ("GlobalMaxPooling2D", {}),
     ("UpSampling2D", {"size": [2, 2], "interpolation": "nearest"}), ("GaussianNoise", {})],
)  # fmt: skip
def test_the_graph_alone_tells_what_follows_an_unrounded_sum(
    class_name: str, config: dict[str, Any]
) -> None:
    """A maximum needs integers; of what moves or keeps sums, the layer after it does."""
    model = network("Conv2D", is_last=False, is_quantized=False)
    assert model.graph is not None
    *before, dense, other = model.graph.nodes
    middle = Node("middle", "middle", class_name, ("layer",), config)
    nodes = (*before, middle, replace(dense, inputs=("middle",)), other)
    model = replace(model, graph=replace(model.graph, nodes=nodes))
    verdict, advice = judgement(model)
    needs = ["middle", "after"] if "Max" in class_name else ["after"]
    assert (verdict, [(kind, where) for kind, where, *_ in advice]) == (
        False, [("float-input", where) for where in needs]
    )  # fmt: skip
    assert judgement(opened(model)) == (verdict, advice)
    is_kept = class_name == "GaussianNoise"
    assert ("annotate layer with" in advice[-1][-1]) is is_kept


@pytest.mark.parametrize("class_name", LAYERS)
def test_what_runs_is_what_the_table_says(class_name: str) -> None:
    model = network(class_name, is_last=False, is_quantized=True)
    if "run" in LAYERS[class_name].verbs:
        assert "other/post_activation" in lower(model).outputs
    else:
        program = lower(model)
        assert [cut.class_name for cut in program.cuts] == [class_name]
        assert "other/post_activation" in program.outputs


@pytest.mark.parametrize("class_name", [name for name in LAYERS if "onnx" in LAYERS[name].verbs])
def test_onnx_writes_what_the_table_says(class_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    from qmath.exports.onnx.qdq import Onnx

    bundle = quantize_model(network(class_name, is_last=False, is_quantized=True))
    Onnx().write(bundle, io.BytesIO())
    row = LAYERS[class_name]
    monkeypatch.setitem(LAYERS, class_name, replace(row, verbs=row.verbs - {"onnx"}))
    with pytest.raises(OutputError, match=f"has no form of the layers {class_name}"):
        Onnx().write(bundle, io.BytesIO())


def test_verification_has_the_same_axes_in_a_copy_of_its_own() -> None:
    axes = {name: row.axes for name, row in LAYERS.items() if row.axes}
    assert axes == contents._AXES
    assert "LAYERS" not in vars(contents)


def test_weights_have_the_names_that_keras_gives() -> None:
    kernels = {name: row.kernel for name, row in LAYERS.items() if row.kernel}
    slots = {name: slots_of(name, {}) or () for name in LAYERS}
    assert {name: slots[name][0].name for name in kernels} == kernels
    for name in LAYERS:
        if kind_of(name) == "normalization":
            assert [slot.name for slot in slots[name]] == list(NORMALIZATION)


def test_every_activation_is_computed() -> None:
    assert {*PIECEWISE, *SMOOTH} == {*ACTIVATIONS}


@pytest.mark.parametrize(
    ("value", "name"),
    [(None, "linear"), ("relu", "relu"), ({"class_name": "Mish"}, "Mish"), (3, "custom"),
     ({"class_name": "relu"}, "custom"), ({"class_name": [1]}, "custom"), (["relu"], "custom")],
)  # fmt: skip
def test_only_a_name_is_a_known_activation(value: Any, name: str) -> None:
    assert activation_of(Node("a", "a", "Dense", (), {"activation": value})) == name
