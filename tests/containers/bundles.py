"""Small TensorFlow checkpoints from plain arrays, laid out as TensorFlow does; or nearly so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from qmath.containers import protos
from qmath.containers.crc32c import masked
from qmath.containers.sorted_table import MAGIC

GOLDEN = Path(__file__).parents[2] / "reference" / "golden" / "checkpoints"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
FLOAT32, STRING = 1, 7
Entries = Sequence[tuple[bytes, bytes]]


def message(kind: str, /, **fields: Any) -> Any:
    return protos._types()[kind](**fields)


def crc(data: bytes) -> int:
    return masked(google_crc32c.value(data))


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def record(key: bytes, value: bytes, shared: int = 0, own: int | None = None) -> bytes:
    """An entry of a block, all of its key stored."""
    length = len(key) if own is None else own
    return varint(shared) + varint(length) + varint(len(value)) + key + value


def block(entries: Entries = (), raw: bytes | None = None, restarts: bytes | None = None) -> bytes:
    """The contents of a block; `raw` are all its entries, `restarts` what follows them."""
    body = b"".join(record(*entry) for entry in entries) if raw is None else raw
    return body + (bytes(4) + b"\1\0\0\0" if restarts is None else restarts)


def stored(contents: bytes, kind: int = 0) -> bytes:
    """A block as a file holds it: with its kind and checksum."""
    data = contents + bytes([kind])
    return data + crc(data).to_bytes(4, "little")


def table(
    blocks: Iterable[bytes],
    handles: Sequence[tuple[int, int]] | None = None,
    index: bytes | None = None,
) -> bytes:
    """A table of stored blocks; `handles` are those in its index, `index` the whole of it."""
    body, true = b"", []
    for data in blocks:
        true.append((len(body), len(data) - 5))
        body += data
    if index is None:
        pairs = true if handles is None else handles
        index = stored(
            block([(b"%09d" % i, varint(at) + varint(n)) for i, (at, n) in enumerate(pairs)])
        )
    meta = stored(block())
    footer = varint(len(body)) + varint(len(meta) - 5)
    footer += varint(len(body) + len(meta)) + varint(len(index) - 5)
    return body + meta + index + footer.ljust(40, b"\0") + MAGIC


def entry(values: Any = None, offset: int = 0, **changed: Any) -> Any:
    """The index's entry of a float32 tensor, or of what `changed` makes of it."""
    array = np.zeros(()) if values is None else np.asarray(values)
    data = array.astype("<f4").tobytes()
    shape = message(
        "TensorShapeProto",
        dim=[message("TensorShapeProto.Dim", size=size) for size in array.shape],
    )
    fields = {
        "dtype": FLOAT32,
        "shape": shape,
        "offset": offset,
        "size": len(data),
        "crc32c": crc(data),
    }
    return message("BundleEntryProto", **{**fields, **changed})


def string(text: bytes) -> tuple[bytes, int]:
    """A string tensor's bytes and checksum."""
    length = len(text).to_bytes(4, "little")
    checksum = crc(length).to_bytes(4, "little")
    return varint(len(text)) + checksum + text, crc(length + checksum + text)


def write(
    prefix: Path,
    entries: Mapping[str, Any],
    data: bytes = b"",
    header: Mapping[str, Any] | None = None,
) -> Path:
    """Write an index and one shard."""
    known = {"num_shards": 1, "version": message("VersionDef", producer=1), **(header or {})}
    first = message("BundleHeaderProto", **known)
    items = [(b"", first.SerializeToString())]
    items += sorted((key.encode(), value.SerializeToString()) for key, value in entries.items())
    index = table([stored(block(items))])
    Path(f"{prefix}.index").write_bytes(index)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    return prefix


def write_arrays(prefix: Path, arrays: Mapping[str, Any], graph: Any = None) -> Path:
    """Write float32 tensors, and an object graph if there is one, perhaps as bytes."""
    entries, data = {}, b""
    for key, values in arrays.items():
        entries[key] = entry(values, len(data))
        data += np.asarray(values).astype("<f4").tobytes()
    if graph is not None:
        text, checksum = string(graph if isinstance(graph, bytes) else graph.SerializeToString())
        fields = {"offset": len(data), "size": len(text), "crc32c": checksum}
        entries[GRAPH] = message("BundleEntryProto", dtype=STRING, **fields)
        data += text
    return write(prefix, entries, data)
