"""Damage at random: what `reference.mutate` reads.

Every mutant follows from a seed, its container and its number alone.
"""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qmath.containers.protos import parse
from qmath.containers.sorted_table import read_table
from qmath.containers.tensor_bundle import TensorBundle

__all__ = ["CONTAINERS", "Source", "mutants"]

GOLDEN = Path(__file__).parent / "golden"
# What counters, offsets and lengths overflow at.
EXTREMES = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40,
            2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip

Mutate = Callable[[np.random.Generator, bytes], bytes]


class Source(NamedTuple):
    """An undamaged file or folder, and what gives the names for it."""

    path: Path
    architecture: Path | None = None


class Container(NamedTuple):
    """What to damage, and whether a checksum must show it."""

    sources: tuple[Source, ...]
    damage: Callable[[np.random.Generator, Path, Path], Source | None]
    has_checksum: bool = False


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Return data with one to three kinds of damage."""
    for _ in range(1 + (rng.random() < 0.3) + (rng.random() < 0.1)):
        if not data:
            break
        data = KINDS[rng.choice(len(KINDS), p=ODDS)](rng, data)
    return data


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    """Flip one to four bits."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        out[_place(rng, out)] ^= 1 << rng.integers(8)
    return bytes(out)


def overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    """Write a number that matters over one, two, four or eight bytes."""
    size = int(rng.choice([1, 2, 4, 8]))
    number = int(rng.choice(np.array([*EXTREMES, len(data)], object)))
    if rng.random() < 0.3:
        number = int(rng.integers(1 << 32))
    order = "little" if rng.random() < 0.9 else "big"
    at = _place(rng, data)
    return data[:at] + (number % (1 << 8 * size)).to_bytes(size, order) + data[at + size :]


def scramble(rng: np.random.Generator, data: bytes) -> bytes:
    """Write zeros, ones or noise over up to 64 bytes."""
    at, size = _place(rng, data), int(rng.integers(1, 65))
    size = min(size, len(data) - at)
    fill = [bytes(size), b"\xff" * size, rng.bytes(size)][rng.integers(3)]
    return data[:at] + fill + data[at + size :]


def copy(rng: np.random.Generator, data: bytes) -> bytes:
    """Write a part over another."""
    start, at, size = _place(rng, data), _place(rng, data), int(rng.integers(1, 257))
    part = data[start : start + size]
    return data[:at] + part + data[at + len(part) :]


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    """Leave out the end."""
    return data[: _place(rng, data)]


def shift(rng: np.random.Generator, data: bytes) -> bytes:
    """Leave out, or repeat, up to 64 bytes."""
    at, size = _place(rng, data), int(rng.integers(1, 65))
    return data[:at] + (data[at + size :] if rng.random() < 0.5 else data[max(at - size, 0) :])


def mutate_json(rng: np.random.Generator, data: bytes) -> bytes:
    """Replace, leave out or repeat values of a JSON text; or damage the text itself."""
    if rng.random() < 0.2:
        return mutate(rng, data)
    value = json.loads(data)
    for _ in range(rng.integers(1, 4)):
        holders = list(_holders(value))
        holder = holders[rng.integers(len(holders))]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[rng.integers(len(keys))]
        other = holders[rng.integers(len(holders))]
        kind = rng.integers(4)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = json.loads(json.dumps(other if rng.random() < 0.5 else holder[key]))
            if isinstance(holder, list):
                holder.insert(0, holder[-1])
        elif kind == 2 and isinstance(other, dict):
            other[str(key)] = json.loads(json.dumps(holder[key]))
        else:
            holder[key] = ODDITIES[rng.integers(len(ODDITIES))]
        if not any(_holders(value)):
            break
    return json.dumps(value).encode()


def _holders(value: Any) -> Iterator[Any]:
    """Yield the objects and arrays in a value that are not empty."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _holders(item)


ODDITIES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**64, 10**300, 1e308, -0.5, float("nan"), "", "x", "Dense",
    "QuantizeWrapperV2", "Functional", "\x1b[2J", "a/b", "kernel", [], {}, [[]], [None], [0, 0],
    {"class_name": "Dense", "config": {}}, {"config": None}, {"class_name": 3, "config": []},
)  # fmt: skip


def _place(rng: np.random.Generator, data: Sequence[int]) -> int:
    return int(rng.integers(len(data)))


KINDS: tuple[Mutate, ...] = (flip, overwrite, scramble, copy, cut, shift)
ODDS = (0.4, 0.3, 0.1, 0.1, 0.05, 0.05)


def plain(rng: np.random.Generator, source: Path, target: Path) -> Source | None:
    """Damage a file, or one of the files of a folder."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        victim = files[rng.integers(len(files))]
    else:
        victim = target = target.with_suffix(source.suffix)
        shutil.copy(source, target)
    data = victim.read_bytes()
    victim.write_bytes(mutate(rng, data) if data else b"\0")
    return Source(target)


