"""Layers that run in float32 with their quantized weights, against their definition in plain loops.

`tests/parity/test_float_layers.py` compares the same with Keras.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import qmath
from qmath import Graph, Node, QatModel, QatTensor, QuantSpec
from qmath.errors import QmathError
from qmath.exports.bundle import quantize_model
from qmath.inspection.report import inspect
from qmath.integer.lowering.float_layers.rule import FLOAT_LAYERS
from qmath.integer.lowering.lower import lower
from qmath.layers import LAYERS
from qmath.readers.architecture.graph import read_graph

RANGE = QuantSpec("MovingAverageQuantizer", 8, per_axis=False, narrow_range=False)
PER_TENSOR = QuantSpec("LastValueQuantizer", 8, per_axis=False, narrow_range=True)
T, C = 5, 4
X = np.random.default_rng(1).uniform(-1, 1, (6, T, C)).astype(np.float32)


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(-1, 1, shape).astype(np.float32)


def of(
    class_name: str,
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    *,
    inputs: int = 1,
    quantized: tuple[str, ...] = (),
    **node: Any,
) -> QatModel:
    """Return input → quantizer → a layer `u` whose output is quantized; some weights are, too."""
    tensors = [ranged("q/output"), ranged("u/output", 8.0)]
    for name, array in weights.items():
        ends = (np.float32(-1), np.float32(1), PER_TENSOR) if name in quantized else ()
        tensors.append(QatTensor(f"u/{name}", "weight" if ends else "float", array, *ends))
    nodes = (
        Node("a", "a", "InputLayer", (), {"batch_input_shape": [None, T, C]}),
        Node("q", "q", "QuantizeLayer", ("a",), {}),
        Node("u", "u", class_name, ("q",) * inputs, config, **node),
    )
    return QatModel({t.name: t for t in tensors}, Graph(nodes, ("a",), ("u",)), (), "m.h5")


def ranged(name: str, limit: float = 1.0) -> QatTensor:
    return QatTensor(name, "output", None, np.float32(-limit), np.float32(limit), RANGE)


def real(model: QatModel) -> np.ndarray:
    """Return what the layer reads: the model's input, rounded."""
    found = qmath.run(model, X, profile="exact")
    step = next(step for step in found.program.steps if step.name == "q/output")
    return step.params.dequantize(found.integers["q/output"]).astype(np.float64)  # type: ignore[union-attr]


def made(model: QatModel) -> np.ndarray:
    """Return what the layer makes before its quantizer, which is taken away for that."""
    tensors = {name: t for name, t in model.tensors.items() if name != "u/output"}
    found = qmath.run(replace(model, tensors=tensors), X, profile="exact")
    assert list(found.program.float_layers) == ["u"]
    (output,) = found.outputs.values()
    return output


def assert_close(model: QatModel, expected: np.ndarray) -> None:
    found = made(model)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2.0**-22, atol=2.0**-24)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


RNN = {"units": 3, "activation": "tanh", "return_sequences": True}


def test_every_float_class_has_its_function() -> None:
    assert {name for name, row in LAYERS.items() if row.kind == "float"} == set(FLOAT_LAYERS)


@pytest.mark.parametrize("axis", [-1, [2], [1, 2], 1])
def test_a_layer_normalization(axis: Any) -> None:
    axes = tuple(a % 3 for a in (axis if isinstance(axis, list) else [axis]))
    shape = [n if i + 1 in axes else 1 for i, n in enumerate((T, C))]
    gamma, beta = values(*(n for n in shape if n > 1)), values(*shape)
    model = of("LayerNormalization", {"axis": axis, "epsilon": 0.01},
               {"gamma": gamma, "beta": beta})  # fmt: skip
    x = real(model)
    normal = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 0.01)
    assert_close(model, normal * gamma.reshape(shape) + beta)


def test_a_group_normalization() -> None:
    model = of("GroupNormalization", {"groups": 2, "epsilon": 0.01}, {"gamma": values(C)})
    x = real(model)
    parts = []
    for part in np.split(x, 2, axis=2):
        mean, var = (f(part, (1, 2), keepdims=True) for f in (np.mean, np.var))
        parts.append((part - mean) / np.sqrt(var + 0.01))
    assert_close(model, np.concatenate(parts, 2) * values(C))


