"""Hostile HDF5 files: each a function, most of which change an ordinary whole model.

`ATTACKS` says what is said of those that are refused; `READ` are harmless, and read right.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.attacks.collection import Collection
from tests.readers.builders import (
    entry,
    kernel,
    one_layer,
    sequential,
    step,
    wrapped,
    write,
    write_v3,
)

GROUP = "model_weights/quant_d"
KERNEL = f"{GROUP}/d/kernel:0"
LOW, HIGH = (f"{GROUP}/quant_d/kernel_{end}:0" for end in ("min", "max"))
FILES = Collection()
ATTACKS, READ, refused, is_read = FILES.attacks, FILES.read, FILES.refused, FILES.is_read


def changed(message: str) -> Callable[[Any], Any]:
    """Enter a function that changes an open file."""

    def enter(function: Callable[[h5py.File, Path], object]) -> object:
        def build(path: Path) -> None:
            one_layer(path)
            with h5py.File(path, "r+") as file:
                function(file, path.parent)

        ATTACKS[function.__name__] = build, message
        return function

    return enter


def replace(file: h5py.File, path: str, **options: Any) -> None:
    del file[path]
    file.create_dataset(path, **options)


def other_file(folder: Path) -> Path:
    with h5py.File(folder / "other.h5", "w") as file:
        file["x"] = np.ones((3, 4), np.float32)
    return folder / "other.h5"


@changed("link to elsewhere")
def external_link(file: h5py.File, folder: Path) -> None:
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink(other_file(folder).name, "/x")


@changed("link to elsewhere")
def external_link_to_an_absolute_path(file: h5py.File, folder: Path) -> None:
    del file[GROUP]
    file[GROUP] = h5py.ExternalLink(str(other_file(folder)), "/")


@changed("link to elsewhere")
def external_link_to_no_file(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    del file["model_weights"]
    file["model_weights"] = h5py.ExternalLink("/etc/passwd", "/")


@changed("link to elsewhere")
def soft_link(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file["y"] = file[KERNEL][()]
    del file[KERNEL]
    file[KERNEL] = h5py.SoftLink("/y")


@changed("link to elsewhere")
def soft_link_to_itself(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    del file[KERNEL]
    file[KERNEL] = h5py.SoftLink(f"/{KERNEL}")


@changed("outside the file")
def external_storage(file: h5py.File, folder: Path) -> None:
    (folder / "secret.bin").write_bytes(bytes(48))
    external = [(str(folder / "secret.bin"), 0, 48)]
    replace(file, KERNEL, shape=(3, 4), dtype="f4", external=external)


@changed("outside the file")
def virtual_dataset(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((3, 4), np.float32)
    layout[:] = h5py.VirtualSource(str(other_file(folder)), "x", (3, 4))
    del file[KERNEL]
    file.create_virtual_dataset(KERNEL, layout)


@changed("claims")
def gzip_bomb(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    replace(file, KERNEL, data=np.zeros((1 << 13, 1 << 13), np.float32), compression="gzip")


@changed("claims")
def bomb_in_a_chunk(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    data = np.zeros((3, 4), np.float32)
    options = {"chunks": (1 << 12, 1 << 12), "maxshape": (None, None), "compression": "gzip"}
    replace(file, KERNEL, data=data, **options)


def chunked(file: h5py.File, path: str, filters: list[str], data: bytes) -> None:
    """Replace a dataset by one of 3 by 4 numbers in one chunk, stored as these bytes."""
    del file[path]
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_obj_track_times(False)
    creation.set_chunk((3, 4))
    for name in filters:
        getattr(creation, f"set_{name}")(*([9] if name == "deflate" else []))
    space, name = h5py.h5s.create_simple((3, 4)), path.rpartition("/")[2].encode()
    group = file[path.rpartition("/")[0]]
    dataset = h5py.h5d.create(group.id, name, h5py.h5t.IEEE_F32LE, space, creation)
    dataset.write_direct_chunk((0, 0), data)


def deflated(size: int) -> bytes:
    """Return a stream that inflates to so many MiB of zeros."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size)) + packer.flush()


