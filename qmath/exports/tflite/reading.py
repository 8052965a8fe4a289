"""What a TFLite file of qmath's holds, and where it differs from another."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qmath.containers.bounded_json import parse_long_json
from qmath.containers.tflite.file import LARGEST, Quantization, TfliteFile, parsed
from qmath.errors import FileFormatError
from qmath.exports.output.folder import record_path
from qmath.exports.reading import checked, export_of, read_manifest
from qmath.exports.tflite.graph import MANIFEST, with_manifest
from qmath.exports.tflite.packing import packed

__all__ = ["differences", "read"]

Array = NDArray[Any]
_AGAIN = "export again"
# By the order of a kernel's axes: TFLite's axes that are this order's, where no axis is split.
_ORDERS = {"HWIO": (1, 2, 3, 0), "HWOI": (1, 2, 0, 3), "IO": (1, 0)}


def read(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the manifest of a file, and the weights that operators on integers hold, by name.

    Raises
    ------
    FileFormatError
        The file is damaged, or not one of qmath's; the manifest is neither in it nor beside it, or
        does not fit the tensors.
    """
    where = str(getattr(file, "name", "the file"))
    return _read(parsed(_content(file), where), where)


def _content(file: BinaryIO) -> bytes:
    size = min(file.seek(0, io.SEEK_END), LARGEST)  # Python takes the memory that read asks for
    file.seek(0)
    return file.read(size + 1)


def _read(held: TfliteFile, where: str) -> tuple[dict[str, Any], dict[str, Array]]:
    if MANIFEST not in held.metadata:  # it is beside the file, without the parts' names
        return read_manifest(record_path(Path(where))), {}
    try:
        text = held.metadata[MANIFEST].decode()
    except UnicodeDecodeError:
        raise FileFormatError(f"{where}: the manifest is no text; {_AGAIN}") from None
    manifest = checked(parse_long_json(text, f"{where}: the manifest", _AGAIN), where)
    names = export_of(manifest, where).get("names")
    tensors = {tensor.name: tensor for tensor in held.tensors}
    arrays: dict[str, Array] = {}
    try:
        for name, uses in names["weights"].items():  # type: ignore[index]
            for use in uses:
                data = tensors[use["name"]].data
                if data is not None and not use["dead"]:
                    arrays[name] = _restored(data, use["flipped"], manifest["tensors"][name])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{where}: the weights do not fit the manifest ({error!r}); {_AGAIN}"
        ) from error
    return manifest, arrays


def _restored(data: Array, flipped: list[int], entry: Mapping[str, Any]) -> Array:
    """Return a weight's integers as a bundle has them: its sign, order of axes and zero point."""
    source, layout, shape = entry["source_layout"], entry["layout"], tuple(entry["shape"])
    own = tuple(shape[layout.index(letter)] for letter in source)
    values = data.astype(np.int32)
    if source[-1] == "M":
        values = values * _signs(flipped, data.shape[-1])
        values = values.reshape(own)
    else:
        signs = _signs(flipped, len(data))
        values = values * signs.reshape(-1, *(1,) * (data.ndim - 1))
        whole = source if len(source) != 3 else f"H{source}"  # of a signal, which has one row
        values = values.transpose(_ORDERS[whole])
        if values.shape != own and source == "HWOI":  # the zeros of a dilation
            values = values[tuple(_every(n, m) for n, m in zip(values.shape, own, strict=True))]
        values = values.reshape(own)
    values = values.transpose([source.index(letter) for letter in layout])
    zero_point = np.asarray(entry["zero_point"], np.int32)
    if zero_point.size > 1:
        zero_point = zero_point.reshape(-1, *(1,) * (values.ndim - 1 - entry["axis"]))
    values = values + zero_point
    dtype: np.dtype[Any] = np.dtype(entry["dtype"])
    limits = np.iinfo(dtype)
    if values.min(initial=0) < limits.min or values.max(initial=0) > limits.max:
        raise ValueError(f"{dtype} does not hold its integers")
    return np.ascontiguousarray(values.astype(dtype))


def _signs(flipped: list[int], channels: int) -> NDArray[np.int32]:
    signs = np.ones(channels, np.int32)
    signs[flipped] = -1
    return signs


def _every(spread: int, size: int) -> slice:
    return slice(None, None, (spread - 1) // (size - 1) if size > 1 else None)


def differences(
    file: BinaryIO, manifest: Mapping[str, Any], model: Mapping[str, Any], export: Mapping[str, Any]
) -> Iterator[str]:
    """Yield in words where a file differs from what a model gives; its manifest is left out.

    Parameters
    ----------
    file : file
    manifest : mapping
        The file's own.
    model, export : mapping
        Of the `Network` that the file should be.
    """
    content = _content(file)
    found = parsed(content, str(getattr(file, "name", "the file")))
    expected_bytes = packed(with_manifest(model, found.metadata.get(MANIFEST)))
    if MANIFEST in found.metadata and manifest.get("export") != export:
        yield "the manifest: what it says of the export differs"
    if content == expected_bytes:
        return
    texts = list(_differing_parts(found, parsed(bytes(expected_bytes), "what the model gives")))
    yield from texts or ["the bytes of the file differ, in what is no tensor and no operator"]


def _differing_parts(found: TfliteFile, expected: TfliteFile) -> Iterator[str]:
    if len(found.tensors) != len(expected.tensors):
        yield f"{len(found.tensors)} tensors, where the model gives {len(expected.tensors)}"
        return
    for number, (ours, theirs) in enumerate(zip(expected.tensors, found.tensors, strict=True)):
        if (ours.name, ours.shape, ours.type) != (theirs.name, theirs.shape, theirs.type):
            yield (
                f"tensor {number}: it is {theirs.name!r}, {theirs.type} of the shape "
                f"{theirs.shape}, where the model gives {ours.name!r}, {ours.type} of {ours.shape}"
            )
        elif not _equal_grids(ours.quantization, theirs.quantization):
            yield f"tensor {ours.name!r}: its scales or zero points differ from the model's"
        elif not np.array_equal(_bits(ours.data), _bits(theirs.data)):
            yield f"tensor {ours.name!r}: its values differ from the model's"
    if found.operations != expected.operations:
        yield "the operators differ from those that the model gives"
    if (found.inputs, found.outputs) != (expected.inputs, expected.outputs):
        yield "the inputs or outputs differ from the model's"


def _equal_grids(a: Quantization | None, b: Quantization | None) -> bool:
    if a is None or b is None:
        return a is b
    return (
        np.array_equal(_bits(a.scale), _bits(b.scale))
        and np.array_equal(a.zero_point, b.zero_point)
        and a.axis == b.axis
    )


def _bits(array: Array | None) -> Array:
    return np.zeros(0, np.uint8) if array is None else np.ascontiguousarray(array).view(np.uint8)
