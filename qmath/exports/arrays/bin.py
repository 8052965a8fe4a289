"""The format ``bin``: a folder with all arrays in one file of raw bytes, and where each lies.

``arrays.bin`` holds the arrays one after the other, little-endian, integers of less than a byte
packed; ``arrays.json`` their offsets, sizes, checksums, types and packing. ``docs/formats.md`` is
the specification.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.exports.bundle import Bundle
from qmath.exports.exporter import Content, Exporter, option
from qmath.kernels.packing import pack, unpack

__all__ = ["PACKINGS", "Bin", "StoredArray", "stored_arrays", "unpacked"]

PACKINGS = ("lsb", "msb", "none")
_ALIGNMENTS = tuple(1 << i for i in range(13))
_MOST_AXES, _LONGEST_AXIS = 32, 1 << 40


class Bin(Exporter):
    """The format ``bin``; everything that is exported is in memory once.

    Examples
    --------
    >>> import qmath
    >>> from qmath.exports import quantize_model
    >>> files = dict(Bin().files(quantize_model(qmath.load("reference/samples/integer4.h5"))))
    >>> json.loads(files["arrays.json"])["arrays"]["conv1/kernel"]["packing"]
    'lsb'
    """

    name = "bin"
    is_folder = True
    takes_stored_integers = True  # the manifest states the convention of each tensor
    packing: str = option("lsb", "layout of the integers of 2 to 7 bits", PACKINGS)
    alignment: int = option(16, "every array begins at a multiple of it", _ALIGNMENTS)

    def files(self, bundle: Bundle) -> Iterator[tuple[str, Content]]:
        """Yield ``arrays.bin`` and ``arrays.json``."""
        data = bytearray()
        arrays: dict[str, dict[str, Any]] = {}
        for key, array, layout in stored_arrays(bundle, self.packing):
            data += bytes(-len(data) % self.alignment)
            content = array.tobytes()
            entry: dict[str, Any] = {
                "offset": len(data),
                "size": len(content),
                "crc32": f"{zlib.crc32(content):08x}",
                "dtype": array.dtype.name,
                "shape": list(array.shape),
                "packing": layout,
            }
            if layout is not None:
                tensor = bundle.manifest["tensors"][key]
                entry |= {name: tensor[name] for name in ("num_bits", "signed", "dtype", "shape")}
            arrays[key] = entry
            data += content
        yield "arrays.bin", bytes(data)
        index = {
            "file": "arrays.bin",
            "byte_order": "little",
            "alignment": self.alignment,
            "arrays": arrays,
        }
        yield "arrays.json", json.dumps(index, indent=1).encode() + b"\n"


class StoredArray(NamedTuple):
    """An array to be written.

    Attributes
    ----------
    key : str
        As `qmath.exports.bundle.Bundle.arrays` names it.
    array : ndarray
        Contiguous and little-endian; a packed one is one-dimensional uint8.
    layout : str or None
        Of `qmath.pack`, if it is packed.
    """

    key: str
    array: NDArray[Any]
    layout: str | None


def stored_arrays(
    bundle: Bundle, packing: str, *, read_floats: bool = True
) -> Iterator[StoredArray]:
    """Yield every array of a bundle as it is to be written, one after another.

    Parameters
    ----------
    bundle : Bundle
    packing : {"lsb", "msb", "none"}
        Layout of the integers of 2 to 7 bits; wider ones fill their dtype or stay in it.
    read_floats : bool
        As of `qmath.exports.bundle.Bundle.arrays`; without it, arrays may not be contiguous.

    Examples
    --------
    >>> import qmath
    >>> from qmath.exports.bundle import quantize_model
    >>> bundle = quantize_model(qmath.load("reference/samples/integer4.h5"))
    >>> stored = {item.key: item for item in stored_arrays(bundle, "lsb")}
    >>> bundle.tensors["conv1/kernel"].values.shape, stored["conv1/kernel"].array.shape
    ((3, 3, 1, 16), (72,))
    """
    order: Literal["C", "K"] = "C" if read_floats else "K"
    for key, array in bundle.arrays(read_floats=read_floats):
        entry = bundle.manifest["tensors"].get(key, {})
        if packing != "none" and entry.get("role") == "weight" and entry["num_bits"] < 8:
            packed = pack(array, entry["num_bits"], packing, signed=entry["signed"])
            yield StoredArray(key, packed, packing)
        else:
            little = array.astype(array.dtype.newbyteorder("<"), order=order, copy=False)
            yield StoredArray(key, little, None)


def unpacked(packed: NDArray[np.uint8], layout: str, entry: Any) -> NDArray[Any]:
    """Return the integers that `stored_arrays` packed.

    Parameters
    ----------
    packed : ndarray of uint8
    layout : str
    entry : object
        The tensor's entry in the manifest, which may be damaged.

    Raises
    ------
    QmathError
        Bytes and entry do not fit together; nothing is allocated for what they do not fill.

    Examples
    --------
    >>> packed = np.array([0x1F], np.uint8)
    >>> unpacked(packed, "lsb", {"num_bits": 4, "shape": [2], "signed": True})
    array([-1,  1], dtype=int8)
    """
    entry = entry if isinstance(entry, dict) else {}
    num_bits, shape, signed = (entry.get(key) for key in ("num_bits", "shape", "signed"))
    if (
        layout not in PACKINGS[:2]
        or type(num_bits) is not int
        or not 2 <= num_bits < 8
        or type(signed) is not bool
        or not isinstance(shape, list)
        or len(shape) > _MOST_AXES
        or not all(type(size) is int and 0 <= size < _LONGEST_AXIS for size in shape)
    ):
        raise QmathError("its entry in the manifest does not say how it is packed")
    return unpack(packed, num_bits, layout, shape, signed)
