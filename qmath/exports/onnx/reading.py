"""What an ONNX file of qmath's holds, and where it differs from another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qmath.errors import FileFormatError
from qmath.exports.onnx.graph import restored
from qmath.exports.onnx.library import array_of, library, load, manifest_of
from qmath.exports.onnx.network import Network

__all__ = ["differences", "read"]

Array = NDArray[Any]
_LARGEST_AXIS, _MOST_AXES = 1 << 31, 8


IntegersOf = Callable[[str, Mapping[str, Array]], Array | None]


def read(
    file: BinaryIO, format: str, integers: IntegersOf
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the manifest of a network's file, and the arrays that its initializers hold, by key.

    Parameters
    ----------
    file : file
    format : str
    integers : callable
        ``integers(name, held)`` returns a quantized weight's integers, if the initializers by name
        tell them: those of the weight, its scale and zero point.

    Raises
    ------
    FileFormatError
        The file is damaged, or not one of qmath's; the manifest does not fit the initializers.
    MissingExtraError
        onnx is not installed.
    """
    onnx = library(format)
    model = load(onnx, file)
    manifest = manifest_of(model, file)
    where = str(getattr(file, "name", "the file"))
    return manifest, _arrays(onnx, model, manifest, where, integers)


def _arrays(
    onnx: Any, model: Any, manifest: dict[str, Any], where: str, integers: IntegersOf
) -> dict[str, Array]:
    initializers = {proto.name: proto for proto in model.graph.initializer}
    entries = manifest.get("tensors")
    if not isinstance(entries, dict) or len(initializers) != len(model.graph.initializer):
        raise FileFormatError(f"{where}: tensors are missing or named twice; export again")
    arrays: dict[str, Array] = {}
    for name, entry in entries.items():
        keys = (name, f"{name}.scale", f"{name}.zero_point")
        held = {
            key: array_of(onnx, initializers[key], where) for key in keys if key in initializers
        }
        try:
            values = held.get(name)
            if values is not None and entry["role"] == "weight":
                values = integers(name, held)
                values = None if values is None else _as_integers(values, entry["dtype"])
            if values is not None:
                arrays[name] = _in_order(values, entry)
            if keys[1] in held:
                arrays[keys[1]] = _along_axis(held[keys[1]], entry)
            if keys[2] in held:
                arrays[keys[2]] = _along_axis(_as_integers(held[keys[2]], "int32"), entry)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"{where}: the tensor {name!r} does not fit its entry in the manifest ({error}); "
                "export again"
            ) from error
    return arrays


def _as_integers(values: Array, name: str) -> Array:
    dtype: np.dtype[Any] = np.dtype(name)
    if dtype.kind not in "iu":
        raise ValueError(f"its dtype {dtype} is no integer's")
    limits = np.iinfo(dtype)
    if not ((values >= limits.min) & (values <= limits.max)).all():
        raise ValueError(f"it holds what is no {dtype}")
    return values.astype(dtype, copy=False)


def _in_order(array: Array, entry: dict[str, Any]) -> Array:
    """Return a tensor in the order of axes that the manifest tells."""
    source, target, shape = entry["source_layout"], entry["layout"], tuple(entry["shape"])
    if len(shape) > _MOST_AXES or not all(type(n) is int and 0 <= n < _LARGEST_AXIS for n in shape):
        raise ValueError("its shape is damaged")
    if source is None:
        return restored(array, None, shape)
    own = tuple(shape[target.index(letter)] for letter in source)
    axes = [source.index(letter) for letter in target]
    return np.ascontiguousarray(restored(array, source, own).transpose(axes))


def _along_axis(array: Array, entry: dict[str, Any]) -> Array:
    """Return scales or zero points as a bundle has them: along their axis of the tensor."""
    axis = entry.get("axis")
    if axis is None:
        return array
    shape = entry["shape"]
    count = shape[axis]
    layout = entry["layout"] or ""
    if "M" in layout and layout[axis] != "I":  # they are repeated for each input channel
        array = array.ravel()
        if (array.reshape(-1, count) != array[:count]).any():
            raise ValueError("its scales are not those of a depthwise kernel")
        array = array[:count]
    return array.reshape(-1, *(1,) * (len(shape) - 1 - axis))


def differences(file: BinaryIO, manifest: Mapping[str, Any], expected: Network) -> Iterator[str]:
    """Yield in words where a network's file differs from what `expected` would be written as."""
    onnx = library(expected.export["format"])
    yield from _differing_parts(load(onnx, file), expected.model)
    if manifest["export"] != expected.export:
        yield "the manifest: what it says of the export differs"


def _differing_parts(found: Any, expected: Any) -> Iterator[str]:
    """Yield in words where a model's graph differs from another's; metadata is left out."""
    for field in ("initializer", "node", "input", "output"):
        ours, theirs = (
            {part.name: part for part in getattr(model.graph, field)} for model in (expected, found)
        )
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            if name not in theirs or name not in ours:
                missing = "missing" if name not in theirs else "unexpected"
                yield f"{field} {name} of the graph: {missing}"
            elif ours[name] != theirs[name]:
                yield f"{field} {name} of the graph: it differs from what the model gives"
        if list(ours) != list(theirs) and ours.keys() == theirs.keys():
            yield f"{field}s of the graph: their order differs"
    rest = []
    for model in (found, expected):
        copy = type(model)()
        copy.CopyFrom(model)
        del copy.metadata_props[:]
        for field in ("initializer", "node", "input", "output"):
            copy.graph.ClearField(field)
        rest.append(copy)
    if rest[0] != rest[1]:
        yield "the model's opset, functions or other settings differ from what qmath writes"
