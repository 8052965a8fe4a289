import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

import qmath
from qmath import OutputError, QatModel, QatTensor, QuantSpec
from qmath.exports.bundle import quantize_model
from qmath.exports.c.exporter import C
from qmath.exports.c.lifetimes import segments
from qmath.exports.c.tensors import PACKINGS
from qmath.exports.writing import export
from qmath.integer.program import FloatStep
from qmath.kernels.quantized_tensor import QuantizedTensor
from tests.exports import c_reader, networks
from tests.exports.compiling import STRICT, compiled, needs_compiler, run
from tests.exports.models import every_width, model, strange_names
from tests.helpers import assert_same_bits

SAMPLES = "reference/samples"
QUESTION = {"MyConfig.activation": qmath.MovingAverageQuantizer(4, False, False, False)}
NETWORKS = {
    "images": networks.images(),
    "images of 4 and 6 bits": networks.images(bits=6, weight_bits=4),
    "images of 16 bits": networks.images(bits=16, weight_bits=16),
    "branches": networks.branches(),
    "branches of 3 bits": networks.branches(bits=3, weight_bits=3),
    "signals": networks.signals(bits=8, weight_bits=5),
    "float_layers": networks.float_layers(),
    "combinations": networks.combinations(),
    "combinations of 3 bits": networks.combinations(bits=3, weight_bits=3),
    "combinations of 16 bits": networks.combinations(bits=16, weight_bits=8),
    "convolutions": networks.convolutions(),
    "convolutions of 7 bits": networks.convolutions(bits=7, weight_bits=4),
    "functions": networks.functions(),
    "functions of 5 bits": networks.functions(bits=5, weight_bits=5),
    "volumes": networks.volumes(),
    "volumes of 5 bits": networks.volumes(bits=5, weight_bits=4),
}


@pytest.mark.once
@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"packing": "lsb", "layouts": ["OHWI"], "signed": False}])
def test_the_integer_model_compiles_and_gives_its_test_vectors(tmp_path, name, options):
    if "layouts" in options:
        layouts = {"signals": "OWI", "volumes": "OI HIOWD", "convolutions": "MIW"}.get(
            name.partition(" ")[0], "OHWI"
        )
        options = {**options, "layouts": layouts.split()}
    place = tmp_path / "out"
    bundle = export(NETWORKS[name], place, format="c", vectors=3, **options)
    results = [
        v for k, v in bundle.vectors.items() if k.startswith("vectors/") and v.dtype.kind == "u"
    ]
    assert all(np.unique(result).size > 2 for result in results)  # not saturated
    status, output = run(compiled(place))
    assert (status, output.split(":")[0]) == (0, "ok"), output
    assert output.endswith(", 3 test vectors\n")
    assert qmath.verify(NETWORKS[name], place).ok


def test_these_networks_have_every_kind_of_step():
    kinds = set()
    for of in NETWORKS.values():
        for step in quantize_model(of).manifest["program"]["steps"]:
            kinds.add(step["kind"])
            if "op" in step:
                kinds.add(step["op"].get("kind", "pool_max"))
            for term in step.get("terms", []):
                kinds |= {op["kind"] for op in term["ops"]}
    assert kinds == {
        "quantize", "requantize", "move", "table", "float", "pool_max", "reshape", "permute", "pad",
        "upsample", "crop", "broadcast", "multiply", "pool_min", "conv2d", "conv3d",
        "depthwise_conv2d", "conv2d_transpose", "dense", "pool_sum", "bilinear",
    }  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("sample", ["default8", "nbit4", "question", "integer4"])
def test_samples_check_themselves(tmp_path, sample):
    pytest.importorskip("h5py")
    place = tmp_path / "out"
    told = QUESTION if sample == "question" else None
    model = qmath.load(f"{SAMPLES}/{sample}.h5", told)
    bundle = export(model, place, format="c")
    status, output = run(compiled(place))
    assert status == 0, output
    assert output.startswith("ok")
    assert ("2 test vectors" in output) == (bundle.program is not None)
    assert qmath.verify(f"{SAMPLES}/{sample}.h5", place).ok


