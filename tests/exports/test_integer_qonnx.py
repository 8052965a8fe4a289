"""QONNX of integers alone: what the qonnx package computes is what the profile `integer` does."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath import OutputError
from qmath.exports.bundle import quantize_model
from qmath.exports.onnx.fixed_types import fixed_type, scaling
from qmath.exports.onnx.qonnx import Qonnx
from qmath.integer.profiles.fixed import constants
from qmath.integer.program import QuantizeStep
from tests.exports import integer_networks, networks
from tests.exports.qdq_networks import of_every_layer, of_shared_layers, of_width
from tests.exports.test_onnx import changed, find, images, onnx
from tests.exports.test_qonnx import execute

BATCH = 4
NETWORKS = {
    "straight": integer_networks.straight(),
    "residual": integer_networks.residual(),
    "signals": networks.signals(),
    "combinations": networks.combinations(),
    "shared": of_shared_layers(),
    **{f"w{bits}": of_width(bits, True) for bits in (2, 4, 8)},
}


def written(model, multiplier_bits=8, **options) -> bytes:
    file = io.BytesIO()
    bundle = quantize_model(model, multiplier_bits=multiplier_bits)
    Qonnx(arithmetic="integer", **options).write(bundle, file)
    return file.getvalue()


def exported(data: bytes) -> dict:
    (entry,) = onnx.load_from_string(data).metadata_props
    return json.loads(entry.value)["export"]


def given(model, export, integers) -> dict[str, np.ndarray]:
    """Return the integers of each input of the model, as floats."""
    steps = quantize_model(model).program.steps
    first = {s.source: s.name for s in steps if isinstance(s, QuantizeStep)}
    return {name: integers[first[name]].astype(np.float32) for name in export["names"]["inputs"]}


def differences(model, data: bytes, multiplier_bits: int) -> list[int]:
    """Return by how much each integer differs that the qonnx package computes."""
    export = exported(data)
    run = qmath.run(
        model, images(model, BATCH), profile="integer", multiplier_bits=multiplier_bits
    )  # fmt: skip
    tensors = execute(data, given(model, export, run.integers))
    found = []
    for step, each in export["names"]["integers"].items():
        array = tensors[each["name"]]
        array = np.moveaxis(array, 1, -1) if each["channels_first"] else array
        found += np.abs(array - run.integers[step].astype(np.int64)).ravel().tolist()
    assert len(found) > 50
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_integer_is_that_of_the_profile(name):
    model = NETWORKS[name]
    data = written(model, batch=BATCH)
    onnx.checker.check_model(onnx.load_from_string(data))
    assert not any(differences(model, data, 8))  # whose products float32 holds


def test_wide_multipliers_have_the_bits_that_float32_holds():
    model = NETWORKS["signals"]
    data = written(model, 31, batch=BATCH)
    assert exported(data)["multiplier_bits"] == 24
    found = differences(model, data, 24)
    assert max(found) <= 1  # near ties, where the product is rounded to float32
    assert sum(found) < 0.05 * len(found)


def test_a_table_between_layers_is_refused_by_name():
    said = r"dense15/output: .* it follows activation13/output, which has none"
    with pytest.raises(OutputError, match=said.replace(" .* ", r".*\(")):
        written(networks.images(), 16)


@pytest.mark.parametrize("bits", [12, 16])
def test_a_leaky_relu_is_two_parts(bits):
    data = written(integer_networks.leaky(), bits, batch=BATCH)
    assert not any(differences(integer_networks.leaky(), data, bits))


@pytest.mark.parametrize("name", ["straight", "residual", "w4"])
def test_all_is_integer(name):
    proto = onnx.load_from_string(written(NETWORKS[name]))
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    quants = [node for node in proto.graph.node if node.op_type == "Quant"]
    assert len(quants) > 5
    for node in quants:
        assert (held[node.input[1]], held[node.input[2]]) == (1, 0)
        if node.input[0] in held:
            values = held[node.input[0]]
            np.testing.assert_array_equal(values, np.rint(values))
    floors = {node.name: find(node.attribute, "rounding_mode").s for node in quants}
    program = quantize_model(NETWORKS[name]).program
    for step in program.quantized:
        if step.name in floors:
            expected = b"ROUND" if isinstance(step, QuantizeStep) else b"FLOOR"
            assert floors[step.name] == expected


@pytest.mark.parametrize("name", ["straight", "residual", "w4"])
def test_the_tools_of_qonnx_run(name):
    pytest.importorskip("qonnx", reason="no qonnx for this Python")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.inference_cost import inference_cost
    from qonnx.util.range_analysis import range_analysis

    data, program = written(NETWORKS[name]), quantize_model(NETWORKS[name]).program
    highest = 2.0 ** program.quantized[0].params.num_bits - 1
    ranges = range_analysis(
        ModelWrapper(onnx.load_from_string(data)), irange=(0.0, highest), report_mode="range"
    )
    ends = {each["name"]: (0, 2 ** program.step(step).params.num_bits - 1)
            for step, each in exported(data)["names"]["integers"].items()}  # fmt: skip
    assert len(ends) >= 4
    for key, (low, high) in ends.items():
        assert np.min(ranges[key][0]) >= low
        assert np.max(ranges[key][1]) <= high
    cost = inference_cost(ModelWrapper(onnx.load_from_string(data)))["total_cost"]
    assert cost["unsupported"] == "set()"
    products = [key for key in cost if key.startswith("op_mac")]
    assert products
    assert not any("FLOAT" in key for key in products)


@pytest.mark.parametrize("name", ["straight", "residual", "leaky"])
def test_the_types_are_those_of_the_layers_that_hls4ml_sees(name):
    pytest.importorskip("qonnx", reason="no qonnx for this Python")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.util.cleanup import cleanup_model

    model = getattr(integer_networks, name)()
    data = written(model, 12, batch=BATCH)
    export = exported(data)
    graph = cleanup_model(ModelWrapper(onnx.load_from_string(data)))
    graph = cleanup_model(graph.transform(ConvertToChannelsLastAndClean()))
    run = qmath.run(model, images(model, BATCH), profile="integer", multiplier_bits=12)
    integers = given(model, export, run.integers)
    inputs = [info.name for info in graph.graph.input]
    tensors = execute_onnx(
        graph, dict(zip(inputs, integers.values(), strict=True)), return_full_exec_context=True
    )
    outputs = {node.name: node.output[0] for node in graph.graph.node}
    outputs |= {name: name for name in inputs}
    assert len(export["hls4ml"]) > 10
    for layer, types in export["hls4ml"].items():
        width, whole = map(int, types["result"].partition("<")[2][:-1].split(","))
        values = np.ldexp(np.float64(tensors[outputs[layer]]), width - whole)
        signed = types["result"].startswith("ap_fixed")
        assert (values == np.rint(values)).all(), layer
        assert values.min() >= (-(2.0 ** (width - 1)) if signed else 0), layer
        assert values.max() < 2.0 ** (width - signed), layer


def test_every_input_has_its_type():
    types = exported(written(NETWORKS["shared"]))["hls4ml"]
    assert [types[name]["result"] for name in ("global_in", "global_in_1")] == [
        "ap_ufixed<8,8>"
    ] * 2


def test_what_follows_the_last_integers_is_left():
    names = exported(written(NETWORKS["residual"]))["names"]
    assert names["left"] == ["activation10"]
    assert names["outputs"] == ["dense9/output"]
    assert "left" not in exported(written(NETWORKS["straight"]))["names"]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (networks.images(), r"leakyrelu6/output.*a leaky ReLU.*too narrow multipliers.*mem or c"),
        (networks.functions(), r"prelu3/output.*a leaky ReLU of a negative slope"),
        (of_every_layer(), r"sum: arithmetic=integer has no form of it"),
        (of_width(16, False), r"conv/output: its bias.*24 bits"),
    ],
)
def test_what_has_no_form_is_refused(model, said):
    with pytest.raises(OutputError, match=said):
        written(model)


def test_verify_reads_it(tmp_path):
    path, model = tmp_path / "m.qonnx", NETWORKS["residual"]
    qmath.export(model, path, arithmetic="integer", multiplier_bits=16)
    assert qmath.verify(model, path).ok

    def weight(proto):
        tensor = find(proto.graph.initializer, "conv2d2/kernel/integers")
        values = np.frombuffer(tensor.raw_data, np.float32).copy()
        values[0] += 1
        tensor.raw_data = values.tobytes()

    path.write_bytes(changed(path.read_bytes(), weight))
    assert any("conv2d2/kernel/integers" in line for line in qmath.verify(model, path).differences)


def test_the_manifest_is_as_its_schema_says():
    schema = json.loads(Path("qmath/exports/manifest.schema.json").read_text(encoding="utf-8"))
    validate = pytest.importorskip("jsonschema").validate
    (entry,) = onnx.load_from_string(written(NETWORKS["residual"])).metadata_props
    validate(json.loads(entry.value), schema)


@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("name", ["residual", "signals", "w8"])
def test_the_constants_are_those_of_the_integer_model(name, bits):
    program = quantize_model(NETWORKS[name]).program
    for step, (fixed, *_) in constants(program, bits).items():
        zero_point = program.quant_params[step].zero_point
        found = scaling(fixed, zero_point)
        shape = np.broadcast_shapes(*(m.shape for m in fixed.multipliers), fixed.shift.shape)
        shift, addend = (np.broadcast_to(x, shape).ravel() for x in (fixed.shift, fixed.addend))
        total = np.broadcast_to(found.rest, shape)
        for multiplier, bias, given in zip(
            found.multipliers, found.biases, fixed.multipliers, strict=True
        ):
            total = total + multiplier * bias
            whole = np.broadcast_to(multiplier, shape).ravel()
            scaled = [m * 2 ** int(s) for m, s in zip(whole, shift, strict=True)]
            assert scaled == np.broadcast_to(given, shape).ravel().tolist()
        expected = [Fraction(int(a), 2 ** int(s)) + zero_point
                    for a, s in zip(addend, shift, strict=True)]  # fmt: skip
        assert np.ravel(total).tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0], "ap_ufixed<1,1>"),
        ([1], "ap_ufixed<1,1>"),
        ([255], "ap_ufixed<8,8>"),
        ([-1], "ap_fixed<1,1>"),
        ([-128, 127], "ap_fixed<8,8>"),
        ([-129], "ap_fixed<9,9>"),
        ([-1, Fraction(1, 2)], "ap_fixed<2,1>"),
        ([Fraction(-5, 8), 1], "ap_fixed<5,2>"),
        ([Fraction(3, 64)], "ap_ufixed<2,-4>"),
    ],
)
def test_types_hold_the_numbers_and_no_more(values, expected):
    assert fixed_type(np.array([Fraction(v) for v in values], object)) == expected
