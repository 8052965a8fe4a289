"""The length of an attribute's texts, from the header of the object that has it."""

from pathlib import Path

import pytest

from qmath.containers.hdf5_texts import length_of_texts

h5py = pytest.importorskip("h5py")
TEXTS = ["a", "größe/kernel:0", "x" * 300]
LENGTH = sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("more", [0, 6])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_texts_are_as_long_as_they_were_written(tmp_path: Path, libver: str, more: int) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", libver=libver) as file:
        for number in range(more):  # the header continues elsewhere
            file.attrs[f"other{number}"] = ["y" * 50] * 3
        file.attrs["names"] = TEXTS
        address = h5py.h5o.get_info(file.id).addr
    with open(path, "rb") as file:
        assert length_of_texts(file, address, b"names", len(TEXTS)) == LENGTH
        assert length_of_texts(file, address, b"missing", 1) is None
        assert length_of_texts(file, address, b"names", len(TEXTS) + 1000) is None


def test_a_header_that_is_none_has_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(b"\xff" * 4096)
    with open(path, "rb") as file:
        for address in (0, 100, 1 << 40):
            assert length_of_texts(file, address, b"names", 1) is None


def test_many_attributes_are_stored_where_they_cannot_be_measured(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for number in range(20):
            file.attrs[f"other{number}"] = ["y"]
        file.attrs["names"] = TEXTS
        address = h5py.h5o.get_info(file.id).addr
    with open(path, "rb") as file:
        assert length_of_texts(file, address, b"names", len(TEXTS)) is None
