"""TFLite files as the converter writes them: integers verbatim, and what the kernels compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.containers.tflite.file import read_tflite
from qmath.containers.tflite.schema import OPERATORS, TENSOR_TYPES
from qmath.errors import FileFormatError, QmathError
from qmath.integer.api import program_of
from qmath.integer.executor import Executor
from qmath.integer.profiles.tflite import Tflite
from qmath.integer.profiles.xnnpack import Xnnpack
from qmath.integer.program import CutStep, QuantizeStep, Requantize
from reference.flatbuffers import decoded, encoded

GOLDEN = Path(__file__).parents[2] / "reference" / "golden" / "tflite"
SAMPLES = GOLDEN.parents[1] / "samples"
DEFAULT8, NBIT4, EVERY = (
    GOLDEN / f"{name}.tflite" for name in ("default8", "nbit4", "every_operation")
)
IMAGES = np.load(SAMPLES / "digits_test.npz")["images"][:16]

Change = Callable[[dict[str, Any]], None]


def changed(path: Path, source: Path, change: Change) -> Path:
    model = decoded(source.read_bytes())
    change(model)
    path.write_bytes(encoded(model))
    return path


def operator(model: dict[str, Any], name: str) -> dict[str, Any]:
    code = next(
        i
        for i, code in enumerate(model["operator_codes"])
        if max(code.get("builtin_code", 0), code.get("deprecated_builtin_code", 0))
        == OPERATORS[name]
    )
    graph = model["subgraphs"][0]
    found: dict[str, Any] = next(
        op for op in graph["operators"] if op.get("opcode_index", 0) == code
    )
    return found


def paired(path: Path, program: Any) -> dict[str, int]:
    """Return the file's tensor of each quantized step: of its parameters and shape, in order."""
    file = read_tflite(str(path))
    made = [i for op in file.operations for i in op.outputs]
    found: dict[str, int] = {}
    for step in program.quantized:
        for index in made:
            tensor = file.tensors[index]
            q = tensor.quantization
            if q is None or index in found.values() or tensor.shape[1:] != tuple(step.shape):
                continue
            zero_point = int(q.zero_point[0]) + 128
            if (q.scale[0], zero_point) == (np.float32(step.params.scale), step.params.zero_point):
                found[step.name] = index
                break
    return found


def test_a_build_has_no_part_in_stored_integers() -> None:
    told = qmath.load(DEFAULT8, build="xla-cpu")
    assert [note for note in told.notes if "'xla-cpu' changes nothing" in note]
    assert told.notes[:-1] == qmath.load(DEFAULT8).notes == qmath.load(DEFAULT8, build="tf").notes


@pytest.mark.parametrize("resolver", ["reference", "default"])
@pytest.mark.parametrize(("path", "steps"), [(DEFAULT8, 5), (EVERY, 21)])
def test_every_tensor_that_tflite_computes(path: Path, steps: int, resolver: str) -> None:
    golden = np.load(path.with_suffix(".npz"))
    program = program_of(qmath.load(path))
    profile = Tflite() if resolver == "reference" else Xnnpack()
    inputs = {next(iter(program.inputs)): golden["inputs"]}
    made = Executor(program, profile).run(inputs)
    tensors = paired(path, program)
    assert len(tensors) == len(program.quantized) == steps
    for name, index in tensors.items():
        wanted = golden[f"{resolver}/{index}"].reshape(made[name].shape)
        assert np.array_equal(made[name], wanted), name


@pytest.mark.parametrize(("name", "bits"), [("default8", 8), ("nbit4", 4)])
def test_the_integers_are_those_of_training(name: str, bits: int) -> None:
    """The converter keeps them: none of these layers has a negative gamma."""
    deployed, trained = qmath.load(GOLDEN / f"{name}.tflite"), qmath.load(SAMPLES / f"{name}.h5")
    weights = {key: t for key, t in deployed.tensors.items() if t.role == "weight"}
    assert list(weights) == ["conv1/kernel", "dw1/depthwise_kernel", "dense/kernel"]
    for key, tensor in weights.items():
        q = tensor.quantize()
        assert np.array_equal(q.values, trained.tensors[key].quantize().values)
        assert (q.num_bits, tensor.spec.num_bits) == (bits, bits)
        assert np.array_equal(np.asarray(tensor.values), q.dequantize())
        unsigned = tensor.quantize(signed=False)
        assert np.array_equal(unsigned.dequantize(), q.dequantize())


