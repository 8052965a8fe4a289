"""HDF5 files, archives, checkpoints and folders that no tool writes: one for each branch.

`written` yields entries of the corpus.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from qmath.containers.sorted_table import read_table
from qmath.containers.tensor_bundle import _ordered
from reference.corpus import Entry
from reference.odd_configs import ONES, made
from tests.attacks.hdf5_files import GROUP, KERNEL, chunked, replace
from tests.containers import bundles
from tests.containers.bundles import message
from tests.readers import object_graphs
from tests.readers.builders import entry, one_layer, sequential, write
from tests.readers.object_graphs import Var

__all__ = ["written"]


def written() -> Iterator[Entry]:
    """Yield all."""
    for change in HDF5:
        yield from made(partial(_changed, change=change))
    for build in FILES:
        yield from made(build)
    yield Entry({"m/there": b"x"}, "m/absent")
    shard = "m/a.data-00000-of-00001"
    yield Entry({shard: b"x" * 50, "m/a.index": b"x"}, shard)


# ---- HDF5


def _changed(path: Path, change: Callable[[Any], object]) -> None:
    one_layer(path)
    with h5py.File(path, "r+") as file:
        change(file)


def twelve_bits() -> Any:
    kind = h5py.h5t.STD_I16LE.copy()
    kind.set_precision(12)
    return kind


def of_type(file: Any, kind: Any, chunks: bool) -> None:
    """Give a float's place to numbers of a type that NumPy does not have."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_obj_track_times(False)
    if chunks:
        creation.set_chunk((3, 4))
    del file[KERNEL]
    space, group = h5py.h5s.create_simple((3, 4)), file[f"{GROUP}/d"]
    dataset = h5py.h5d.create(group.id, b"kernel:0", kind, space, creation)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones((3, 4), np.int16))


def group_for_kernel(file: Any) -> None:
    del file[KERNEL]
    file.create_group(KERNEL)


