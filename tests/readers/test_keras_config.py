"""Keras's configs → layers and graph, whatever spelling; odd ones give no graph, never an error."""

from __future__ import annotations

from typing import Any

import pytest

from qmath.readers.architecture.parsing import read_architecture
from tests.readers.builders import entry, functional, quantizer, sequential, wrapped


def calls(config: Any) -> dict[str, tuple[str, ...]]:
    architecture = read_architecture(config)
    assert architecture.graph is not None, architecture.notes
    return {node.name: node.inputs for node in architecture.graph.nodes}


def image(name: str = "image") -> dict[str, Any]:
    return entry("InputLayer", name)


def test_sequential_is_a_chain() -> None:
    config = sequential(
        image(), wrapped("c", class_name="Conv2D", strides=[2, 2]), entry("Flatten", "f")
    )
    graph = read_architecture(config).graph
    assert graph is not None
    assert (graph.inputs, graph.outputs) == (("image",), ("f",))
    conv = graph.nodes[1]
    assert (conv.name, conv.layer, conv.class_name, conv.inputs, conv.quantize_config) == (
        "c",
        "c",
        "Conv2D",
        ("image",),
        "MyConfig",
    )
    assert conv.config["strides"] == [2, 2]
    assert conv.config["activation"] == "linear"


def test_sequential_without_input_layer() -> None:
    config = sequential(entry("Dense", "d", batch_input_shape=[None, 4]))
    assert calls(config) == {"d_input": (), "d": ("d_input",)}
    config["config"] = config["config"]["layers"]  # as before Keras 2.2.3
    assert calls(config) == {"d_input": (), "d": ("d_input",)}


def test_wrapper_facts() -> None:
    layer, flow = read_architecture(
        sequential(
            wrapped("c", {"bits": 4}, "Pkg>MyConfig", "Conv2D"),
            entry("QuantizeLayer", "q", quantizer=quantizer("AllValuesQuantizer", num_bits=8)),
        )
    ).layers
    assert (layer.path, layer.saved_name, layer.top, layer.kind) == (
        "c",
        "quant_c",
        "quant_c",
        "wrapper",
    )
    assert layer.quantize_config is not None
    assert layer.quantize_config.class_name == "Pkg>MyConfig"
    assert layer.quantize_config.config == {"bits": 4}
    assert (flow.kind, flow.quantizer and flow.quantizer.class_name) == (
        "quantize_layer",
        "AllValuesQuantizer",
    )


def test_residual_and_shared_layers() -> None:
    config = functional(
        [
            image(),
            entry("Add", "add", [["d", 1, 0, {}], "image"]),
            entry("Dense", "d", ["image"], ["relu"]),
            entry("ReLU", "relu", ["d"]),
        ],
        ["image"],
        ["add"],
    )
    assert calls(config) == {
        "image": (),
        "d": ("image",),
        "relu": ("d",),
        "d#1": ("relu",),
        "add": ("d#1", "image"),
    }


def block(layers: list[Any] | None = None) -> dict[str, Any]:
    inner = functional(
        layers or [image("x"), entry("Dense", "d", ["x"]), entry("ReLU", "r", ["d"])], ["x"], ["r"]
    )
    inner["config"]["name"] = inner["name"] = "block"
    return inner


def test_nested_models_are_flattened() -> None:
    nested = block()
    nested["inbound_nodes"] = [[["image", 0, 0, {}]], [["f", 0, 0, {}]]]
    # A Functional model inside another counts its calls from 1.
    config = functional(
        [image(), nested, entry("Flatten", "f", [["block", 1, 0, {}]])],
        ["image"],
        [["block", 2, 0]],
    )
    assert calls(config) == {
        "image": (),
        "block/d": ("image",),
        "block/r": ("block/d",),
        "f": ("block/r",),
        "block/d#1": ("f",),
        "block/r#1": ("block/d#1",),
    }
    architecture = read_architecture(config)
    assert architecture.graph is not None
    assert architecture.graph.outputs == ("block/r#1",)
    assert [(layer.path, layer.top) for layer in architecture.layers][1:3] == [
        ("block/x", "block"),
        ("block/d", "block"),
    ]


def test_what_a_nested_model_is_called_with_is_handed_on() -> None:
    nested = block()
    nested["inbound_nodes"] = [[["image", 0, 0, {"training": True}]], [["f", 0, 0, {}]]]
    nodes = [image(), nested, entry("Flatten", "f", [["block", 1, 0, {}]])]
    graph = read_architecture(functional(nodes, ["image"], [["block", 2, 0]])).graph
    assert graph is not None
    assert {node.name: node.arguments for node in graph.nodes if node.arguments} == {
        "block/d": ("training",),
        "block/r": ("training",),
    }


def test_nested_in_sequential() -> None:
    assert calls(sequential(image(), block(), entry("Flatten", "f"))) == {
        "image": (),
        "block/d": ("image",),
        "block/r": ("block/d",),
        "f": ("block/r",),
    }


def test_several_inputs_and_outputs() -> None:
    nested = functional(
        [image("a"), image("b"), entry("Add", "add", ["a", "b"])], ["a", "b"], ["add", "a"]
    )
    nested["config"]["name"] = nested["name"] = "two"
    nested["inbound_nodes"] = [[["y", 0, 0, {}], ["x", 0, 0, {}]]]
    config = functional(
        [
            image("x"),
            image("y"),
            nested,
            entry("Concatenate", "cat", [["two", 1, 0, {}], ["two", 1, 1, {}]]),
        ],
        ["x", "y"],
        ["cat"],
    )
    assert calls(config) == {"x": (), "y": (), "two/add": ("y", "x"), "cat": ("two/add", "y")}