def test_scales_are_those_of_the_file_in_every_bit() -> None:
    file, model = read_tflite(str(EVERY)), qmath.load(EVERY)
    bundle = qmath.quantize_model(model)
    stated = {
        (t.quantization.scale.tobytes(), (t.quantization.zero_point + 128).tobytes())
        for t in file.tensors
        if t.quantization is not None and not t.is_constant
    }
    ranges = {n: t for n, t in model.tensors.items() if t.role not in ("float", "weight")}
    assert len(ranges) == 18
    for name in ranges:
        record: Any = bundle.tensors[name]
        assert (record.scale.tobytes(), np.int64([record.zero_point]).tobytes()) in stated
    weights = {
        t.quantization.scale.tobytes()
        for t in file.tensors
        if t.quantization is not None and t.is_constant and t.type == "INT8"
    }
    held = {t.recovered.scale.tobytes() for t in model.tensors.values() if t.recovered}
    assert held == weights


def test_a_bias_is_the_int32_of_the_file() -> None:
    model, file = qmath.load(DEFAULT8), read_tflite(str(DEFAULT8))
    data = next(t.data for t in file.tensors if t.name.endswith("quant_dense/BiasAdd"))
    bias = model.tensors["dense/bias"]
    assert np.array_equal(np.asarray(bias.values), data)
    assert bias.stored is not None
    assert (bias.stored.num_bits, bias.stored.scale) == (32, "dense/bias_scale")


@pytest.mark.parametrize("path", [DEFAULT8, NBIT4, EVERY])
@pytest.mark.parametrize("format", ["npz", "c", "hex"])
def test_what_is_exported_is_equal(tmp_path: Path, path: Path, format: str) -> None:
    out = tmp_path / f"out.{format}"
    qmath.export(path, out, format=format, vectors=1, vector_bytes=20_000)
    assert not qmath.verify(path, out).differences


def test_the_manifest_says_where_the_settings_are_from(tmp_path: Path) -> None:
    qmath.export(DEFAULT8, tmp_path / "out.npz")
    manifest = json.loads(np.load(tmp_path / "out.npz")["manifest"].tobytes())
    entry = manifest["tensors"]["conv1/kernel"]
    assert set(entry["evidence"].values()) == {"the file's own integers"}
    assert (entry["op"], entry["axis"], entry["layout"]) == ("tflite", 3, "HWIO")
    assert manifest["tensors"]["dw1/depthwise_kernel"]["axis"] == 2


def test_floats_are_rounded_half_away_from_zero() -> None:
    """As QUANTIZE does, and no fake quantization."""
    program = program_of(qmath.load(EVERY))
    step = next(step for step in program.steps if isinstance(step, QuantizeStep))
    scale = np.float32(step.params.scale)
    ties = (np.float32([-3.5, -2.5, -0.5, 0.5, 1.5, 2.5]) * scale).astype(np.float32)
    whole = ties / scale == np.float32([-3.5, -2.5, -0.5, 0.5, 1.5, 2.5])
    rounded = np.int32([-4, -3, -1, 1, 2, 3])
    assert whole.sum() > 2
    assert np.array_equal(step.params.quantize(ties, "x")[whole], rounded[whole])
    with pytest.raises(QmathError, match="NaN"):
        step.params.quantize(np.float32([np.nan]), "x")


