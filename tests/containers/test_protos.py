"""Protobuf messages without generated modules: in every implementation, and from damaged bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qmath.containers import protos
from qmath.errors import FileFormatError, MissingExtraError

pytest.importorskip("google.protobuf")

ENTRY = bytes.fromhex("0801 1208 12020802 12020803 2008 2818 3504030201")  # tensor_bundle.proto
NODE = bytes.fromhex("0a01 6e 1201 4f 1a01 69 1a01 6a 2a08 0a01 62 1203 1a01 78")
ROUND_TRIP = """
from qmath.containers import protos
from google.protobuf.internal import api_implementation
entry = protos.parse("BundleEntryProto", bytes.fromhex({entry!r}), "")
assert [dim.size for dim in entry.shape.dim] == [2, 3] and entry.crc32c == 0x01020304
try:
    protos.parse("BundleEntryProto", b"\\xff", "here")
except Exception as error:
    assert type(error).__name__ == "FileFormatError", error
print(api_implementation.Type())
"""


def nested(depth: int) -> bytes:
    """A ``NameAttrList`` that holds another in an attribute, and so on."""
    data = b""
    for _ in range(depth):
        for tag in (b"\x52", b"\x12", b"\x12"):  # func, value, attr
            size, rest = b"", len(data)
            while rest > 127:
                size, rest = size + bytes([rest & 127 | 128]), rest >> 7
            data = tag + size + bytes([rest]) + data
    return data


def test_fields_repeated_fields_and_maps() -> None:
    entry = protos.parse("BundleEntryProto", ENTRY, "")
    assert (entry.dtype, entry.offset, entry.size, entry.crc32c) == (1, 8, 24, 0x01020304)
    assert [dim.size for dim in entry.shape.dim] == [2, 3]
    assert not entry.slices
    node = protos.parse("NodeDef", NODE, "")
    assert (node.name, node.op, list(node.input)) == ("n", "O", ["i", "j"])
    assert list(node.attr) == ["b"]


def test_which_member_of_a_oneof_is_there_even_if_it_is_zero() -> None:
    value = protos.parse("AttrValue", bytes.fromhex("2800"), "")
    assert (value.WhichOneof("value"), value.b) == ("b", False)
    assert protos.parse("AttrValue", b"", "").WhichOneof("value") is None


def test_undeclared_fields_are_skipped() -> None:
    header = protos.parse("BundleHeaderProto", bytes.fromhex("0803 f20703 616263"), "")
    assert header.num_shards == 3


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_both_implementations(implementation: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", ROUND_TRIP.format(entry=ENTRY.hex())],
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (run.stdout.strip(), run.returncode) == (implementation, 0), run.stderr


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff", ENTRY[:-1], b"\x0a\x02\xff\xff", nested(2_000), b"\x0a\xff\xff\xff\xff\x07"],
    ids=["tag", "cut", "text", "deep", "long"],
)
def test_damage_is_one_error(data: bytes) -> None:
    name = "NameAttrList" if len(data) > 100 else "NodeDef"
    name = "BundleEntryProto" if data == ENTRY[:-1] else name
    with pytest.raises(FileFormatError, match=f"file.pb: this is no {name}"):
        protos.parse(name, data, "file.pb")


def test_without_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protos, "_types", protos._types.__wrapped__)  # without its cache
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(MissingExtraError, match=r"qmath-tfmot\[checkpoints\]"):
        protos.parse("NodeDef", NODE, "file.pb")