def sealed_zip(rng: np.random.Generator, source: Path, target: Path) -> Source | None:
    """Damage a member of a ``.keras``, whose checksum is right again."""
    target = target.with_suffix(".keras")
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as other:
        victim, damage = ("model.weights.h5", mutate)
        if rng.random() < 0.3:
            victim, damage = "config.json", mutate_json
        for name in archive.namelist():
            content = archive.read(name)
            other.writestr(name, damage(rng, content) if name == victim else content)
    return Source(target)


def sealed_checkpoint(rng: np.random.Generator, source: Path, target: Path) -> Source | None:
    """Damage entries, data or object graph of a checkpoint, whose checksums are right again."""
    from tests.containers import bundles

    bundle = TensorBundle(str(source / "ckpt"))
    data = Path(f"{source}/ckpt.data-00000-of-00001").read_bytes()
    table = read_table(Path(f"{source}/ckpt.index").read_bytes(), "")
    entries = {key: parse("BundleEntryProto", table[key], "") for key in table if key}
    kind = rng.integers(3)
    if kind == 0:  # the object graph
        graph = mutate(rng, bundle.string(bundles.GRAPH))
        text, checksum = bundles.string(graph)
        entry = entries[bundles.GRAPH.encode()]
        entry.offset, entry.size, entry.crc32c = len(data), len(text), checksum
        data += text
    elif kind == 1:  # the data
        data = mutate(rng, data)
        for key, entry in entries.items():
            if key != bundles.GRAPH.encode():
                entry.crc32c = bundles.crc(data[entry.offset : entry.offset + entry.size])
    items = {key: entry.SerializeToString() for key, entry in entries.items()}
    items[b""] = table[b""]
    if kind == 2:  # an entry of the index, or its key
        key = sorted(items)[rng.integers(len(items))]
        if rng.random() < 0.8:
            items[key] = mutate(rng, items[key]) if items[key] else b"\0"
        else:
            items[mutate(rng, key or b"\0")] = items.pop(key)
    target.mkdir(exist_ok=True)
    index = bundles.table([bundles.stored(bundles.block(sorted(items.items())))])
    (target / "ckpt.index").write_bytes(index)
    (target / "ckpt.data-00000-of-00001").write_bytes(data)
    return Source(target)


def architecture(rng: np.random.Generator, source: Path, target: Path) -> Source | None:
    """Damage the architecture beside weights."""
    config = target.with_suffix(".json")
    config.write_bytes(mutate_json(rng, (source.parent / "config.json").read_bytes()))
    return Source(source, config)


def _zoo(file: str, beside: bool = False) -> tuple[Source, ...]:
    """Return the smallest models that were written to a file of this name."""
    models = [GOLDEN / "zoo" / "tf2.21" / name for name in ("kernel_bias", "nested", "stacked_rnn")]
    return tuple(
        Source(model / file, model / "config.json" if beside else None)
        for model in models
        if (model / file).exists()
    )


CONTAINERS: dict[str, Container] = {
    "whole.h5": Container(_zoo("whole.h5"), plain),
    "names.h5": Container(_zoo("names.h5"), plain),
    "model.weights.h5": Container(_zoo("model.weights.h5", True), plain),
    "model.keras": Container(_zoo("model.keras"), plain, has_checksum=True),
    "model.keras, sealed": Container(_zoo("model.keras"), sealed_zip),
    "config.json": Container(
        (*_zoo("model.weights.h5", True), *_zoo("checkpoint", True)), architecture
    ),
    "checkpoint": Container(_zoo("checkpoint"), plain, has_checksum=True),
    "checkpoint, sealed": Container(_zoo("checkpoint"), sealed_checkpoint),
    **{
        name: Container((Source(GOLDEN / "saved_models" / "tf2.21" / "kernel_bias" / name),), plain)
        for name in ("keras_saved", "tf_saved", "exported")
    },
}


def mutants(
    container: str, numbers: range, seed: int, folder: Path
) -> Iterator[tuple[Source, Source]]:
    """Yield undamaged sources, each with a mutant of it below `folder`."""
    sources, damage, _ = CONTAINERS[container]
    for number in numbers:
        rng = np.random.default_rng([seed, zlib.crc32(container.encode()), number])
        source = sources[number % len(sources)]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        mutant = damage(rng, source.path, folder / "mutant")
        yield (
            source,
            mutant if mutant.architecture else mutant._replace(architecture=source.architecture),
        )