@pytest.mark.once
@needs_compiler
@pytest.mark.parametrize("options", [(), ("-xc++", "-std=c++11")])
def test_headers_compile_by_themselves(tmp_path, options):
    if options and not shutil.which("c++"):
        pytest.skip("there is no C++ compiler")
    export(NETWORKS["images"], tmp_path / "out", format="c")
    flags = STRICT if not options else STRICT[1:]
    for header in sorted((tmp_path / "out").glob("*.h")):
        language = options or ("-xc",)
        command = ["cc", *flags, *language, "-fsyntax-only", header]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr


@pytest.mark.once
@needs_compiler
@pytest.mark.parametrize("standard", ["c11", "c++17"])
def test_other_standards(tmp_path, standard):
    if "++" in standard and not shutil.which("c++"):
        pytest.skip("there is no C++ compiler")
    place, program = tmp_path / "out", tmp_path / "program"
    export(NETWORKS["images"], place, format="c", vectors=1, vector_bytes=1 << 10)
    language = ("c++", "-xc++") if "++" in standard else ("cc", "-xc")
    flags = (f"-std={standard}", *STRICT[1:])
    command = [*language, *flags, *sorted(place.glob("*.c")), "-o", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert run(program)[0] == 0


CROSS = {  # by compiler: its options, and what runs its programs; without that, it only compiles
    "clang": (("-O1", "-Wconversion"), ()),
    "riscv64-linux-gnu-gcc": (("-O1", "-static"), ("qemu-riscv64",)),
    "s390x-linux-gnu-gcc": (("-O1", "-static"), ("qemu-s390x",)),
    "arm-none-eabi-gcc": (("-O1", "-mcpu=cortex-m4", "-mthumb"), None),
    "avr-gcc": (("-Os", "-mmcu=atmega2560"), None),
}


@pytest.mark.once
@pytest.mark.parametrize("compiler", CROSS)
def test_other_compilers_and_processors(tmp_path, compiler):
    options, runner = CROSS[compiler]
    if not all(map(shutil.which, (compiler, *(runner or ())))):
        pytest.skip(f"there is no {compiler}, or nothing that runs its programs")
    place, program = tmp_path / "out", tmp_path / "program"
    export(NETWORKS["images"], place, format="c", vectors=1, vector_bytes=1 << 10)
    command = [compiler, *STRICT, *options]
    if runner is None:
        command += ["-c", place / "model.c", "-o", program]
    else:
        command += [*sorted(place.glob("*.c")), "-o", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    if runner is not None:
        said = subprocess.run([*runner, program], capture_output=True, text=True, check=True)
        assert said.stdout.startswith("ok: ")


@needs_compiler
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("packing", PACKINGS)
def test_every_width_is_read_back(tmp_path, packing, signed):
    place = tmp_path / "out"
    bundle = export(every_width(), place, format="c", packing=packing, signed=signed)
    found = c_reader.read(place)
    for name, record in bundle.tensors.items():
        np.testing.assert_array_equal(found[name], record.values)
        assert_same_bits(found[f"{name}.scale"], record.scale)
        np.testing.assert_array_equal(found[f"{name}.zero_point"], record.zero_point)
    status, output = run(compiled(place))
    assert (status, output.split(":")[0]) == (0, "ok"), output


@needs_compiler
@pytest.mark.parametrize("layouts", [[], ["OHWI"], ["IWHO"]])
def test_strange_names_and_axis_orders_are_read_back(tmp_path, layouts):
    of = model() if layouts else strange_names()
    bundle = export(of, tmp_path / "out", format="c", layouts=layouts, packing="words")
    found = c_reader.read(tmp_path / "out")
    for name, record in bundle.tensors.items():
        if isinstance(record, QuantizedTensor):
            np.testing.assert_array_equal(found[name], record.values)
            assert_same_bits(found[f"{name}.scale"], record.scale)


def test_input_channels_are_last_unless_told_otherwise(tmp_path):
    layouts = {}
    for told in ([], ["HWIO"]):
        place = tmp_path / "-".join(["out", *told])
        export(NETWORKS["images"], place, format="c", layouts=told, kernels=False)
        tensors = json.loads((place / "manifest.json").read_text())["tensors"].values()
        layouts["".join(told)] = {entry["layout"] for entry in tensors if entry.get("layout")}
        assert qmath.verify(NETWORKS["images"], place).ok
    assert layouts == {"": {"OHWI", "HWIM", "OI"}, "HWIO": {"HWIO", "HWIM", "IO"}}


def test_packing_packs(tmp_path):
    sizes = {}
    for packing in ("bytes", "lsb"):
        export(model(), tmp_path / packing, format="c", packing=packing)
        header = (tmp_path / packing / "model.h").read_text()
        sizes[packing] = header
    assert "extern const int8_t model_conv_kernel[90];" in sizes["bytes"]
    assert "extern const uint8_t model_conv_kernel[45];" in sizes["lsb"]
    assert "#define MODEL_CONV_KERNEL_NUM_BITS 4" in sizes["lsb"]


@needs_compiler
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model_conv2d3_kernel[72] = {\n    ", "model_conv2d3_kernel[72] = {\n    1 + ",
         "conv2d3/kernel: an integer is"),
        ("output_addend[4] = {\n    ", "output_addend[4] = {\n    1 + ", "addend: the checksum"),
    ],
)  # fmt: skip
def test_the_self_check_finds_a_change(tmp_path, old, new, message):
    place = tmp_path / "out"
    export(NETWORKS["images"], place, format="c")
    data = (place / "model_data.c").read_text()
    assert old in data
    (place / "model_data.c").write_text(data.replace(old, new, 1))
    status, output = run(compiled(place))
    assert status == 1
    assert message in output
    assert "ok" not in output


@needs_compiler
def test_the_test_vectors_find_another_model(tmp_path):
    place = tmp_path / "out"
    export(NETWORKS["images"], place, format="c")
    program = (place / "model.c").read_text()
    assert "{2, 1}, /* dilation */" in program
    (place / "model.c").write_text(
        program.replace("{2, 1}, /* dilation */", "{1, 1}, /* dilation */", 1)
    )
    status, output = run(compiled(place))
    assert status == 1
    assert "conv2d3/output: the checksum is" in output


@needs_compiler
def test_any_name_and_any_float(tmp_path):
    names = [
        "a/b", "a:b", "a_b", "A_B", "größe/日本", "int", "1/2", "x*/y", "/*", "why??/", "q\"\\",
        "main", "a/b/size", "a_b_integers",
    ]  # fmt: skip
    spec = QuantSpec("LastValueQuantizer", 5, False, False, False)
    values = np.linspace(-1, 1, 9, dtype=np.float32)
    tensors = {
        name: QatTensor(name, "weight", values, np.float32(-1), np.float32(1), spec)
        for name in names
    }
    special = [np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4028235e38, 1 / 3, 1.0, 1e20]
    arrays = [np.array(special, dtype) for dtype in (np.float32, np.float64)]
    arrays.append(np.array([0.1, -65504, 6e-8], np.float16))
    arrays += [
        np.array([np.iinfo(d).min, np.iinfo(d).max, 1], d)
        for d in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
    ]
    arrays += [np.array([True, False]), np.zeros((0, 3), np.float32), np.float32(2.5)]
    for i, array in enumerate(arrays):
        tensors[f"f{i}"] = QatTensor(f"f{i}", "float", array)
    place = tmp_path / "out"
    export(QatModel(tensors), place, format="c", packing="msb", prefix="net")
    status, output = run(compiled(place))
    assert status == 0, output
    identifiers = json.loads((place / "manifest.json").read_text())["export"]["identifiers"]
    assert set(names) <= set(identifiers.values())
    header = (place / "net.h").read_text()
    assert all(f" net_{i}[" in header for i, key in identifiers.items() if key in names)


def test_a_model_is_cut_where_it_is_float(tmp_path):
    bundle = export(NETWORKS["float_layers"], tmp_path / "out", format="c")
    assert [len(part) for part in segments(bundle.program)] == [2, 3]
    header = (tmp_path / "out/model.h").read_text()
    assert "void model_run_1(void);" in header
    assert "void model_run_2(void);" in header
    for step in bundle.program.steps:
        if isinstance(step, FloatStep):
            assert f"{step.name}, of " in header
    assert "To have conv2d3 in integers: quantize its weights" in header


QUANTIZER = """#include <stdio.h>
#include "model.h"
int main(void)
{
    static float x[MODEL_QUANTIZELAYER1_OUTPUT_SIZE];
    int i;
    if (fread(x, sizeof x, 1, stdin) != 1)
        return 1;
    model_set_quantizelayer1_output(x);
    for (i = 0; i < MODEL_QUANTIZELAYER1_OUTPUT_SIZE; ++i)
        printf("%ld\\n", (long)model_quantizelayer1_output()[i]);
    return 0;
}
"""


@needs_compiler
@pytest.mark.parametrize("flags", ["-O0", "-O3"])
@pytest.mark.parametrize(
    ("ends", "bits", "op"),
    [((0.0, 1.0), 8, "vars"), ((-1.3, 0.7), 2, "args"), ((-6.1, 5.9), 16, "vars"),
     ((-6.1, 5.9), 16, "args"), ((-3e-20, 1e-19), 5, "vars"), ((-1e30, 3e30), 8, "args")],
)  # fmt: skip
def test_floats_are_quantized_as_tensorflow_does(tmp_path, ends, bits, op, flags):
    low, high = np.float32(ends)
    scale = (np.float64(high) - low) / (2**bits - 1)
    ties = np.float32(low + np.arange(-3, 2 ** (bits + 1) + 3)[:5000] * (scale / 2))
    near = [np.nextafter(ties, np.float32(way)) for way in (-np.inf, np.inf)]
    special = np.float32([0.0, -0.0, 1e-45, -1e-45, 1e-38, np.inf, -np.inf, 3e38, low, high])
    x = np.concatenate([ties, *near, special])
    net = networks.Network(x.size)
    spec = QuantSpec("FixedQuantizer", bits, False, False, False, op)
    net.tensors = [QatTensor("quantizelayer1/output", "output", None, low, high, spec)]
    place = tmp_path / "out"
    export(net.model(), place, format="c", vectors=1)
    reader = tmp_path / "reader.c"
    reader.write_text(QUANTIZER)
    program = compiled(place, reader, place / "model.c", place / "model_data.c", options=(flags,))
    output = subprocess.run([program], input=x.tobytes(), capture_output=True, check=True).stdout
    expected = qmath.quantize(x, low, high, bits, op=op, signed=False)
    np.testing.assert_array_equal(np.array(output.split(), np.int64), expected.values)


@pytest.mark.parametrize(("name", "is_wide"), [("images", False), ("images of 16 bits", True)])
def test_accumulators_are_as_wide_as_they_have_to_be(name, is_wide):
    files = dict(C().files(quantize_model(NETWORKS[name])))
    assert (b"#define QM_WIDE" in files["model.h"]) == is_wide


def test_equal_models_give_equal_bytes():
    files = [dict(C().files(quantize_model(networks.images(), vectors=1))) for _ in range(2)]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": "lbs"}, "packing='lbs' is not one of bytes, lsb"),
        ({"packing": "nibbles"}, "'nibbles' is for 4 bits, and the weights have 8"),
        ({"prefix": "a b"}, "prefix='a b': use letters"),
        ({"prefix": "while"}, "no reserved word"),
        ({"prefix": 3}, "prefix=3"),
        ({"prefix": "qmath_check"}, "not with qm"),
        ({"kernels": 1}, "kernels=1 is not true or false"),
    ],
)
def test_options_are_checked(tmp_path, options, message):
    with pytest.raises(OutputError, match=message):
        export(NETWORKS["images"], tmp_path / "out", format="c", **options)
    assert not (tmp_path / "out").exists()