def named(*names: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[GROUP].attrs["weight_names"] = list(names)

    return change


def part_of_chunks(count: int, side: int, kept: int) -> Callable[[Any], None]:
    """Write some chunks of many."""

    def change(file: Any) -> None:
        options = {"shape": (count * side,), "dtype": "f4", "chunks": (side,), "compression": 1}
        replace(file, KERNEL, **options)
        file[KERNEL][: kept * side] = np.random.default_rng(0).random(kept * side)

    return change


def another_filter(file: Any) -> None:
    chunked(file, KERNEL, ["shuffle"], bytes(40))


def two_texts(file: Any) -> None:
    del file.attrs["model_config"]
    file.attrs["model_config"] = ["a", "b"]


HDF5: tuple[Callable[[Any], object], ...] = (
    two_texts, group_for_kernel, named("a/" * 120 + "k"), named("d//kernel:0"), another_filter,
    lambda file: of_type(file, twelve_bits(), chunks=True),
    lambda file: of_type(file, twelve_bits(), chunks=False),
    part_of_chunks(8, 64, 1), part_of_chunks(1 << 17, 1, 2000),
    lambda file: replace(file, KERNEL, data=np.zeros((0, 4), np.float32)),
)  # fmt: skip


def of_odd_type(path: Path) -> None:
    """Write a layer of nobody's whose weight is of 12 bits."""
    write(path, sequential(entry("Custom", "d")), {"d": {"d/w:0": np.int16([1])}})
    with h5py.File(path, "r+") as file:
        place = "model_weights/d/d"
        del file[place]["w:0"]
        space, creation = h5py.h5s.create_simple((3,)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_obj_track_times(False)
        held = h5py.h5d.create(file[place].id, b"w:0", twelve_bits(), space, creation)
        held.write(h5py.h5s.ALL, h5py.h5s.ALL, np.int16([1, 2, 3]))


def slashes(path: Path) -> None:
    """Write weights alone, of a layer whose name begins with a slash."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["/d"]
        file.create_group("d").attrs["weight_names"] = ["d/kernel:0"]


def many_texts(
    path: Path, names: int = 60, more: int = 0, width: int = 8, libver: str = "earliest"
) -> None:
    """Write lists of names that are measured before they are read."""
    creation, access = (
        h5py.h5p.create(kind) for kind in (h5py.h5p.FILE_CREATE, h5py.h5p.FILE_ACCESS)
    )
    creation.set_sizes(width, width)
    creation.set_obj_track_times(False)
    of_group = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    of_group.set_obj_track_times(False)

    def group_in(parent: Any, name: str) -> Any:
        return h5py.Group(h5py.h5g.create(parent.id, name.encode(), gcpl=of_group))

    bounds = {"earliest": h5py.h5f.LIBVER_EARLIEST, "latest": h5py.h5f.LIBVER_LATEST}
    access.set_libver_bounds(bounds[libver], h5py.h5f.LIBVER_LATEST)
    made = h5py.h5f.create(bytes(path), h5py.h5f.ACC_TRUNC, creation, access)
    with h5py.File(made) as file:
        file["padding"] = np.zeros(1 << 18, np.uint8)
        weights = group_in(file, "model_weights")
        for number in range(more):
            weights.attrs[f"a{number}"] = number
        file.attrs["model_config"] = json.dumps(sequential(entry("Dense", "d", units=4)))
        weights.attrs["layer_names"] = ["d", *(f"e{i}" for i in range(names))]
        for name in weights.attrs["layer_names"]:
            group = group_in(weights, name)
            for number in range(more):
                group.attrs[f"a{number}"] = number
            group.attrs["weight_names"] = [f"w{i}" for i in range(names)] if name == "d" else []
        for i in range(names):
            weights[f"d/w{i}"] = np.float32(i)


def names_of_one_text(path: Path) -> None:
    """Write a group whose links are all called by the same long name."""
    inner = path.with_suffix(".h5")
    with h5py.File(inner, "w") as file:
        group = file.create_group("layers")
        group.create_group("a" * 4000)
        for i in range(200):
            group[f"b{i}"] = group["a" * 4000]
    content = bytearray(inner.read_bytes())
    at = -1
    while (at := content.find(b"SNOD", at + 1)) >= 0:
        (count,) = struct.unpack_from("<H", content, at + 6)
        for place in range(at + 8, at + 8 + 40 * count * (count > 1), 40):
            content[place : place + 8] = struct.pack("<Q", 8)
    archived(path, bytes(content))


def archived(path: Path, weights: bytes) -> None:
    config = json.dumps(sequential(entry("Dense", "d", units=4, use_bias=False)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights)


def behind_a_block(chunks: tuple[int, int] | None) -> Callable[[Path], None]:
    """Put other bytes before the HDF5 file in an archive."""

    def build(path: Path) -> None:
        inner = path.with_suffix(".h5")
        with h5py.File(inner, "w", userblock_size=512) as file:
            file.create_dataset("layers/dense/vars/0", data=ONES, chunks=chunks)
        archived(path, inner.read_bytes())

    return build


def moved_chunk(to: int) -> Callable[[Path], None]:
    """Say of a chunk that it lies elsewhere."""

    def build(path: Path) -> None:
        _changed(path, lambda file: replace(file, KERNEL, data=ONES, chunks=(3, 4)))
        with h5py.File(path) as file:
            place = file[KERNEL].id.get_chunk_info(0).byte_offset
        content = path.read_bytes()
        path.write_bytes(content.replace(struct.pack("<Q", place), struct.pack("<Q", to)))

    return build


# ---- checkpoints


def checkpoint(change: Callable[[dict[bytes, Any]], bytes | None]) -> Callable[[Path], Path]:
    """Write a checkpoint of which a function changes the index, and adds to the data."""

    def build(path: Path) -> Path:
        prefix = path.parent / "ckpt"
        wrapper = object_graphs.wrapper()
        many = Var("d/kernel", KERNEL_OF_MANY)
        wrapper["layer"]["kernel"] = wrapper["_weight_vars"]["0"]["0"] = many
        object_graphs.save(prefix, object_graphs.model(wrapper))
        index, shard = Path(f"{prefix}.index"), Path(f"{prefix}.data-00000-of-00001")
        items = read_table(index.read_bytes(), "")
        entries = {
            k: bundles.protos.parse("BundleEntryProto", v, "") for k, v in items.items() if k
        }
        more = change(entries)
        items = {b"": items[b""]} | {k: v.SerializeToString() for k, v in entries.items()}
        index.write_bytes(bundles.table([bundles.stored(bundles.block(sorted(items.items())))]))
        shard.write_bytes(shard.read_bytes() + (more or b""))
        return prefix

    return build


def kernel_of(entries: Mapping[bytes, Any]) -> bytes:
    return next(key for key, found in entries.items() if found.size == len(VALUES))


def sliced(
    *rows: tuple[int, int], lengths: Sequence[int] = (), kind: int = 1, places: Sequence[int] = ()
) -> Callable[[dict[bytes, Any]], None]:
    """Cut the kernel in slices of so many rows each, which lie where `places` says."""

    def change(entries: dict[bytes, Any]) -> None:
        key = kernel_of(entries)
        whole, start = entries[key], entries[key].offset
        parts = []
        for number, (row, count) in enumerate(rows):
            ends = [message("TensorSliceProto.Extent", start=row, length=count),
                    message("TensorSliceProto.Extent")]  # fmt: skip
            parts.append(message("TensorSliceProto", extent=ends))
            code = b"\0" + key + b"\0\1\1" + bytes([2])
            code += b"".join(map(_ordered, (row, count, 0, -1)))
            length = lengths[number] if lengths else count
            held = message("TensorShapeProto", dim=[
                message("TensorShapeProto.Dim", size=n) for n in (length, 3)])  # fmt: skip
            at = 12 * (places[number] if places else row)
            data = VALUES[at : at + 12 * count]
            entries[code] = message("BundleEntryProto", dtype=kind, shape=held, size=12 * length,
                                    offset=start + at, crc32c=bundles.crc(data))  # fmt: skip
        entries[key] = message("BundleEntryProto", dtype=1, shape=whole.shape, slices=parts)

    return change


KERNEL_OF_MANY = np.linspace(-0.8, 0.7, 600, dtype=np.float32).reshape(200, 3)
VALUES = KERNEL_OF_MANY.tobytes()


def halves(entries: dict[bytes, Any]) -> bytes:
    """Store the kernel as bfloat16."""
    found = entries[kernel_of(entries)]
    data = np.frombuffer(VALUES, "<u2")[1::2].tobytes()
    end = max(e.offset + e.size for e in entries.values())
    found.dtype, found.size, found.offset, found.crc32c = 14, len(data), end, bundles.crc(data)
    return data


def graph(**fields: Any) -> Callable[[dict[bytes, Any]], None]:
    """Change the entry of the object graph."""
    return lambda entries: entries[bundles.GRAPH.encode()].MergeFrom(
        message("BundleEntryProto", **fields))  # fmt: skip


def other_graph(data: bytes) -> Callable[[dict[bytes, Any]], bytes]:
    """Store other bytes for the object graph."""

    def change(entries: dict[bytes, Any]) -> bytes:
        found = entries[bundles.GRAPH.encode()]
        found.offset, found.size = max(e.offset + e.size for e in entries.values()), len(data)
        return data

    return change


def empty_variable(path: Path) -> Path:
    tree = object_graphs.model(object_graphs.wrapper(), other={"w": Var("w", np.zeros((0, 2)))})
    return object_graphs.save(path.parent / "ckpt", tree)


def table_of(*blocks: bytes, index: bytes | None = None) -> Callable[[Path], Path]:
    """Write an index of these blocks."""

    def build(path: Path) -> Path:
        prefix = path.parent / "ckpt"
        content = bundles.table([bundles.stored(b) for b in blocks], index=index)
        Path(f"{prefix}.index").write_bytes(content)
        Path(f"{prefix}.data-00000-of-00001").write_bytes(b"")
        return prefix

    return build


def large_index(path: Path) -> Path:
    """Write an index far longer than those of models."""
    Path(f"{path}.index").write_bytes(b"\1" * ((1 << 22) + 1))
    return path


def odd_names(path: Path) -> Path:
    folder = path.parent / "f'older"
    folder.mkdir()
    for name in ("a'b", "c"):
        object_graphs.save(folder / name, object_graphs.model(object_graphs.wrapper()))
    return folder


def folder_of(*names: str, path_is: str = "") -> Callable[[Path], Path]:
    """Write a folder of files that are nothing."""

    def build(path: Path) -> Path:
        path.mkdir()
        for name in names:
            (path / name).write_bytes(b"x" * 50)
        return path / path_is if path_is else path

    return build


def bytes_of(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


FILES: tuple[Callable[[Path], Any], ...] = (
    of_odd_type, slashes, behind_a_block((3, 4)), behind_a_block(None),
    moved_chunk(1 << 40), moved_chunk(8),
    many_texts, partial(many_texts, libver="latest"),
    lambda path: many_texts(path, more=2, libver="latest"),
    lambda path: many_texts(path, more=2), lambda path: many_texts(path, more=20, libver="latest"),
    lambda path: many_texts(path, width=4), names_of_one_text,
    *map(checkpoint, (
        sliced((0, 100), (100, 100)), sliced((0, 100), (50, 100), places=(0, 100)),
        sliced((0, 100), (0, 100)), sliced((0, 100), (100, 100), kind=2),
        sliced((0, 100), (100, 100), lengths=(100, 7)), sliced((0, 100)), halves, graph(dtype=1),
        graph(crc32c=7), other_graph(b"\xff" * 9), other_graph(b"\5ab"), other_graph(b"\1abcdx"),
        graph(size=1 << 25),
    )),
    empty_variable, odd_names, large_index,
    table_of(b"x"), table_of(b"\xff\0\0\0"), table_of(bundles.block(raw=b"\xff")),
    table_of(bundles.block(raw=bundles.record(b"", b"", own=99))),
    table_of(bundles.block(raw=b"\0\0\0" + b"".join(
        bundles.record(b"a", b"", shared=i) for i in range(2000)))),
    table_of(index=bundles.stored(bundles.block([(b"a", b"\xff" * 11)]))),
    folder_of("saved_model.pbtxt"), folder_of("x"), folder_of("saved_model.pb"),
    bytes_of(b"abcdTFL3" + bytes(20)), bytes_of(b' {"a": 1}'), bytes_of(b""), bytes_of(b"x" * 30),
)  # fmt: skip