def test_an_unknown_operation_is_a_cut_point(tmp_path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        code = operator(model, "RESHAPE")["opcode_index"]
        model["operator_codes"][code] |= {
            "builtin_code": OPERATORS["SIN"], "deprecated_builtin_code": OPERATORS["SIN"],
        }  # fmt: skip

    path = changed(tmp_path / "m.tflite", DEFAULT8, change)
    program = program_of(qmath.load(path))
    (cut,) = (step for step in program.steps if isinstance(step, CutStep))
    assert (cut.name, cut.class_name, cut.shape) == ("flatten", "SIN", (256,))
    flat = qmath.run(path, IMAGES, layers={"SIN": lambda x: x.reshape(len(x), -1)})
    assert np.array_equal(
        flat.integers["dense/post_activation"],
        qmath.run(DEFAULT8, IMAGES).integers["dense/post_activation"],
    )


def test_clamps_below_8_bits_are_a_width(tmp_path: Path) -> None:
    """A pair of MAXIMUM and MINIMUM with the ends of 4 bits is what such an activation needs."""

    def change(model: dict[str, Any]) -> None:
        graph = model["subgraphs"][0]
        dense = operator(model, "FULLY_CONNECTED")
        last = graph["tensors"][dense["outputs"][0]]
        last["quantization"]["zero_point"] = np.int64([3])
        places = {}
        for name, value in (("first", None), ("second", None), ("low", -8), ("high", 7)):
            tensor = {**last, "name": name}
            if value is not None:
                model["buffers"].append({"data": np.uint8([value & 255])})
                tensor |= {"buffer": len(model["buffers"]) - 1, "shape": np.int32([])}
            places[name] = len(graph["tensors"])
            graph["tensors"].append(tensor)
        for name in ("MAXIMUM", "MINIMUM"):
            model["operator_codes"].append(
                {"builtin_code": OPERATORS[name], "deprecated_builtin_code": OPERATORS[name]}
            )
        count = len(model["operator_codes"])
        end = int(dense["outputs"][0])
        dense["outputs"] = np.int32([places["first"]])
        graph["operators"][-1:-1] = [
            {"opcode_index": count - 2, "inputs": np.int32([places["first"], places["low"]]),
             "outputs": np.int32([places["second"]])},
            {"opcode_index": count - 1, "inputs": np.int32([places["second"], places["high"]]),
             "outputs": np.int32([end])},
        ]  # fmt: skip

    model = qmath.load(changed(tmp_path / "m.tflite", DEFAULT8, change))
    assert model.tensors["dense/post_activation"].spec.num_bits == 4
    program = program_of(model)
    assert not program.cuts
    step = next(s for s in program.steps if s.name == "dense/post_activation")
    assert isinstance(step, Requantize)
    assert (step.params.num_bits, step.params.zero_point) == (4, 11)


def test_an_input_of_integers_is_quantized(tmp_path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        graph = model["subgraphs"][0]
        first = graph["operators"].pop(0)
        graph["inputs"] = first["outputs"]

    path = changed(tmp_path / "m.tflite", DEFAULT8, change)
    whole, cut = (qmath.run(p, IMAGES, profile="tflite") for p in (DEFAULT8, path))
    name = "dense/post_activation"
    assert np.array_equal(whole.integers[name], cut.integers[name])


def test_unsigned_integers(tmp_path: Path) -> None:
    """UINT8 counts from 0 what INT8 counts from -128."""

    def change(model: dict[str, Any]) -> None:
        tensor = model["subgraphs"][0]["tensors"][11]
        tensor["type"] = TENSOR_TYPES["UINT8"]
        tensor["quantization"]["zero_point"] = np.int64([128])
        buffer = model["buffers"][tensor["buffer"]]
        buffer["data"] = buffer["data"] ^ 128

    deployed = qmath.load(changed(tmp_path / "m.tflite", DEFAULT8, change))
    q, wanted = (m.tensors["dense/kernel"].quantize() for m in (deployed, qmath.load(DEFAULT8)))
    assert np.array_equal(q.values, wanted.values)
    assert not q.zero_point.any()


def test_what_the_file_holds_is_not_given() -> None:
    with pytest.raises(QmathError, match="leave quantizers out"):
        qmath.load(DEFAULT8, {"conv1/kernel": qmath.LastValueQuantizer(8, True, True, True)})
    with pytest.raises(QmathError, match="holds its own architecture"):
        qmath.load(DEFAULT8, architecture=SAMPLES / "default8.h5")


def sparse(model: dict[str, Any]) -> None:
    model["subgraphs"][0]["tensors"][6]["sparsity"] = {}


def blockwise(model: dict[str, Any]) -> None:
    model["subgraphs"][0]["tensors"][6]["quantization"]["details_type"] = 2


@pytest.mark.parametrize(
    ("change", "words"), [(sparse, "tensors 6 is sparse"), (blockwise, "blockwise")]
)
def test_forms_that_are_not_read(tmp_path: Path, change: Change, words: str) -> None:
    path = changed(tmp_path / "m.tflite", DEFAULT8, change)
    with pytest.raises(FileFormatError, match=words):
        qmath.load(path)


def test_weights_of_integers_with_float_inputs_are_noted(tmp_path: Path) -> None:
    """TFLite's kernels quantize the inputs at run time, which qmath does not."""

    def change(model: dict[str, Any]) -> None:
        graph = model["subgraphs"][0]
        dense = operator(model, "FULLY_CONNECTED")
        dense["inputs"] = dense["inputs"][:2]
        for index in (int(dense["inputs"][0]), int(dense["outputs"][0])):
            graph["tensors"][index]["type"] = TENSOR_TYPES["FLOAT32"]
            del graph["tensors"][index]["quantization"]

    assert not qmath.load(DEFAULT8).notes
    model = qmath.load(changed(tmp_path / "m.tflite", DEFAULT8, change))
    (note,) = (note for note in model.notes if "at run time" in note)
    assert note.endswith(": dense.")


def test_a_tflite_file_where_another_is_needed(tmp_path: Path) -> None:
    with pytest.raises(QmathError, match="this is a TFLite file; export to npz"):
        qmath.export(DEFAULT8, tmp_path / "x.h5", format="h5")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileFormatError, match="holds no architecture of Keras's"):
        qmath.load(SAMPLES / "default8.h5", architecture=DEFAULT8)
