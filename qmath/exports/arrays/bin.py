"""The format ``bin``: a folder with all arrays in one file of raw bytes, and where each lies.

``arrays.bin`` holds the arrays one after the other, little-endian; ``arrays.json`` their offsets,
sizes, checksums, types and packing. ``docs/formats.md`` is the specification.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

from qmath.errors import OutputError
from qmath.exports.arrays.stored import stored_arrays
from qmath.exports.bundle import Bundle

__all__ = ["render"]

STORED_INTEGERS = True  # the manifest states the convention of each tensor
_ALIGNMENTS = tuple(1 << i for i in range(13))


def render(
    bundle: Bundle, *, packing: str = "lsb", alignment: int = 16
) -> Iterator[tuple[str, bytes]]:
    """Yield ``arrays.bin`` and ``arrays.json``; all that is exported is in memory once.

    Parameters
    ----------
    bundle : Bundle
    packing : {"lsb", "msb", "none"}
        Layout of the integers of 2 to 7 bits.
    alignment : int
        Every array begins at a multiple of it: a power of two, 1 to 4096.

    Raises
    ------
    OutputError
        An option has another value.

    Examples
    --------
    >>> import qmath
    >>> from qmath.exports.bundle import quantize_model
    >>> files = dict(render(quantize_model(qmath.load("reference/samples/integer4.h5"))))
    >>> json.loads(files["arrays.json"])["arrays"]["conv1/kernel"]["packing"]
    'lsb'
    """
    if type(alignment) is not int or alignment not in _ALIGNMENTS:
        raise OutputError(
            f"alignment={alignment!r}: it is a power of two from 1 to {_ALIGNMENTS[-1]}"
        )
    data = bytearray()
    arrays: dict[str, dict[str, Any]] = {}
    for key, array, layout in stored_arrays(bundle, packing):
        data += bytes(-len(data) % alignment)
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
    index = {"file": "arrays.bin", "byte_order": "little", "alignment": alignment, "arrays": arrays}
    yield "arrays.json", json.dumps(index, indent=1).encode() + b"\n"
