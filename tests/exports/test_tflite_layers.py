"""Layers that Keras computes with several operators, in float32 in a TFLite file."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import qmath
from qmath import OutputError, QatModel, QatTensor
from qmath.containers.tflite.file import parsed
from qmath.exports.bundle import quantize_model
from qmath.exports.tflite.exporter import Tflite
from reference import consumers
from tests.exports.networks import Network

pytest.importorskip("flatbuffers", reason="the extra tflite is not installed")
needs_litert = pytest.mark.skipif(
    find_spec("ai_edge_litert") is None,
    reason="LiteRT is not installed, or has no wheel for this Python",
)
ROWS, WIDE = 5, 6


def started() -> Network:
    return Network(ROWS, WIDE, bits=8, weight_bits=8, is_symmetric=True)


def give(net: Network, **shapes: tuple[int, ...]) -> None:
    """Add weights to the last layer: those of ``kernel`` are quantized."""
    layer = net.nodes[-1].name
    for key, shape in shapes.items():
        name = f"{layer}/{key.replace('__', '/')}"
        if name.endswith(("kernel", "embeddings")):
            net.tensors.append(net._weight(name, shape, False, False))
        else:
            values = net.rng.uniform(0.5, 1.5, shape).astype(np.float32)
            net.tensors.append(QatTensor(name, "float", values))


def normalized(axis: Any) -> QatModel:
    net = started()
    net.add("LayerNormalization", axis=axis, epsilon=1e-3, ends=(-3.0, 3.0))
    shape = (ROWS, WIDE) if axis == [1, 2] else (WIDE,)
    give(net, gamma=shape, beta=shape)
    return net.model()


def grouped() -> QatModel:
    net = started()
    net.add("GroupNormalization", groups=2, axis=-1, epsilon=1e-3, ends=(-3.0, 3.0))
    give(net, gamma=(WIDE,), beta=(WIDE,))
    return net.model()


def embedded() -> QatModel:
    net = Network(4, is_symmetric=True)
    del net.nodes[1:], net.tensors[:]
    net.add("Embedding", input_dim=9, output_dim=3)
    give(net, embeddings=(9, 3))
    net.add("Flatten")
    net.add("Dense", kernel=(12, 2), ends=(-9.0, 9.0))
    return net.model()


def einsum(equation: str, kernel: tuple[int, ...], bias: tuple[int, ...] = ()) -> QatModel:
    net = started()
    net.add("EinsumDense", equation=equation, ends=(-6.0, 6.0))
    give(net, kernel=kernel, **({"bias": bias} if bias else {}))
    return net.model()


def multiplied(axes: Any, normalize: bool) -> QatModel:
    net = started()
    first = net.nodes[-1].name
    other = net.add("Reshape", target_shape=(WIDE, ROWS)) if axes == [1, 2] else first
    net.add("Dot", first, other, axes=axes, normalize=normalize, ends=(-6.0, 6.0))
    return net.model()


def attentive(inputs: int, scaled: bool) -> QatModel:
    net = started()
    first = net.nodes[-1].name
    second = net.add("Permute", dims=(1, 2))
    net.add("Attention", *(first, second, first)[:inputs], ends=(-2.0, 2.0))
    if scaled:
        give(net, scale=())
    return net.model()


def of_heads(has_bias: bool) -> QatModel:
    net = started()
    rows = net.nodes[-1].name
    net.add("MultiHeadAttention", rows, rows, key_dim=4, ends=(-6.0, 6.0))
    give(net, query__kernel=(WIDE, 2, 4), key__kernel=(WIDE, 2, 4), value__kernel=(WIDE, 2, 3),
         attention_output__kernel=(2, 3, 5))  # fmt: skip
    if has_bias:
        give(net, query__bias=(2, 4), key__bias=(2, 4), value__bias=(2, 3),
             attention_output__bias=(5,))  # fmt: skip
    return net.model()


MODELS: Mapping[str, Callable[[], QatModel]] = {
    "rows normalized": lambda: normalized(-1),
    "all normalized": lambda: normalized([1, 2]),
    "groups normalized": grouped,
    "looked up": embedded,
    "einsum of rows": lambda: einsum("abc,cd->abd", (WIDE, 4), (4,)),
    "einsum of columns": lambda: einsum("abc,bd->adc", (ROWS, 4)),
    "einsum of all": lambda: einsum("...bc,bcde->...ed", (ROWS, WIDE, 2, 3), (3, 2)),
    "dot of rows": lambda: multiplied(2, True),
    "dot of columns": lambda: multiplied([1, 2], False),
    "attention": lambda: attentive(2, False),
    "attention of keys": lambda: attentive(3, True),
    "heads": lambda: of_heads(True),
    "heads without bias": lambda: of_heads(False),
}


def inputs_of(model: QatModel, count: int) -> dict[str, Any]:
    program = quantize_model(model).program
    assert program is not None
    if model.graph is not None and model.graph.nodes[1].class_name == "Embedding":
        numbers = np.random.default_rng(1).integers(0, 9, (count, 4))
        return {name: numbers.astype(np.float32) for name in program.inputs}
    return consumers.integers_on_the_grid(program, count)


def content(model: QatModel, **options: Any) -> bytes:
    file = io.BytesIO()
    Tflite(**options).write(quantize_model(model), file)
    return file.getvalue()


@needs_litert
@pytest.mark.parametrize("name", MODELS)
def test_litert_computes_what_keras_does(name: str):
    from ai_edge_litert.interpreter import Interpreter

    model = MODELS[name]()
    inputs = inputs_of(model, 3)
    run = Interpreter(model_content=content(model, batch=3)).get_signature_runner()
    (found,) = run(**inputs).values()
    program = quantize_model(model).program
    assert program is not None
    (expected,) = qmath.run(model, inputs, profile="exact").outputs.values()
    assert found.shape == expected.shape
    assert np.ptp(expected) > 0.5
    (step,) = program.outputs
    differing = np.abs(found - expected) > program.quant_params[step].scale / 2
    assert differing.mean() <= 0.05  # near ties
    assert np.abs(found - expected).max() <= 1.01 * program.quant_params[step].scale


@pytest.mark.parametrize("name", MODELS)
def test_tflite_micro_computes_what_keras_does(name: str):
    pytest.importorskip("tflite_micro", reason="the extra reference is not installed")
    from tflite_micro import runtime

    model = MODELS[name]()
    (x,) = inputs_of(model, 1).values()
    interpreter = runtime.Interpreter.from_bytes(content(model))
    interpreter.set_input(x, 0)
    interpreter.invoke()
    found = interpreter.get_output(0)
    (expected,) = qmath.run(model, x, profile="exact").outputs.values()
    (step,) = quantize_model(model).program.outputs
    scale = quantize_model(model).program.quant_params[step].scale
    assert np.abs(found - expected).max() <= 1.01 * scale


def test_looked_up_rows_are_the_integers_of_training():
    model = embedded()
    tensors = {tensor.name: tensor for tensor in parsed(content(model), "file").tensors}
    q = model.tensors["embedding1/embeddings"].quantize()
    held = tensors["embedding1/embeddings"]
    assert held.type == "INT8"
    np.testing.assert_array_equal(held.data, q.values.astype(np.int32) - q.zero_point)
    assert held.quantization.scale.tolist() == [q.scale]


def of_ten_bits() -> QatModel:
    model = embedded()
    changed = {
        name: replace(tensor, spec=replace(tensor.spec, num_bits=10))
        for name, tensor in model.tensors.items()
        if tensor.role == "weight"
    }
    return replace(model, tensors={**model.tensors, **changed})


def test_wide_weights_of_float_operators_are_float():
    model = of_ten_bits()
    tensors = {tensor.name: tensor for tensor in parsed(content(model), "file").tensors}
    rows, kernel = tensors["embedding1/embeddings"], tensors["dense3/kernel"]
    assert (rows.type, kernel.type) == ("FLOAT32", "FLOAT32")
    np.testing.assert_array_equal(rows.data, model.tensors[rows.name].quantize().dequantize())
    q = model.tensors["dense3/kernel"].quantize()
    np.testing.assert_array_equal(kernel.data.T, q.values.astype(np.int32) - q.zero_point)


def test_weights_of_each_position_are_refused(tmp_path: Any):
    model = einsum("abc,bcd->abd", (ROWS, WIDE, 4))
    with pytest.raises(OutputError, match="EinsumDense with weights of its own for each position"):
        qmath.export(model, tmp_path / "o.tflite")
