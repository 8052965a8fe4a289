"""What `reference.mutate` reads: mutants of files that Keras, TensorFlow and qmath wrote.

Every mutant follows from a seed, its container and its number alone.
"""

from __future__ import annotations

import io
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qmath.containers.protos import parse
from qmath.containers.sorted_table import read_table, varint
from qmath.containers.tensor_bundle import TensorBundle
from qmath.exports.registry import FORMATS
from reference.damage import mutate
from reference.flatbuffers import altered
from reference.structures import alter_hdf5, alter_json, alter_message, alter_values, pick

__all__ = ["CONTAINERS", "OUTPUTS", "Container", "Source", "mutants", "write_output"]

GOLDEN = Path(__file__).parent / "golden"
MODEL = GOLDEN / "zoo" / "tf2.21" / "kernel_bias" / "whole.h5"
LARGER = GOLDEN.parent / "samples" / "default8.h5"  # every layer of which runs in integers
FORWARD = "against"  # the .npz of a forward pass, see `reference.dump`


class Source(NamedTuple):
    """An undamaged file or folder, and what gives the names for it."""

    path: Path
    architecture: Path | None = None


Damage = Callable[[np.random.Generator, Source, Path], Source]


class Container(NamedTuple):
    """What to damage, and what must come of it.

    Attributes
    ----------
    sources : tuple of Source
    damage : callable
        Writes a mutant of a source at a path.
    has_checksum : bool
        Whether other data must be refused.
    is_sane : bool
        Whether other data that are not refused must be finite and of the shapes of the source;
        they need not where the mutant is a whole file that says another thing.
    output : str
        What `write_output` makes of the sources, and `qmath.verify` reads; none for models.
    """

    sources: tuple[Source, ...]
    damage: Damage
    has_checksum: bool = False
    is_sane: bool = True
    output: str = ""


def plain(rng: np.random.Generator, source: Source, target: Path) -> Source:
    """Damage a file, or one of the files of a folder."""
    victim = target = _copied(source.path, target)
    if target.is_dir():
        victim = pick(rng, sorted(path for path in target.rglob("*") if path.is_file()))
    data = victim.read_bytes()
    victim.write_bytes(mutate(rng, data) if data else b"\0")
    return Source(target)


def _copied(source: Path, target: Path) -> Path:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
        return target
    return Path(shutil.copyfile(source, target.with_suffix(source.suffix)))


def altered_hdf5(rng: np.random.Generator, source: Source, target: Path) -> Source:
    """Change what an HDF5 file says, and sometimes the architecture beside it."""
    if source.architecture and rng.random() < 0.3:
        return architecture(rng, source, target)
    path = _copied(source.path, target)
    alter_hdf5(rng, path)
    return Source(path)


