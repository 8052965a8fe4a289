"""The format ``tflite``: its tensors and operators, and what LiteRT, tflite-micro and Vela make."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath import FileFormatError, OutputError, QatModel, QatTensor
from qmath.containers.tflite.file import TfliteFile, parsed
from qmath.errors import MissingExtraError
from qmath.exports.bundle import quantize_model
from qmath.exports.tflite.exporter import Tflite
from qmath.exports.tflite.graph import MANIFEST, with_manifest
from qmath.exports.tflite.packing import packed
from qmath.integer.profiles.tflite_kernels import quantization
from qmath.integer.program import FloatStep
from qmath.testing import check_exporter
from reference import consumers
from tests.exports import models, networks, qdq_networks
from tests.exports.networks import Network

pytest.importorskip("flatbuffers", reason="the extra tflite is not installed")

GOLDEN = Path(__file__).parents[2] / "reference" / "golden" / "tflite"
SAMPLES = ("default8", "nbit4")  # whose settings are in the file
NETWORKS = ("images", "branches", "signals", "combinations", "convolutions", "functions", "volumes")
needs_litert = pytest.mark.skipif(
    find_spec("ai_edge_litert") is None,
    reason="LiteRT is not installed, or has no wheel for this Python",
)


def network(name: str, bits: int = 8) -> QatModel:
    made = getattr(networks, name)(bits=bits, weight_bits=bits, is_symmetric=True)
    assert isinstance(made, QatModel)
    return made


def content(model: QatModel, **options: Any) -> bytes:
    file = io.BytesIO()
    Tflite(**options).write(quantize_model(model), file)
    return file.getvalue()


def held(model: QatModel, **options: Any) -> TfliteFile:
    return parsed(content(model, **options), "the file")


def small(bits: int = 8, weight_bits: int = 8, **more: Any) -> Network:
    return Network(5, 4, 3, bits=bits, weight_bits=weight_bits, is_symmetric=True, **more)


# ---- what is in a file


@pytest.mark.parametrize("per_axis", [True, False])
@pytest.mark.parametrize("asked", ["int8", "int4", "int2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_weights_of_every_width_are_those_of_training(bits: int, asked: str, per_axis: bool):
    net = small(weight_bits=bits)
    net.add("Conv2D", kernel=(3, 3, 3, 6), per_axis=per_axis, ends=(-4.0, 5.0))
    net.add("DepthwiseConv2D", kernel=(2, 2, 6, 2), per_axis=per_axis, ends=(-4.0, 5.0))
    net.add("Flatten")
    net.add("Dense", kernel=(24, 3), per_axis=per_axis, ends=(-4.0, 5.0))
    model = net.model()
    file = held(model, weights=asked)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    program = quantize_model(model).program
    for name, order in (
        ("conv2d2/kernel", (3, 0, 1, 2)),
        ("depthwiseconv2d3/depthwise_kernel", None),
        ("dense5/kernel", (1, 0)),
    ):
        tensor, q = tensors[name], model.tensors[name].quantize()
        least = 2 if asked == "int2" and name.startswith("dense") else 4
        narrow = [n for n in (2, 4) if bits <= n and n >= max(int(asked[3:]), least)]
        assert tensor.type == f"INT{min(narrow, default=8)}"
        values = q.values.astype(np.int32) - q.zero_point
        expected = (
            values.reshape(1, *values.shape[:2], -1) if order is None else values.transpose(order)
        )
        np.testing.assert_array_equal(tensor.data, expected)
        assert tensor.quantization is not None
        assert not tensor.quantization.zero_point.any()
        scales = np.tile(
            np.float32(q.scale).reshape(-1), len(tensor.quantization.scale) // q.scale.size
        )
        np.testing.assert_allclose(tensor.quantization.scale, scales, rtol=2e-7)
    assert program is not None
    for operation in file.operations:
        if operation.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            x, weight, bias = (file.tensors[i] for i in operation.inputs)
            assert bias.type == "INT32"
            steps = x.quantization.scale * weight.quantization.scale
            np.testing.assert_array_equal(bias.quantization.scale, np.float32(steps))
            layer = weight.name.rpartition("/")[0]
            real = np.asarray(model.tensors[f"{layer}/bias"].values, np.float64)
            assert (np.abs(bias.data * steps.astype(np.float64) - real) <= 0.51 * steps).all()


def test_activations_have_the_zero_points_of_training():
    net = small()
    net.add("Conv2D", kernel=(1, 1, 3, 4), ends=(-5.0, 5.0))  # zero lies between two integers
    model = net.model()
    file, program = held(model), quantize_model(model).program
    tensors = {tensor.name: tensor for tensor in file.tensors}
    for step in program.quantized:
        grid = tensors[step.name].quantization
        assert grid.zero_point == step.params.zero_point - 128
        assert grid.scale == pytest.approx(step.params.scale, rel=2e-7)
    with pytest.raises(qmath.QmathError, match="between two integers"):
        quantization(program.step("conv2d2/output").params, "conv2d2/output")


def test_clamps_are_written_only_where_an_operator_has_none():
    net = small(bits=4)
    net.add("Conv2D", kernel=(1, 1, 3, 4), ends=(-4.0, 5.0))
    net.add("Conv2D", kernel=(1, 1, 4, 4), activation="relu", ends=(0.0, 9.0))
    net.add("Conv2D", kernel=(1, 1, 4, 4), ends=(0.0, 6.0))
    names = [operation.name for operation in held(net.model(), io="int8").operations]
    conv, low, high = "CONV_2D", "MAXIMUM", "MINIMUM"
    assert names == [low, high, conv, low, high, conv, high, conv]
    wide = small()
    wide.add("Conv2D", kernel=(1, 1, 3, 4), ends=(-4.0, 5.0))
    assert [op.name for op in held(wide.model(), io="int8").operations] == [conv]


@pytest.mark.parametrize("io_type", ["float", "int8", "uint8"])
def test_inputs_and_outputs(io_type: str):
    net = small()
    net.add("Conv2D", kernel=(1, 1, 3, 4), ends=(-4.0, 5.0))
    net.add("Activation", activation="softmax")
    model = net.model("conv2d2", "activation3")
    file = held(model, io=io_type, batch=3)
    expected = {"float": "FLOAT32"}.get(io_type, io_type.upper())
    (given,) = (file.tensors[i] for i in file.inputs)
    first, second = (file.tensors[i] for i in file.outputs)
    assert (given.type, first.type, second.type) == (expected, expected, "FLOAT32")
    assert given.shape == (3, 5, 4, 3)
    if io_type != "float":
        zero = quantize_model(model).program.quant_params["quantizelayer1/output"].zero_point
        assert given.quantization.zero_point == zero - (128 if io_type == "int8" else 0)


def test_the_manifest_and_the_names_are_in_the_file():
    model = network("convolutions")
    bundle = quantize_model(model)
    manifest, _ = Tflite().read(io.BytesIO(content(model)))
    assert {**manifest, "export": None} == {**bundle.manifest, "export": None}
    names, file = manifest["export"]["names"], held(model)
    assert names["integers"].keys() == bundle.program.quant_params.keys()
    held_names = {tensor.name for tensor in file.tensors}
    assert len(held_names) == len(file.tensors)
    assert {entry["name"] for entry in names["integers"].values()} <= held_names
    assert [file.tensors[i].name for i in file.outputs] == names["outputs"]
    assert MANIFEST in file.metadata
    assert MANIFEST not in held(model, bare=True).metadata


def test_what_is_computed_in_float32_is_named():
    names = consumers.written(quantize_model(network("branches")))[1]
    assert names["floats"] == [
        "relu6/output", "leakyrelu8/output", "upsampling2d13/output", "relu15/output",
    ]  # fmt: skip
    tensors = {t.name: t for t in held(network("branches"), weights="int4").tensors}
    assert tensors["conv2d3/kernel"].quantization.scale.tolist() == [1]  # tflite-micro has one


def test_who_exports_is_told_what_is_in_float32(tmp_path: Path):
    floats = consumers.written(quantize_model(network("branches")))[1]["floats"]
    bundle = qmath.export(network("branches"), tmp_path / "m.tflite")
    assert bundle.manifest["notes"][-1].endswith(f"quantizer in training: {', '.join(floats)}")
    net = small()
    net.add("Conv2D", kernel=(2, 2, 3, 4), ends=(-4.0, 4.0), per_axis=False)
    whole = qmath.export(net.model(), tmp_path / "s.tflite")
    assert not any("in float32" in note for note in whole.manifest["notes"])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reader_makes_the_same_integers_of_it(name: str):
    model = network(name)
    _, arrays = Tflite().read(io.BytesIO(content(model)))
    bundle = quantize_model(model)
    for key, array in arrays.items():
        expected = bundle.tensors[key].values
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("source", SAMPLES)
def test_a_file_by_itself_gives_the_integers(source: str, tmp_path: Path):
    pytest.importorskip("h5py")
    path = f"reference/samples/{source}.h5"
    qmath.export(path, tmp_path / "m.tflite", weights="int4")
    images = np.load("reference/samples/digits_test.npz")["images"][:20]
    found = qmath.run(tmp_path / "m.tflite", images, profile="exact")
    expected = qmath.run(path, images, profile="exact")
    (ours,), (theirs,) = expected.outputs.values(), found.outputs.values()
    assert np.abs(ours - theirs).max() <= np.float32(1.01) * np.diff(np.unique(ours)).min()


# ---- what is refused


def of_odd_weights() -> QatModel:
    net = Network(5, 4, 3)
    net.add("Conv2D", kernel=(1, 1, 3, 4), ends=(-4.0, 5.0))
    return net.model()


def of_a_cut() -> QatModel:
    net = small()
    net.add("Conv2D", kernel=(1, 1, 3, 4), ends=(-4.0, 5.0))
    net.add("MyLayer", ends=(-1.0, 1.0))
    return net.model()


def of_a_recurrent_layer() -> QatModel:
    net = Network(4, 3, bits=8, weight_bits=8, is_symmetric=True)
    net.add("SimpleRNN", units=2, activation="tanh", ends=(-1.0, 1.0))
    kernels = {"kernel": (3, 2), "recurrent_kernel": (2, 2)}
    for name, shape in kernels.items():
        values = np.full(shape, 0.5, np.float32)
        net.tensors.append(QatTensor(f"simplernn2/simple_rnn_cell/{name}", "float", values))
    bias = np.zeros(2, np.float32)
    net.tensors.append(QatTensor("simplernn2/simple_rnn_cell/bias", "float", bias))
    return net.model()


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (of_odd_weights(), {}, "the 9 bits of conv2d2/kernel, as a range that is not symmetric"),
        (network("images", 16), {}, "a zero point that is not in the middle"),
        (of_a_cut(), {}, "the cut point mylayer3 (MyLayer: qmath does not know this layer)"),
        (of_a_recurrent_layer(), {}, "the float layer simplernn2 (SimpleRNN)"),
        (network("images"), {"io": "int16"}, "has 8 bits, so that it is INT8"),
        (networks.symmetric(network("images", 16)), {"io": "uint8"}, "so that it is INT16"),
        (replace(network("images"), graph=None), {}, "no network for the format 'tflite'"),
        (models.every_width(), {}, "no network for the format 'tflite'"),
    ],
)
def test_what_tflite_does_not_hold(model: QatModel, options: Any, words: str, tmp_path: Path):
    with pytest.raises(OutputError, match=re.escape(words)) as caught:
        qmath.export(model, tmp_path / "o.tflite", **options)
    assert re.search("export to npz|onnx|--option io=", str(caught.value))
    assert not list(tmp_path.iterdir())


def test_more_than_a_file_takes_is_refused():
    huge = {"buffers": [{"data": np.broadcast_to(np.uint8(0), 1 << 31)}]}
    with pytest.raises(OutputError, match="less than 2 GiB; export to npz"):
        packed(huge)


def test_without_flatbuffers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'qmath-tfmot[tflite]'")):
        qmath.export(network("signals"), tmp_path / "o.tflite")
    assert not list(tmp_path.iterdir())


# ---- verify


@pytest.mark.parametrize("name", [*NETWORKS, "of_shared_layers", "of_every_layer"])
@pytest.mark.parametrize(
    "options",
    [{}, {"weights": "int4", "io": "int8", "layouts": ["OHWI"]}, {"signed": False, "batch": 2},
     {"bare": True}],
)  # fmt: skip
def test_verify(name: str, options: dict[str, Any], tmp_path: Path):
    model = getattr(qdq_networks, name)() if name.startswith("of_") else network(name, 4)
    if name in ("signals", "volumes"):
        options = {key: value for key, value in options.items() if key != "layouts"}
    out = tmp_path / "o.tflite"
    qmath.export(model, out, **options)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "o.tflite", *(["o.tflite.manifest.json"] if "bare" in options else []),
    ]  # fmt: skip
    result = qmath.verify(model, out)
    assert result.ok, result.differences
    assert result.elements > 100


@pytest.mark.parametrize("name", ["default8", "every_operation"])
def test_verify_what_is_written_from_a_tflite_file(name: str, tmp_path: Path):
    """Its zero points run along the axis of the channels, of a depthwise kernel not the last."""
    source, out = GOLDEN / f"{name}.tflite", tmp_path / "o.tflite"
    qmath.export(source, out)
    assert not qmath.verify(source, out).differences


@pytest.mark.parametrize("bare", [True, False])
def test_verify_finds_every_changed_byte(bare: bool, tmp_path: Path):
    net, out = small(weight_bits=4), tmp_path / "o.tflite"
    net.add("Conv2D", kernel=(2, 2, 3, 4), ends=(-4.0, 5.0))
    model = net.model()
    qmath.export(model, out, bare=bare, weights="int4")
    whole = out.read_bytes()
    rng = np.random.default_rng(0)
    first = 0 if bare else whole.index(b'{"format"')  # the manifest has fields that may differ
    last = 0 if bare else whole.rindex(b"}}")
    places = [i for i in rng.permutation(len(whole)) if not first <= i <= last][:80]
    found = {"differs": 0, "refused": 0}
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        out.write_bytes(changed)
        try:
            result = qmath.verify(model, out)
        except FileFormatError:
            found["refused"] += 1
            continue
        assert not result.ok, place
        found["differs"] += 1
    assert found["differs"] > 20


def test_differences_are_told_in_words(tmp_path: Path):
    def of(bias: float, outputs: tuple[str, ...] = ("conv2d2",)) -> QatModel:
        net = small()
        net.add("Conv2D", kernel=(1, 1, 3, 4), ends=(-4.0, 5.0))
        net.tensors[-2] = replace(net.tensors[-2], values=net.tensors[-2].values + np.float32(bias))
        return net.model(*outputs)

    qmath.export(of(0), tmp_path / "o.tflite")
    told = "\n".join(qmath.verify(of(1), tmp_path / "o.tflite").differences)
    assert "tensor 'conv2d2/output/bias': its values differ from the model's" in told
    told = "\n".join(qmath.verify(of(0, ("quantizelayer1",)), tmp_path / "o.tflite").differences)
    assert "tensors, where the model gives" in told
    (tmp_path / "o.tflite").write_bytes(b"\0\0\0\0TFL3")
    with pytest.raises(FileFormatError):
        qmath.verify(of(0), tmp_path / "o.tflite")


@pytest.mark.parametrize(
    ("use", "entry"),
    [
        ({"name": "missing"}, {}),
        ({"flipped": [99]}, {}),
        ({}, {"shape": [3, 3]}),
        ({}, {"source_layout": "XY"}),
        ({}, {"zero_point": [1 << 70]}),
        ({}, {"zero_point": [1000]}),
        ({}, {"dtype": "float32"}),
    ],
)
def test_a_manifest_that_does_not_fit(use: dict[str, Any], entry: dict[str, Any]):
    bundle = quantize_model(network("signals"))
    made = Tflite().network(bundle)
    manifest = json.loads(json.dumps(bundle.manifest | {"export": made.export}))
    manifest["export"]["names"]["weights"]["dense6/kernel"][0] |= use
    manifest["tensors"]["dense6/kernel"] |= entry
    data = packed(with_manifest(made.model, json.dumps(manifest).encode()))
    with pytest.raises(FileFormatError, match="the weights do not fit the manifest"):
        Tflite().read(io.BytesIO(bytes(data)))


def test_the_contract_of_formats():
    class Other(Tflite):
        name = "other"

    check_exporter(Other)


@pytest.mark.parametrize(
    "layers",
    [
        ("a:0", "größe/日本", "b c/d", "while", "a:0/output"),
        ("conv/kernel", "q", "conv", "conv/output/CONV_2D", "conv/Conv"),
    ],
)
def test_any_names(layers: tuple[str, ...], tmp_path: Path):
    model = qdq_networks.of_width(4, True, layers)
    bundle = quantize_model(model)
    _, names = consumers.written(bundle, weights="int4")
    assert names["integers"].keys() == {"flatten", *(f"{layer}/output" for layer in layers[1:])}
    tensors = [tensor.name for tensor in held(model).tensors]
    assert len(set(tensors)) == len(tensors)
    qmath.export(model, tmp_path / "o.tflite")
    assert qmath.verify(model, tmp_path / "o.tflite").ok


# ---- what runs it


def assert_predicted(count: consumers.Count) -> None:
    assert count.integers > 500
    assert count.steps == {}
    # Float32 decides near ties, and rounds exact ones away from zero.
    assert count.differing_in_float * 20 <= count.in_float
    assert count.largest_in_float <= 1


@needs_litert
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("consumer", ["reference", "default", "optimized"])
def test_litert_computes_what_is_predicted(name: str, bits: int, consumer: str):
    bundle = quantize_model(network(name, bits))
    if consumer == "default" and name == "branches":
        pytest.skip("its mean has exact ties, which XNNPACK's versions round one way or the other")
    if consumer == "optimized" and name == "combinations":
        pytest.skip(
            "it changes a scale: the last values of a whole batch round otherwise, see profiles.md"
        )
    assert_predicted(consumers.compared(bundle, consumer, batch=2))
    if bits == 4:
        assert_predicted(consumers.compared(bundle, consumer, weights="int4"))


@needs_litert
@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("channels", [3, 4])
def test_litert_and_every_geometry(channels: int, bits: int, weights: str):
    bundle = quantize_model(networks.layers(channels, weight_bits=bits))
    assert_predicted(consumers.compared(bundle, "reference", weights=weights))
    assert_predicted(consumers.compared(bundle, "default", weights=weights))
    assert_predicted(consumers.compared(bundle, "optimized", weights=weights))


@needs_litert
@pytest.mark.parametrize("io_type", ["float", "int8", "uint8"])
@pytest.mark.parametrize("consumer", sorted(consumers.CONSUMERS.keys() - {"tosa"}))
@pytest.mark.parametrize("source", SAMPLES)
def test_samples(source: str, consumer: str, io_type: str):
    pytest.importorskip("h5py")
    if consumer == "tflite-micro":
        pytest.importorskip("tflite_micro", reason="the extra reference is not installed")
    bundle = quantize_model(qmath.load(f"reference/samples/{source}.h5"))
    for weights in ("int8", "int4"):
        count = consumers.compared(bundle, consumer, weights=weights, io=io_type)
        assert (count.differing, count.in_float) == (0, 0)


@needs_litert
@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("name", [*NETWORKS, "layers"])
def test_activations_of_16_bits(name: str, bits: int):
    made = networks.layers(4, weight_bits=8, bits=bits) if name == "layers" else network(name, bits)
    tensors = {}
    for key, tensor in made.tensors.items():  # weights of 8 bits
        is_wide = tensor.role == "weight" and (tensor.spec.num_bits or 0) > 8
        spec = replace(tensor.spec, num_bits=8) if is_wide else tensor.spec
        tensors[key] = replace(tensor, spec=spec)
    bundle = quantize_model(networks.symmetric(replace(made, tensors=tensors)))
    assert_predicted(consumers.compared(bundle, "reference"))
    assert {t.type for t in held(bundle.model).tensors} >= {"INT16", "FLOAT32"}


@needs_litert
def test_a_clamp_is_needed_below_8_bits():
    bundle = quantize_model(networks.layers(4, weight_bits=2, bits=2))
    assert_predicted(consumers.compared(bundle, "reference"))


@needs_litert
def test_the_code_of_the_page(tmp_path: Path):
    pytest.importorskip("h5py")
    page = Path("docs/tflite.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code.replace('"nbit4.tflite"', repr(str(tmp_path / "nbit4.tflite"))), names)
    assert names["compared"] > 40_000
    labels = np.load("reference/samples/digits_test.npz")["labels"]
    assert (names["logits"].argmax(axis=1) == labels).mean() > 0.97


@needs_litert
def test_a_signature_runs_by_the_names_of_layers():
    from ai_edge_litert.interpreter import Interpreter

    model = qdq_networks.of_shared_layers()
    bundle = quantize_model(model)
    inputs = consumers.integers_on_the_grid(bundle.program, 1)
    interpreter = Interpreter(model_content=content(model))
    found = interpreter.get_signature_runner("serving_default")(**inputs)
    expected = qmath.run(model, inputs, profile="exact").outputs
    assert found.keys() == {"up", "conv#1"} == set(model.graph.outputs)
    for name, step in zip(model.graph.outputs, bundle.program.outputs, strict=True):
        step_size = bundle.program.quant_params[step].scale
        np.testing.assert_allclose(found[name], expected[step], atol=1.01 * step_size)


def of_layers_in_float() -> QatModel:
    """Return a network that training left float but for its ends."""
    net = small()
    start = net.nodes[-1].name
    net.add("Conv2D", kernel=(2, 2, 3, 4), is_float=True, padding="same", activation="relu")
    net.add("BatchNormalization", epsilon=1e-3)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        values = net.rng.uniform(0.5, 1.5, 4).astype(np.float32)
        net.tensors.append(QatTensor(f"{net.nodes[-1].name}/{name}", "float", values))
    one = net.add("DepthwiseConv2D", kernel=(2, 2, 4, 1), padding="same")  # quantized weights
    most = net.add("MaxPooling2D", one, pool_size=2, strides=1, padding="same")
    mean = net.add("AveragePooling2D", one, pool_size=2, strides=1, padding="same")
    net.add("Concatenate", most, mean, axis=-1)
    net.add("Rescaling", scale=0.5, offset=-0.25)
    net.add("Permute", dims=(3, 1, 2))
    net.add("ZeroPadding2D", padding=1)
    means = net.add("GlobalAveragePooling2D")
    wide = net.add("Dense", kernel=(4, 3), ends=(-4.0, 5.0))
    tops = net.add("GlobalMaxPooling2D", net.add("Subtract", most, mean))
    moved = net.add("Permute", net.add("Conv2D", start, kernel=(1, 1, 3, 2)), dims=(2, 1, 3))
    return net.model(means, wide, tops, moved)


@needs_litert
def test_layers_that_training_left_float():
    from ai_edge_litert.interpreter import Interpreter

    model = of_layers_in_float()
    bundle = quantize_model(model)
    inputs = consumers.integers_on_the_grid(bundle.program, 1)
    found = Interpreter(model_content=content(model)).get_signature_runner()(**inputs)
    expected = qmath.run(model, inputs, profile="exact").outputs
    assert len(found) == 4
    tensors = [tensor.name for tensor in held(model).tensors]
    assert len(set(tensors)) == len(tensors)
    for layer, step in zip(model.graph.outputs, bundle.program.outputs, strict=True):
        params = bundle.program.quant_params.get(step)
        tolerance = 1e-5 if params is None else 1.01 * params.scale
        np.testing.assert_allclose(found[layer], expected[step], rtol=1e-5, atol=tolerance)


@needs_litert
def test_functions_at_the_end_are_float():
    from ai_edge_litert.interpreter import Interpreter

    model = qdq_networks.of_every_layer()
    bundle = quantize_model(model)
    inputs = consumers.integers_on_the_grid(bundle.program, 1)
    found = Interpreter(model_content=content(model)).get_signature_runner()(**inputs)
    expected = qmath.run(model, inputs, profile="exact").outputs
    floats = {step.name for step in bundle.program.steps if isinstance(step, FloatStep)}
    assert found.keys() == expected.keys() <= floats
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], atol=0.3)  # a step of their input


# tflite-micro has no CONV_3D.
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "volumes"])
def test_tflite_micro_computes_what_is_predicted(name: str):
    pytest.importorskip("tflite_micro", reason="the extra reference is not installed")
    bundle = quantize_model(network(name))
    assert_predicted(consumers.compared(bundle, "tflite-micro"))


@pytest.mark.parametrize("source", SAMPLES)
def test_vela_places_every_operator(source: str, tmp_path: Path):
    pytest.importorskip("ethosu.vela", reason="the extra reference is not installed")
    pytest.importorskip("h5py")
    path = tmp_path / "m.tflite"
    qmath.export(f"reference/samples/{source}.h5", path, io="int8")
    left, placed = consumers.npu_operators(path, tmp_path / "vela")
    assert left == 0
    assert placed == 3
