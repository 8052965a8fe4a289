"""Archives: what Keras writes, what is damaged, and what means harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qmath.containers.hdf5 import Hdf5File
from qmath.containers.keras_zip import KerasZip
from qmath.errors import FileFormatError

h5py = pytest.importorskip("h5py")

WEIGHTS = "model.weights.h5"


def hdf5(values: np.ndarray | None = None) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["layers/dense/vars/0"] = np.arange(6.0) if values is None else values
    return content.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write(tmp_path / "model.keras", {"config.json": b"{}", WEIGHTS: hdf5()})


def write(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


def edit(path: str, change: Callable[[bytearray], object]) -> None:
    content = bytearray(Path(path).read_bytes())
    change(content)
    Path(path).write_bytes(content)


def test_members(path: str) -> None:
    archive = KerasZip(path)
    assert "config.json" in archive
    assert "other" not in archive
    assert archive.read("config.json", 10) == b"{}"
    with pytest.raises(FileFormatError, match="other is missing"):
        archive.section("other")
    with pytest.raises(FileFormatError, match="longer than 1 bytes"):
        archive.read("config.json", 1)


def test_a_section_is_a_file(path: str) -> None:
    section = KerasZip(path).section(WEIGHTS)
    with section.open() as file:
        assert file.read() == hdf5()
        assert (file.tell(), file.read(5), file.seek(-3, os.SEEK_END)) == (
            section.size,
            b"",
            section.size - 3,
        )
        assert file.read(100) == hdf5()[-3:]
        assert file.seek(2) == 2
        assert file.seek(1, os.SEEK_CUR) == 3
        assert file.read(4) == hdf5()[3:7]


def test_hdf5_in_an_archive(path: str) -> None:
    with Hdf5File(path, KerasZip(path).section(WEIGHTS)) as file:
        assert file.datasets("") == ["layers/dense/vars/0"]
        values = file.array("layers/dense/vars/0")
    assert np.asarray(values).tolist() == list(range(6))  # opened again
    assert np.asarray(pickle.loads(pickle.dumps(values))).tolist() == list(range(6))
    assert f"{path}: {WEIGHTS}" in repr(values)
    write(Path(path), {"config.json": b"{}"})
    with pytest.raises(FileFormatError, match="changed since it was loaded"):
        np.asarray(values)


def test_arrays_are_read_without_the_archive(path: str) -> None:
    large = np.zeros(1 << 22)
    write(Path(path), {WEIGHTS: hdf5(large)})
    tracemalloc.start()
    with Hdf5File(path, KerasZip(path).section(WEIGHTS)) as file:
        assert file.array("layers/dense/vars/0").nbytes == large.nbytes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < large.nbytes / 4


def test_data_outside_the_archive(path: str, tmp_path: Path) -> None:
    """What `Hdf5File` refuses in a file of its own, it refuses in an archive."""
    (tmp_path / "secret").write_bytes(bytes(48))
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("external", (6,), "f8", external=str(tmp_path / "secret"))
        file["link"] = h5py.ExternalLink("model.keras", "/")
    write(Path(path), {WEIGHTS: content.getvalue()})
    with Hdf5File(path, KerasZip(path).section(WEIGHTS)) as file:
        with pytest.raises(FileFormatError, match="outside the file"):
            file.array("external")
        with pytest.raises(FileFormatError, match="link to elsewhere"):
            file.datasets("")


def test_an_archive_is_closed_when_it_holds_no_hdf5(path: str) -> None:
    section = KerasZip(write(Path(path), {WEIGHTS: b"no HDF5"})).section(WEIGHTS)
    file = Hdf5File(path, section)
    with pytest.raises(FileFormatError, match="HDF5 cannot read"), file:
        pass
    assert file._bytes is None


def test_compression_is_refused(path: str) -> None:
    write(Path(path), {"config.json": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(FileFormatError, match="zip -0 -r"):
        KerasZip(path).read("config.json", 1 << 30)


def test_arrays_are_no_model(tmp_path: Path) -> None:
    path = write(tmp_path / "images.npz", {"x.npy": b"", "y.npy": b""}, zipfile.ZIP_DEFLATED)
    with pytest.raises(FileFormatError, match=r"images.npz: .* arrays .*, which is data.*'shards/"):
        KerasZip(path)


def test_duplicates_are_refused(path: str) -> None:
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("config.json", b"[]")
    with pytest.raises(FileFormatError, match="two members of the zip file have one name"):
        KerasZip(path)


def test_every_flipped_bit_of_a_member_is_noticed(path: str) -> None:
    section = KerasZip(path).section(WEIGHTS)
    for at in range(section.start, section.start + section.size, 97):
        edit(path, lambda content, at=at: content.__setitem__(at, content[at] ^ 4))
        with pytest.raises(FileFormatError, match="checksum"):
            KerasZip(path).section(WEIGHTS)
        edit(path, lambda content, at=at: content.__setitem__(at, content[at] ^ 4))
    assert KerasZip(path).section(WEIGHTS) == section


def test_every_truncation_is_noticed(path: str) -> None:
    content = Path(path).read_bytes()
    for size in range(4, len(content), 61):
        Path(path).write_bytes(content[:size])
        with pytest.raises(FileFormatError, match="zip file cannot be read"):
            KerasZip(path)


@pytest.mark.parametrize(
    ("record", "at"),
    [
        (b"PK\x01\x02", 10),  # the method of compression
        (b"PK\x01\x02", 24),  # the size
        (b"PK\x01\x02", 20),  # the compressed size
        (b"PK\x01\x02", 42),  # where it starts
        (b"PK\x01\x02", 46),  # the name
        (b"PK\x01\x02", 8),  # whether it is encrypted
        (b"PK\x03\x04", 30),  # the name before the content
        (b"PK\x03\x04", 26),  # and its length
    ],
)
def test_damaged_directories(path: str, record: bytes, at: int) -> None:
    start = Path(path).read_bytes().index(record) + at
    edit(path, lambda content: content.__setitem__(start, content[start] ^ 1))
    with pytest.raises(FileFormatError, match=path):
        KerasZip(path).read("config.json", 100)


def test_a_directory_that_would_fill_the_memory(path: str) -> None:
    def claim(content: bytearray) -> None:
        end = content.rindex(b"PK\x05\x06")
        entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *[0] * 6, *[0] * 3, *[0] * 5, 0, 0)
        start = len(content[:end])
        content[end:end] = entry * 50_000
        struct.pack_into("<HHLL", content, end + 50_000 * 46 + 8, 9, 9, 50_000 * 46, start)

    edit(path, claim)
    tracemalloc.start()
    with pytest.raises(FileFormatError, match="a directory of 2300000 bytes"):
        KerasZip(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000 * 46  # of ZipInfo alone, ten times that


def test_names_that_lead_elsewhere_are_never_written(path: str, tmp_path: Path) -> None:
    write(Path(path), {"../../escape": b"x", "config.json": b"{}"})
    before = set(tmp_path.rglob("*"))
    KerasZip(path).read("config.json", 10)
    assert set(tmp_path.rglob("*")) == before
