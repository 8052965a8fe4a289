"""The ONNX format: read by onnx itself, run by ONNX Runtime, equal to the profile `exact`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import qmath
from qmath import FileFormatError, OutputError, QatModel
from qmath.errors import MissingExtraError
from qmath.exports.bundle import quantize_model
from qmath.exports.onnx.library import MANIFEST
from qmath.exports.onnx.qdq import Onnx
from qmath.integer.comparison import compare
from qmath.integer.profiles.exact import Exact
from tests.exports import networks
from tests.exports.models import WIDTHS, model
from tests.exports.qdq_networks import of_every_layer, of_shared_layers, of_width
from tests.helpers import assert_same_bits, halved, read_npz

onnx = pytest.importorskip("onnx", reason="no wheel of onnx for this Python")
NEWEST = onnx.defs.onnx_opset_version()
SAMPLES = ("default8", "nbit4")  # whose settings are in the file


def written(model: QatModel, signed: bool = True, **options) -> bytes:
    file = io.BytesIO()
    Onnx(**options).write(quantize_model(model, signed=signed), file)
    return file.getvalue()


def images(model: QatModel, count: int = 8) -> dict[str, np.ndarray]:
    """Return random data for each input, a little beyond its range."""
    rng = np.random.default_rng(5)
    program = quantize_model(model).program
    return {
        name: rng.uniform(-1.2, 1.7, (count, *shape)).astype(np.float32)
        for name, shape in program.inputs.items()
    }


def run(data: bytes, inputs, more=()):
    """Return what ONNX Runtime, its optimizer off, makes of each output, and of `more` tensors."""
    ort = pytest.importorskip("onnxruntime", reason="no wheel of onnxruntime for this Python")
    proto = onnx.load_from_string(data)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options)
    except Exception as error:
        if "opset" in str(error).lower():
            pytest.skip(f"this onnxruntime is older than the opset: {error}")
        raise
    return dict(
        zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True)
    )


def names(data: bytes) -> dict:
    (entry,) = onnx.load_from_string(data).metadata_props
    return json.loads(entry.value)["export"]["names"]


def integers(data: bytes, inputs) -> dict[str, np.ndarray]:
    """Return the integers that ONNX Runtime computes, by step, channels last."""
    named = names(data)
    given = {named["inputs"][name]: x for name, x in inputs.items()}
    found = run(data, given, [each["name"] for each in named["integers"].values()])
    return {
        step: np.moveaxis(found[each["name"]], 1, -1)
        if each["channels_first"]
        else found[each["name"]]
        for step, each in named["integers"].items()
    }


def in_onnx_order(values: np.ndarray, layer: str) -> np.ndarray:
    if layer == "dense":
        return values
    if layer == "dw":
        return values.reshape(*values.shape[:2], -1).transpose(2, 0, 1)[:, np.newaxis]
    return values.transpose(3, 2, 0, 1)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("num_bits", [2, 4, 8, 10])
def test_weights_are_int8_where_a_runtime_has_no_int4(num_bits, signed, tmp_path):
    network, path = of_width(num_bits, True), tmp_path / "m.onnx"
    qmath.export(network, path, signed=signed, weights="int8")
    proto = onnx.load(path)
    kinds = {
        onnx.TensorProto.DataType.Name(tensor.data_type).removeprefix("U")
        for tensor in proto.graph.initializer
        if tensor.name.endswith(("kernel", "kernel.zero_point"))
    }
    assert kinds == {"INT16" if num_bits > 8 else "INT8"}
    assert qmath.verify(network, path).ok
    inputs = images(network)
    plain = integers(written(network, signed), inputs)
    for step, array in integers(path.read_bytes(), inputs).items():
        np.testing.assert_array_equal(array, plain[step])


@pytest.mark.parametrize(
    ("num_bits", "per_axis", "signed", "opset"),
    halved(WIDTHS, [True, False], [True, False], [21, 25]),
)
def test_every_width(num_bits, per_axis, signed, opset):
    if opset > NEWEST:
        pytest.skip("this onnx is older than the opset")
    network = of_width(num_bits, per_axis)
    data = written(network, signed, opset=opset)
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto, full_check=True)
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    kernels = ("conv/kernel", "dw/depthwise_kernel", "dense/kernel")
    inputs = images(network)
    real = run(data, inputs, [f"{kernel}/dequantized" for kernel in kernels])
    narrowest = 2 if opset == 25 else 4
    width = next(w for w in (2, 4, 8, 16) if w >= max(num_bits, narrowest))
    for kernel in kernels:
        layer = kernel.partition("/")[0]
        q = network.tensors[kernel].quantize(signed=signed)
        kind = f"{'' if signed else 'U'}INT{width}"
        assert held[kernel].data_type == getattr(onnx.TensorProto, kind)
        stored = onnx.numpy_helper.to_array(held[kernel]).astype(np.int32)
        np.testing.assert_array_equal(stored, in_onnx_order(q.values, layer))
        expected = np.ascontiguousarray(in_onnx_order(q.dequantize(), layer))
        assert_same_bits(real[f"{kernel}/dequantized"], expected, kernel)
    found = compare(quantize_model(network).program, inputs, Exact(), integers(data, inputs))
    assert len(found.layers) == 4
    given, *others = found.layers
    # At 16 bits, TensorFlow's own float32 arithmetic decides where an input is near a tie.
    assert given.teacher_forced <= (1 if num_bits == 16 else 0)
    assert all(layer.explained for layer in others)
    if num_bits <= 8:
        assert sum(layer.free_running for layer in found.layers) == 0
        outputs = qmath.run(network, inputs, profile="exact").outputs
        assert_same_bits(real["dense"], outputs["dense/output"])


@pytest.mark.parametrize("fold", [False, True])
def test_every_layer(fold):
    network = of_every_layer()
    data = written(network, fold=fold)
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto, full_check=True)
    ops = [node.op_type for node in proto.graph.node]
    assert ops.count("BatchNormalization") == (0 if fold else 2)
    inputs = images(network)
    found = compare(quantize_model(network).program, inputs, Exact(), integers(data, inputs))
    assert sum(layer.free_running for layer in found.layers) == 0
    expected = qmath.run(network, inputs, profile="exact").outputs
    outputs = run(data, inputs)
    assert list(outputs) == list(expected) == ["sigmoid", "softmax", "tanh", "swish"]
    for name, array in outputs.items():
        # Exponentials differ in their last bits.
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "name",
    ["images", "convolutions", "branches", "signals", "combinations", "functions", "volumes"],
)
def test_more_layers(name, bits):
    network = getattr(networks, name)(bits=bits, weight_bits=bits)
    inputs = images(network)
    data = written(network)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    found = compare(quantize_model(network).program, inputs, Exact(), integers(data, inputs))
    # Their round ranges make many sums ties, which float32 decides.
    assert all(layer.explained for layer in found.layers)
    assert sum(layer.teacher_forced == 0 for layer in found.layers) >= len(found.layers) - 3


@pytest.mark.parametrize("fold", [False, True])
def test_shared_layers_and_scales_along_the_inputs(fold):
    network = of_shared_layers()
    inputs = images(network)
    data = written(network, fold=fold)
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto, full_check=True)
    assert sum(node.output[0] == "conv/kernel/dequantized" for node in proto.graph.node) == 1
    expected = qmath.run(network, inputs, profile="exact")
    found = integers(data, inputs)
    assert found.keys() == expected.integers.keys()
    for step, array in found.items():
        np.testing.assert_array_equal(array, expected.integers[step])
    given = {names(data)["inputs"][name]: x for name, x in inputs.items()}
    for output, array in zip(run(data, given).values(), expected.outputs.values(), strict=True):
        assert_same_bits(output, array)


def test_layers_that_training_left_float():
    network = networks.float_layers()
    inputs = images(network)
    data = written(network)
    found = compare(quantize_model(network).program, inputs, Exact(), integers(data, inputs))
    assert sum(layer.teacher_forced for layer in found.layers) == 0
    (output,) = run(data, inputs).values()
    (expected,) = qmath.run(network, inputs, profile="exact").outputs.values()
    np.testing.assert_allclose(output, expected, rtol=1e-5)


def test_quantize_linear_rounds_some_ties_down():
    network = of_every_layer(9.0)
    inputs = images(network)
    found = integers(written(network), inputs)
    layers = compare(quantize_model(network).program, inputs, Exact(), found).layers
    (layer,) = (layer for layer in layers if layer.teacher_forced)
    assert layer.name == "joined/output"
    assert layer.farthest_tie == 0
    assert all(each.value == each.reference + 1 for each in layer.differences)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name, fold, tmp_path):
    pytest.importorskip("h5py")
    path = f"reference/samples/{name}.h5"
    qmath.export(path, tmp_path / "o.onnx", fold=fold)
    assert qmath.verify(path, tmp_path / "o.onnx").ok
    data = (tmp_path / "o.onnx").read_bytes()
    pictures = read_npz("reference/samples/digits_test.npz")["images"][:50]
    expected = qmath.run(path, pictures, profile="exact")
    (output,) = run(data, dict.fromkeys(names(data)["inputs"].values(), pictures)).values()
    assert_same_bits(output, next(iter(expected.outputs.values())))
    found = integers(data, dict.fromkeys(names(data)["inputs"], pictures))
    assert len(found) >= 4
    for step, array in found.items():
        np.testing.assert_array_equal(array, expected.integers[step])


def test_a_batch_normalization_that_switches_a_channel_off_is_not_folded():
    network = of_every_layer()
    gamma = np.array(network.tensors["bn/gamma"].values)
    gamma[2] = 0
    tensors = {**network.tensors, "bn/gamma": replace(network.tensors["bn/gamma"], values=gamma)}
    proto = onnx.load_from_string(written(replace(network, tensors=tensors), fold=True))
    ops = [node.op_type for node in proto.graph.node]
    assert ops.count("BatchNormalization") == 1


def test_equal_models_give_equal_bytes():
    assert written(of_every_layer()) == written(of_every_layer())
    code = (
        "import hashlib; from tests.exports.test_onnx import *; "
        "print(hashlib.sha256(written(of_every_layer())).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        ).stdout
        for seed in "12"
    ]  # fmt: skip
    assert runs[0] == runs[1] != ""


@pytest.mark.parametrize(
    "layers",
    [
        ("a:0", "größe/日本", "b c/d", "while", "a:0/output"),
        # The input is called like a weight, a layer like what its quantizer makes.
        ("conv/kernel", "q", "conv", "conv/output/Clip", "conv/Conv"),
        ("x/dequantized", "x", "y.scale", "x.zero_point", "y"),
    ],
)
def test_any_names(layers, tmp_path):
    network = of_width(5, True, layers)
    data = written(network)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    inputs = images(network)
    expected = qmath.run(network, inputs, profile="exact")
    found = integers(data, inputs)
    assert found.keys() == {f"{layer}/output" for layer in layers[1:]}
    for step, array in found.items():
        np.testing.assert_array_equal(array, expected.integers[step])
    (tmp_path / "o.onnx").write_bytes(data)
    assert qmath.verify(network, tmp_path / "o.onnx").ok


@pytest.mark.parametrize("options", [{}, {"layouts": ["OHWI", "MHWI", "OI"]}, {"signed": False}])
@pytest.mark.parametrize("fold", [False, True])
def test_verify_reads_what_is_in_the_graph(options, fold, tmp_path):
    network = of_every_layer()
    bundle = qmath.export(network, tmp_path / "o.onnx", fold=fold, **options)
    with open(tmp_path / "o.onnx", "rb") as file:
        manifest, arrays = Onnx().read(file)
    expected = dict(bundle.arrays())
    in_graph = {name for name, entry in manifest["tensors"].items() if "dtype" in entry}
    if fold:
        in_graph = {name for name in in_graph if not name.startswith(("bn", "dilated/bias"))}
    assert in_graph <= arrays.keys() <= expected.keys()
    for key, array in arrays.items():
        assert array.dtype == expected[key].dtype
        np.testing.assert_array_equal(array, expected[key])
    assert manifest == {**bundle.manifest, "export": manifest["export"]}
    assert qmath.verify(network, tmp_path / "o.onnx").ok


def changed(data: bytes, change) -> bytes:
    proto = onnx.load_from_string(data)
    change(proto)
    return proto.SerializeToString()


def find(parts, name):
    return next(part for part in parts if part.name == name)


def test_verify_finds_every_change(tmp_path):
    network = of_every_layer()
    data = written(network)

    def weight(proto):
        tensor = find(proto.graph.initializer, "groups/kernel")
        tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]

    def scale(proto):
        find(proto.graph.initializer, "dense/kernel.scale").raw_data = np.float32(0.5).tobytes()

    def stride(proto):
        (attribute,) = (
            a for a in find(proto.graph.node, "signal/Conv").attribute if a.name == "strides"
        )
        attribute.ints[0] = 1

    def node(proto):
        proto.graph.node.pop()

    def more(proto):
        proto.graph.initializer.add(name="more", data_type=1, dims=[1], raw_data=bytes(4))

    def order(proto):
        nodes = list(proto.graph.node)
        del proto.graph.node[:]
        proto.graph.node.extend(nodes[::-1])

    def opset(proto):
        proto.opset_import[0].version = 22

    def manifest(proto):
        (entry,) = proto.metadata_props
        value = json.loads(entry.value)
        value["export"]["names"]["outputs"] = []
        entry.value = json.dumps(value)

    for change, word in (
        (weight, "groups/kernel[0, 0, 0, 0]"),
        (scale, "dense/kernel.scale"),
        (stride, "node signal/Conv of the graph"),
        (node, "of the graph: missing"),
        (more, "initializer more of the graph: unexpected"),
        (order, "order differs"),
        (opset, "opset"),
        (manifest, "what it says of the export"),
    ):
        (tmp_path / "o.onnx").write_bytes(changed(data, change))
        result = qmath.verify(network, tmp_path / "o.onnx")
        assert not result.ok
        assert any(word in line for line in result.differences), (word, result.differences)


def test_files_of_others_are_refused():
    data = written(of_width(4, True))

    def no_manifest(proto):
        del proto.metadata_props[:]

    def no_object(proto):
        proto.metadata_props[0].value = "[]"

    def size(proto):
        find(proto.graph.initializer, "conv/kernel").dims[0] = 1 << 40

    def kind(proto):
        find(proto.graph.initializer, "conv/kernel").data_type = onnx.TensorProto.STRING

    def outside(proto):
        find(proto.graph.initializer, "conv/kernel").external_data.add(key="location", value="/x")

    def entry(proto):
        value = json.loads(proto.metadata_props[0].value)
        value["tensors"]["conv/kernel"]["source_layout"] = 7
        proto.metadata_props[0].value = json.dumps(value)

    def twice(proto):
        proto.graph.initializer.append(proto.graph.initializer[0])

    for change in (no_manifest, no_object, size, kind, outside, entry, twice):
        with pytest.raises(FileFormatError):
            Onnx().read(io.BytesIO(changed(data, change)))
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(FileFormatError):
            Onnx().read(io.BytesIO(data[:length]))
    with pytest.raises(FileFormatError, match="no ONNX file"):
        Onnx().read(io.BytesIO(b"PK\3\4" * 100))


def test_models_without_a_network_are_refused(tmp_path):
    tensors = QatModel({"conv/kernel": model().tensors["conv/kernel"]}, source="weights.h5")
    with pytest.raises(OutputError, match=r"weights\.h5: the file holds no layers.*npz"):
        qmath.export(tensors, tmp_path / "o.onnx")
    with pytest.raises(OutputError, match="leaves its input's shape open"):
        qmath.export(model(), tmp_path / "o.onnx")
    with pytest.raises(OutputError, match="no test vectors; export them to npz"):
        qmath.export(of_width(4, True), tmp_path / "o.onnx", vectors=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"opset": 20}, {"opset": 26}, {"opset": "21"}, {"opset": True}, {"fold": 1}]
)
def test_options_are_checked(options, tmp_path):
    with pytest.raises(OutputError, match=r"is not (21 to 25|true or false)"):
        qmath.export(of_width(4, True), tmp_path / "o.onnx", **options)


def test_an_older_library_says_so(monkeypatch):
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 22)
    with pytest.raises(OutputError, match="knows opsets up to 22; update it"):
        written(of_width(2, True), opset=25)


def test_too_much_for_a_file(monkeypatch):
    monkeypatch.setattr("qmath.exports.onnx.library._LARGEST", 1000)
    with pytest.raises(OutputError, match="holds at most 1000; export to npz"):
        written(of_width(2, True))


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"format 'onnx' needs onnx.*qmath-tfmot\[onnx\]"):
        qmath.export(of_width(4, True), tmp_path / "o.onnx")
    with pytest.raises(MissingExtraError, match=r"qmath-tfmot\[onnx\]"):
        Onnx().read(io.BytesIO(b""))
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_fits_its_schema():
    jsonschema = pytest.importorskip("jsonschema")
    with open("qmath/exports/manifest.schema.json", encoding="utf-8") as file:
        schema = json.load(file)
    (entry,) = onnx.load_from_string(written(of_every_layer())).metadata_props
    assert entry.key == MANIFEST
    jsonschema.validate(json.loads(entry.value), schema)