def sealed_zip(rng: np.random.Generator, source: Source, target: Path) -> Source:
    """Damage or change a member of a ``.keras``, whose checksum is right again."""
    target, draw = target.with_suffix(".keras"), rng.random()
    with zipfile.ZipFile(source.path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if draw < 0.3:
        members["model.weights.h5"] = mutate(rng, members["model.weights.h5"])
    elif draw < 0.55:
        inner = target.with_suffix(".h5")
        inner.write_bytes(members["model.weights.h5"])
        alter_hdf5(rng, inner)
        members["model.weights.h5"] = inner.read_bytes()
    elif draw < 0.95:
        name = pick(rng, ["config.json", "config.json", "config.json", "metadata.json"])
        members[name] = alter_json(rng, members[name])
    else:
        name = pick(rng, list(members))
        members[pick(rng, ["x", "config.json", "model.weights.h5", f"a/{name}"])] = members.pop(
            name
        )
    how = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(target, "w", how) as other:
        for name, content in members.items():
            other.writestr(name, content)
    return Source(target)


def sealed_checkpoint(rng: np.random.Generator, source: Source, target: Path) -> Source:
    """Damage or change a checkpoint, and sometimes the architecture beside it."""
    if source.architecture and rng.random() < 0.3:
        return architecture(rng, source, target)
    _seal_bundle(rng, source.path, target)
    return Source(target)


def _seal_bundle(rng: np.random.Generator, source: Path, target: Path) -> None:
    """Damage or change entries, data or object graph, whose checksums are right again."""
    from tests.containers import bundles

    stem = next(source.glob("*.index")).stem
    index, shard = (source / f"{stem}{end}" for end in (".index", ".data-00000-of-00001"))
    data, table = shard.read_bytes(), read_table(index.read_bytes(), "")
    entries = {key: parse("BundleEntryProto", table[key], "") for key in table if key}
    items = dict(table.items())
    graph = entries.get(bundles.GRAPH.encode())
    kind = rng.integers(5)
    if kind < 2 and graph is not None:
        text = TensorBundle(str(source / stem)).string(bundles.GRAPH)
        text, checksum = bundles.string(_altered(rng, "TrackableObjectGraph", text))
        graph.offset, graph.size, graph.crc32c = len(data), len(text), checksum
        data += text
    elif kind == 2:
        data = _other_data(rng, data, entries)
        for entry in entries.values():
            if entry is not graph:
                entry.crc32c = bundles.crc(data[entry.offset : entry.offset + entry.size])
    items |= {key: entry.SerializeToString() for key, entry in entries.items()}
    if kind > 2:
        key = pick(rng, sorted(items))
        if rng.random() < 0.8:
            message = "BundleEntryProto" if key else "BundleHeaderProto"
            items[key] = _altered(rng, message, items[key])
        else:
            items[mutate(rng, key or b"\0")] = items.pop(key)
    target.mkdir(exist_ok=True)
    (target / index.name).write_bytes(
        bundles.table([bundles.stored(bundles.block(sorted(items.items())))])
    )
    (target / shard.name).write_bytes(data)


def renamed_variables(files: Mapping[str, bytes], rename: Callable[[str], str]) -> dict[str, bytes]:
    """Return the files of a model with other names in the object graph of its variables."""
    from tests.containers import bundles

    index = next(name for name in files if name.endswith(".index"))
    shard = index.replace(".index", ".data-00000-of-00001")
    items = dict(read_table(files[index], ""))
    entry = parse("BundleEntryProto", items[bundles.GRAPH.encode()], "")
    held = files[shard][entry.offset : entry.offset + entry.size]
    _, at = varint(held, 0)
    graph = parse("TrackableObjectGraph", held[at + 4 :], "")
    for node in graph.nodes:
        for attribute in node.attributes:
            attribute.full_name = rename(attribute.full_name)
    text, entry.crc32c = bundles.string(graph.SerializeToString())
    entry.offset, entry.size = len(files[shard]), len(text)
    items[bundles.GRAPH.encode()] = entry.SerializeToString()
    table = bundles.table([bundles.stored(bundles.block(sorted(items.items())))])
    return {**files, index: table, shard: files[shard] + text}


def _other_data(rng: np.random.Generator, data: bytes, entries: Mapping[bytes, Any]) -> bytes:
    if rng.random() < 0.5:
        return mutate(rng, data)
    entry = pick(rng, [entry for _, entry in sorted(entries.items())])
    part = slice(entry.offset, entry.offset + entry.size)
    values = np.frombuffer(data[part], np.uint8)
    other = alter_values(rng, values[: len(values) // 4 * 4].view("<f4")).tobytes()
    return data[: part.start] + other[: entry.size].ljust(entry.size) + data[part.stop :]


def _altered(rng: np.random.Generator, kind: str, data: bytes) -> bytes:
    """Return a message with other fields; sometimes damaged bytes."""
    if rng.random() < 0.2:
        return mutate(rng, data or b"\0")
    message = parse(kind, data, "")
    alter_message(rng, message)
    changed: bytes = message.SerializeToString()
    return changed


def sealed_saved_model(rng: np.random.Generator, source: Source, target: Path) -> Source:
    """Change the graph, the objects, Keras's metadata or the variables of a SavedModel."""
    _copied(source.path, target)
    draw, metadata = rng.random(), target / "keras_metadata.pb"
    if draw < 0.2:
        _seal_bundle(rng, source.path / "variables", target / "variables")
    elif draw < 0.45 and metadata.exists():
        metadata.write_bytes(_altered(rng, "keras.SavedMetadata", metadata.read_bytes()))
    else:
        graph = target / "saved_model.pb"
        graph.write_bytes(_altered(rng, "SavedModel", graph.read_bytes()))
    return Source(target)


def altered_tflite(rng: np.random.Generator, source: Source, target: Path) -> Source:
    """Change what a TFLite file says."""
    target = target.with_suffix(".tflite")
    target.write_bytes(altered(rng, source.path.read_bytes()))
    return Source(target)


def architecture(rng: np.random.Generator, source: Source, target: Path) -> Source:
    """Change the architecture beside weights."""
    config = target.with_suffix(".json")
    config.write_bytes(alter_json(rng, (source.path.parent / "config.json").read_bytes()))
    return Source(source.path, config)


# ---- what qmath wrote


def write_output(source: Path, output: str, folder: Path) -> Path:
    """Export a model to a format, or write the kernels that it stands for; return the path."""
    import qmath

    path = folder / f"whole.{output}"
    model = qmath.load(source)
    if output != FORWARD:
        qmath.export(model, path, format=output)
        return path
    bundle = qmath.quantize_model(model)
    kernels = {
        f"kernels/{name}": np.asarray(bundle.tensors[name].dequantize())
        for name, tensor in model.tensors.items()
        if tensor.role == "weight"
    }
    with open(path, "wb") as file:
        np.savez(file, **kernels)
    return path


def altered_output(rng: np.random.Generator, source: Source, target: Path) -> Source:
    """Damage what qmath wrote, or change what it says."""
    kind = source.path.suffix[1:]
    if rng.random() < 0.4:
        return plain(rng, source, target)
    target = _copied(source.path, target)
    manifest = target / "manifest.json"
    if manifest.exists():
        manifest.write_bytes(alter_json(rng, manifest.read_bytes()))
    elif kind in ("npz", FORWARD):
        _alter_npz(rng, target)
    elif kind == "safetensors":
        data = target.read_bytes()
        size = 8 + int.from_bytes(data[:8], "little")
        header = alter_json(rng, data[8:size])
        target.write_bytes(struct.pack("<Q", len(header)) + header + data[size:])
    elif kind == "h5":
        alter_hdf5(rng, target)
    elif kind == "tflite":
        _alter_tflite(rng, target)
    else:
        import onnx

        model = onnx.load(target)
        alter_message(rng, model)
        target.write_bytes(model.SerializeToString())
    return Source(target)


def _alter_tflite(rng: np.random.Generator, path: Path) -> None:
    """Change the manifest, where what comes of it has room."""
    data = path.read_bytes()
    start = data.index(b'{"format"')
    size = int.from_bytes(data[start - 4 : start], "little")
    changed = alter_json(rng, data[start : start + size])
    if len(changed) <= size:
        path.write_bytes(data[:start] + changed.ljust(size) + data[start + size :])


def _alter_npz(rng: np.random.Generator, path: Path) -> None:
    with np.load(path) as archive:
        arrays = dict(archive)
    name = pick(rng, list(arrays))
    if name == "manifest.json" or (rng.random() < 0.4 and "manifest.json" in arrays):
        text = alter_json(rng, arrays["manifest.json"].tobytes())
        arrays["manifest.json"] = np.frombuffer(text, np.uint8)
    elif rng.random() < 0.2:
        del arrays[name]
    else:
        with suppress(ValueError):
            arrays[name] = alter_values(rng, arrays[name])
    file = io.BytesIO()
    np.savez(file, **arrays)
    path.write_bytes(file.getvalue())


# ---- the table


def _zoo(file: str, beside: bool = False) -> tuple[Source, ...]:
    """Return small models that were written to a file of this name, mostly the smallest."""
    names = ("kernel_bias", "kernel_bias", "kernel_bias", "nested", "stacked_rnn")
    models = [GOLDEN / "zoo" / "tf2.21" / name for name in names]
    return tuple(
        Source(model / file, model / "config.json" if beside else None)
        for model in models
        if (model / file).exists()
    )


def _saved(file: str, *models: str) -> tuple[Source, ...]:
    folder = GOLDEN / "saved_models" / "tf2.21"
    return tuple(Source(folder / model / file) for model in (*("kernel_bias",) * 3, *models))


_KERAS = (*_zoo("model.keras"), *(Source(GOLDEN / "keras3" / f"int{n}.keras") for n in (8, 4)))
_CHECKPOINTS = (
    *_zoo("checkpoint"),
    *_zoo("checkpoint", True),
    *(Source(GOLDEN / "checkpoints" / name) for name in ("question", "stacked")),
)
_TFLITE = tuple(
    Source(GOLDEN / "tflite" / f"{name}.tflite")
    for name in ("default8", "nbit4", "every_operation")
)
_WHOLE = (*_zoo("whole.h5"), Source(GOLDEN / "zoo" / "tf2.21" / "lstm" / "whole.h5"))
CONTAINERS: dict[str, Container] = {
    "whole.h5": Container(_zoo("whole.h5"), plain),
    "names.h5": Container(_zoo("names.h5"), plain),
    "model.weights.h5": Container(_zoo("model.weights.h5", True), plain),
    "model.keras": Container(_KERAS, plain, has_checksum=True),
    "config.json": Container(
        (*_zoo("model.weights.h5", True), *_zoo("names.h5", True), *_zoo("checkpoint", True)),
        architecture,
        is_sane=False,
    ),
    "checkpoint": Container(_CHECKPOINTS, plain, has_checksum=True),
    "keras_saved": Container(_saved("keras_saved"), plain),
    "tf_saved": Container(_saved("tf_saved"), plain),
    "exported": Container(_saved("exported"), plain),
    "model.tflite": Container(_TFLITE, plain, is_sane=False),
    "model.tflite, changed": Container(_TFLITE, altered_tflite, is_sane=False),
    "whole.h5, changed": Container(_WHOLE, altered_hdf5, is_sane=False),
    "names.h5, changed": Container(
        (*_zoo("names.h5"), *_zoo("names.h5", True)), altered_hdf5, is_sane=False
    ),
    "model.weights.h5, changed": Container(
        _zoo("model.weights.h5", True), altered_hdf5, is_sane=False
    ),
    "model.keras, changed": Container(_KERAS, sealed_zip, is_sane=False),
    "checkpoint, changed": Container(_CHECKPOINTS, sealed_checkpoint, is_sane=False),
    "keras_saved, changed": Container(
        _saved("keras_saved", "nested", "fixed_weight"), sealed_saved_model, is_sane=False
    ),
    "tf_saved, changed": Container(_saved("tf_saved", "nested"), sealed_saved_model, is_sane=False),
    "exported, changed": Container(
        _saved("exported", "nested", "functional", "bits2_16"), sealed_saved_model, is_sane=False
    ),
}
# What qmath reads again of what it, or NumPy, wrote.
OUTPUTS: dict[str, Container] = {
    f"{name}, written": Container(
        (Source(LARGER if name == "cmsis-nn" else MODEL),),
        altered_output,
        is_sane=False,
        output=name,
    )
    for name in (*FORMATS, FORWARD)
}


def mutants(
    container: str, numbers: range, seed: int, folder: Path
) -> Iterator[tuple[Source, Source]]:
    """Yield undamaged sources, each with a mutant of it below `folder`."""
    kind = (CONTAINERS | OUTPUTS)[container]
    written: dict[Source, Source] = {}
    for number in numbers:
        rng = np.random.default_rng([seed, zlib.crc32(container.encode()), number])
        source = kind.sources[number % len(kind.sources)]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if kind.output and source not in written:
            written[source] = Source(write_output(source.path, kind.output, folder.parent))
        mutant = kind.damage(rng, written.get(source, source), folder / "mutant")
        yield (
            source,
            mutant if mutant.architecture else mutant._replace(architecture=source.architecture),
        )