@pytest.mark.parametrize("quantized", [(), ("c/kernel", "c/recurrent_kernel")])
def test_an_lstm(quantized: tuple[str, ...]) -> None:
    weights = {"c/kernel": values(C, 12), "c/recurrent_kernel": values(3, 12),
               "c/bias": values(12)}  # fmt: skip
    model = of("LSTM", RNN, weights, quantized=quantized)
    used = {n: model.tensors[f"u/{n}"].quantize().dequantize() for n in quantized}
    assert all((used[n] != weights[n]).any() for n in quantized)
    w, r, b = {**weights, **used}.values()
    x = real(model)
    h = c = np.zeros((len(x), 3))
    steps = []
    for t in range(T):
        i, f, g, o = np.split(x[:, t] @ w + h @ r + b, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        steps.append(h)
    assert_close(model, np.stack(steps, 1))


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_gru(reset_after: bool) -> None:
    bias = values(2, 9) if reset_after else values(9)
    weights = {"c/kernel": values(C, 9), "c/recurrent_kernel": values(3, 9), "c/bias": bias}
    model = of("GRU", RNN | {"reset_after": reset_after, "return_sequences": False}, weights)
    w, r = weights["c/kernel"], weights["c/recurrent_kernel"]
    before, after = bias if reset_after else (bias, np.zeros(9))
    x = real(model)
    h = np.zeros((len(x), 3))
    for t in range(T):
        a, s = x[:, t] @ w + before, h @ r + after
        z, reset = sigmoid(a[:, :3] + s[:, :3]), sigmoid(a[:, 3:6] + s[:, 3:6])
        state = reset * s[:, 6:] if reset_after else (reset * h) @ r[:, 6:]
        h = z * h + (1 - z) * np.tanh(a[:, 6:] + state)
    assert_close(model, h)


@pytest.mark.parametrize("mode", ["concat", "sum", "ave", "mul"])
def test_both_directions(mode: str) -> None:
    one = {"kernel": values(C, 3), "recurrent_kernel": values(3, 3), "bias": values(3)}
    weights = {f"{way}_rnn/c/{name}": array * (1 if way == "forward" else np.float32(0.5))
               for way in ("forward", "backward") for name, array in one.items()}  # fmt: skip
    inner = {"class_name": "SimpleRNN", "config": RNN}
    model = of("Bidirectional", {"layer": inner, "merge_mode": mode}, weights)

    def passed(x: np.ndarray, scale: float) -> np.ndarray:
        h, steps = np.zeros((len(x), 3)), []
        for t in range(T):
            w, r, b = (array * scale for array in one.values())
            h = np.tanh(x[:, t] @ w + h @ r + b)
            steps.append(h)
        return np.stack(steps, 1)

    x = real(model)
    a, b = passed(x, 1), passed(x[:, ::-1], 0.5)[:, ::-1]
    merged = {"concat": np.concatenate([a, b], 2), "sum": a + b, "ave": (a + b) / 2, "mul": a * b}
    assert_close(model, merged[mode])


def test_products() -> None:
    einsum = {"equation": "abc,cd->adb", "bias_axes": "b", "activation": "linear"}
    model = of("EinsumDense", einsum, {"kernel": values(C, 3), "bias": values(T)})
    assert_close(model, (real(model) @ values(C, 3)).transpose(0, 2, 1) + values(T))
    model = of("Dot", {"axes": [1, 1], "normalize": False}, {}, inputs=2)
    assert_close(model, real(model).transpose(0, 2, 1) @ real(model))


@pytest.mark.parametrize("inputs", [2, 3])
def test_attention(inputs: int) -> None:
    model = of("Attention", {"score_mode": "dot"}, {"scale": np.float32(0.7)}, inputs=inputs)
    x = real(model)
    e = np.exp(np.float32(0.7) * (x @ x.transpose(0, 2, 1)).astype(np.float64))
    assert_close(model, e / e.sum(2, keepdims=True) @ x)


def test_attention_of_several_heads() -> None:
    weights = {
        "query/kernel": values(C, 2, 3), "key/kernel": values(C, 2, 3) / 2,
        "value/kernel": values(C, 2, 3) / 3, "value/bias": values(2, 3),
        "attention_output/kernel": values(2, 3, 6), "attention_output/bias": values(6),
    }  # fmt: skip
    model = of("MultiHeadAttention", {"key_dim": 3}, weights, inputs=2, arguments=("value",))
    x = real(model)
    expected = np.zeros((len(x), T, 6)) + weights["attention_output/bias"]
    for head in range(2):
        q, k, v = (x @ weights[f"{n}/kernel"][:, head] for n in ("query", "key", "value"))
        e = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(3))
        v = v + weights["value/bias"][head]
        expected += e / e.sum(2, keepdims=True) @ v @ weights["attention_output/kernel"][head]
    assert_close(model, expected)


