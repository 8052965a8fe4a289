"""A model beside a TFLite file of it: what the converter made of each kernel, and its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.containers.tflite.file import parsed
from qmath.errors import QmathError
from qmath.exports.bundle import quantize_model
from qmath.integer.api import program_of
from qmath.integer.executor import Executor
from qmath.integer.judging.deployed import paired, run_deployed
from qmath.integer.profiles.xnnpack import Xnnpack
from reference import consumers
from reference.flatbuffers import decoded, encoded
from tests.exports.networks import Network, tied

ROOT = Path(__file__).parents[2] / "reference"
MODEL, DEPLOYED = ROOT / "samples" / "default8.h5", ROOT / "golden" / "tflite" / "default8.tflite"
NBIT4 = ROOT / "samples" / "nbit4.h5", ROOT / "golden" / "tflite" / "nbit4.tflite"
IMAGES = np.load(ROOT / "samples" / "digits_test.npz")["images"][:16]
FOUR_BITS = 17  # of TensorType


def deployed(path: Path, source: Path, change: Any) -> Path:
    model = decoded(source.read_bytes())
    change(model, model["subgraphs"][0]["tensors"])
    path.write_bytes(encoded(model))
    return path


def weights(model: dict[str, Any], tensor: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the int8 weights of a tensor, to be changed in place."""
    buffer = model["buffers"][tensor["buffer"]]
    buffer["data"] = buffer["data"].copy()
    found: np.ndarray[Any, Any] = buffer["data"].view(np.int8)
    return found


def kernels(against: Path, model: Path = MODEL) -> dict[str, Any]:
    comparison = qmath.diff(model, IMAGES, profile="tflite", against=against)
    return {kernel.name: kernel for kernel in comparison.kernels}


def test_what_the_converter_keeps() -> None:
    comparison = qmath.diff(MODEL, IMAGES, profile="tflite", against=DEPLOYED)
    assert comparison.first is None
    assert [layer.name for layer in comparison.layers] == [
        "quantize_layer/output", "conv1/post_activation", "relu6/output", "flatten",
        "dense/post_activation",
    ]  # fmt: skip
    assert [kernel.deployed for kernel in comparison.kernels] == [
        "conv1/kernel", "dw1/depthwise_kernel", "dense/kernel"
    ]  # fmt: skip
    assert not any(kernel.is_changed or kernel.biases for kernel in comparison.kernels)
    scaled = comparison.kernels[1]  # by batch normalization, whose reciprocal root is approximate
    assert 0 < scaled.ulps < 4
    assert scaled.sentence == f"as trained; scales off by up to {scaled.ulps} ulp"


def test_integers_that_differ(tmp_path: Path) -> None:
    def change(model: dict[str, Any], tensors: list[dict[str, Any]]) -> None:
        held = weights(model, tensors[11])
        held[:3] += np.int8(1)

    found = kernels(deployed(tmp_path / "m.tflite", DEPLOYED, change))
    assert (found["dense/kernel"].differing, found["dense/kernel"].largest) == (3, 1.0)
    assert found["dense/kernel"].sentence == "requantized"
    assert not found["conv1/kernel"].is_changed


def test_a_kernel_requantized_per_channel(tmp_path: Path) -> None:
    def change(model: dict[str, Any], tensors: list[dict[str, Any]]) -> None:
        held = weights(model, tensors[11]).reshape(10, 256)
        width = np.abs(held.astype(np.float64)).max(1, keepdims=True)
        q, scale = tensors[11]["quantization"], tensors[11]["quantization"]["scale"]
        held[:] = np.rint(held * (127 / width))
        q["scale"] = (scale * width[:, 0] / 127).astype(np.float32)
        q["zero_point"] = np.zeros(10, np.int64)
        q["quantized_dimension"] = 0

    found = kernels(deployed(tmp_path / "m.tflite", DEPLOYED, change))["dense/kernel"]
    assert found.scales == (1, 10)
    assert found.differing > 100
    assert 0 < found.largest <= 0.5001
    assert found.sentence == "requantized per channel"


def test_4_bits_regridded_to_8(tmp_path: Path) -> None:
    """As the converter does with widths that it has no type for."""

    def change(model: dict[str, Any], tensors: list[dict[str, Any]]) -> None:
        tensor = next(t for t in tensors if t.get("type") == FOUR_BITS and t["shape"].size == 2)
        buffer = model["buffers"][tensor["buffer"]]
        packed = buffer["data"]
        whole = np.stack([packed & 15, packed >> 4], -1).reshape(-1).astype(np.int8)
        whole = np.where(whole > 7, whole - 16, whole)
        buffer["data"] = (whole * 18).astype(np.int8).view(np.uint8)
        tensor["type"] = 9
        scale = tensor["quantization"]["scale"]
        tensor["quantization"]["scale"] = (scale / np.float32(18)).astype(np.float32)

    model, source = NBIT4
    assert not any(kernel.is_changed for kernel in kernels(source, model).values())
    found = kernels(deployed(tmp_path / "m.tflite", source, change), model)["dense/kernel"]
    assert found.num_bits == (4, 8)
    assert found.sentence == "regridded from 4 to 8 bits"
    assert found.largest < 1e-5


def test_biases_that_are_off(tmp_path: Path) -> None:
    def change(model: dict[str, Any], tensors: list[dict[str, Any]]) -> None:
        buffer = model["buffers"][tensors[3]["buffer"]]
        buffer["data"] = (buffer["data"].view(np.int32) + np.int32([0, 5] * 5)).view(np.uint8)

    found = kernels(deployed(tmp_path / "m.tflite", DEPLOYED, change))["dense/kernel"]
    assert (found.biases, found.sentence) == (5, "as trained; 5 biases off")