def test_keyword_tensors_constants_and_dicts() -> None:
    keywords = {"mask": ["m", 0, 0], "name": ["not a layer", 0, 0]}
    config = functional(
        [
            image("x"),
            image("m"),
            entry("Attention", "a", [["x", 0, 0, keywords], ["x", 0, 0, keywords]]),
            entry("TFOpLambda", "t", [["_CONSTANT_VALUE", -1, 2.0, {"y": ["a", 0, 0]}]]),
        ],
        ["x", "m"],
        ["t"],
    )
    config["config"]["layers"].append(
        {
            "class_name": "Dict",
            "name": "dict",
            "config": {"name": "dict"},
            "inbound_nodes": [{"one": ["x", 0, 0, {}], "two": ["t", 0, 0, {}]}],
        }
    )
    assert calls(config) == {
        "x": (),
        "m": (),
        "a": ("x", "x", "m"),
        "t": ("a",),
        "dict": ("x", "t"),
    }


@pytest.mark.parametrize("call", [5, None, True, "x", 0.5, [5], {"kwargs": 5}])
def test_a_call_that_is_none_feeds_nothing(call: Any) -> None:
    config = functional([image("x"), entry("Dense", "d", ["x"])], ["x"], ["x"])
    config["config"]["layers"][1]["inbound_nodes"] = [call]
    assert calls(config)["d"] == ()


def test_keras_3_spelling() -> None:
    def tensor(name: str) -> dict[str, Any]:
        return {
            "class_name": "__keras_tensor__",
            "config": {"shape": [None, 4], "dtype": "float32", "keras_history": [name, 0, 0]},
        }

    add = entry("Add", "add")
    add["inbound_nodes"] = [{"args": [[tensor("x"), tensor("d")]], "kwargs": {}}]
    dense = entry("Dense", "d")
    dense["inbound_nodes"] = [{"args": [tensor("x")], "kwargs": {}}]
    config = functional([image("x"), dense, add], ["x"], ["add"])
    config["config"]["input_layers"] = ["x", 0, 0]
    config["config"]["output_layers"] = ["add", 0, 0]
    assert calls(config) == {"x": (), "d": ("x",), "add": ("x", "d")}


def test_config_without_wrapping_or_code() -> None:
    config = sequential(
        wrapped("c", activation={"class_name": "NoOpActivation", "config": {}}),
        entry("Lambda", "l", function={"class_name": "__lambda__", "config": {"code": "4wEA"}}),
    )
    architecture = read_architecture(config)
    assert architecture.graph is not None
    assert architecture.graph.nodes[1].config["activation"] == "linear"
    assert "function" not in architecture.graph.nodes[2].config
    assert any("Lambda" in note for note in architecture.notes)


def test_annotated_models_are_not_quantized() -> None:
    config = sequential(
        entry(
            "QuantizeAnnotate",
            "quantize_annotate",
            layer={"class_name": "Dense", "config": {"name": "d"}},
            quantize_config=None,
        )
    )
    architecture = read_architecture(config)
    assert (architecture.layers[0].path, architecture.layers[0].kind) == ("d", "plain")
    assert any("quantize_apply" in note for note in architecture.notes)


def doubling(depth: int, inner: Any) -> Any:
    """Nest models that each call the next one twice."""
    for level in range(depth):
        name = f"m{level}"
        inner = {
            "class_name": "Functional",
            "name": name,
            "config": {
                "name": name,
                "layers": [
                    image("x"),
                    {**inner, "inbound_nodes": [[["x", 0, 0, {}]], [[inner["name"], 1, 0, {}]]]},
                ],
                "input_layers": [["x", 0, 0]],
                "output_layers": [[inner["name"], 2, 0]],
            },
        }
    return inner


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "no Sequential"),
        ({}, "no Sequential"),
        ([], "no Sequential"),
        ({"class_name": "MyModel", "config": {}}, "no Sequential"),
        (sequential(), "no layers"),
        ({"class_name": "Functional", "config": {"layers": [image()]}}, "how its layers"),
        (functional([image(), image()], ["image"], ["image"]), "same name"),
        (
            functional([image(), entry("Dense", "d", [["image", 3, 0, {}]])], ["image"], ["d"]),
            "does not describe",
        ),
        (functional([entry("Add", "a", ["b"]), entry("Add", "b", ["a"])], [], ["b"]), "circle"),
        (functional([image()], ["image"], [["image", 1, 0]]), "does not have"),
        (doubling(40, block()), "more than"),
        (doubling(40, {**sequential(image("x")), "name": "sequential"}), "more than"),
    ],
)
def test_odd_configs_have_no_graph(config: Any, reason: str) -> None:
    architecture = read_architecture(config)
    assert architecture.graph is None
    assert reason in architecture.notes[0]


@pytest.mark.parametrize(
    "broken",
    [
        None,
        3,
        "x",
        [],
        {},
        {"class_name": 3, "config": {}},
        {"class_name": "Dense", "config": 3},
        {"class_name": "De\nnse", "config": {"name": "\x1b[2J"}},
        {"class_name": "QuantizeWrapperV2", "config": {"layer": 3}},
        {"class_name": "QuantizeLayer", "config": {"name": 3}},
        {"class_name": "Functional", "config": {"layers": [3]}},
    ],
)
def test_entries_of_any_kind_are_survived(broken: Any) -> None:
    read_architecture(sequential(broken, entry("Dense", "d")))
    read_architecture(functional([image(), broken], ["image"], ["image"]))
    read_architecture(broken)
