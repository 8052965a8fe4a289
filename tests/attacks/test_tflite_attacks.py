"""Hostile TFLite files: refused with one error, or read right, within bounded memory and time."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmath.containers.tflite.file import read_tflite
from qmath.errors import FileFormatError
from reference.flatbuffers import decoded, encoded
from tests.attacks.collection import Collection
from tests.attacks.jail import judge

GOLDEN = Path(__file__).parents[2] / "reference" / "golden" / "tflite"
CONTENT = (GOLDEN / "default8.tflite").read_bytes()
FILES = Collection()
ATTACKS, READ, refused, is_read = FILES.attacks, FILES.read, FILES.refused, FILES.is_read


def write(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    model = decoded(CONTENT)
    change(model)
    path.write_bytes(encoded(model))


def tensor(model: dict[str, Any], index: int = 6) -> dict[str, Any]:
    found: dict[str, Any] = model["subgraphs"][0]["tensors"][index]
    return found


def number(path: Path, at: int, value: int) -> None:
    """Write a number of 4 bytes over the file's."""
    path.write_bytes(CONTENT[:at] + struct.pack("<I", value & 0xFFFFFFFF) + CONTENT[at + 4 :])


# ---- offsets and lengths


@refused("the model: it lies at")
def a_root_beyond_the_end(path: Path) -> None:
    number(path, 0, 0x7FFFFFFF)


@refused("impossible length|lies at|lies outside")
def a_root_in_the_identifier(path: Path) -> None:
    number(path, 0, 4)


@refused("lies at")
def a_vtable_before_the_file(path: Path) -> None:
    number(path, struct.unpack_from("<I", CONTENT)[0], 0x7FFFFFF0)


@refused("do not fit|lies at|used again")
def a_vector_of_four_billion(path: Path) -> None:
    size = len(encoded({"version": 3, "subgraphs": []}))
    content = bytearray(encoded({"version": 3, "subgraphs": []}))
    content[size - 4 :] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)


@refused("used again and again")
def a_table_in_many_places(path: Path) -> None:
    """Every offset of a long vector leads to the same graph."""
    count = 2000
    content = bytearray(encoded({"version": 3, "subgraphs": [{"name": "x"}] * count}))
    at = content.index(struct.pack("<I", count))
    first = at + 4 + struct.unpack_from("<I", content, at + 4)[0]
    for place in range(at + 4, at + 4 + 4 * count, 4):
        struct.pack_into("<I", content, place, first - place)
    path.write_bytes(content[: first + 64])


# ---- what it says


@refused("schema version 2")
def another_version(path: Path) -> None:
    write(path, lambda model: model.update(version=2))


@refused("it holds no graph")
def no_graph(path: Path) -> None:
    write(path, lambda model: model.update(subgraphs=[]))


@refused("there is no buffer 4000")
def a_buffer_that_is_not_there(path: Path) -> None:
    write(path, lambda model: tensor(model).update(buffer=4000))


@refused("are not INT8 of shape")
def a_shape_of_more_than_its_bytes(path: Path) -> None:
    write(path, lambda model: tensor(model).update(shape=np.int32([16, 3, 3, 1000])))


@refused("which no memory holds")
def a_shape_that_overflows(path: Path) -> None:
    shape = np.int32([65536, 65536, 65536, 65536])
    write(path, lambda model: tensor(model).update(shape=shape))


@refused("is of the shape")
def a_negative_shape(path: Path) -> None:
    write(path, lambda model: tensor(model).update(shape=np.int32([-16, 3, 3, 1])))


@refused("scales along axis")
def scales_along_no_axis(path: Path) -> None:
    write(path, lambda model: tensor(model)["quantization"].update(quantized_dimension=9))


@refused("not finite")
def a_scale_of_nan(path: Path) -> None:
    scale = np.full(16, np.nan, np.float32)
    write(path, lambda model: tensor(model)["quantization"].update(scale=scale))


@refused("beyond its integers")
def a_zero_point_far_away(path: Path) -> None:
    far = np.full(16, 1 << 40, np.int64)
    write(path, lambda model: tensor(model)["quantization"].update(zero_point=far))


@refused("16 scales, 3 zero points")
def too_few_zero_points(path: Path) -> None:
    few = np.zeros(3, np.int64)
    write(path, lambda model: tensor(model)["quantization"].update(zero_point=few))


@refused("before it is made")
def a_circle(path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        model["subgraphs"][0]["operators"].reverse()

    write(path, change)


@refused("made twice")
def a_tensor_made_twice(path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        operators = model["subgraphs"][0]["operators"]
        operators[2]["outputs"] = operators[1]["outputs"]

    write(path, change)


@refused("there is no tensor 99")
def an_operation_on_no_tensor(path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        model["subgraphs"][0]["operators"][1]["inputs"] = np.int32([99, 6, 4])

    write(path, change)


@refused("there is no operator code 77")
def an_operation_of_no_kind(path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        model["subgraphs"][0]["operators"][1]["opcode_index"] = 77

    write(path, change)


@refused("do not fit the file")
def a_buffer_behind_the_end(path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        model["buffers"][tensor(model)["buffer"]] = {"offset": 7000, "size": 1 << 40}

    write(path, change)


# ---- odd, and right


@is_read
def a_buffer_outside(path: Path) -> None:
    """As of files of more than 2 GB: the data lie behind what FlatBuffers addresses."""

    def outside(model: dict[str, Any], offset: int) -> bytes:
        buffer = model["buffers"][tensor(model)["buffer"]]
        data = bytes(buffer.pop("data")) if "data" in buffer else b""
        buffer.update(offset=offset, size=144)
        return data

    model = decoded(CONTENT)
    data = outside(model, 1 << 20)
    size = len(encoded(model))
    outside(model, size)
    path.write_bytes(encoded(model) + data)


@is_read
def long_names(path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        for each in model["subgraphs"][0]["tensors"]:
            each["name"] = "/" * 300 + "\n"

    write(path, change)


@is_read
def buffers_shared(path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        tensor(model, 2)["buffer"] = tensor(model, 4)["buffer"]

    write(path, change)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(tmp_path: Path, name: str) -> None:
    build, words = ATTACKS[name]
    path = tmp_path / "model.tflite"
    build(path)
    outcome, said = judge(path)
    assert outcome == "FileFormatError", said
    assert re.search(words, said), said
    assert str(path) in said


@pytest.mark.parametrize("name", READ)
def test_what_is_read_right(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.tflite"
    READ[name](path)
    outcome, said = judge(path)
    assert outcome == "read", said
    assert json.loads(said)
    wanted = read_tflite(str(GOLDEN / "default8.tflite")).tensors[6].data
    assert np.array_equal(read_tflite(str(path)).tensors[6].data, wanted)  # type: ignore[arg-type]


def test_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    for size in range(8, len(CONTENT), 61):
        path.write_bytes(CONTENT[:size])
        with pytest.raises(FileFormatError, match=re.escape(str(path))):
            read_tflite(str(path))


def test_every_byte_of_the_structure(tmp_path: Path) -> None:
    """Read or refused, whichever byte is turned; never another error."""
    path, read = tmp_path / "model.tflite", 0
    for at in range(0, len(CONTENT), 7):
        content = bytearray(CONTENT)
        content[at] ^= 0xFF
        path.write_bytes(content)
        try:
            read_tflite(str(path))
            read += 1
        except FileFormatError as error:
            assert str(path) in str(error)
    assert 100 < read < len(CONTENT) // 7
