"""A TFLite file as plain records: tensors, operations, their settings; nothing is run.

Constants are views of the bytes that were read, so that memory is bounded by the file's size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.containers.source_files import open_source, stamp_of
from qmath.containers.tflite import schema
from qmath.containers.tflite.flatbuffer import FlatBuffer, Table
from qmath.errors import FileFormatError

__all__ = ["LARGEST", "Operation", "Quantization", "Tensor", "TfliteFile", "parsed", "read_tflite"]

Array = NDArray[Any]

# What FlatBuffers can address; what is beyond has buffers outside.
LARGEST = 1 << 31
_TYPES = {number: name for name, number in schema.TENSOR_TYPES.items()}
_DTYPES = {
    "FLOAT32": "<f4", "FLOAT16": "<f2", "FLOAT64": "<f8", "INT8": "<i1", "UINT8": "<u1",
    "INT16": "<i2", "UINT16": "<u2", "INT32": "<i4", "UINT32": "<u4", "INT64": "<i8",
    "UINT64": "<u8", "BOOL": "<u1",
}  # fmt: skip
_PACKED = {"INT4": 4, "UINT4": 4, "INT2": 2}
_MAX_RANK = 8
_NAMED_BY = {number: name for name, number in schema.OPTION_NUMBERS.items()}
_MAX_ELEMENTS = 1 << 31


@dataclass(frozen=True, eq=False)
class Quantization:
    """What a tensor's integers mean: ``(q - zero_point) * scale``.

    Attributes
    ----------
    scale : ndarray of float32
        One, or one for each index of `axis`.
    zero_point : ndarray of int64
        As many.
    axis : int
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a graph.

    Attributes
    ----------
    name : str
    shape : tuple of int
    type : str
        A key of `qmath.containers.tflite.schema.TENSOR_TYPES`.
    quantization : Quantization or None
    data : ndarray or None
        The elements of a constant, 2 and 4 bits unpacked; ``None`` of what is computed, and of a
        constant of a type that is not read.
    is_constant : bool
    signature : tuple of int
        The shape, with -1 where it is open.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    quantization: Quantization | None = None
    data: Array | None = None
    is_constant: bool = False
    signature: tuple[int, ...] = ()