def test_rows_are_looked_up_by_whole_numbers() -> None:
    rows = values(3, 2)
    tensors = {t.name: t for t in (QatTensor("u/embeddings", "float", rows), ranged("u/output"))}
    nodes = (
        Node("a", "a", "InputLayer", (), {"batch_input_shape": [None, 2]}),
        Node("u", "u", "Embedding", ("a",), {}),
    )
    model = QatModel(tensors, Graph(nodes, ("a",), ("u",)), (), "m.h5")
    program = lower(model)
    step = program.steps[0]
    np.testing.assert_array_equal(step.apply(np.float32([[0, 2.9]])), [rows[[0, 2]]])  # type: ignore[union-attr]
    with pytest.raises(QmathError, match="u: it looks up the rows 0 to 3, and has 3"):
        qmath.run(program, np.float32([[0, 3]]))


SEQUENCE = {"c/kernel": values(C, 9), "c/recurrent_kernel": values(3, 9)}


@pytest.mark.parametrize(
    ("class_name", "config", "weights", "inputs"),
    [("GRU", {"return_state": True}, SEQUENCE, 1), ("GRU", {"stateful": True}, SEQUENCE, 1),
     ("GRU", {"activation": "mine"}, SEQUENCE, 1), ("GRU", {}, SEQUENCE, 2), ("GRU", {}, {}, 1),
     ("LSTM", {}, SEQUENCE, 1), ("Bidirectional", {"layer": {"class_name": "GRU"}}, SEQUENCE, 1),
     ("Bidirectional", {"merge_mode": None}, SEQUENCE, 1), ("Dot", {"axes": 0}, {}, 2),
     ("Dot", {"axes": [1, 2]}, {}, 2), ("Dot", {"axes": 1}, {}, 1),
     ("GroupNormalization", {"groups": 3}, {}, 1), ("LayerNormalization", {"axis": 0}, {}, 1),
     ("LayerNormalization", {}, {"gamma": values(3)}, 1), ("EinsumDense", {}, {}, 1),
     ("EinsumDense", {"equation": "abc,cd->dab"}, {"kernel": values(C, 2)}, 1),
     ("EinsumDense", {"equation": "abc->abc"}, {"kernel": values(C, 2)}, 1),
     ("Attention", {"score_mode": "concat"}, {}, 2), ("Attention", {}, {}, 1),
     ("MultiHeadAttention", {}, {}, 2), ("Embedding", {}, {}, 1)],
)  # fmt: skip
def test_other_settings_are_cut_points(
    class_name: str, config: dict[str, Any], weights: dict[str, np.ndarray], inputs: int
) -> None:
    model = replace(of(class_name, config, weights, inputs=inputs), shapes={"u": (T, 2)})
    (cut,) = lower(model).cuts
    assert (cut.name, cut.class_name, cut.shape) == ("u", class_name, (T, 2))
    (advice,) = [item for item in inspect(model).warnings if item.where == "u"]
    assert (advice.kind, advice.message.split()[0]) == ("cut-point", class_name)


