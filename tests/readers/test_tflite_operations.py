"""Operations of TFLite files, each by itself: all integers that four runtimes compute of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.containers.tflite.file import parsed
from qmath.integer.api import program_of
from qmath.integer.profiles.tflite import kernels
from qmath.integer.program import Requantize
from reference import odd_tflite
from reference.flatbuffers import encoded
from reference.tflite_reading import (
    GOLDEN,
    PROFILES,
    compared,
    golden_mobile,
    golden_operations,
    inputs_of,
    operations,
)

OPERATIONS = dict(operations())
INTEGERS = golden_operations()
# What the profiles do not have: TFLite's reference SUM scales nothing, and the XNNPACK of LiteRT
# 2.3 rounds ties of a MEAN to even, where that of TensorFlow 2.21 has them away from zero.
OTHERS = {
    *(("reference", name) for name in OPERATIONS if name.startswith("SUM")),
    ("default", "MEAN rows 0"),
    ("default", "MEAN channels 0"),
}


@pytest.mark.parametrize("runtime", PROFILES)
def test_every_integer_of_an_operation(tmp_path: Path, runtime: str) -> None:
    path, compared_names = tmp_path / "m.tflite", 0
    for name, content in OPERATIONS.items():
        key = f"{runtime}/{name}"
        if (runtime, name) in OTHERS or key not in INTEGERS:
            continue
        path.write_bytes(content)
        (output,) = parsed(content, name).outputs
        ((size, differing),) = compared(path, runtime, {output: INTEGERS[key]}).values()
        assert size == INTEGERS[key].size
        assert differing == 0, name
        compared_names += 1
    assert compared_names > 75


@pytest.mark.parametrize("runtime", PROFILES)
def test_every_integer_of_a_network_of_the_converter(runtime: str) -> None:
    """Hard swishes, a squeeze and excitation, constants that are added and multiplied."""
    integers = golden_mobile(runtime)
    counts = compared(GOLDEN / "mobile.tflite", runtime, integers)
    assert len(counts) == len(integers)
    assert not {name: n for name, n in counts.items() if n[1]}


@pytest.mark.parametrize("format", ["npz", "c", "onnx"])
def test_a_network_of_the_converter_is_exported(tmp_path: Path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnx")
    source, out = GOLDEN / "mobile.tflite", tmp_path / f"out.{format}"
    qmath.export(source, out, format=format)
    assert not qmath.verify(source, out).differences


def moved(path: Path, name: str, out: Any, *constants: Any, **settings: Any) -> Any:
    """Return what a file of one operation makes of random integers."""
    path.write_bytes(encoded(odd_tflite.model(name, out, *constants, **settings)))
    program = program_of(qmath.load(path))
    assert not program.cuts
    x = inputs_of(parsed(path.read_bytes(), "m"))[:, 0].astype(np.float32)
    run = qmath.run(path, x * np.float32(0.1), profile="tflite")
    return x, np.rint(next(iter(run.outputs.values())) / np.float32(0.1))


MOVES = {
    "SLICE": ((1, 2, 3, 1), [[0, 1, 0, 1], [1, 2, -1, 1]], {}, lambda x: x[:, 1:3, :3, 1:]),
    "STRIDED_SLICE": (
        (1, 2, 3), [[0, 0, 1, 1], [0, 4, 4, 2], [1, 2, 1, 1]],
        {"begin_mask": 1, "end_mask": 1, "shrink_axis_mask": 8}, lambda x: x[:, ::2, 1:, 1],
    ),
    "TILE": ((1, 8, 4, 6), [[1, 2, 1, 3]], {}, lambda x: np.tile(x, (1, 2, 1, 3))),
    "GATHER": ((1, 3, 4, 2), [[3, 0, 1]], {"axis": 1}, lambda x: x[:, [3, 0, 1]]),
    "PAD": (
        (1, 4, 5, 5), [[[0, 0], [0, 0], [1, 0], [1, 2]]], {},
        lambda x: np.pad(x, ((0, 0), (0, 0), (1, 0), (1, 2))),
    ),
    "SPACE_TO_DEPTH": (
        (1, 2, 2, 8), [], {"block_size": 2},
        lambda x: x.reshape(-1, 2, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 2, 2, 8),
    ),
    "RESIZE_NEAREST_NEIGHBOR": (
        (1, 2, 2, 2), [[2, 2]], {"half_pixel_centers": 1}, lambda x: x[:, 1::2, 1::2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_a_move_is_that_of_numpy(tmp_path: Path, name: str) -> None:
    out, constants, options, function = MOVES[name]
    shape = (1, 4, 3, 2) if name == "SLICE" else (1, 4, 4, 2)
    arrays = [np.int32(c) for c in constants]
    x, made = moved(tmp_path / "m.tflite", name, out, *arrays, shape=shape, options=dict(options))
    assert np.array_equal(made, function(x))


def test_a_strided_slice_whose_last_step_leaves_the_axis(tmp_path: Path) -> None:
    constants = [np.int32(c) for c in ([0, 0, 1, 0], [1, 4, 4, 2], [1, 3, 2, 1])]
    x, made = moved(tmp_path / "m.tflite", "STRIDED_SLICE", (1, 2, 2, 2), *constants, options={})
    assert np.array_equal(made, x[:, ::3, 1::2])


@pytest.mark.parametrize("name", ["SPLIT", "UNPACK"])
def test_each_output_is_a_piece(tmp_path: Path, name: str) -> None:
    axis, order = np.int32(2), (1, 0) if name == "SPLIT" else (0,)
    out = (1, 4, 1, 2) if name == "SPLIT" else (1, 4, 2)
    constants = [axis] if name == "SPLIT" else []
    options = {"num_splits": 4} if name == "SPLIT" else {"num": 4, "axis": 2}
    model = odd_tflite.model(name, out, *constants, order=order, options=options)
    graph = model["subgraphs"][0]
    last = len(graph["tensors"]) - 1
    graph["tensors"] += [graph["tensors"][last] | {"name": f"piece{i}"} for i in range(3)]
    graph["operators"][0]["outputs"] = graph["outputs"] = np.int32(range(last, last + 4))
    path = tmp_path / "m.tflite"
    path.write_bytes(encoded(model))
    x = inputs_of(parsed(path.read_bytes(), "m"))[:, 0].astype(np.float32)
    made = list(qmath.run(path, x * np.float32(0.1)).outputs.values())
    assert len(made) == 4
    for i, piece in enumerate(made):
        wanted = x[:, :, i : i + 1] if name == "SPLIT" else x[:, :, i]
        assert np.array_equal(np.rint(piece / np.float32(0.1)), wanted)


@pytest.mark.parametrize(
    ("name", "out", "constants", "options", "reason"),
    [
        ("STRIDED_SLICE", (1, 4, 4, 2), [[0] * 4, [0] * 4, [1, -1, 1, 1]], {}, "reverses an axis"),
        ("RESIZE_NEAREST_NEIGHBOR", (1, 7, 7, 2), [[7, 7]], {}, "uneven distances"),
        ("RESIZE_BILINEAR", (1, 7, 7, 2), [[7, 7]], {"align_corners": 1}, "corners are aligned"),
        ("RESIZE_BILINEAR", (1, 12, 4, 2), [[12, 4]], {"half_pixel_centers": 1}, "no power of 2"),
        ("MEAN", (2,), [[0, 1, 2]], {}, "changes the axis of the examples"),
        ("L2_NORMALIZATION", (1, 4, 4, 2), [], None, "a root of a sum of squares"),
    ],
)
def test_a_note_says_why_an_operation_is_a_cut_point(
    tmp_path: Path, name: str, out: Any, constants: Any, options: Any, reason: str
) -> None:
    path = tmp_path / "m.tflite"
    arrays = [np.int32(c) for c in constants]
    path.write_bytes(encoded(odd_tflite.model(name, out, *arrays, options=options)))
    model = qmath.load(path)
    assert [cut.class_name for cut in program_of(model).cuts] == [name]
    assert any(f"({name})" in note and reason in note for note in model.notes)


def test_shapes_that_a_file_computes_are_no_layers(tmp_path: Path) -> None:
    """As the converter writes them before a transposed convolution or a reshape."""
    model = odd_tflite.model("RESHAPE", (1, 32), np.int32([1, 32]), options={})
    graph = model["subgraphs"][0]
    model["operator_codes"] += [{"deprecated_builtin_code": 77, "builtin_code": 77}]
    graph["tensors"].append({"shape": np.int32([4]), "type": 2, "name": "shape"})
    shape = {"opcode_index": 1, "inputs": np.int32([0]), "outputs": np.int32([3])}
    graph["operators"].insert(0, shape)
    path = tmp_path / "m.tflite"
    path.write_bytes(encoded(model))
    loaded = qmath.load(path)
    assert not program_of(loaded).cuts
    assert not loaded.notes


def test_uint8_averages_round_from_their_own_zero(tmp_path: Path) -> None:
    """Of 0 and 1 the mean is 1, where that of int8's -128 and -127 is -128."""
    window = {"stride_w": 2, "stride_h": 1, "filter_width": 2, "filter_height": 1, "padding": 1}
    path = tmp_path / "m.tflite"
    made = {}
    for kind, low in (("UINT8", 0), ("INT8", -128)):
        content = encoded(
            odd_tflite.model("AVERAGE_POOL_2D", (1, 1, 1, 1), shape=(1, 1, 2, 1), kind=kind,
                             options=window)
        )  # fmt: skip
        path.write_bytes(content)
        x = np.float32([low, low + 1]).reshape(1, 1, 2, 1) * np.float32(0.1)
        run = qmath.run(path, x, profile="tflite")
        made[kind] = int(np.rint(next(iter(run.outputs.values())).item() / 0.1))
    assert made == {"UINT8": 1, "INT8": -128}


