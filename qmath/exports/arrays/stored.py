"""Arrays as formats of raw bytes hold them: little-endian, integers of less than a byte packed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.errors import OutputError, QmathError
from qmath.exports.bundle import Bundle
from qmath.kernels.packing import pack, unpack

__all__ = ["PACKINGS", "Stored", "stored_arrays", "unpacked"]

PACKINGS = ("lsb", "msb", "none")
_MOST_AXES, _LONGEST_AXIS = 32, 1 << 40


class Stored(NamedTuple):
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


def stored_arrays(bundle: Bundle, packing: str) -> Iterator[Stored]:
    """Yield every array of a bundle as it is to be written, one after another.

    Parameters
    ----------
    bundle : Bundle
    packing : {"lsb", "msb", "none"}
        Layout of the integers of 2 to 7 bits; wider ones fill their dtype or stay in it.

    Raises
    ------
    OutputError
        There is no such packing.

    Examples
    --------
    >>> import qmath
    >>> from qmath.exports.bundle import quantize_model
    >>> bundle = quantize_model(qmath.load("reference/samples/integer4.h5"))
    >>> stored = {item.key: item for item in stored_arrays(bundle, "lsb")}
    >>> bundle.tensors["conv1/kernel"].values.shape, stored["conv1/kernel"].array.shape
    ((3, 3, 1, 16), (72,))
    """
    if packing not in PACKINGS:
        raise OutputError(f"packing={packing!r}: the format packs by one of {', '.join(PACKINGS)}")
    for key, array in bundle.arrays():
        entry = bundle.manifest["tensors"].get(key, {})
        if packing != "none" and entry.get("role") == "weight" and entry["num_bits"] < 8:
            packed = pack(array, entry["num_bits"], packing, signed=entry["signed"])
            yield Stored(key, packed, packing)
        else:
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            yield Stored(key, little, None)


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