@dataclass(frozen=True)
class Operation:
    """An operation of a graph.

    Attributes
    ----------
    name : str
        Of ``BuiltinOperator``, or that of a custom operation.
    inputs, outputs : tuple of int
        Indexes of tensors; an input that is left out is -1.
    options : mapping
        The fields of its options, empty where it has none or qmath does not know them.
    version : int
    is_custom : bool
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    is_custom: bool = False


@dataclass(frozen=True, eq=False)
class TfliteFile:
    """The first graph of a file, and what is stored beside it.

    Attributes
    ----------
    tensors : tuple of Tensor
    operations : tuple of Operation
        In the order in which they run.
    inputs, outputs : tuple of int
        Indexes of tensors.
    metadata : mapping of str to bytes
    description : str
    graphs : int
        How many graphs the file has.
    """

    tensors: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: Mapping[str, bytes]
    description: str
    graphs: int


def read_tflite(path: str) -> TfliteFile:
    """Read a TFLite file.

    Raises
    ------
    FileFormatError
        It is damaged or hostile, or keeps its weights in a form that qmath does not read.
    """
    try:
        with open_source(path) as file:
            size = stamp_of(file).size
            if size > LARGEST:
                raise FileFormatError(f"{path}: a TFLite file of more than 2 GiB is not read")
            content = file.read(size)
    except OSError as error:
        raise FileFormatError(f"{path}: it cannot be read ({error.strerror})") from None
    return parsed(content, path)


def parsed(content: bytes, name: str) -> TfliteFile:
    """Return what the bytes of a file hold; `name` is the file's in messages.

    Raises
    ------
    FileFormatError
        As `read_tflite`.
    """
    return _Reader(FlatBuffer(content, name)).read()


class _Reader:
    def __init__(self, buffer: FlatBuffer) -> None:
        self.buffer = buffer
        self.model = buffer.root()
        self.buffers: list[Table] = self.model.get("buffers")
        self._unpacked: dict[tuple[int, str], Array] = {}

    def read(self) -> TfliteFile:
        version = self.model.get("version")
        if version != schema.VERSION:
            raise self.damaged("the model", f"it states the schema version {version}, not 3")
        codes = [self.code(table) for table in self.model.get("operator_codes")]
        graphs = self.model.get("subgraphs")
        if not graphs:
            raise self.damaged("the model", "it holds no graph")
        graph = graphs[0]
        tensors = tuple(self.tensor(table) for table in graph.get("tensors"))
        operations = tuple(self.operation(t, codes, len(tensors)) for t in graph.get("operators"))
        inputs, outputs = (
            self.indexes(graph, key, len(tensors), least=0) for key in ("inputs", "outputs")
        )
        self.check_order(tensors, operations, inputs, outputs)
        metadata = {
            str(entry.get("name")): self.bytes_of(entry).tobytes()
            for entry in self.model.get("metadata")
        }
        return TfliteFile(
            tensors, operations, inputs, outputs, metadata,
            self.model.get("description") or "", len(graphs),
        )  # fmt: skip

    def damaged(self, where: str, how: str) -> FileFormatError:
        return self.buffer.damaged(where, how)

    def code(self, table: Table) -> tuple[str, int, bool]:
        """Return an operation's name and version, and whether it is a custom one."""
        # Older files state only the first, which has one byte.
        number = max(table.get("deprecated_builtin_code"), table.get("builtin_code"))
        custom = table.get("custom_code")
        if number < 0:
            raise self.damaged(table.where, f"there is no operator {number}")
        if number >= len(schema.OPERATOR_NAMES):
            return f"OPERATOR_{number}", table.get("version"), False
        name = schema.OPERATOR_NAMES[number]
        if name == "CUSTOM":
            return custom or name, table.get("version"), True
        return name, table.get("version"), False

    def indexes(self, table: Table, key: str, count: int, least: int = -1) -> tuple[int, ...]:
        found: tuple[int, ...] = tuple(table.get(key).tolist())
        for index in found:
            if not least <= index < count:
                raise self.damaged(f"{table.where}: {key}", f"there is no tensor {index}")
        return found

    def operation(
        self, table: Table, codes: Sequence[tuple[str, int, bool]], count: int
    ) -> Operation:
        index = table.get("opcode_index")
        if index >= len(codes):
            raise self.damaged(table.where, f"there is no operator code {index}")
        name, version, is_custom = codes[index]
        inputs, outputs = (self.indexes(table, key, count) for key in ("inputs", "outputs"))
        if any(output < 0 for output in outputs):
            raise self.damaged(f"{table.where}: outputs", "there is no tensor -1")
        wanted = schema.OPTIONS.get(name)
        stated = _NAMED_BY.get(table.get("builtin_options_type"))
        options: Mapping[str, Any] = {}
        if wanted is not None and not is_custom:
            options = {f.name: f.default for f in schema.TABLES[wanted] if not f.is_vector}
            found = table.union("builtin_options", wanted) if stated == wanted else None
            if found is not None:
                options = found.fields()
        return Operation(name, inputs, outputs, options, version, is_custom)

    def tensor(self, table: Table) -> Tensor:
        name = _TYPES.get(number := table.get("type"), f"TYPE_{number}")
        shape = tuple(table.get("shape").tolist())
        signature = tuple(table.get("shape_signature").tolist())
        if len(shape) > _MAX_RANK or any(n < 0 for n in shape):
            raise self.damaged(table.where, f"it is of the shape {shape}")
        if math.prod(shape) > _MAX_ELEMENTS:
            raise self.damaged(table.where, f"it is of the shape {shape}, which no memory holds")
        quantization = self.quantization(table, shape)
        data = self.bytes_of(table)
        is_constant = bool(len(data))
        if is_constant and table.has("sparsity"):
            raise FileFormatError(
                f"{self.buffer.name}: {table.where} is sparse; convert the model without sparsity"
            )
        if table.get("external_buffer"):
            raise FileFormatError(
                f"{self.buffer.name}: {table.where} is kept in another file; "
                "convert the model into one file"
            )
        return Tensor(
            table.get("name") or "", shape, name, quantization,
            self.elements(table, name, shape, data) if is_constant else None, is_constant,
            signature or shape,
        )  # fmt: skip

    def bytes_of(self, table: Table) -> Array:
        """Return the bytes of a table's buffer: in the FlatBuffer, or behind it."""
        index = table.get("buffer")
        if index >= len(self.buffers):
            raise self.damaged(table.where, f"there is no buffer {index}")
        buffer = self.buffers[index]
        offset, size = buffer.get("offset"), buffer.get("size")
        if offset <= 1:  # 1 stands for what a writer has not filled in
            data: Array = buffer.get("data")
            return data
        if offset + size > len(self.buffer.content):
            raise self.damaged(buffer.where, f"its {size} bytes at {offset} do not fit the file")
        return np.frombuffer(self.buffer.content, np.uint8, size, offset)

    def elements(
        self, table: Table, kind: str, shape: tuple[int, ...], data: Array
    ) -> Array | None:
        """Return the elements of a constant, ``None`` of a type that qmath has no array for."""
        count = math.prod(shape)
        if kind in _PACKED:
            bits = _PACKED[kind]
            if len(data) != -(-count * bits // 8):
                raise self.damaged(table.where, f"{len(data)} bytes are not of shape {shape}")
            key = table.get("buffer"), kind
            if key not in self._unpacked:
                self._unpacked[key] = _unpacked(data, bits, kind[0] == "I")
            return self._unpacked[key][:count].reshape(shape)
        if kind not in _DTYPES:
            return None
        dtype = np.dtype(_DTYPES[kind])
        if len(data) != count * dtype.itemsize:
            raise self.damaged(table.where, f"{len(data)} bytes are not {kind} of shape {shape}")
        return data.view(dtype).reshape(shape)

    def quantization(self, table: Table, shape: tuple[int, ...]) -> Quantization | None:
        found: Table | None = table.get("quantization")
        if found is None:
            return None
        scale, zero_point = found.get("scale"), found.get("zero_point")
        if not len(scale):
            return None
        axis = found.get("quantized_dimension")
        if found.get("details_type"):
            raise FileFormatError(
                f"{self.buffer.name}: {found.where} is of a kind of its own (blockwise or custom), "
                "which qmath does not read; convert the model with scales per tensor or channel"
            )
        if len(zero_point) not in (len(scale), 1, 0):
            raise self.damaged(found.where, f"{len(scale)} scales, {len(zero_point)} zero points")
        if len(scale) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scale)):
            raise self.damaged(
                found.where, f"{len(scale)} scales along axis {axis} of the shape {shape}"
            )
        if not (np.isfinite(scale).all() and (scale >= 0).all()):
            raise self.damaged(found.where, "a scale is negative or not finite")
        if (np.abs(zero_point) > 1 << 16).any():
            raise self.damaged(found.where, "a zero point lies beyond its integers")
        zero_points = np.broadcast_to(zero_point if len(zero_point) else np.int64(0), scale.shape)
        return Quantization(scale, np.asarray(zero_points), axis if len(scale) > 1 else 0)

    def check_order(
        self,
        tensors: Sequence[Tensor],
        operations: Sequence[Operation],
        inputs: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        """Raise unless each operation reads what is there by then, and no tensor is made twice."""
        made = {i for i, tensor in enumerate(tensors) if tensor.is_constant} | {-1} | set(inputs)
        written = set(made)
        for number, operation in enumerate(operations):
            for index in operation.outputs:
                if index in written:
                    raise self.damaged(f"operators {number}", f"tensor {index} is made twice")
                written.add(index)
        for number, operation in enumerate(operations):
            for index in operation.inputs:
                if index in written and index not in made:
                    raise self.damaged(
                        f"operators {number}", f"it reads tensor {index} before it is made"
                    )
            made.update(operation.outputs)
        for index in outputs:
            if index not in made:
                raise self.damaged("the graph's outputs", f"nothing makes tensor {index}")


def _unpacked(data: Array, bits: int, signed: bool) -> Array:
    """Return integers of 2 or 4 bits, the first in the lowest bits, as int8."""
    parts = [(data >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    values = np.stack(parts, -1).reshape(-1).view(np.int8)
    half = np.int8(1 << (bits - 1))
    return (values ^ half) - half if signed else values
