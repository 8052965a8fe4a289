"""The ``.safetensors`` format: integers of 2 to 7 bits packed, the manifest in the metadata.

Written by hand, as the safetensors library writes metadata in an order of its own each time. Equal
bundles give equal bytes, which that library, and any other, reads; ``docs/formats.md`` says how.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.containers.bounded_json import parse_long_json
from qmath.errors import FileFormatError, OutputError, QmathError
from qmath.exports.arrays.bin import PACKINGS, stored_arrays, unpacked
from qmath.exports.bundle import Bundle
from qmath.exports.exporter import Content, Exporter, Reading, option
from qmath.exports.reading import checked

__all__ = ["Safetensors"]

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "F16": "float16",
    "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64",
    "F64": "float64",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA, _MANIFEST, _PACKING = "__metadata__", "qmath", "packing"
_LONGEST_HEADER = 100_000_000  # of the library; longer ones it refuses
_MOST_AXES, _LONGEST_AXIS = 32, 1 << 63
_AGAIN = "export again"


def _itemsize(name: str) -> int:
    return np.dtype(_DTYPES[name]).itemsize


class _Place(NamedTuple):
    """Where an array lies in the file."""

    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Safetensors(Exporter):
    """The ``.safetensors`` format.

    Raises
    ------
    OutputError
        The format cannot hold a tensor's dtype or name, or so long a manifest.

    Examples
    --------
    >>> import io
    >>> import qmath
    >>> from qmath.exports import quantize_model
    >>> file, exporter = io.BytesIO(), Safetensors(packing="msb")
    >>> exporter.write(quantize_model(qmath.load("reference/samples/integer4.h5")), file)
    >>> manifest, arrays = exporter.read(file)
    >>> arrays["conv1/kernel"].shape
    (3, 3, 1, 16)
    """

    name = "safetensors"
    takes_stored_integers = True  # the manifest states the convention of each tensor
    packing: str = option("lsb", "layout of the integers of 2 to 7 bits", PACKINGS)

    def files(self, bundle: Bundle) -> Iterator[tuple[str, Content]]:
        """Yield the one file, written one tensor after another."""
        yield "arrays.safetensors", lambda file: self._write(bundle, file)

    def _write(self, bundle: Bundle, file: BinaryIO) -> None:
        entries: dict[str, tuple[dict[str, Any], int]] = {}
        layouts: dict[str, str] = {}
        for key, array, layout in stored_arrays(bundle, self.packing, read_floats=False):
            name = _NAMES.get(array.dtype.name)
            if name is None or key == _METADATA:
                what = (
                    f"dtype {array.dtype}"
                    if name is None
                    else "name, in safetensors a reserved one"
                )
                raise OutputError(f"{key}: safetensors cannot hold this {what}; export to npz")
            entries[key] = {"dtype": name, "shape": list(array.shape)}, array.nbytes
            if layout is not None:
                layouts[key] = layout
        places: dict[str, dict[str, Any]] = {}
        end = 0
        # The largest elements first: everything is aligned then.
        for key in sorted(entries, key=lambda key: -_itemsize(entries[key][0]["dtype"])):
            entry, nbytes = entries[key]
            places[key] = {**entry, "data_offsets": [end, end + nbytes]}
            end += nbytes
        metadata = {_MANIFEST: json.dumps(self.manifest(bundle), allow_nan=False)}
        metadata |= {_PACKING: json.dumps(layouts)}
        header = json.dumps(
            {_METADATA: metadata, **places}, ensure_ascii=False, separators=(",", ":")
        ).encode()
        header += b" " * (-len(header) % 8)
        if len(header) > _LONGEST_HEADER:
            raise OutputError(
                f"the header would have {len(header)} bytes, and safetensors' readers take at most "
                f"{_LONGEST_HEADER}; export to npz"
            )
        file.write(len(header).to_bytes(8, "little") + header)
        for key, array, _ in stored_arrays(bundle, self.packing):
            file.seek(8 + len(header) + places[key]["data_offsets"][0])
            file.write(array.tobytes())

    def read(self, file: BinaryIO) -> Reading:
        """Return the manifest and the arrays by key of a file.

        Nothing is trusted: every byte of the file must belong to one array, as large as its dtype
        and shape say. The arrays are read one by one, when they are asked for, and packed ones
        unpacked, so `file` must stay open.

        Raises
        ------
        FileFormatError
            The file, or later the array, is damaged, or not one of qmath's.
        """
        name = str(getattr(file, "name", "the file"))
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _LONGEST_HEADER):
            raise FileFormatError(
                f"{name} is no safetensors file, or it was cut: its header would have {length} "
                f"bytes, and the file has {size}"
            )
        header = _object(file.read(length), f"{name}: the header")
        metadata = header.pop(_METADATA, None)
        if not isinstance(metadata, dict) or not {_MANIFEST, _PACKING} <= metadata.keys():
            raise FileFormatError(f"{name} has no manifest, so qmath did not write it")
        manifest, layouts = (
            _object(str(metadata[key]), f"{name}: {key} in the metadata")
            for key in (_MANIFEST, _PACKING)
        )
        checked(manifest, name)
        places = {key: _place(entry, 8 + length) for key, entry in header.items()}
        known = {key: place for key, place in places.items() if place is not None}
        end = 8 + length
        for place in sorted(known.values(), key=lambda place: (place.start, place.nbytes)):
            if place.start != end:
                break
            end += place.nbytes
        if end != size or len(known) < len(places):
            raise FileFormatError(
                f"{name}: the arrays that its header lists do not fill the file; it is damaged, "
                "export again"
            )
        return manifest, _Arrays(file, name, known, layouts, manifest.get("tensors"))


def _object(text: str | bytes, where: str) -> dict[str, Any]:
    """Return the JSON object that a text holds."""
    value = parse_long_json(text, where, _AGAIN)
    if not isinstance(value, dict):
        raise FileFormatError(f"{where} is no JSON object; the file is damaged, {_AGAIN}")
    return value


def _place(entry: Any, begin: int) -> _Place | None:
    """Return where an entry of the header puts an array, ``None`` if it is damaged."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        return None
    if not isinstance(shape, list) or not isinstance(offsets, list):
        return None
    if len(offsets) != 2 or len(shape) > _MOST_AXES:
        return None
    if not all(type(n) is int and 0 <= n < _LONGEST_AXIS for n in (*shape, *offsets)):
        return None
    place = _Place(begin + offsets[0], np.dtype(_DTYPES[dtype]).newbyteorder("<"), tuple(shape))
    return place if begin + offsets[1] == place.start + place.nbytes else None


class _Arrays(Mapping[str, NDArray[Any]]):
    """The arrays of a file by key, each read when asked for."""

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        places: Mapping[str, _Place],
        layouts: Mapping[str, Any],
        entries: Any,
    ) -> None:
        self._file, self._name, self._places = file, name, places
        self._layouts = layouts
        self._entries = entries if isinstance(entries, dict) else {}

    def __contains__(self, key: object) -> bool:
        return key in self._places  # Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> NDArray[Any]:
        place = self._places[key]
        self._file.seek(place.start)
        data = self._file.read(place.nbytes)
        try:
            array = np.frombuffer(data, place.dtype).reshape(place.shape)
            array = array.astype(place.dtype.newbyteorder("="), copy=False)
            if key in self._layouts:
                return unpacked(array, self._layouts[key], self._entries.get(key))
        except (QmathError, ValueError) as error:
            raise FileFormatError(
                f"{self._name}: the array {key!r} is damaged ({error}); export again"
            ) from error
        return array