@changed("compressed in a way")
def deflate_twice(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    chunked(file, KERNEL, ["deflate", "deflate"], zlib.compress(deflated(512), 9))


@changed("another size than its 48 bytes")
def a_stream_without_end(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    chunked(file, KERNEL, ["deflate"], deflated(48))


@changed("another size than its 48 bytes")
def a_stream_that_is_cut(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    chunked(file, KERNEL, ["deflate"], zlib.compress(bytes(48))[:-4])


@changed("holds 52 instead of 48 bytes|another size")
def a_stream_of_more(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    chunked(file, KERNEL, ["shuffle", "deflate"], zlib.compress(bytes(52)))


@changed("checksum")
def a_chunk_of_another_checksum(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    chunked(file, KERNEL, ["fletcher32"], bytes(48) + b"\1\0\0\0")


def references_to_one_text(path: Path, attributes: int, count: int, size: int) -> None:
    """Write layers whose lists of weights all refer to one text of `size` bytes."""
    write(path, sequential(wrapped("d")), {f"quant_{i}": {} for i in range(attributes)})
    long = "a" * size
    with h5py.File(path, "r+") as file:
        for group in file["model_weights"].values():
            del group.attrs["weight_names"]
            group.attrs["weight_names"] = [long, *["b" * 16] * (count - 1)]
            long = "c" * 16
    content, marks = bytearray(path.read_bytes()), [struct.pack("<I", n) for n in (size, 16)]
    at, whole = -1, b""
    for mark in marks:
        while (at := content.find(mark, at + 1)) >= 0:
            (heap,) = struct.unpack_from("<Q", content, at + 4)
            if content[heap : heap + 4] == b"GCOL":
                whole = whole or bytes(content[at : at + 16])
                content[at : at + 16] = whole
    path.write_bytes(content)


@refused("more bytes than the file")
def a_thousand_references_to_one_text(path: Path) -> None:
    references_to_one_text(path, 1, 1000, 1 << 20)


@refused("no name")
def lists_of_references_to_one_text(path: Path) -> None:
    references_to_one_text(path, 200, 1, 1 << 20)


def many_weights(path: Path, change: Callable[[h5py.File, list[str]], object]) -> None:
    """Write a layer of 40 weights and change all."""
    names = [f"d/w{i}:0" for i in range(40)]
    values = np.ones((512, 256), np.float32)
    config = sequential(entry("Custom", "d"))
    write(path, config, {"d": dict.fromkeys(names, values[:1, :1])})
    with h5py.File(path, "r+") as file:
        replace(file, f"model_weights/d/{names[0]}", data=values)
        change(file, [f"model_weights/d/{name}" for name in names])


@refused("those of another tensor")
def links_to_one_dataset(path: Path) -> None:
    def change(file: h5py.File, names: list[str]) -> None:
        for name in names[1:]:
            del file[name]
            file[name] = file[names[0]]

    many_weights(path, change)


@refused("those of another tensor")
def datasets_over_the_same_bytes(path: Path) -> None:
    offsets = []

    def change(file: h5py.File, names: list[str]) -> None:
        for name in names[1:]:
            replace(file, name, data=np.ones((512, 256), np.float32))
        offsets.extend(file[name].id.get_offset() for name in names)

    many_weights(path, change)
    content = path.read_bytes()
    first, *others = (struct.pack("<Q", offset) for offset in offsets)
    for other in others:
        content = content.replace(other, first)
    path.write_bytes(content)


@changed("never written")
def a_hole_of_a_gigabyte(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((1 << 14, 1 << 14))
    del file[KERNEL]
    h5py.h5d.create(file[f"{GROUP}/d"].id, b"kernel:0", h5py.h5t.IEEE_F32LE, space, creation)


@is_read
def a_kernel_in_chunks(path: Path) -> None:
    one_layer(path)
    with h5py.File(path, "r+") as file:
        values = file[KERNEL][()]
        options = {"chunks": (2, 3), "compression": "gzip", "shuffle": True, "fletcher32": True}
        replace(file, KERNEL, data=values, **options)


@changed("claims")
def petabytes_never_written(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    replace(file, KERNEL, shape=(1 << 25, 1 << 25), dtype="f4")


@changed("claims")
def petabytes_in_chunks(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    replace(file, KERNEL, shape=(1 << 25, 1 << 25), dtype="f4", chunks=(16, 16))


@refused("claims|cannot read")
def shape_beyond_the_storage(path: Path) -> None:
    one_layer(path)
    content = path.read_bytes()
    dims = struct.pack("<QQ", 3, 4)
    assert dims in content
    path.write_bytes(content.replace(dims, struct.pack("<QQ", 3, 1 << 40)))


@refused("claims")
def shape_below_the_storage(path: Path) -> None:
    one_layer(path)
    dims = struct.pack("<QQ", 3, 4)
    path.write_bytes(path.read_bytes().replace(dims, struct.pack("<QQ", 1, 4)))


@refused("has the shape .4, 3., and Dense of that config one of .any, 4.; the file is damaged")
def shape_of_another_layer(path: Path) -> None:
    one_layer(path, units=4)
    dims = struct.pack("<QQ", 3, 4)
    path.write_bytes(path.read_bytes().replace(dims, struct.pack("<QQ", 4, 3)))


@changed("compressed")
def filter_of_a_plugin(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    replace(file, KERNEL, data=np.zeros((3, 4), np.float32), compression="lzf")


@changed("compressed")
def lossy_filter(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    replace(file, KERNEL, data=np.zeros((3, 4), np.float32), scaleoffset=3)


@changed("no tensor of numbers")
def compound(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    replace(file, KERNEL, data=np.zeros((3, 4), [("a", "f4"), ("b", "f4")]))


@changed("no tensor of numbers")
def references(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    replace(file, KERNEL, shape=(3, 4), dtype=h5py.ref_dtype)


@changed("no tensor of numbers")
def text(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    replace(file, KERNEL, data="kernel")


@changed("not float32")
def integers(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    replace(file, KERNEL, data=np.zeros((3, 4), np.int8))


@changed("not float32")
def long_doubles(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    replace(file, LOW, data=np.longdouble(-1))


@changed("not finite")
def range_that_is_nan(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file[LOW][()] = np.nan


@changed("not finite")
def range_that_is_infinite(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file[HIGH][()] = np.inf


@changed("min > max")
def range_upside_down(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file[LOW][()] = 2


@changed("NaN")
def kernel_of_nan(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file[KERNEL][1, 1] = np.nan


@changed("shapes")
def range_of_another_shape(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    for path in (LOW, HIGH):
        replace(file, path, data=np.ones(3, np.float32))


@changed("shapes")
def range_of_two_axes(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    for path in (LOW, HIGH):
        replace(file, path, data=np.ones((3, 4), np.float32))


@changed("no counterpart")
def half_a_range(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    names = [name for name in file[GROUP].attrs["weight_names"] if "max" not in name]
    file[GROUP].attrs["weight_names"] = names


@changed("two tensors|twice")
def one_name_twice(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file[GROUP].attrs["weight_names"] = [*file[GROUP].attrs["weight_names"], "d/kernel:0"]


@changed("lists a layer twice")
def one_layer_twice(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file["model_weights"].attrs["layer_names"] = ["quant_d", "quant_d"]


@changed("does not hold|no name|missing")
def names_that_lead_out(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file[GROUP].attrs["weight_names"] = ["../../../etc/passwd", "/etc/passwd"]


@changed("no name")
def names_for_a_terminal(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file[GROUP].attrs["weight_names"] = ["\x1b]0;owned\x07"]


@changed("missing|list")
def thousands_of_layers_that_are_not_there(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    names = [f"layer_{i}" for i in range(1000)]
    file["model_weights"].attrs["layer_names"] = names


@changed("text")
def a_config_of_numbers(file: h5py.File, folder: Path) -> None:  # noqa: ARG001
    file.attrs["model_config"] = np.arange(5)


def weights_of_dense(path: Path) -> Path:
    """Weights without names, and the architecture beside them."""
    write_v3(path, {"layers/dense": [np.zeros((2, 2), np.float32), np.zeros(2, np.float32)]})
    config = sequential(entry("Dense", "dense", units=2))
    path.with_name("config.json").write_text(json.dumps(config))
    return path


@refused("elsewhere")
def groups_in_a_circle(path: Path) -> None:
    with h5py.File(weights_of_dense(path), "r+") as file:
        file["layers/dense/layer"] = file["layers"]


@refused("elsewhere")
def groups_that_double(path: Path) -> None:
    with h5py.File(weights_of_dense(path), "r+") as file:
        group = file["layers/dense"]
        for _ in range(64):
            below = group.create_group("a")
            group["b"] = below
            group = below


@refused("deep")
def groups_without_end(path: Path) -> None:
    with h5py.File(weights_of_dense(path), "r+") as file:
        group = file["layers/dense"]
        for _ in range(4000):
            group = group.create_group("g")


@refused("no file that Keras")
def a_block_before_the_file(path: Path) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file.attrs["model_config"] = json.dumps(sequential(wrapped("d")))


@is_read
def code_in_a_lambda(path: Path) -> None:
    code = {"class_name": "__lambda__", "config": {"code": "4wAAAAAAAAAAAAAAAAEAAAACAAAAcw=="}}
    layer = entry("Lambda", "l", function=code, module="os", function_type="lambda")
    config = sequential(layer, wrapped("d"))
    write(path, config, {"l": {}, "quant_d": kernel() | step()})


@is_read
def another_byte_order(path: Path) -> None:
    one_layer(path)
    with h5py.File(path, "r+") as file:
        values = file[KERNEL][()]
        replace(file, KERNEL, data=values.astype(">f4"))
