"""From nested dictionaries to the bytes of a FlatBuffers file, by the schema's table of fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qmath.containers.tflite.schema import IDENTIFIER, SCALARS, TABLES, Field
from qmath.errors import MissingExtraError, OutputError

__all__ = ["packed"]

Table = Mapping[str, Any]
_ALIGNMENT = 16  # of a buffer's data, which runtimes map into memory
_SLOTS = {
    "bool": "Bool", "byte": "Int8", "ubyte": "Uint8", "int": "Int32", "uint": "Uint32",
    "long": "Int64", "ulong": "Uint64", "float": "Float32",
}  # fmt: skip


def packed(model: Table) -> memoryview:
    """Return a TFLite file of a model.

    Parameters
    ----------
    model : mapping
        The fields of the table ``Model`` by name, those of tables in it likewise. A union is a pair
        of the table's name and its fields; the data of a buffer is an array of bytes.

    Returns
    -------
    memoryview
        The same for equal models.

    Raises
    ------
    MissingExtraError
        flatbuffers is not installed.
    OutputError
        The file would have 2 GiB or more.
    """
    try:
        import flatbuffers
        from flatbuffers.builder import BuilderSizeError
    except ImportError:
        raise MissingExtraError(
            "the format 'tflite' needs flatbuffers; install it with "
            "pip install 'qmath-tfmot[tflite]'"
        ) from None
    held = sum(buffer["data"].nbytes for buffer in model["buffers"] if "data" in buffer)
    # Nearly all of a file are its buffers: with room for them, it need not grow and be copied.
    try:
        builder = flatbuffers.Builder(held + held // 64 + (1 << 16))
        root = _Packer(builder).table("Model", model)
        builder.Finish(root, file_identifier=IDENTIFIER)
    except BuilderSizeError:
        raise OutputError(
            f"the model has {held} bytes of buffers, and a TFLite file holds less than 2 GiB; "
            "export to npz"
        ) from None
    return memoryview(builder.Bytes)[builder.Head() :]


class _Packer:
    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def table(self, kind: str, values: Table) -> int:
        """Write a table; return where it is."""
        fields = TABLES[kind]
        unknown = values.keys() - {field.name for field in fields}
        assert not unknown, f"{kind} has no field {unknown}"
        parts = {
            field.name: self._part(field, values[field.name])
            for field in fields
            if field.kind not in SCALARS and field.name in values
        }
        self.builder.StartObject(max((field.slot for field in fields), default=-1) + 1)
        for field in fields:
            if field.name in parts:
                self.builder.PrependUOffsetTRelativeSlot(field.slot, parts[field.name], 0)
            elif field.name in values:
                prepend = getattr(self.builder, f"Prepend{_SLOTS[field.kind]}Slot")
                prepend(field.slot, values[field.name], field.default)
        return int(self.builder.EndObject())

    def _part(self, field: Field, value: Any) -> int:
        """Write what a table refers to; return where it is."""
        if field.kind == "union":
            return self.table(*value)
        if field.kind == "string":
            return int(self.builder.CreateString(value))
        if not field.is_vector:
            return self.table(field.kind, value)
        if field.element in SCALARS:
            return self._numbers(field, value)
        return self._offsets([self.table(field.element, item) for item in value])

    def _numbers(self, field: Field, values: Any) -> int:
        dtype = np.dtype(SCALARS[field.element])
        array = np.ascontiguousarray(values, dtype).reshape(-1)
        if field.element == "ubyte":
            self.builder.Prep(_ALIGNMENT, array.nbytes)
        return int(self.builder.CreateNumpyVector(array))

    def _offsets(self, places: Sequence[int]) -> int:
        self.builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            self.builder.PrependUOffsetTRelative(place)
        return int(self.builder.EndVector())
