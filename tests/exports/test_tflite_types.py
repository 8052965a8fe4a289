"""Every type of activations, weights, inputs and outputs in every runtime of TFLite files."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from qmath import QatModel
from qmath.exports.bundle import quantize_model
from qmath.integer.profiles.tflite import kernels
from qmath.integer.profiles.tflite_kernels import Quantization
from qmath.testing.layer import Geometry
from qmath.testing.layer_cases import deciding_layer
from reference import consumers, odd_tflite
from reference.flatbuffers import encoded
from tests.exports import networks
from tests.exports.networks import Network

pytest.importorskip("flatbuffers", reason="the extra tflite is not installed")
pytestmark = pytest.mark.skipif(
    find_spec("ai_edge_litert") is None,
    reason="LiteRT is not installed, or has no wheel for this Python",
)
RUNTIMES = ("reference", "default", "optimized", "tflite-micro")


def needs(consumer: str) -> None:
    if consumer == "tflite-micro":
        pytest.importorskip("tflite_micro", reason="the extra reference is not installed")


def net_of(bits: int, per_axis: bool, weight_bits: int = 8) -> QatModel:
    net = Network(5, 4, 3, bits=bits, weight_bits=weight_bits, is_symmetric=True)
    first = net.add("Conv2D", kernel=(2, 2, 3, 8), per_axis=per_axis, ends=(-5.0, 5.0))
    second = net.add("DepthwiseConv2D", first, kernel=(1, 1, 8, 1), per_axis=per_axis,
                     ends=(-6.0, 6.0))  # fmt: skip
    net.add("Add", first, second, ends=(-7.0, 7.0))
    net.add("ReLU", ends=(0.0, 6.5))
    net.add("Flatten")
    net.add("Dense", kernel=(96, 3), per_axis=per_axis, ends=(-9.0, 9.0))
    return net.model()


def assert_predicted(model: QatModel, consumer: str, **options: Any) -> None:
    needs(consumer)
    count = consumers.compared(quantize_model(model), consumer, 4, **options)
    assert count.integers > 500
    assert count.steps == {}
    assert count.largest_in_float <= 1


@pytest.mark.parametrize("consumer", RUNTIMES)
@pytest.mark.parametrize("per_axis", [True, False])
@pytest.mark.parametrize("io_type", ["float", "int8", "uint8"])
def test_inputs_and_outputs_of_every_type(io_type: str, per_axis: bool, consumer: str):
    assert_predicted(net_of(8, per_axis), consumer, io=io_type)


@pytest.mark.parametrize("consumer", RUNTIMES)
@pytest.mark.parametrize("per_axis", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 5, 7])
def test_activations_below_8_bits(bits: int, per_axis: bool, consumer: str):
    assert_predicted(net_of(bits, per_axis), consumer)


@pytest.mark.parametrize("consumer", RUNTIMES)
@pytest.mark.parametrize("weights", ["int4", "int2"])
@pytest.mark.parametrize("bits", [2, 4])
def test_packed_weights_with_one_scale(bits: int, weights: str, consumer: str):
    if (weights, consumer, bits) == ("int2", "tflite-micro", 2):
        pytest.skip("tflite-micro takes no INT2")
    assert_predicted(net_of(8, False, bits), consumer, weights=weights)


@pytest.mark.parametrize("consumer", RUNTIMES)
@pytest.mark.parametrize("io_type", ["float", "int16"])
@pytest.mark.parametrize("bits", [9, 12, 16])
def test_activations_above_8_bits(bits: int, io_type: str, consumer: str):
    assert_predicted(networks.symmetric(net_of(bits, True)), consumer, io=io_type)


@pytest.mark.parametrize("bits", [2, 4])
def test_tflite_micro_and_every_geometry(bits: int):
    assert_predicted(networks.layers(4, weight_bits=bits, bits=bits), "tflite-micro")


def of_few_channels(class_name: str, kernel: tuple[int, ...], weight_bits: int) -> QatModel:
    """Return one layer with one scale, whose last channels do not fill a vector: with ties."""
    net = Network(*(7,) * (len(kernel) - 2), 4, weight_bits=weight_bits, is_symmetric=True)
    net.add(class_name, kernel=kernel, per_axis=False, ends=(-16.0, 24.0))
    most = np.float32(127 / 8 if weight_bits == 8 else 7 / 4)
    net.tensors = [
        replace(t, min=-most, max=most) if t.role == "weight" else t for t in net.tensors
    ]
    return net.model()


@pytest.mark.parametrize("consumer", RUNTIMES)
@pytest.mark.parametrize(
    ("class_name", "kernel", "weight_bits"),
    [("Conv1DTranspose", (3, 11, 4), 8), ("Conv2DTranspose", (1, 3, 5, 4), 8),
     ("DepthwiseConv2D", (2, 2, 4, 3), 8), ("DepthwiseConv2D", (2, 2, 4, 3), 4)],
)  # fmt: skip
def test_channels_that_fill_no_vector(
    class_name: str, kernel: tuple[int, ...], weight_bits: int, consumer: str
):
    needs(consumer)
    bundle = quantize_model(of_few_channels(class_name, kernel, weight_bits))
    weights = f"int{weight_bits}"
    count = consumers.compared(bundle, consumer, 64, weights=weights)
    assert count.steps == {}


def test_vectors_of_a_depthwise_kernel_with_several_outputs_for_each_input():
    """Of seed 5 the last four of twelve channels round otherwise, and so do 105 integers."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    geometry = Geometry("depthwise", (5, 5, 4), 3, (2, 2), (1, 1), "same")
    layer = deciding_layer(geometry, np.random.RandomState(5), profile="litert")
    assert layer.step is not None
    assert layer.weights is not None
    (kernel,) = kernels(layer.step)
    scales = np.broadcast_to(kernel.weight_scale, 12)
    model = odd_tflite.model(
        "DEPTHWISE_CONV_2D", (1, *geometry.output), layer.weights.reshape(1, 2, 2, 12),
        np.broadcast_to(kernel.bias, 12).astype(np.int32), shape=(1, 5, 5, 4),
        options={"stride_w": 1, "stride_h": 1, "depth_multiplier": 3},
        made={"quantization": grid(kernel.output)},
    )  # fmt: skip
    tensors = model["subgraphs"][0]["tensors"]
    tensors[0]["quantization"] = grid(kernel.inputs[0])
    for tensor, scale in ((tensors[1], scales), (tensors[2], scales * kernel.inputs[0].scale)):
        zero_points = np.zeros(12, np.int64)
        tensor["quantization"] = {"scale": scale, "zero_point": zero_points}
    tensors[1]["quantization"]["quantized_dimension"] = 3
    interpreter = Interpreter(
        model_content=encoded(model),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    for x, expected in zip(layer.inputs[0], layer.expected("litert"), strict=True):
        interpreter.set_tensor(0, x[np.newaxis])
        interpreter.invoke()
        np.testing.assert_array_equal(interpreter.get_tensor(3)[0], expected)


def grid(q: Quantization) -> dict[str, Any]:
    return {"scale": np.float32([q.scale]), "zero_point": np.int64([q.zero_point])}
