"""Hostile checkpoints: refused with one error, or read right, within bounded memory and time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmath.containers.protos import parse
from qmath.containers.sorted_table import read_table
from tests.attacks.collection import Build, Collection
from tests.attacks.jail import judge
from tests.containers.bundles import (
    GRAPH,
    block,
    crc,
    message,
    record,
    stored,
    table,
    write_arrays,
)
from tests.containers.bundles import write as write_bundle
from tests.readers.object_graphs import (
    model,
    save,
    span,
    wrapper,
)  # fmt: skip

NODE = "TrackableObjectGraph.TrackableObject"
TENSORS = ["d/kernel", "d/bias"]
FILES = Collection()
ATTACKS, READ, refused, is_read = FILES.attacks, FILES.read, FILES.refused, FILES.is_read


def index(prefix: Path) -> Path:
    return Path(f"{prefix}.index")


def data(prefix: Path) -> Path:
    return Path(f"{prefix}.data-00000-of-00001")


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# ---- the table and the data


@refused("checksum")
def damaged_index(prefix: Path) -> None:
    save(prefix, model(wrapper()))
    flipped(index(prefix), 20)


@refused("checksum")
def damaged_data(prefix: Path) -> None:
    save(prefix, model(wrapper()))
    flipped(data(prefix), 5)


@refused("checksum")
def damaged_graph(prefix: Path) -> None:
    save(prefix, model(wrapper()))
    flipped(data(prefix), len(data(prefix).read_bytes()) - 9)


@refused("no such file|no .*file")
def without_data(prefix: Path) -> None:
    save(prefix, model(wrapper()))
    data(prefix).unlink()


@refused("big-endian")
def from_another_machine(prefix: Path) -> None:
    write_bundle(prefix, {}, header={"endianness": 1})


@refused("shard|no such file|does not hold")
def billions_of_shards(prefix: Path) -> None:
    entries = {GRAPH: message("BundleEntryProto", dtype=7, shard_id=2**31 - 2, size=9)}
    write_bundle(prefix, entries, header={"num_shards": 2**31 - 1})


@refused("compressed")
def compressed_blocks(prefix: Path) -> None:
    index(prefix).write_bytes(table([stored(block(), 1)]))
    data(prefix).write_bytes(b"")


@refused("not in order")
def one_block_many_times(prefix: Path) -> None:
    first = stored(block([(b"", b"")]))
    index(prefix).write_bytes(table([first], [(0, len(first) - 5)] * 10_000))
    data(prefix).write_bytes(b"")


@refused("far longer than the file|order")
def keys_that_grow(prefix: Path) -> None:
    """Each key is the one before and a byte: quadratic if it is written out."""
    entries = record(b"", b"") + b"".join(record(b"a", b"", shared=i) for i in range(60_000))
    index(prefix).write_bytes(table([stored(block(raw=entries))]))
    data(prefix).write_bytes(b"")


@refused("never written")
def an_index_of_a_gigabyte(prefix: Path) -> None:
    save(prefix, model(wrapper()))
    content = index(prefix).read_bytes()
    with open(index(prefix), "wb") as file:
        file.seek(1 << 30)
        file.write(content)


def with_kernel(prefix: Path, change: Callable[[Any], Any]) -> None:
    """Write a model whose kernel has another entry in the index, with right checksums."""
    save(prefix, model(wrapper()))
    items = read_table(index(prefix).read_bytes(), "")
    for key in items:
        known = parse("BundleEntryProto", items[key], "") if key else None
        if known and known.size == 24:  # six floats
            items[key] = change(known).SerializeToString()
    index(prefix).write_bytes(table([stored(block(sorted(items.items())))]))


def claiming(**changed: Any) -> Build:
    """Return what writes a model whose kernel claims something else."""

    def change(known: Any) -> Any:
        for name in changed:
            known.ClearField(name)
        known.MergeFrom(message("BundleEntryProto", **changed))
        return known

    return lambda prefix: with_kernel(prefix, change)


def shape(*sizes: int) -> Any:
    dims = [message("TensorShapeProto.Dim", size=size) for size in sizes]
    return message("TensorShapeProto", dim=dims)


ATTACKS |= {
    "petabytes": (claiming(shape=shape(1 << 24, 1 << 24)), "claims|no shape"),
    "petabytes_in_both": (claiming(shape=shape(1 << 40), size=1 << 42), "claims|no shape"),
    "overflow": (claiming(shape=shape(1 << 32, 1 << 32), size=0), "claims|no shape"),
    "negative_shape": (claiming(shape=shape(-1, 4)), "no shape"),
    "a_thousand_axes": (claiming(shape=shape(*[1] * 1000)), "no shape"),
    "beyond_the_end": (claiming(offset=1 << 40), "claims"),
    "over_another": (claiming(offset=4), "those of another tensor"),
    "before_the_start": (claiming(offset=-8), "claims"),
    "negative_size": (claiming(size=-8), "claims"),
    "another_shard": (claiming(shard_id=7), "shard 7"),
    "another_type": (claiming(dtype=7), "string"),
    "no_type": (claiming(dtype=9999), "type number"),
    "another_checksum": (claiming(crc32c=crc(b"")), "checksum"),
}


@refused("does not hold")
def slices_that_are_not_there(prefix: Path) -> None:
    part = message("TensorSliceProto.Extent", start=0, length=3)
    whole = [message("TensorSliceProto", extent=[part])] * 2
    new = message("BundleEntryProto", dtype=1, shape=shape(6), slices=whole)
    with_kernel(prefix, lambda _: new)


@refused("no part of its shape")
def slices_beyond_the_shape(prefix: Path) -> None:
    part = message("TensorSliceProto.Extent", start=1 << 62, length=1 << 62)
    new = message("BundleEntryProto", dtype=1, shape=shape(6), slices=[
        message("TensorSliceProto", extent=[part])
    ])  # fmt: skip
    with_kernel(prefix, lambda _: new)


# ---- the file `checkpoint`, and the object graph


def in_a_folder(prefix: Path, state: str) -> Path:
    save(prefix, model(wrapper()))
    (prefix.parent / "checkpoint").write_text(state)
    return prefix.parent


@is_read
def a_path_of_another_machine(prefix: Path) -> Path:
    return in_a_folder(prefix, f'model_checkpoint_path: "/etc/../root/{prefix.name}"')


@refused("lacks 'passwd'")
def a_path_to_another_file(prefix: Path) -> Path:
    return in_a_folder(prefix, 'model_checkpoint_path: "/etc/passwd"')


@refused("no CheckpointState")
def a_state_that_is_none(prefix: Path) -> Path:
    return in_a_folder(prefix, "model_checkpoint_path: 3 {")


@is_read
def objects_in_a_circle(prefix: Path) -> None:
    tree = model(wrapper())
    tree["layer-0"]["parent"] = tree
    tree["self"] = tree
    save(prefix, tree)


@is_read
def objects_that_double(prefix: Path) -> None:
    below: dict[str, Any] = {}
    for _ in range(200):
        below = {"a": below, "b": below}
    save(prefix, model(wrapper(), other=below))


def chain(length: int) -> Any:
    nodes = [
        message(NODE, children=[message(f"{NODE}.ObjectReference", node_id=i + 1, local_name="c")])
        for i in range(length)
    ]
    return message("TrackableObjectGraph", nodes=[*nodes, message(NODE)])


@refused("")
def objects_without_end(prefix: Path) -> None:
    write_arrays(prefix, {}, chain(100_000))


@refused("object|node|damaged")
def an_object_that_is_not_there(prefix: Path) -> None:
    write_arrays(prefix, {}, chain(3).__class__(nodes=list(chain(3).nodes)[:2]))


@refused("cannot|damaged|not")
def a_graph_of_noise(prefix: Path) -> None:
    write_arrays(prefix, {}, b"\xff" * 1000)


@refused("range without|counterpart|min > max|belong")
def a_range_upside_down(prefix: Path) -> None:
    save(prefix, model(wrapper(**span("output", low=5, high=-1))))


@refused("not finite")
def a_range_of_nan(prefix: Path) -> None:
    save(prefix, model(wrapper(**span("output", low=float("nan")))))


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(tmp_path: Path, name: str) -> None:
    build, words = ATTACKS[name]
    path = build(tmp_path / "ckpt") or tmp_path / "ckpt"
    outcome, said = judge(path)  # type: ignore[arg-type]
    assert outcome == "FileFormatError", said
    assert re.search(words, said), said
    assert str(tmp_path) in said


@pytest.mark.parametrize("name", READ)
def test_what_is_read_right(tmp_path: Path, name: str) -> None:
    path = READ[name](tmp_path / "ckpt") or tmp_path / "ckpt"
    outcome, said = judge(path)  # type: ignore[arg-type]
    assert outcome == "read", said
    assert json.loads(said)[0] == TENSORS


@pytest.mark.parametrize("kind", [index, data])
def test_every_cut(tmp_path: Path, kind: Callable[[Path], Path]) -> None:
    prefix = save(tmp_path / "ckpt", model(wrapper()))
    content = kind(prefix).read_bytes()
    for size in range(0, len(content), max(len(content) // 8, 1)):
        kind(prefix).write_bytes(content[:size])
        assert judge(prefix).outcome == "FileFormatError", size
