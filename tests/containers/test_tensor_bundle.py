"""Checkpoints: what TensorFlow wrote is read bit for bit, what a hostile hand wrote is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmath.containers.tensor_bundle import TensorBundle
from qmath.errors import FileFormatError

pytest.importorskip("google.protobuf")
pytest.importorskip("google_crc32c")

from tests.containers.bundles import (
    GOLDEN,
    STRING,
    block,
    crc,
    entry,
    message,
    stored,
    string,
    table,
    write,
    write_arrays,
)

VALUES = np.float32([[1, 2, 3], [4, 5, 6]])


@pytest.fixture(scope="module")
def expected() -> Mapping[str, np.ndarray]:
    with np.load(GOLDEN / "expected.npz") as archive:
        return dict(archive)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "ckpt"


def golden(name: str) -> TensorBundle:
    return TensorBundle(str(GOLDEN / name / "ckpt"))


@pytest.mark.parametrize("name", ["kinds", "slices"])
def test_tensors_are_tensorflows(expected: Mapping[str, np.ndarray], name: str) -> None:
    bundle = golden(name)
    known = [key.removeprefix(f"{name}/") for key in expected if key.startswith(f"{name}/")]
    for key in known:
        array, values = bundle.array(key), expected[f"{name}/{key}"]
        assert (array.shape, array.dtype, array.nbytes) == (
            values.shape,
            values.dtype,
            values.nbytes,
        )
        read = np.asarray(array)
        assert (read.shape, read.dtype) == (values.shape, values.dtype)
        assert read.tobytes() == values.tobytes()
        assert read.flags.writeable
    assert set(known) <= set(bundle.keys)
    assert list(bundle.keys) == sorted(bundle.keys)


@pytest.mark.parametrize(
    "kind", ["complex64", "float8_e4m3fn", "float8_e5m2", "int4", "qint8", "string", "variant"]
)
def test_kinds_that_are_not_read_are_named(kind: str) -> None:
    with pytest.raises(FileFormatError, match=f"{kind}: a tensor of {kind} is not read"):
        golden("kinds").array(kind)


def test_a_kind_that_nobody_knows(prefix: Path) -> None:
    write(prefix, {"v": entry(VALUES, dtype=99)}, VALUES.tobytes())
    with pytest.raises(FileFormatError, match="type number 99"):
        TensorBundle(str(prefix)).array("v")


def test_arrays_are_read_on_demand_and_checked(prefix: Path) -> None:
    bundle = TensorBundle(str(write_arrays(prefix, {"v": VALUES})))
    array = bundle.array("v")
    assert repr(array) == f"LazyArray({str(prefix)!r}, 'v', shape=(2, 3), dtype=float32)"
    assert bundle.shards == (f"{prefix}.data-00000-of-00001",)
    assert np.asarray(array, np.float64).dtype == np.float64
    Path(f"{prefix}.data-00000-of-00001").write_bytes(VALUES.tobytes() * 2)
    with pytest.raises(FileFormatError, match="data-00000-of-00001: the file has changed"):
        np.asarray(array)


def test_reading_follows_the_file_when_the_directory_changes(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_arrays(prefix, {"v": VALUES})
    monkeypatch.chdir(prefix.parent)
    array = TensorBundle("ckpt").array("v")
    monkeypatch.chdir("/")
    assert np.asarray(array).tobytes() == VALUES.tobytes()


@pytest.mark.parametrize("size", [1, 4, 100])
def test_rows_are_read_in_parts(prefix: Path, size: int) -> None:
    values = np.arange(15, dtype=np.float32).reshape(5, 3)
    bundle = TensorBundle(str(write_arrays(prefix, {"v": values})))
    parts = [part.copy() for part in bundle.array("v").parts(size)]
    np.testing.assert_array_equal(np.concatenate(parts), values)
    assert len(parts[0]) == max(1, min(5, size // 3))


@pytest.mark.parametrize("values", [np.zeros((0, 3), np.float32), np.float32(3), np.array([True])])
def test_what_has_no_rows_of_numbers_comes_at_once(prefix: Path, values: np.ndarray) -> None:
    bundle = TensorBundle(str(write_arrays(prefix, {"v": values})))
    (part,) = bundle.array("v").parts(1)
    np.testing.assert_array_equal(part, values)


def test_no_last_rows_without_the_checksum(prefix: Path) -> None:
    values = np.arange(15, dtype=np.float32).reshape(5, 3)
    write_arrays(prefix, {"v": values})
    shard = Path(f"{prefix}.data-00000-of-00001")
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])
    parts = TensorBundle(str(prefix)).array("v").parts(3)
    assert len([next(parts) for _ in range(4)]) == 4
    with pytest.raises(FileFormatError, match="v: the checksum does not match"):
        next(parts)


def test_every_changed_byte_of_data_is_noticed(prefix: Path) -> None:
    write_arrays(prefix, {"v": VALUES})
    shard = Path(f"{prefix}.data-00000-of-00001")
    data = shard.read_bytes()
    for at in range(len(data)):
        shard.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(FileFormatError, match="v: the checksum does not match"):
            np.asarray(TensorBundle(str(prefix)).array("v"))


def test_every_changed_byte_of_a_string_is_noticed(prefix: Path) -> None:
    text, checksum = string(b"text" * 8)
    fields = {"dtype": STRING, "size": len(text), "crc32c": checksum}
    for at in range(len(text)):
        damaged = text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
        write(prefix, {"s": message("BundleEntryProto", **fields)}, damaged)
        with pytest.raises(FileFormatError, match="s: the checksum does not match"):
            TensorBundle(str(prefix)).string("s")
    write(prefix, {"s": message("BundleEntryProto", **fields)}, text)
    assert TensorBundle(str(prefix)).string("s") == b"text" * 8


@pytest.mark.parametrize("size", [0, 1, 3, 5, 8])
def test_strings_cut_short(prefix: Path, size: int) -> None:
    text, checksum = string(b"text")
    fields = {"dtype": STRING, "size": size, "crc32c": checksum}
    write(prefix, {"s": message("BundleEntryProto", **fields)}, text[:size])
    with pytest.raises(FileFormatError, match="s: the checksum does not match"):
        TensorBundle(str(prefix)).string("s")


def shape(*sizes: int, **fields: Any) -> Any:
    dims = [message("TensorShapeProto.Dim", size=size) for size in sizes]
    return message("TensorShapeProto", dim=dims, **fields)


def cut(*extents: tuple[int, int] | None) -> Any:
    """A slice, with a start and a length for each axis, ``None`` for a whole one."""
    return message(
        "TensorSliceProto",
        extent=[
            message("TensorSliceProto.Extent", **({"start": e[0], "length": e[1]} if e else {}))
            for e in extents
        ],
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shape": shape(1 << 40)}, "claims 4398046511104 bytes, the index 24"),
        ({"shape": shape(1 << 40), "size": 1 << 42}, "of 24 in ckpt.data-00000-of-00001"),
        ({"shape": shape(1 << 62, 1 << 62)}, "is no shape"),
        ({"shape": shape(0, 1 << 49), "size": 0}, "is no shape"),
        ({"shape": shape(-1, -6)}, "is no shape"),
        ({"shape": shape(*[1] * 33)}, "is no shape"),
        ({"shape": shape(unknown_rank=True)}, "is no shape"),
        ({"shape": shape(2, 2)}, "claims 16 bytes, the index 24"),
        ({"size": -24}, "the index -24"),
        ({"offset": 1}, "from byte 1"),
        ({"offset": -24}, "from byte -24"),
        ({"offset": (1 << 63) - 1}, "from byte 9223372036854775807"),
        ({"shard_id": 1}, "lies in shard 1 of 1"),
        ({"shard_id": -1}, "lies in shard -1 of 1"),
        ({"slices": [cut((0, 2), (0, 3))]}, "lists this tensor and does not hold it"),
        ({"slices": [cut((0, 3), None)]}, "no part of its shape"),
        ({"slices": [cut((-1, 1), None)]}, "no part of its shape"),
        ({"slices": [cut((0, 0), None)]}, "no part of its shape"),
        ({"slices": [cut((1 << 62, 1 << 62), None)]}, "no part of its shape"),
        ({"slices": [cut(None)]}, "no part of its shape"),
        ({"slices": [cut(None, None, None)]}, "no part of its shape"),
    ],
)
def test_entries_that_claim_what_is_not_there(
    prefix: Path, changed: dict[str, Any], said: str
) -> None:
    write(prefix, {"v": entry(VALUES, **changed)}, VALUES.tobytes())
    bundle = TensorBundle(str(prefix))
    with pytest.raises(FileFormatError, match=re.escape(said)):
        bundle.array("v")
    with pytest.raises(FileFormatError, match=re.escape(said)):
        bundle.read("v")


def test_an_empty_tensor_of_great_length(prefix: Path) -> None:
    write(prefix, {"v": entry(shape=shape(0, 1 << 48), dtype=2, size=0, crc32c=crc(b""))})
    assert TensorBundle(str(prefix)).read("v").shape == (0, 1 << 48)


def key_of(name: str, *numbers: int) -> str:
    """The key of a slice of a matrix, whose small numbers take one byte each."""
    codes = [(number & 0xFF) ^ 0x80 for number in numbers]
    assert all(-64 <= number < 64 for number in numbers)
    return "\0" + name + "\0\1\1\2" + bytes(codes).decode("latin-1")


def write_slices(
    prefix: Path, *parts: tuple[tuple[int, int, int, int], Any], slices: list[Any]
) -> Path:
    """Write a matrix in slices, each given as start and length of both axes, and its entry."""
    items = [(b"v", entry(VALUES, slices=slices, size=0, crc32c=0).SerializeToString())]
    items += [
        (key_of("v", *place).encode("latin-1"), part.SerializeToString()) for place, part in parts
    ]
    header = message("BundleHeaderProto", num_shards=1).SerializeToString()
    index = table([stored(block([(b"", header), *sorted(items)]))])
    Path(f"{prefix}.index").write_bytes(index)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(VALUES.tobytes())
    return prefix


UPPER, LOWER = cut((0, 1), None), cut((1, 1), None)


def test_slices_make_a_whole(prefix: Path) -> None:
    parts = [((0, 1, 0, -1), entry(VALUES[:1])), ((1, 1, 0, -1), entry(VALUES[1:], 12))]
    write_slices(prefix, *parts, slices=[LOWER, UPPER])
    assert TensorBundle(str(prefix)).read("v").tobytes() == VALUES.tobytes()


@pytest.mark.parametrize(
    ("lower", "slices", "said"),
    [
        (entry(VALUES[1:], 12), [UPPER], "do not make up its shape (2, 3)"),
        (entry(VALUES[1:], 12), [UPPER, LOWER, LOWER], "do not make up its shape (2, 3)"),
        (entry(VALUES[1:], 12), [UPPER, UPPER], "are those of another tensor"),
        (entry(VALUES[1:], 12, dtype=3), [UPPER, LOWER], "of another kind or shape"),
        (entry(VALUES[1], 12), [UPPER, LOWER], "of another kind or shape"),
        (entry(VALUES[1:], 12, slices=[LOWER]), [UPPER, LOWER], "of another kind or shape"),
        (entry(VALUES[1:], 16), [UPPER, LOWER], "from byte 16"),
        (entry(VALUES[1:], 8), [UPPER, LOWER], "are those of another tensor"),
        (entry(VALUES[1:], 12, crc32c=1), [UPPER, LOWER], "checksum does not match"),
    ],
)
def test_slices_that_do_not(prefix: Path, lower: Any, slices: list[Any], said: str) -> None:
    parts = [((0, 1, 0, -1), entry(VALUES[:1])), ((1, 1, 0, -1), lower)]
    write_slices(prefix, *parts, slices=slices)
    with pytest.raises(FileFormatError, match=re.escape(said)):
        TensorBundle(str(prefix)).read("v")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"num_shards": 0}, r"single file of TensorFlow 1 \(V1\)"),
        ({"num_shards": -1}, "V1"),
        ({"endianness": 1}, "big-endian"),
        ({"version": message("VersionDef", producer=7, min_consumer=2)}, r"\(version 7\) is newer"),
    ],
)
def test_headers_that_are_not_read(prefix: Path, header: dict[str, Any], said: str) -> None:
    write(prefix, {"v": entry(VALUES)}, VALUES.tobytes(), header)
    with pytest.raises(FileFormatError, match=said):
        TensorBundle(str(prefix))


def test_the_single_file_of_tensorflow_1(prefix: Path) -> None:
    data = (GOLDEN / "v1" / "model.ckpt").read_bytes()
    Path(f"{prefix}.index").write_bytes(data)
    with pytest.raises(FileFormatError, match="V1"):
        TensorBundle(str(prefix))


@pytest.mark.parametrize("key", ["\x1b[2J", "two\nlines", "\u202e"])
def test_keys_that_a_terminal_would_not_show(prefix: Path, key: str) -> None:
    write(prefix, {key: entry(VALUES)}, VALUES.tobytes())
    with pytest.raises(FileFormatError, match="is no name") as caught:
        TensorBundle(str(prefix))
    assert str(caught.value).isprintable()


def test_keys_and_entries_that_are_no_text_and_no_message(prefix: Path) -> None:
    header = message("BundleHeaderProto", num_shards=1).SerializeToString()
    index = table([stored(block([(b"", header), (b"a\xffb", b"")]))])
    Path(f"{prefix}.index").write_bytes(index)
    with pytest.raises(FileFormatError, match="is no name"):
        TensorBundle(str(prefix))
    Path(f"{prefix}.index").write_bytes(
        table([stored(block([(b"", header), (b"v", b"\xff\xff")]))])
    )
    with pytest.raises(FileFormatError, match="v: this is no BundleEntryProto"):
        TensorBundle(str(prefix)).array("v")
    Path(f"{prefix}.index").write_bytes(table([stored(block([(b"", b"\xff")]))]))
    with pytest.raises(FileFormatError, match="header: this is no BundleHeaderProto"):
        TensorBundle(str(prefix))


@pytest.mark.parametrize("key", ["w", "", "\0v"])
def test_tensors_that_are_not_there(prefix: Path, key: str) -> None:
    bundle = TensorBundle(str(write_arrays(prefix, {"v": VALUES})))
    with pytest.raises(FileFormatError, match="does not hold it"):
        bundle.array(key)
    with pytest.raises(FileFormatError, match=r"should be one string|does not hold it"):
        bundle.string(key or "v")


def test_files_that_are_missing_or_no_files(prefix: Path) -> None:
    with pytest.raises(FileFormatError, match=r"ckpt.index: there is no such file"):
        TensorBundle(str(prefix))
    write(prefix, {"v": entry(VALUES)}, header={"num_shards": 5})
    with pytest.raises(FileFormatError, match=r"ckpt\.data-00000-of-00005: there is no such file"):
        TensorBundle(str(prefix)).array("v")
    Path(f"{prefix}.data-00000-of-00005").mkdir()
    with pytest.raises(FileFormatError, match="cannot be read"):
        TensorBundle(str(prefix)).array("v")
    Path(f"{prefix}.index").unlink()
    os.mkfifo(f"{prefix}.index")
    with pytest.raises(FileFormatError, match="no regular file"):
        TensorBundle(str(prefix))


def test_an_index_that_is_too_large(prefix: Path) -> None:
    with Path(f"{prefix}.index").open("wb") as file:
        file.write(bytes((1 << 22) + 1))
    with pytest.raises(FileFormatError, match="too many for an index"):
        TensorBundle(str(prefix))


def test_a_string_that_is_too_large(prefix: Path) -> None:
    fields = {"dtype": STRING, "size": 1 << 40}
    write(prefix, {"s": message("BundleEntryProto", **fields)})
    with Path(f"{prefix}.data-00000-of-00001").open("wb") as file:
        file.truncate(1 << 41)
    with pytest.raises(FileFormatError, match="should be one string"):
        TensorBundle(str(prefix)).string("s")


@pytest.mark.parametrize("name", ["kinds", "slices", "stacked", "question"])
def test_only_what_is_asked_for_is_read(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    reads: list[str] = []
    elements = TensorBundle._bytes
    monkeypatch.setattr(
        TensorBundle, "_bytes", lambda *args: reads.append(args[1].shard) or elements(*args)
    )
    path = next((GOLDEN / name).glob("*.index")).with_suffix("")
    bundle = TensorBundle(str(path))
    keys = [key for key in bundle.keys if bundle._entry(key.encode(), "").dtype == 1]
    arrays = [bundle.array(key) for key in keys]
    assert not reads
    np.asarray(arrays[0])
    assert len(reads) == 1
