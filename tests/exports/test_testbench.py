import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath import Graph, QatModel
from qmath.exports.bundle import quantize_model
from tests.exports import networks
from tests.exports.integer_networks import of_powers_of_two
from tests.exports.memory_readers import needs_simulator, simulated
from tests.exports.models import STRANGE_NAMES, WIDTHS
from tests.helpers import halved

pytestmark = [needs_simulator, pytest.mark.once]
OTHERWISE = {"signed": False, "per_word": 5, "layouts": ["OHWI", "OI"]}


def layers(bits=8, weight_bits=8, per_axis=True, **more):
    """Return a convolution, a grouped and a depthwise one, and dense layers."""
    net = networks.Network(5, 6, 3, bits=bits, weight_bits=weight_bits, **more)
    first = net.add("Conv2D", kernel=(3, 2, 3, 4), padding="same", strides=(2, 1),
                    per_axis=per_axis, activation="relu", ends=(0.0, 6.0))  # fmt: skip
    net.add("Conv2D", kernel=(2, 3, 2, 4), padding="same", dilation_rate=(1, 2), groups=2,
            per_axis=per_axis, ends=(-7.0, 6.0))  # fmt: skip
    net.add("Add", net.nodes[-1].name, first, ends=(-8.0, 12.0))
    net.add("DepthwiseConv2D", kernel=(3, 3, 4, 2), per_axis=per_axis, padding="same")
    net.add("LeakyReLU", alpha=0.25, ends=(-3.0, 9.0))
    net.add("Dense", kernel=(8, 5), per_axis=per_axis, ends=(-9.0, 9.0))
    net.add("Flatten")
    net.add("Dense", kernel=(90, 3), per_axis=per_axis, ends=(-90.0, 90.0))
    return net.model()


def run(folder):
    """Simulate every testbench of a folder, and return what each prints, by its name."""
    return {tb.stem: simulated(folder, tb) for tb in sorted(folder.glob("*.v"))}


def assert_all_pass(folder, bundle, count):
    results = run(folder)
    assert len(results) == count
    for name, output in results.items():
        assert output.startswith("PASS"), (name, output)
    sizes = {int(output.split()[-2]) for output in results.values()}
    assert sizes <= {array.size for key, array in bundle.vectors.items()}


@pytest.mark.parametrize(
    ("bits", "per_axis", "options"), halved(WIDTHS, [True, False], [{}, OTHERWISE])
)
def test_every_width(tmp_path, bits, per_axis, options):
    model = layers(bits, bits, per_axis)
    bundle = qmath.export(model, tmp_path / "o.mem", **options)
    assert_all_pass(tmp_path / "o.mem", bundle, 5)
    assert qmath.verify(model, tmp_path / "o.mem").ok


@pytest.mark.parametrize("bits", [8, 31])
def test_a_layer_of_shifts_alone_has_no_multiplier(tmp_path, bits):
    model, folder = of_powers_of_two(), tmp_path / "o.mem"
    bundle = qmath.export(model, folder, multiplier_bits=bits)
    text = (folder / "conv2d2_output_tb.v").read_text()
    assert "shift_only_bias" in text
    assert "multiplier.mem" not in text
    assert_all_pass(folder, bundle, 1)
    assert qmath.verify(model, folder).ok
    source = bundle.constants["conv2d2/output.shift_only.bias"]
    changed = (folder / "conv2d2_output_shift_only_bias.mem").read_text().splitlines()
    assert len(changed) == len(source) + 3
    (folder / "conv2d2_output_shift_only_bias.mem").write_text("0\n0\n0\n")
    (said,) = run(folder).values()
    assert "FAIL conv2d2/output" in said


def test_products_in_a_sum_of_several_terms(tmp_path):
    model = networks.branches()
    bundle = qmath.export(model, tmp_path / "o.hex", vectors=3)
    kinds = [[op["kind"] for op in term["ops"]] for step in bundle.manifest["program"]["steps"]
             for term in step.get("terms", ())]  # fmt: skip
    assert ["conv2d"] in kinds
    assert_all_pass(tmp_path / "o.hex", bundle, 1)


@pytest.mark.parametrize("bits", [4, 16])
def test_one_dimension(tmp_path, bits):
    bundle = qmath.export(networks.signals(bits=bits, weight_bits=5), tmp_path / "o.mem")
    assert_all_pass(tmp_path / "o.mem", bundle, 2)


def test_what_runs_in_float_has_none(tmp_path):
    bundle = qmath.export(networks.float_layers(), tmp_path / "o.mem")
    steps = bundle.manifest["program"]["steps"]
    weighted = [s["name"] for s in steps if any(t["ops"] for t in s.get("terms", ()))]
    assert len(weighted) < len(steps)
    assert_all_pass(tmp_path / "o.mem", bundle, len(weighted))