def test_arguments_masks_and_inner_quantizers_are_cut_points() -> None:
    plain = of("GRU", RNN, SEQUENCE)
    assert not lower(plain).cuts
    assert lower(of("GRU", RNN, SEQUENCE, arguments=("mask",))).cuts
    inner = ranged("u/post_activation")
    program = lower(replace(plain, tensors={**plain.tensors, inner.name: inner},
                            shapes={"u": (T, 3)}))  # fmt: skip
    # It acts on each step inside, not on what the layer makes.
    assert [step.name for step in program.steps] == ["q/output", "u", "u/output"]
    assert program.cuts
    assert plain.graph is not None
    a, q, u = plain.graph.nodes
    for made_by, config in (("Masking", {}), ("Lookup", {"mask_zero": True})):
        mask = Node("m", "m", made_by, ("q",), config)
        between = Node("d", "d", "Dropout", ("m",), {})
        nodes = (a, q, mask, between, replace(u, inputs=("d",)))
        masked = replace(plain, graph=replace(plain.graph, nodes=nodes), shapes={"m": (T, C)})
        assert [cut.name for cut in lower(masked).cuts] == ["m", "u"]
    flat = Node("d", "d", "Reshape", ("m",), {"target_shape": [T, C]})
    nodes = (a, q, Node("m", "m", "Masking", ("q",), {}), flat, replace(u, inputs=("d",)))
    masked = replace(plain, graph=replace(plain.graph, nodes=nodes))
    assert [cut.name for cut in lower(masked).cuts] == ["m"]


def test_a_kernel_that_does_not_fit_its_equation_is_named() -> None:
    model = of("EinsumDense", {"equation": "abc,cd->abd"}, {"kernel": values(3, 2)})
    with pytest.raises(QmathError, match=r"u: its kernel \(3, 2\) and its input \(5, 4\) do not"):
        lower(model)


def test_a_float_layer_is_named_with_what_helps() -> None:
    model = of("GRU", RNN, SEQUENCE)
    program = lower(model)
    assert program.float_layers["u"].startswith("qmath computes GRU in float32, with the values")
    (advice,) = [item for item in inspect(model).warnings if item.where == "u"]
    assert (advice.kind, advice.remedy) == ("float-layer", program.float_layers["u"])
    bundle = quantize_model(model, vectors=2)
    assert [step["kind"] for step in bundle.manifest["program"]["steps"]] == [
        "quantize", "float", "quantize",
    ]  # fmt: skip


def test_a_network_leaves_a_float_layer_to_its_user(tmp_path: Any) -> None:
    onnx = pytest.importorskip("onnx")
    qmath.export(of("GRU", RNN, SEQUENCE), tmp_path / "out.onnx")
    graph = onnx.load(str(tmp_path / "out.onnx")).graph
    assert [value.name for value in graph.input] == ["a", "u#2"]
    assert [value.name for value in graph.output] == ["u", "u/input"]


def test_a_dense_of_each_step_is_a_dense() -> None:
    inner = {"class_name": "Dense", "config": {"name": "dense", "units": 3, "activation": "relu"}}
    layers = [
        {"class_name": "InputLayer", "config": {"name": "a", "batch_input_shape": [None, T, C]},
         "inbound_nodes": []},
        {"class_name": "TimeDistributed", "config": {"name": "u", "layer": inner},
         "inbound_nodes": [[["a", 0, 0, {"mask": None, "training": False, "other": True}]]]},
    ]  # fmt: skip
    config = {"layers": layers, "input_layers": [["a", 0, 0]], "output_layers": [["u", 0, 0]]}
    (_, node) = read_graph({"class_name": "Functional", "config": config}).nodes
    assert (node.class_name, node.config["units"], node.arguments) == ("Dense", 3, ("other",))
    assert node.config["name"] == "u"
    layers[1]["config"]["layer"] = {"class_name": "Conv2D", "config": {}}
    (_, node) = read_graph({"class_name": "Functional", "config": config}).nodes
    assert node.class_name == "TimeDistributed"
