"""Which formats there are: qmath's own, and those that other packages add by entry points."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmath.errors import OutputError
from qmath.exports.exporter import Exporter

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["FORMATS", "exporter_class", "formats"]

# A format's name, which is also the suffix of its files, and where its class is.
FORMATS = {
    "npz": "qmath.exports.arrays.npz:Npz",
    "safetensors": "qmath.exports.arrays.safetensors:Safetensors",
    "bin": "qmath.exports.arrays.bin:Bin",
    "c": "qmath.exports.c.exporter:C",
    "cmsis-nn": "qmath.exports.cmsis_nn.exporter:CmsisNn",
    "h5": "qmath.exports.arrays.h5:H5",
    "onnx": "qmath.exports.onnx.qdq:Onnx",
    "qonnx": "qmath.exports.onnx.qonnx:Qonnx",
    "tflite": "qmath.exports.tflite.exporter:Tflite",
    "mem": "qmath.exports.memories.formats:Mem",
    "hex": "qmath.exports.memories.formats:Hex",
    "coe": "qmath.exports.memories.formats:Coe",
    "mif": "qmath.exports.memories.formats:Mif",
}
_GROUP = "qmath.exports"


def formats() -> dict[str, str]:
    """Return the name and the class, ``module:Class``, of every format.

    Raises
    ------
    OutputError
        Another package's format has the name of one of qmath's, or two packages' are alike.
    """
    return FORMATS | {name: point.value for name, point in _entry_points().items()}


def exporter_class(
    output: str | os.PathLike[str], format: str | type[Exporter] | None = None
) -> type[Exporter]:
    """Return `format`, the class of that name, or the one that the suffix of `output` means.

    A name of one of qmath's own means that one, whatever other packages add.

    Raises
    ------
    OutputError
        There is no such format, or the package that adds it is at fault.
    """
    if isinstance(format, type) and issubclass(format, Exporter):
        return format
    if format is not None and not isinstance(format, str):
        raise OutputError(
            f"format must be the name of one, or a subclass of qmath.exports.Exporter, got "
            f"{format!r}; the names are: {', '.join(formats())}"
        )
    key = (format if format is not None else Path(output).suffix[1:]).lower()
    if key in FORMATS:
        module, _, name = FORMATS[key].partition(":")
        found: type[Exporter] = getattr(importlib.import_module(module), name)
        return found
    points = _entry_points()
    if key in points:
        return _loaded(points[key])
    if format is None and key:
        for point in points.values():
            other = _loaded(point)
            if key in other.suffixes:
                return other
    known = ", ".join([*FORMATS, *points])
    if format is None and not key:
        raise OutputError(
            f"{output} has no suffix that says the format; add one, or give --format "
            f"(format=); use one of: {known}"
        )
    what = f"format {format!r}" if format is not None else f"{output}: the suffix {'.' + key!r}"
    raise OutputError(f"{what} is not one that qmath writes; use one of: {known}")


def _entry_points() -> dict[str, EntryPoint]:
    """Return the formats of other packages by name."""
    from importlib import metadata  # slow to import, and asked for other packages' formats only

    found: dict[str, EntryPoint] = {}
    for point in metadata.entry_points(group=_GROUP):
        other = FORMATS.get(point.name) or getattr(found.get(point.name), "value", point.value)
        if other != point.value:
            raise OutputError(
                f"the format {point.name!r} is both {other} and {point.value}; uninstall one of "
                "the packages"
            )
        found[point.name] = point
    return found


def _loaded(point: EntryPoint) -> type[Exporter]:
    """Return the class that an entry point names, checked."""
    package = point.dist.name if point.dist else point.value
    fault = f"the format {point.name!r} of the package {package} cannot be used"
    try:
        found: Any = point.load()
    except Exception as error:  # whatever the package's own code raises
        raise OutputError(f"{fault}: loading {point.value} failed ({error!r})") from error
    if not isinstance(found, type) or not issubclass(found, Exporter):
        raise OutputError(f"{fault}: {point.value} is not a subclass of qmath.exports.Exporter")
    if getattr(found, "name", None) != point.name:
        raise OutputError(
            f"{fault}: {point.value} has the name {getattr(found, 'name', None)!r}; "
            "name it as its entry point"
        )
    if found.files is Exporter.files:
        raise OutputError(f"{fault}: {point.value} has no method files")
    return found