def test_a_constant_that_does_not_fit_is_no_operand(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(
        encoded(odd_tflite.model("ADD", (1, 4, 4, 2), np.ones(3, np.int8), options={}))
    )
    model = qmath.load(path)
    assert [cut.class_name for cut in program_of(model).cuts] == ["ADD"]


@pytest.mark.parametrize("multiplier", [1, 2])
def test_scales_of_a_depthwise_multiplier_keep_its_kernel(tmp_path: Path, multiplier: int) -> None:
    """As groups of a convolution, but with the rounding of a depthwise one."""
    count = 2 * multiplier
    scales = {
        "scale": np.float32([0.1] * count),
        "zero_point": np.int64([0] * count),
        "quantized_dimension": 3,
    }
    path = tmp_path / "m.tflite"
    path.write_bytes(encoded(odd_tflite.model(
        "DEPTHWISE_CONV_2D", (1, 4, 4, count), np.ones((1, 3, 3, count), np.int8),
        options={"stride_w": 1, "stride_h": 1}, of={"quantization": scales},
    )))  # fmt: skip
    program = program_of(qmath.load(path))
    (step,) = (step for step in program.steps if isinstance(step, Requantize))
    (kernel,) = kernels(step)
    assert (kernel.op, kernel.groups) == ("DEPTHWISE_CONV_2D", 1)