@pytest.mark.parametrize("name", ["default8", "integer4", "nbit4", "question"])
def test_samples(tmp_path, name):
    bundle = qmath.export(f"reference/samples/{name}.h5", tmp_path / "o.mem")
    count = 0 if bundle.program is None else 3
    assert_all_pass(tmp_path / "o.mem", bundle, count)


@pytest.mark.parametrize(
    "memory",
    ["conv2d2_kernel", "conv2d2_output_multiplier", "conv2d2_output_addend", "conv2d2_output_low",
     "directed_conv2d2_output_expected", "directed_conv2d2_output_input_0",
     "conv2d2_kernel_zero_point"],
)  # fmt: skip
def test_a_changed_word_fails(tmp_path, memory):
    qmath.export(layers(), tmp_path / "o.mem", vectors=2)
    (path,) = (tmp_path / "o.mem").glob(f"{memory}.mem")
    text = path.read_text()
    *lines, last = text.splitlines()
    path.write_text("\n".join([*lines, "0" if int(last, 16) else "1", ""]))
    (testbench,) = (tmp_path / "o.mem").glob("conv2d2_output_tb.v")
    output = simulated(tmp_path / "o.mem", testbench)
    assert "FAIL conv2d2/output" in output
    assert output.startswith("vector ")
    path.write_text(text)
    assert simulated(tmp_path / "o.mem", testbench).startswith("PASS")


def test_a_missing_word_fails(tmp_path):
    qmath.export(layers(), tmp_path / "o.mem")
    path = tmp_path / "o.mem/directed_conv2d2_output_expected.mem"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], "xx", ""]))
    output = simulated(tmp_path / "o.mem", tmp_path / "o.mem/conv2d2_output_tb.v")
    assert "FAIL conv2d2/output: 1 integers differ" in output


def renamed(model, names):
    """Return a model whose layers have other names."""

    def new(name):
        layer, slash, rest = name.partition("/")
        return names[layer] + slash + rest

    nodes = tuple(
        replace(
            node, name=names[node.name], layer=names[node.layer],
            inputs=tuple(names[name] for name in node.inputs),
        )
        for node in model.graph.nodes
    )  # fmt: skip
    graph = Graph(
        nodes, *(tuple(map(names.get, ends)) for ends in (model.graph.inputs, model.graph.outputs))
    )
    tensors = {new(name): replace(tensor, name=new(name)) for name, tensor in model.tensors.items()}
    return QatModel(tensors, graph, source=model.source)


def test_strange_names(tmp_path):
    model = layers()
    odd = [name for name in STRANGE_NAMES if name] + ['%d%s"', "back\\slash\\"]
    names = {node.name: odd[-1 - i] for i, node in enumerate(model.graph.nodes)}
    bundle = qmath.export(renamed(model, names), tmp_path / "o.mem")
    assert_all_pass(tmp_path / "o.mem", bundle, 5)


def test_the_pages_code_reads_a_memory(tmp_path):
    qmath.export("reference/samples/default8.h5", tmp_path / "o.mem")
    page = Path("docs/memories.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```verilog\n(.*?)^```$", page, re.M | re.S)
    source = tmp_path / "page.v"
    shown = 'initial #1 $display("%0d %0d", kernel[0], kernel[143]);'
    source.write_text(f"module page;\n{code}{shown}\nendmodule\n")
    kernel = quantize_model(qmath.load("reference/samples/default8.h5")).tensors["conv1/kernel"]
    first, last = kernel.values.ravel()[[0, -1]]
    assert simulated(tmp_path / "o.mem", source) == f"{first} {last}\n"
    (command,) = re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)
    done = subprocess.run(
        command, shell=True, cwd=tmp_path / "o.mem", capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("PASS conv1/post_activation")


def test_without_directed_vectors_those_of_the_whole_model_are_read(tmp_path):
    bundle = qmath.export(layers(), tmp_path / "o.mem", vectors=2, vector_bytes=0)
    assert not list((tmp_path / "o.mem").glob("directed_*"))
    assert_all_pass(tmp_path / "o.mem", bundle, 5)


def test_without_vectors_there_are_none(tmp_path):
    qmath.export(layers(), tmp_path / "o.mem", vectors=0)
    assert not list((tmp_path / "o.mem").glob("*.v"))


def test_the_vectors_are_not_saturated():
    for bits in WIDTHS:
        for key, array in quantize_model(layers(bits, bits), vectors=9).vectors.items():
            assert np.unique(array).size > 2, (bits, key)