def test_more_axes_than_the_kernels_know(tmp_path):
    net = networks.Network(2, 2, 2, 2, 2)
    net.add("Permute", dims=(5, 4, 3, 2, 1))
    with pytest.raises(OutputError, match=r"up to 4 axes.*kernels=false"):
        export(net.model(), tmp_path / "out", format="c")
    export(net.model(), tmp_path / "out", format="c", kernels=False)
    assert not (tmp_path / "out/model.c").exists()


def test_a_range_of_subnormals_is_refused(tmp_path):
    net = networks.Network(2)
    quantizer = next(t for t in net.tensors if t.name.endswith("/output"))
    net.tensors = [replace(quantizer, min=np.float32(0), max=np.float32(255 * 2.0**-120))]
    with pytest.raises(OutputError, match=r"subnormal.*kernels=false"):
        export(net.model(), tmp_path / "out", format="c")


def test_weights_hold_the_bundles_integers():
    bundle = quantize_model(model())
    assert any(isinstance(record, QuantizedTensor) for record in bundle.tensors.values())
    text = dict(C(kernels=False).files(bundle))["model_data.c"].decode()
    body = text.split("model_dense_kernel[48] = {")[1].split("}")[0]
    found = [int(number) for number in body.replace(",", " ").split()]
    assert found == bundle.tensors["dense/kernel"].values.ravel().tolist()
