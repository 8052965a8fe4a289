"""The onnx library, which only these exporters need, and only when they run."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qmath.containers.bounded_json import parse_long_json
from qmath.errors import FileFormatError, MissingExtraError, OutputError
from qmath.exports.reading import checked, export_of
from qmath.kernels.packing import pack, unpack

__all__ = ["MANIFEST", "array_of", "library", "load", "manifest_of", "save", "tensor"]

MANIFEST = "qmath.manifest"  # key in the model's metadata_props
_LARGEST = (1 << 31) - 1  # bytes of a protobuf message
# What `raw_data` holds, little-endian. Narrower integers are packed, with the layout's name.
_DTYPES = {
    "FLOAT": "<f4", "UINT8": "u1", "INT8": "i1", "UINT16": "<u2", "INT16": "<i2", "INT32": "<i4",
    "INT64": "<i8",
}  # fmt: skip
_PACKED = {"UINT4": (4, "nibbles"), "INT4": (4, "nibbles"), "UINT2": (2, "lsb"), "INT2": (2, "lsb")}


def library(format: str) -> Any:
    """Return the module `onnx`.

    Parameters
    ----------
    format : str
        What needs it, for the error message.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError(
            f"the format {format!r} needs onnx; install it with pip install 'qmath-tfmot[onnx]'"
        ) from None
    return onnx


def tensor(onnx: Any, name: str, kind: str, values: NDArray[Any]) -> Any:
    """Return a ``TensorProto``.

    Parameters
    ----------
    onnx : module
    name : str
    kind : str
        Name of an ONNX data type, such as ``"INT4"``.
    values : ndarray
        Numbers that the data type holds.
    """
    if kind in _PACKED:
        num_bits, layout = _PACKED[kind]
        data = pack(values, num_bits, layout, signed=kind.startswith("INT")).tobytes()
    else:
        data = np.ascontiguousarray(values, _DTYPES[kind]).tobytes()
    return onnx.TensorProto(
        name=name, data_type=getattr(onnx.TensorProto, kind), dims=values.shape, raw_data=data
    )


def array_of(onnx: Any, proto: Any, where: str) -> NDArray[Any]:
    """Return the array that a ``TensorProto`` of `tensor` holds; nothing in it is trusted.

    Raises
    ------
    FileFormatError
        Its type is another, or its bytes do not fit its shape.
    """
    kind = _kind(onnx, proto.data_type)
    shape, data = tuple(proto.dims), proto.raw_data
    try:
        if kind is None or min(shape, default=0) < 0 or proto.external_data:
            raise ValueError(f"its data type {proto.data_type} or its place is unexpected")
        if kind in _PACKED:
            num_bits, layout = _PACKED[kind]
            return unpack(data, num_bits, layout, shape, kind.startswith("INT"))
        dtype = np.dtype(_DTYPES[kind])
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"{len(data)} bytes do not fit its shape {shape}")
        array = np.frombuffer(data, dtype).reshape(shape)
        return array.astype(dtype.newbyteorder("="), copy=False)
    except ValueError as error:  # QmathError among them
        raise FileFormatError(
            f"{where}: the tensor {proto.name!r} is damaged ({error}); export again"
        ) from error


def _kind(onnx: Any, data_type: int) -> str | None:
    """Return the name of a data type, if it is one of those that are written."""
    names = (*_DTYPES, *_PACKED)
    return next((n for n in names if getattr(onnx.TensorProto, n, None) == data_type), None)


def save(model: Any, manifest: Mapping[str, Any], file: BinaryIO) -> None:
    """Write a ``ModelProto`` with the manifest as its metadata, deterministically.

    Raises
    ------
    OutputError
        The model is larger than a protobuf message can be.
    """
    model.metadata_props.add(key=MANIFEST, value=json.dumps(manifest, allow_nan=False))
    if model.ByteSize() > _LARGEST:
        raise OutputError(
            f"the model would have {model.ByteSize()} bytes, and an ONNX file holds at most "
            f"{_LARGEST}; export to npz"
        )
    file.write(model.SerializeToString(deterministic=True))


def load(onnx: Any, file: BinaryIO) -> Any:
    """Return the ``ModelProto`` of an open file.

    Raises
    ------
    FileFormatError
        It holds none.
    """
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    size = min(file.seek(0, io.SEEK_END), _LARGEST)  # Python takes the memory that read asks for
    file.seek(0)
    try:
        model.ParseFromString(file.read(size + 1))
    except (DecodeError, ValueError, RuntimeError) as error:
        said = "".join(c for c in str(error) if c.isprintable())[:200]
        raise FileFormatError(
            f"{_name(file)} is no ONNX file, or it is damaged ({said}); export again"
        ) from None
    return model


def manifest_of(model: Any, file: BinaryIO) -> dict[str, Any]:
    """Return the manifest in a model's metadata.

    Raises
    ------
    FileFormatError
        There is none, or it is not qmath's.
    """
    texts = [entry.value for entry in model.metadata_props if entry.key == MANIFEST]
    if len(texts) != 1:
        raise FileFormatError(f"{_name(file)} has no manifest, so qmath did not write it")
    text = parse_long_json(texts[0], f"{_name(file)}: the manifest", "export again")
    manifest = checked(text, _name(file))
    export_of(manifest, _name(file))
    return manifest


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", "the file"))
