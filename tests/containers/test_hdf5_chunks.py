"""The chunks of a dataset are found whatever h5py was built with, and never slowly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmath.containers.hdf5_chunks import DEFLATE, find_chunks, read_chunks

h5py = pytest.importorskip("h5py")


class AskedOneByOne:
    """A dataset of an h5py that cannot visit the chunks."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "chunk_iter":
            raise AttributeError(name)
        return getattr(self._dataset, name)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_chunks_asked_for_one_by_one_are_those_that_are_visited(
    tmp_path: Path, libver: str
) -> None:
    path = tmp_path / "m.h5"
    values = np.random.default_rng(0).normal(size=(31, 65)).astype(np.float32)
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("x", data=values, chunks=(1, 3), compression="gzip")
    held = path.stat().st_size
    with h5py.File(path, "r") as file, open(path, "rb") as raw:
        for dataset in (file["x"].id, AskedOneByOne(file["x"].id)):
            chunks = find_chunks(dataset, values.shape, (DEFLATE,), held)
            assert len(chunks.places) == 31 * 22
            assert np.array_equal(read_chunks(raw, chunks, values.shape, values.dtype), values)


def test_more_chunks_than_can_be_asked_for_soon_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("few", data=np.zeros(1024, np.int8), chunks=(1,))
        file.create_dataset("many", data=np.zeros(1025, np.int8), chunks=(1,))
        file.create_dataset("too_many", (65537,), np.int8, chunks=(1,))
    held = path.stat().st_size
    with h5py.File(path, "r") as file:
        asked = {name: AskedOneByOne(file[name].id) for name in file}
        assert len(find_chunks(asked["few"], (1024,), (), held).places) == 1024
        with pytest.raises(ValueError, match=r"1025 chunks are too many; .*, or install a newer"):
            find_chunks(asked["many"], (1025,), (), held)
        with pytest.raises(ValueError, match=r"65537 chunks are too many; .* -l CONTI$"):
            find_chunks(asked["too_many"], (65537,), (), held)
