"""What qmath says of layers that run in float32: true of the model, and never of what is quantized.

Every reason that lowering gives occurs here, in a model of a few layers.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmath import Graph, Node, QatModel, QatTensor, QuantSpec
from qmath.inspection.report import inspect
from qmath.integer.lowering.lower import lower
from qmath.readers import loading
from tests.cli.running import run

RANGE = QuantSpec("MovingAverageQuantizer", 8, per_axis=False, narrow_range=False)
PER_TENSOR = QuantSpec("LastValueQuantizer", 8, per_axis=False, narrow_range=True)
SHAPE = (4, 4, 2)
Layer = tuple[str, str, tuple[str, ...], dict[str, Any], str]


def layer(class_name: str, name: str, *inputs: str, marks: str = "", **config: Any) -> Layer:
    """Return a layer; `marks`: k for a quantized kernel, f for a float one, s for one of a
    quantizer unseen; b, p, o for quantizers before and after the activation, and of the output."""
    return name, class_name, inputs, config, marks


def image(name: str, *shape: int, marks: str = "o") -> list[Layer]:
    """Return an input and the layer that quantizes it."""
    size = [None, *(shape or SHAPE)]
    return [
        layer("InputLayer", name, batch_input_shape=size),
        layer("QuantizeLayer", f"{name}_q", name, marks=marks),
    ]


def conv(name: str, source: str, marks: str, activation: str = "linear") -> Layer:
    return layer("Conv2D", name, source, marks=marks, activation=activation, **CONV)


CONV = {"strides": [1, 1], "padding": "same", "dilation_rate": [1, 1], "groups": 1,
        "kernel_size": [1, 1], "filters": 2}  # fmt: skip
LAST = conv("tail", "mid", "kp")


def model(*layers: Layer) -> QatModel:
    tensors, nodes, notes = [], [], []
    for name, class_name, inputs, config, marks in layers:
        wrapped = "MyConfig" if set(marks) & set("kfs") else None
        nodes.append(Node(name, name, class_name, inputs, config, wrapped))
        if set(marks) & set("kfs"):
            values = np.linspace(-1, 1, 4, dtype=np.float32).reshape(1, 1, 2, 2)
            role = "weight" if "k" in marks else "float"
            ends = (np.float32(-1), np.float32(1), PER_TENSOR) if "k" in marks else ()
            tensors.append(QatTensor(f"{name}/kernel", role, values, *ends))
        if "s" in marks:
            notes.append(f"{name}/kernel: quantized by its own config MyConfig, not in the file.")
        if class_name == "BatchNormalization":
            tensors.append(QatTensor(f"{name}/gamma", "float", np.ones(2, np.float32)))
        for mark, place in (("b", "pre_activation"), ("p", "post_activation"), ("o", "output")):
            if mark in marks:
                tensors.append(
                    QatTensor(f"{name}/{place}", "output", None, np.float32(-1), np.float32(1),
                              RANGE)
                )  # fmt: skip
    read = {source for node in nodes for source in node.inputs}
    graph = Graph(
        tuple(nodes),
        tuple(node.name for node in nodes if node.class_name == "InputLayer"),
        tuple(node.name for node in nodes if node.name not in read),
    )
    return QatModel({t.name: t for t in tensors}, graph, tuple(notes), "m.h5")


SWISH = (
    "quantize it before its activation, swish: give this Conv2D a linear activation and a "
    "quantized output, and swish to an Activation layer after it"
)
SOFTMAX = "quantize its output, or leave softmax to the end of the model"
LEAKY = {"alpha": 0.25}

CASES: dict[str, tuple[list[Layer], dict[str, str]]] = {
    "float kernel": (
        [*image("a"), conv("mid", "a_q", "fp"), LAST],
        {"mid": "quantize its weights"},
    ),
    "float kernel and input": (
        [*image("a"), conv("src", "a_q", "k"), conv("mid", "src", "fp"), LAST],
        {"mid": "quantize its weights and its input, the output of src"},
    ),
    "unseen quantizer": (
        [*image("a"), conv("mid", "a_q", "sp"), LAST],
        {"mid": "make its own quantizer known (SavedModel, qmath.from_keras, qmath recover)"},
    ),
    "unseen quantizer and input": (
        [*image("a"), conv("src", "a_q", "k"), conv("mid", "src", "sp"), LAST],
        {
            "mid": "make its own quantizer known (SavedModel, qmath.from_keras, qmath recover)"
            " and quantize its input, the output of src"
        },
    ),
    "input of a kernel": (
        [*image("a"), conv("mid", "a_q", "k"), LAST],
        {"tail": "quantize its input, the output of mid"},
    ),
    "model input": (
        [*image("a", marks=""), conv("mid", "a_q", "kp"), LAST],
        {"mid": "quantize its input, the output of a_q"},
    ),
    "swish in a convolution": (
        [*image("a"), conv("mid", "a_q", "kp", "swish"), LAST],
        {"mid": SWISH},
    ),
    "swish in a convolution, nothing after it": (
        [*image("a"), conv("mid", "a_q", "k", "swish"), LAST],
        {"mid": SWISH, "tail": "quantize its input, the output of mid"},
    ),
    "swish of sums": (
        [*image("a"), conv("src", "a_q", "k"),
         layer("Activation", "mid", "src", marks="o", activation="swish"), LAST],
        {"mid": "quantize its input, the output of src"},
    ),
    "swish that nothing rounds": (
        [*image("a"), layer("Activation", "mid", "a_q", activation="swish"), LAST],
        {"tail": "quantize its input, the output of mid"},
    ),
    "softmax of integers": (
        [*image("a"), layer("Activation", "mid", "a_q", activation="softmax"), LAST],
        {"mid": SOFTMAX, "tail": "quantize its input, the output of mid"},
    ),
    "softmax of sums": (
        [*image("a"), conv("src", "a_q", "k"),
         layer("Activation", "mid", "src", marks="o", activation="softmax"), LAST],
        {"mid": "quantize its input, the output of src"},
    ),
    "softmax in a convolution": (
        [*image("a"), conv("mid", "a_q", "kb", "softmax"), LAST],
        {"mid": SOFTMAX, "tail": "quantize its input, the output of mid"},
    ),
    "softmax of a convolution's sums": (
        [*image("a"), conv("mid", "a_q", "kp", "softmax"), LAST],
        {"mid": SWISH.replace("swish", "softmax")},
    ),
    "relu of a leaky relu": (
        [*image("a"), layer("LeakyReLU", "src", "a_q", **LEAKY),
         layer("LeakyReLU", "mid", "src", marks="o", **LEAKY), LAST],
        {"mid": "quantize its input, the output of src"},
    ),
    "normalization of a relu": (
        [*image("a"), conv("src", "a_q", "k", "relu"),
         layer("BatchNormalization", "mid", "src", marks="o"), LAST],
        {"mid": "quantize its input, the output of src"},
    ),
    "pool of a relu": (
        [*image("a"), conv("src", "a_q", "k", "relu"),
         layer("GlobalAveragePooling2D", "mid", "src", marks="o")],
        {"mid": "quantize its input, the output of src"},
    ),
    "maximum of sums": (
        [*image("a"), conv("src", "a_q", "k"),
         layer("GlobalMaxPooling2D", "mid", "src")],
        {"mid": "quantize its input, the output of src"},
    ),
    "sum of a quantized and a float input": (
        [*image("a"), *image("c", marks=""),
         layer("Add", "mid", "a_q", "c_q", marks="o"), LAST],
        {"mid": "quantize its input, the output of c_q"},
    ),
    "sum of relus and sums": (
        [*image("a"), conv("r1", "a_q", "k", "relu"), conv("s1", "a_q", "k"),
         conv("r2", "a_q", "k", "relu"),
         layer("Add", "mid", "r1", "s1", "a_q", "r2", marks="o"), LAST],
        {"mid": "quantize its inputs, the outputs of r1, r2"},
    ),
    "floats that are joined and then quantized": (
        [*image("a", marks=""), *image("c", marks=""),
         layer("Concatenate", "mid", "a_q", "c_q", marks="o", axis=1), LAST],
        {},
    ),
    "floats that are joined": (
        [*image("a", marks=""), *image("c"),
         layer("Concatenate", "mid", "a_q", "c_q", axis=1), LAST],
        {
            "mid": "quantize its input, the output of a_q",
            "tail": "quantize its input, the output of mid",
        },
    ),
    "functions that are joined": (
        [*image("a"), layer("Activation", "src", "a_q", activation="tanh"),
         layer("Concatenate", "mid", "src", "a_q", axis=1), LAST],
        {
            "mid": "quantize its input, the output of src",
            "tail": "quantize its input, the output of mid",
        },
    ),
    "functions and sums that are joined or pooled, and then quantized": (
        [*image("a"), layer("Activation", "src", "a_q", activation="tanh"),
         layer("Concatenate", "join", "src", "a_q", marks="o", axis=1),
         conv("sums", "join", "k"), layer("MaxPooling2D", "mid", "sums", marks="o", pool_size=2),
         LAST],
        {},
    ),
}  # fmt: skip


def quantized_names(text: str, source: QatModel) -> list[str]:
    """Return which layers a text names though their output is quantized."""
    assert source.graph is not None
    words = set(re.findall(r"\w+", text))
    return [
        node.layer
        for node in source.graph.nodes
        if node.layer in words
        and any(f"{node.layer}/{end}" in source.tensors for end in ("post_activation", "output"))
    ]


@pytest.mark.parametrize("case", CASES)
def test_every_reason_is_true_of_its_model(case: str) -> None:
    layers, expected = CASES[case]
    source = model(*layers)
    found = dict(lower(source).float_layers)
    assert found == expected
    for remedy in found.values():
        assert not quantized_names(remedy, source)


@pytest.mark.parametrize("case", CASES)
def test_programs_can_be_sent_to_other_processes(case: str) -> None:
    program = lower(model(*CASES[case][0]))
    steps = pickle.loads(pickle.dumps(program)).steps
    assert [(step.name, step.shape) for step in steps] == [
        (step.name, step.shape) for step in program.steps
    ]


@pytest.mark.parametrize("case", CASES)
def test_no_advice_names_what_is_quantized(case: str) -> None:
    layers, expected = CASES[case]
    source = model(*layers)
    report = inspect(source)
    advice = [item for item in report.warnings if item.kind.startswith("float-")]
    assert {item.where for item in advice} == set(expected)
    assert report.verdict.integer_only is (not expected)
    for item in advice:
        assert not quantized_names(item.remedy, source), item
        assert "quantize its weights" not in item.remedy or f"{item.where}/kernel" in source.tensors


def test_a_swish_convolution_lacks_a_quantizer_before_its_activation() -> None:
    layers, _ = CASES["swish in a convolution"]
    (item,) = [w for w in inspect(model(*layers)).warnings if w.kind.startswith("float-")]
    assert item.message == "swish is computed in float in the middle of the model"
    assert item.remedy.startswith("no quantizer comes before swish: give this Conv2D a linear")


@pytest.mark.parametrize(
    ("marks", "words"),
    [("f", "let MyConfig.get_weights_and_quantizers return its kernel"),
     ("s", "a SavedModel or the live model (qmath.from_keras) may show its quantizer")],
)  # fmt: skip
def test_float_weights_of_a_wrapped_layer_need_no_wrapper(marks: str, words: str) -> None:
    report = inspect(model(*image("a"), conv("mid", "a_q", marks + "p"), LAST))
    (item,) = [w for w in report.warnings if w.kind == "float-layer"]
    assert item.remedy.startswith(words)


def test_results_that_are_not_the_models_are_noted() -> None:
    program = lower(model(*image("a"), conv("mid", "a_q", "sp"), LAST))
    assert program.notes == (
        "mid/kernel: its own quantizer is not known, so that it is float here: the results of its "
        "layer, and of those after it, are not the model's",
    )
    assert lower(model(*image("a"), conv("mid", "a_q", "fp"), LAST)).notes == ()


def test_this_test_can_fail() -> None:
    source = model(*image("a"), *image("c", marks=""), layer("Add", "mid", "a_q", "c_q"))
    assert quantized_names("quantize its inputs, the outputs of a_q, c_q", source) == ["a_q"]


def test_the_verbs_say_which_results_are_not_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model(*image("a"), conv("mid", "a_q", "sp"), LAST)
    monkeypatch.setattr(loading, "load", lambda *_args, **_options: source)
    data = tmp_path / "data.npz"
    np.savez(data, a=np.zeros((1, *SHAPE), np.float32))
    for verb in ("run", "diff"):
        result = run(verb, tmp_path / "model.h5", data)
        assert result.exit_code == 0, result.output
        assert "note: mid/kernel: its own quantizer is not known" in result.stdout