def test_what_is_no_deployment_of_the_model() -> None:
    every = DEPLOYED.with_name("every_operation.tflite")
    with pytest.raises(QmathError, match="has the inputs"):
        qmath.diff(MODEL, IMAGES, against=every)
    with pytest.raises(QmathError, match="axes of its own"):
        qmath.diff(MODEL, IMAGES, against=DEPLOYED, axes="NCHW")


@pytest.mark.parametrize("profile", ["tflite", "xnnpack", "litert", "tflm"])
def test_the_file_is_run_as_the_profile_of_its_runtime(profile: str) -> None:
    """A difference is the converter's then, and not one between two runtimes."""
    model, file = NBIT4
    images = np.load(ROOT / "samples" / "digits_test.npz")["images"]
    comparison = qmath.diff(model, images, profile=profile, against=file)
    assert comparison.layers[-1].name == "dense/post_activation"
    assert not comparison.layers[-1].teacher_forced


@pytest.mark.parametrize("weights", ["int4", "int2"])
def test_a_file_of_packed_weights_is_run_as_its_runtime_does(tmp_path: Path, weights: str) -> None:
    """XNNPACK leaves convolutions to LiteRT, and of dense layers those of an odd depth."""
    pytest.importorskip("ai_edge_litert", reason="the extra test is not installed")
    bundle, path = quantize_model(tied(int(weights[3:]))), tmp_path / "m.tflite"
    program = bundle.program
    assert program is not None
    content, names = consumers.written(bundle, weights=weights)
    path.write_bytes(content)
    model = qmath.load(path)
    inputs = consumers.integers_on_the_grid(program, 64)
    places = {tensor.name: i for i, tensor in enumerate(parsed(content, "the file").tensors)}
    steps = {step: places[entry["name"]] for step, entry in names["integers"].items()}
    given = [(places[name], inputs[key]) for key, name in names["inputs"].items()]
    run, _ = consumers.CONSUMERS["default"]
    computed = list(run(content, given, list(steps.values())))
    own = program_of(model)
    made = run_deployed(program, model, own, inputs, Xnnpack())
    as_int8 = Executor(own, Xnnpack()).run(inputs)
    renamed = dict(zip(own.inputs, inputs.values(), strict=True))
    for source in (path, model):
        alone = qmath.run(source, renamed, profile="xnnpack").integers
        assert all(np.array_equal(alone[paired(program, own)[step]], made[step]) for step in steps)
    differing = 0
    assert len(steps) >= 5
    for step, place in steps.items():
        integers = made[step]
        found = np.concatenate([batch[place] for batch in computed]).astype(np.int32) + 128
        assert np.array_equal(integers, found.reshape(integers.shape)), step
        differing += int((as_int8[paired(program, own)[step]] != integers).sum())
    assert differing > 0


@pytest.mark.parametrize("weights", ["int4", "int2"])
def test_the_model_is_run_with_weights_as_packed_as_in_the_file(
    tmp_path: Path, weights: str
) -> None:
    pytest.importorskip("flatbuffers", reason="the extra tflite is not installed")
    bundle, path = quantize_model(tied(int(weights[3:]))), tmp_path / "m.tflite"
    assert bundle.program is not None
    path.write_bytes(consumers.written(bundle, weights=weights)[0])
    inputs = consumers.integers_on_the_grid(bundle.program, 64)
    comparison = qmath.diff(bundle.model, inputs, profile="xnnpack", against=path)
    assert len(comparison.layers) >= 5
    assert comparison.first is None
    as_int8 = qmath.diff(bundle.model, inputs, profile="xnnpack", against="litert")
    assert as_int8.first is not None


@pytest.mark.parametrize("weights", ["int4", "int2"])
def test_the_prediction_of_a_runtime_knows_the_packed_weights(weights: str) -> None:
    pytest.importorskip("ai_edge_litert", reason="the extra test is not installed")
    count = consumers.compared(
        quantize_model(tied(int(weights[3:]))), "default", 64, weights=weights
    )
    assert count.integers > 30_000
    assert not count.differing


FLOAT_PARTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "sum": [("Conv2D", {"kernel": (3, 3, 3, 3), "padding": "same"}), ("Add", {"both": True})],
    "resizing": [("UpSampling2D", {"size": 2, "interpolation": "bilinear"})],
}


@pytest.mark.parametrize("name", FLOAT_PARTS)
def test_what_a_file_computes_in_float32_between_integers(tmp_path: Path, name: str) -> None:
    """Its layers have other names than what their quantizers make, and no integer kernel."""
    pytest.importorskip("flatbuffers", reason="the extra tflite is not installed")
    net = Network(4, 5, 3, is_symmetric=True)
    source = net.nodes[-1].name
    *before, (kind, config) = FLOAT_PARTS[name]
    for class_name, settings in before:
        net.add(class_name, **settings)
    inputs = (source, net.nodes[-1].name) if config.pop("both", False) else ()
    net.add(kind, *inputs, ends=(-3.0, 5.0), **config)
    net.add("Conv2D", kernel=(1, 1, 3, 2), ends=(-3.0, 3.0))
    model, path = net.model(), tmp_path / "m.tflite"
    qmath.export(model, path)
    images = np.random.default_rng(0).uniform(-1, 1.5, (4, 4, 5, 3)).astype(np.float32)
    layers = qmath.diff(model, images, against=path).layers
    assert [layer.teacher_forced for layer in layers[:2]] == [0, 0]
    assert len(layers) == 3
