"""The QONNX format: executed by the qonnx package, equal to the profile `exact`."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import numpy as np
import pytest

import qmath
from qmath import FileFormatError, OutputError, QatModel
from qmath.errors import MissingExtraError
from qmath.exports.bundle import quantize_model
from qmath.exports.onnx.qonnx import Qonnx
from qmath.integer.comparison import compare
from qmath.integer.profiles.exact import Exact
from tests.exports import networks
from tests.exports.models import WIDTHS
from tests.exports.qdq_networks import of_every_layer, of_shared_layers, of_width
from tests.exports.test_onnx import (
    SAMPLES,
    changed,
    find,
    images,
    in_onnx_order,
    names,
    onnx,
)  # fmt: skip
from tests.helpers import assert_same_bits, halved, read_npz

BATCH = 4


def written(model, signed=True, **options) -> bytes:
    file = io.BytesIO()
    Qonnx(**options).write(quantize_model(model, signed=signed), file)
    return file.getvalue()


def execute(data: bytes, inputs) -> dict[str, np.ndarray]:
    """Return every tensor that the qonnx package computes."""
    pytest.importorskip("qonnx", reason="no qonnx for this Python")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    model = ModelWrapper(onnx.load_from_string(data)).transform(InferShapes())
    given = {names(data)["inputs"][name]: x for name, x in inputs.items()}
    return dict(execute_onnx(model, given, return_full_exec_context=True))


def integers(data: bytes, tensors, model) -> dict[str, np.ndarray]:
    """Return the unsigned integers of every quantized tensor, channels last."""
    found = {}
    program = quantize_model(model).program
    for step, each in names(data)["integers"].items():
        real = tensors[each["name"]]
        params = program.step(step).params
        count = np.rint(real.astype(np.float64) / params.scale) + params.zero_point
        found[step] = np.moveaxis(count, 1, -1) if each["channels_first"] else count
    return found


@pytest.mark.parametrize(
    ("num_bits", "per_axis", "signed"), halved(WIDTHS, [True, False], [True, False])
)
def test_every_width(num_bits, per_axis, signed):
    network = of_width(num_bits, per_axis)
    data = written(network, signed, batch=BATCH)
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto)
    inputs = images(network, BATCH)
    tensors = execute(data, inputs)
    for kernel in ("conv/kernel", "dw/depthwise_kernel", "dense/kernel"):
        layer = kernel.partition("/")[0]
        q = network.tensors[kernel].quantize(signed=signed)
        expected = np.ascontiguousarray(in_onnx_order(q.dequantize(), layer))
        assert_same_bits(tensors[f"{kernel}/quantized"], expected, kernel)
        node = find(proto.graph.node, f"{kernel}/quantized")
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        assert (settings["signed"], settings["narrow"]) == (signed, q.narrow_range)
        assert tensors[node.input[3]] == num_bits
        # What QONNX counts, too, is within the width that the node tells.
        count = np.rint(expected.astype(np.float64) / tensors[node.input[1]])
        count += tensors[node.input[2]]
        low = -(2 ** (num_bits - 1)) + q.narrow_range if signed else 0
        assert count.min() >= low
        assert count.max() <= low + 2**num_bits - 1 - q.narrow_range
    found = compare(
        quantize_model(network).program, inputs, Exact(), integers(data, tensors, network)
    )
    assert len(found.layers) == 4
    given, *others = found.layers
    # At 16 bits, TensorFlow's own float32 arithmetic decides where an input is near a tie.
    assert given.teacher_forced <= (1 if num_bits == 16 else 0)
    assert all(layer.explained for layer in others)
    if num_bits <= 8:
        assert sum(layer.free_running for layer in found.layers) == 0
        outputs = qmath.run(network, inputs, profile="exact").outputs
        assert_same_bits(tensors["dense"].astype(np.float32), outputs["dense/output"])


def relu6(high: float) -> QatModel:
    """Return a convolution, and a ReLU6 whose quantizer ends at `high`."""
    net = networks.Network(4, 3, 2, seed=4)
    net.add("Conv2D", kernel=(3, 3, 2, 3))
    net.add("ReLU", max_value=6.0, ends=(0.0, high))
    net.add("Conv2D", kernel=(1, 1, 3, 2), activation="relu6", ends=(0.0, high))
    return net.model()


@pytest.mark.parametrize(("high", "clips"), [(5.5, 0), (6.0, 0), (6.003, 0), (6.01, 2), (6.5, 2)])
def test_a_quantizer_needs_no_clip_before_it(high, clips):
    network = relu6(high)
    data = written(network, batch=64)
    ops = [node.op_type for node in onnx.load_from_string(data).graph.node]
    assert ops.count("Clip") == clips
    inputs = images(network, 64)
    found = integers(data, execute(data, inputs), network)
    expected = qmath.run(network, inputs, profile="exact").integers
    assert len(found) == 3
    for step, array in found.items():
        np.testing.assert_array_equal(array, expected[step])
        assert array.max() == (235 if high == 6.5 and "quantize" not in step else 255)


def test_biases_are_nodes_of_their_own(tmp_path):
    network = networks.images()
    data = written(network)
    nodes = onnx.load_from_string(data).graph.node
    assert {len(node.input) for node in nodes if node.op_type.startswith("Conv")} == {2}
    (tmp_path / "m.qonnx").write_bytes(data)
    with open(tmp_path / "m.qonnx", "rb") as file:
        _, arrays = Qonnx().read(file)
    for name, tensor in network.tensors.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(arrays[name], tensor.values)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_range_analysis_of_qonnx_runs(name, tmp_path):
    pytest.importorskip("h5py")
    analysis = pytest.importorskip("qonnx.util.range_analysis", reason="no qonnx for this Python")
    qmath.export(f"reference/samples/{name}.h5", tmp_path / "m.qonnx")
    ranges = analysis.range_analysis(
        str(tmp_path / "m.qonnx"), irange=(0.0, 1.0), report_mode="range"
    )
    assert "dense/post_activation" in ranges


def test_halves_are_rounded_up():
    network = of_every_layer(9.0)  # with many ties
    inputs = images(network, BATCH)
    program = quantize_model(network).program
    data = written(network, batch=BATCH)
    tensors = execute(data, inputs)
    found = compare(program, inputs, Exact(), integers(data, tensors, network))
    assert sum(layer.free_running for layer in found.layers) == 0
    expected = qmath.run(network, inputs, profile="exact").outputs
    for name, array in expected.items():
        # Exponentials differ in their last bits.
        np.testing.assert_allclose(tensors[name], array, rtol=1e-5, atol=1e-7)
    data = written(network, batch=BATCH, rounding="ROUND")
    found = compare(program, inputs, Exact(), integers(data, execute(data, inputs), network)).layers
    assert [layer.name for layer in found if layer.teacher_forced] == ["joined/output"]
    assert all(layer.explained for layer in found)


@pytest.mark.parametrize("name", ["images", "branches", "signals"])
def test_more_layers(name):
    network = getattr(networks, name)()
    inputs = images(network, 1)
    data = written(network)
    found = compare(
        quantize_model(network).program, inputs, Exact(),
        integers(data, execute(data, inputs), network),
    )  # fmt: skip
    assert all(layer.explained for layer in found.layers)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name, tmp_path):
    pytest.importorskip("h5py")
    path = f"reference/samples/{name}.h5"
    qmath.export(path, tmp_path / "o.qonnx", batch=50)
    assert qmath.verify(path, tmp_path / "o.qonnx").ok
    data = (tmp_path / "o.qonnx").read_bytes()
    pictures = read_npz("reference/samples/digits_test.npz")["images"][:50].astype(np.float32)
    expected = qmath.run(path, pictures, profile="exact")
    tensors = execute(data, dict.fromkeys(names(data)["inputs"], pictures))
    for output, array in zip(names(data)["outputs"], expected.outputs.values(), strict=True):
        np.testing.assert_array_equal(tensors[output], array)
    model = qmath.load(path)
    found = integers(data, tensors, model)
    assert len(found) >= 4
    for step, array in found.items():
        np.testing.assert_array_equal(array, expected.integers[step])


def test_shared_layers_and_scales_along_the_inputs():
    network = of_shared_layers()
    inputs = images(network, 1)
    data = written(network)
    found = integers(data, execute(data, inputs), network)
    expected = qmath.run(network, inputs, profile="exact").integers
    assert found.keys() == expected.keys()
    for step, array in found.items():
        np.testing.assert_array_equal(array, expected[step])


def test_a_channel_of_zeros():
    network = of_width(8, True)
    tensor = network.tensors["conv/kernel"]
    values, low, high = (np.array(x) for x in (tensor.values, tensor.min, tensor.max))
    values[..., 1] = low[1] = high[1] = 0
    kernel = replace(tensor, values=values, min=low, max=high)
    network = replace(network, tensors={**network.tensors, "conv/kernel": kernel})
    inputs = images(network, 1)
    data = written(network)
    found = integers(data, execute(data, inputs), network)
    expected = qmath.run(network, inputs, profile="exact").integers
    for step, array in found.items():
        np.testing.assert_array_equal(array, expected[step])


def test_equal_models_give_equal_bytes():
    assert written(of_every_layer()) == written(of_every_layer())


@pytest.mark.parametrize("options", [{}, {"layouts": ["OHWI", "MHWI", "OI"]}, {"signed": False}])
def test_verify_reads_what_is_in_the_graph(options, tmp_path):
    network = of_every_layer()
    bundle = qmath.export(network, tmp_path / "o.qonnx", **options)
    with open(tmp_path / "o.qonnx", "rb") as file:
        manifest, arrays = Qonnx().read(file)
    expected = dict(bundle.arrays())
    in_graph = {name for name, entry in manifest["tensors"].items() if "dtype" in entry}
    narrow = {"groups/kernel", "dilated/depthwise_kernel", "signal/kernel"}  # see the module
    assert in_graph - (set() if options.get("signed", True) else narrow) <= arrays.keys()
    for key, array in arrays.items():
        assert array.dtype == expected[key].dtype
        np.testing.assert_array_equal(array, expected[key])
    assert qmath.verify(network, tmp_path / "o.qonnx").ok


def test_verify_reads_scales_that_repeat_for_each_input_channel(tmp_path):
    network = networks.Network(5, 4, 3)
    network.add("DepthwiseConv2D", kernel=(2, 2, 3, 2), ends=(-9.0, 9.0))
    model = network.model()
    qmath.export(model, tmp_path / "m.qonnx")
    assert qmath.verify(model, tmp_path / "m.qonnx").ok


def test_verify_finds_changes(tmp_path):
    network = of_every_layer()
    data = written(network)

    def weight(proto):
        tensor = find(proto.graph.initializer, "groups/kernel")
        values = np.frombuffer(tensor.raw_data, np.float32).copy()
        values[0] += np.frombuffer(
            find(proto.graph.initializer, "groups/kernel.scale").raw_data, np.float32
        )[0]
        tensor.raw_data = values.tobytes()

    def bits(proto):
        find(proto.graph.initializer, "groups/kernel/quantized/bitwidth").raw_data = bytes(4)

    def rounding(proto):
        node = find(proto.graph.node, "sum/output")
        find(node.attribute, "rounding_mode").s = b"FLOOR"

    for change, word in (
        (weight, "groups/kernel[0, 0, 0, 0]"),
        (bits, "initializer groups/kernel/quantized/bitwidth of the graph"),
        (rounding, "node sum/output of the graph"),
    ):
        (tmp_path / "o.qonnx").write_bytes(changed(data, change))
        differences = qmath.verify(network, tmp_path / "o.qonnx").differences
        assert any(word in line for line in differences), differences


def test_damaged_scales_are_refused():
    data = written(of_every_layer())

    def nothing(proto):
        tensor = find(proto.graph.initializer, "groups/kernel.scale")
        tensor.raw_data = bytes(len(tensor.raw_data))

    def wider(proto):
        tensor = find(proto.graph.initializer, "groups/kernel.scale")
        del tensor.dims[:]
        tensor.dims.extend([6, 1, 1, 1, 1])

    for change in (nothing, wider):
        with pytest.raises(FileFormatError, match="groups/kernel"):
            Qonnx().read(io.BytesIO(changed(data, change)))


@pytest.mark.parametrize("options", [{"rounding": "UP"}, {"batch": 0}, {"batch": "1"}])
def test_options_are_checked(options, tmp_path):
    with pytest.raises(OutputError, match=r"is not (one of HALF_UP, ROUND|1 to )"):
        qmath.export(of_width(4, True), tmp_path / "o.qonnx", **options)


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"format 'qonnx' needs onnx.*qmath-tfmot\[onnx\]"):
        qmath.export(of_width(4, True), tmp_path / "o.qonnx")
