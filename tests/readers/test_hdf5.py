"""HDF5 is trusted with nothing: links, storage, sizes, damage."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmath.containers.bounded_json import MAX_DEPTH, parse_json
from qmath.containers.hdf5 import Hdf5File
from qmath.errors import FileFormatError, MissingExtraError

h5py = pytest.importorskip("h5py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.h5"


def test_arrays_are_read_on_demand(path: Path) -> None:
    stored = np.arange(6, dtype=">f4").reshape(2, 3)
    with h5py.File(path, "w") as file:
        file["group/array"] = stored
        file["scalar"] = np.float32(3)
        file["empty"] = np.zeros((0, 4), np.float32)
    with Hdf5File(str(path)) as file:
        array, scalar, empty = map(file.array, ("group/array", "scalar", "empty"))
        assert (np.asarray(array) == stored).all()
    assert (array.shape, array.dtype, array.nbytes) == ((2, 3), np.dtype(np.float32), 24)
    assert np.asarray(array).dtype.isnative
    assert (np.asarray(array) == stored).all()
    assert np.asarray(array, np.float64).dtype == np.float64
    assert np.asarray(scalar).shape == ()
    assert np.asarray(empty).shape == (0, 4)
    assert "group/array" in repr(array)
    with pytest.raises(ValueError, match="copies"):
        array.__array__(copy=False)


@pytest.mark.parametrize(
    "names",
    [
        ["a:0", "b:0"],
        np.array([b"a:0", b"b:0"]),
        np.array([b"a:0", b"b:0"], "S9"),
        np.array(["a:0", "b:0"], h5py.string_dtype()),
    ],
)
def test_lists_of_text_in_every_spelling(path: Path, names: object) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["names"] = names
    with Hdf5File(str(path)) as file:
        assert file.names("", "names") == ["a:0", "b:0"]


def test_split_empty_and_absent_lists(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["names0"], file.attrs["names1"] = [b"a"], [b"b", b"c"]
        file.attrs["none"] = []
        file.attrs["one"] = b"text"
    with Hdf5File(str(path)) as file:
        assert file.names("", "names") == ["a", "b", "c"]
        assert file.names("", "none") == []
        assert file.names("", "absent") is None
        assert file.text("", "one") == "text"
        with pytest.raises(FileFormatError, match="one text"):
            file.text("", "names1")


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "\u202e"])
def test_names_that_a_terminal_would_not_show(path: Path, name: str) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["names"] = ["a", name]
    with Hdf5File(str(path)) as opened, pytest.raises(FileFormatError, match="no name") as caught:
        opened.names("", "names")
    assert str(caught.value).isprintable()


def _external_link(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones(3, np.float32)
    file["x"] = h5py.ExternalLink("other.h5", "/x")


def _external_link_on_the_way(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x/x"] = np.ones(3, np.float32)
    file["g"] = h5py.ExternalLink("other.h5", "/")
    file.attrs["path"] = "g/x/x"


def _soft_link(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file["y"] = np.ones(3, np.float32)
    file["x"] = h5py.SoftLink("/y")


def _external_storage(file: h5py.File, folder: Path) -> None:
    (folder / "secret.bin").write_bytes(bytes(12))
    file.create_dataset("x", (3,), np.float32, external=[(str(folder / "secret.bin"), 0, 12)])


def _virtual_dataset(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones(3, np.float32)
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (3,))
    file.create_virtual_dataset("x", layout)


def _never_written(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file.create_dataset("x", (1 << 38,), np.float32)


def _never_written_chunks(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file.create_dataset("x", (1 << 38,), np.float32, chunks=(1 << 16,))


def _gzip_bomb(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file.create_dataset("x", data=np.zeros(1 << 22, np.float32), compression="gzip")


def _huge_chunk(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file.create_dataset(
        "x", data=np.zeros(4, np.float32), chunks=(1 << 22,), maxshape=(None,), compression="gzip"
    )


def _foreign_filter(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file.create_dataset("x", data=np.ones(64, np.float32), compression="lzf")


def _text(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file["x"] = "no numbers"


def _compound(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file["x"] = np.zeros(3, [("a", np.float32)])


def _null(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file["x"] = h5py.Empty(np.float32)


def _group(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file.create_group("x")


def _absent(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file["y"] = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_external_link, "link to elsewhere"),
        (_external_link_on_the_way, "link to elsewhere"),
        (_soft_link, "link to elsewhere"),
        (_external_storage, "outside the file"),
        (_virtual_dataset, "outside the file"),
        (_never_written, "claims"),
        (_never_written_chunks, "claims"),
        (_gzip_bomb, "claims"),
        (_huge_chunk, "claims"),
        (_foreign_filter, "compressed"),
        (_text, "no tensor"),
        (_compound, "no tensor"),
        (_null, "no tensor"),
        (_group, "not a group"),
        (_absent, "does not hold"),
    ],
)
def test_hostile_datasets_are_refused(
    path: Path, build: Callable[[h5py.File, Path], None], message: str
) -> None:
    with h5py.File(path, "w") as file:
        build(file, path.parent)
        wanted = file.attrs.get("path", "x")
    with pytest.raises(FileFormatError, match=message) as caught, Hdf5File(str(path)) as file:
        file.array(wanted)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (10,)},
    ],
)
def test_ordinary_compression_is_read(path: Path, options: dict[str, object]) -> None:
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, **options)
    with Hdf5File(str(path)) as file:
        assert (np.asarray(file.array("x")) == values).all()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">i8", "|u1"])
@pytest.mark.parametrize("userblock_size", [0, 1024])
def test_what_lies_plainly_needs_no_library(
    path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, userblock_size: int
) -> None:
    values = np.arange(6, dtype=dtype).reshape(2, 3)
    with h5py.File(path, "w", userblock_size=userblock_size) as file:
        file["x"] = values
    with Hdf5File(str(path)) as file:
        array = file.array("x")
    monkeypatch.setattr(h5py, "File", None)
    assert np.asarray(array).dtype == values.dtype.newbyteorder("=")
    assert (np.asarray(array) == values).all()


def test_threads_read_at_once(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for i in range(200):
            file[f"g/{i}"] = np.full(1000, i, np.float32)
    with Hdf5File(str(path)) as file:
        arrays = [file.array(name) for name in file.datasets("g")]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(np.asarray, arrays))
    for array, values in zip(arrays, found, strict=True):
        assert (values == int(array.path[2:])).all()


def test_types_that_numpy_does_not_have_are_converted(path: Path) -> None:
    of_12_bits = h5py.h5t.STD_I16LE.copy()
    of_12_bits.set_precision(12)
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((4,))
        dataset = h5py.h5d.create(file.id, b"x", of_12_bits, space)
        stored = np.array([0, 1, -1, -2048], np.int16)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, stored)
        file["flags"] = np.array([True, False])
    with Hdf5File(str(path)) as file:
        numbers, flags = np.asarray(file.array("x")), np.asarray(file.array("flags"))
    assert numbers.tolist() == stored.tolist()
    assert (flags.dtype, flags.tolist()) == (np.dtype(bool), [True, False])


def test_elements_behind_the_end_of_the_file(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(64, np.float32)
        offset = file["x"].id.get_offset()
    content, size = path.read_bytes(), (256).to_bytes(8, "little")
    places = [start.to_bytes(8, "little") + size for start in (offset, len(content) - 4)]
    assert content.count(places[0]) == 1
    path.write_bytes(content.replace(*places))
    # HDF5 1.14 says so when the array is met; of older ones, qmath when it is read.
    with Hdf5File(str(path)) as file, pytest.raises(FileFormatError, match="cannot read"):
        np.asarray(file.array("x"))


@pytest.mark.parametrize("name", ["", "/x", "x/", "./x", "../x", "x/y", "g//x"])
def test_odd_paths_lead_nowhere(path: Path, name: str) -> None:
    with h5py.File(path, "w") as file:
        file["x"], file["g/x"] = np.ones(3), np.ones(3)
    with Hdf5File(str(path)) as file, pytest.raises(FileFormatError):
        file.array(name)


def test_attributes_that_are_no_text(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["number"] = 3
        file.attrs["latin"] = np.bytes_(b"\xff\xfe")
    with Hdf5File(str(path)) as file:
        for name in ("number", "latin", "absent"):
            with pytest.raises(FileFormatError, match=r"damaged|cut"):
                file.text("", name)
        with pytest.raises(FileFormatError, match="group"):
            file.names("nowhere", "names")


@pytest.mark.parametrize("content", [b"", b"text\n" * 100, b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_files_that_are_not_hdf5(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=str(path)), Hdf5File(str(path)):
        pass


def test_missing_and_directory(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no such file"):
        Hdf5File(str(tmp_path / "absent.h5")).__enter__()
    with pytest.raises(FileFormatError):
        Hdf5File(str(tmp_path)).__enter__()


def test_damage_found_while_reading_is_the_same_error(path: Path) -> None:
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(4096,), fletcher32=True)
        offset = file["x"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 100] ^= 0xFF
    path.write_bytes(content)
    with Hdf5File(str(path)) as file:
        array = file.array("x")
    with pytest.raises(FileFormatError, match="cannot read"):
        np.asarray(array)


def test_the_file_can_be_written_again_but_not_mixed_up(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3, np.float32)
    with Hdf5File(str(path)) as opened:
        array = opened.array("x")
    assert (np.asarray(pickle.loads(pickle.dumps(array))) == 1).all()
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(4, np.float32)
    with pytest.raises(FileFormatError, match="has changed"):
        np.asarray(array)


def test_without_h5py(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qmath-tfmot\[checkpoints\]'"):
        Hdf5File(str(path)).__enter__()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000 + "]" * 100_000,
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "1" * 5000,
        '{"a": ' + "9" * 4301 + "}",
        b"\xff\xff\xff",
    ],
)
def test_json_that_keras_did_not_write(text: str | bytes) -> None:
    with pytest.raises(FileFormatError, match="file: config"):
        parse_json(text, "file: config")


def test_json() -> None:
    value = {"a": [1, 2.5, None, True, {"b": "ü"}]}
    assert parse_json(json.dumps(value), "file") == value
    assert parse_json(json.dumps(value).encode(), "file") == value
    assert parse_json("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), "file")


def test_what_is_below_a_group(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a/b/c"] = file["a/d"] = file["e"] = np.zeros(2)
        file.create_group("a/empty")
    with Hdf5File(str(path)) as file:
        assert file.children("") == ["a", "e"]
        assert file.children("a") == ["b", "d", "empty"]
        assert sorted(file.datasets("")) == ["a/b/c", "a/d", "e"]
        assert file.datasets("a/b") == ["a/b/c"]
        assert file.datasets("a/empty") == []
        for missing in ("x", "e"):
            with pytest.raises(FileFormatError, match="is missing"):
                file.datasets(missing)


@pytest.mark.parametrize("link", [h5py.SoftLink("/a"), h5py.ExternalLink("other.h5", "/")])
def test_links_below_a_group(path: Path, link: Any) -> None:
    with h5py.File(path, "w") as file:
        file["a/b"] = np.zeros(2)
        file["a/link"] = link
    with Hdf5File(str(path)) as opened, pytest.raises(FileFormatError, match="link to elsewhere"):
        opened.datasets("")


def test_circles_end(path: Path) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("a")
        for i in range(1000):
            group[f"again{i}"] = group
    with Hdf5File(str(path)) as opened, pytest.raises(FileFormatError, match="elsewhere as well"):
        opened.datasets("")
