"""A TFLite graph under construction: tensors, their buffers, and operators in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.containers.tflite.schema import (
    OPERATORS,
    OPTION_NUMBERS,
    OPTIONS,
    TENSOR_TYPES,
    VERSION,
)
from qmath.exports.output.identifiers import UniqueNames
from qmath.integer.program import Shape
from qmath.kernels.packing import pack

__all__ = ["MANIFEST", "GraphBuilder", "Grid", "Tensor", "with_manifest", "with_metadata"]

Array = NDArray[Any]

MANIFEST = "qmath.manifest"  # name of the model's metadata
# Of types that a buffer holds as they are; narrower integers are packed, by width.
_DTYPES = {"FLOAT32": "<f4", "INT8": "i1", "UINT8": "u1", "INT16": "<i2", "INT32": "<i4",
           "INT64": "<i8"}  # fmt: skip
_PACKED = {"INT4": (4, "nibbles"), "INT2": (2, "lsb")}
_MOST_DEPRECATED = 127  # operators from here on are in the newer field alone


@dataclass(frozen=True)
class Grid:
    """What the integers of an activation mean: scale and zero point."""

    scale: np.float32
    zero_point: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the graph.

    Attributes
    ----------
    index : int
    name : str
    kind : str
        A type of TFLite's, such as ``"INT8"``.
    shape : tuple of int
        With the batch.
    grid : Grid or None
        Of an activation's integers.
    """

    index: int
    name: str
    kind: str
    shape: Shape
    grid: Grid | None = None

    @property
    def is_float(self) -> bool:
        """Whether it holds float32."""
        return self.kind == "FLOAT32"


class GraphBuilder(UniqueNames):
    """Tensors and operators.

    Parameters
    ----------
    reserved : iterable of str
        Names that only `named` gives.
    """

    def __init__(self, reserved: Iterable[str]) -> None:
        self.tensors: list[dict[str, Any]] = []
        self.operators: list[dict[str, Any]] = []
        self.buffers: list[dict[str, Any]] = [{}]  # the first is that of all without data
        self._codes: dict[tuple[str, int], int] = {}
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._reserved = frozenset(reserved)
        super().__init__(self._reserved)

    def tensor(
        self, wanted: str, shape: Sequence[int], kind: str, grid: Grid | None = None
    ) -> Tensor:
        """Add a tensor that an operator makes, or an input."""
        fields: dict[str, Any] = {}
        if grid is not None:
            fields["quantization"] = {"scale": [grid.scale], "zero_point": [grid.zero_point]}
        return self._add(self.unique(wanted), kind, tuple(shape), grid, fields)

    def named(self, x: Tensor, name: str) -> Tensor:
        """Give a tensor one of the reserved names, unless it has one."""
        if self.name_of(x) in self._reserved:
            return x
        self.tensors[x.index]["name"] = name
        return replace(x, name=name)

    def name_of(self, x: Tensor) -> str:
        """Return the name that a tensor has by now."""
        return str(self.tensors[x.index]["name"])

    def constant(
        self,
        wanted: str,
        kind: str,
        values: ArrayLike,
        *,
        grid: Grid | None = None,
        scales: Array | None = None,
        axis: int = 0,
    ) -> Tensor:
        """Add a constant, once for equal ones.

        Parameters
        ----------
        wanted : str
        kind : str
        values : array-like
        grid : Grid, optional
            Of a constant among activations.
        scales : ndarray, optional
            One, or one for each index of `axis`: of weights, whose zero points are zero.
        axis : int
        """
        array = np.ascontiguousarray(values, _DTYPES.get(kind, "i1"))
        fields: dict[str, Any] = {}
        if scales is not None:
            fields["quantization"] = {
                "scale": np.atleast_1d(scales),
                "zero_point": np.zeros(np.size(scales), np.int64),
                "quantized_dimension": axis if np.size(scales) > 1 else 0,
            }
        elif grid is not None:
            fields["quantization"] = {"scale": [grid.scale], "zero_point": [grid.zero_point]}
        data = array.tobytes()
        scaled = None if scales is None else np.asarray(scales, np.float32).tobytes()
        key = (wanted, kind, array.shape, grid, scaled, data)
        if key not in self._constants:
            if kind in _PACKED:
                num_bits, layout = _PACKED[kind]
                held = pack(array, num_bits, layout)
            else:
                held = np.frombuffer(data, np.uint8)
            self.buffers.append({"data": held})
            fields["buffer"] = len(self.buffers) - 1
            self._constants[key] = self._add(self.unique(wanted), kind, array.shape, grid, fields)
        return self._constants[key]

    def _add(
        self, name: str, kind: str, shape: Shape, grid: Grid | None, fields: dict[str, Any]
    ) -> Tensor:
        shape = tuple(int(n) for n in shape)
        entry = {"name": name, "shape": shape, "type": TENSOR_TYPES[kind], "has_rank": True}
        self.tensors.append(entry | fields)
        return Tensor(len(self.tensors) - 1, name, kind, shape, grid)

    def op(
        self,
        name: str,
        inputs: Iterable[Tensor],
        output: Tensor,
        version: int = 1,
        **options: Any,
    ) -> Tensor:
        """Add an operator of one output; return the output."""
        code = self._codes.setdefault((name, version), len(self._codes))
        entry: dict[str, Any] = {
            "opcode_index": code,
            "inputs": [x.index for x in inputs],
            "outputs": [output.index],
        }
        if name in OPTIONS:
            entry["builtin_options_type"] = OPTION_NUMBERS[OPTIONS[name]]
            entry["builtin_options"] = (OPTIONS[name], options)
        self.operators.append(entry)
        return output

    def model(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the model, without metadata; its inputs and outputs have names of their own."""
        codes = [
            {
                "deprecated_builtin_code": min(OPERATORS[name], _MOST_DEPRECATED),
                "builtin_code": OPERATORS[name],
                "version": version,
            }
            for name, version in self._codes
        ]
        graph = {
            "tensors": self.tensors,
            "inputs": [x.index for x in inputs.values()],
            "outputs": [x.index for x in outputs.values()],
            "operators": self.operators,
            "name": "main",
        }
        signature = {
            "signature_key": "serving_default",
            "inputs": _maps(inputs),
            "outputs": _maps(outputs),
        }
        return {
            "version": VERSION, "operator_codes": codes, "subgraphs": [graph],
            "description": "qmath", "buffers": self.buffers, "signature_defs": [signature],
        }  # fmt: skip


def with_manifest(model: Mapping[str, Any], manifest: bytes | None) -> dict[str, Any]:
    """Return a model with the manifest as metadata, if there is one."""
    return dict(model) if manifest is None else with_metadata(model, MANIFEST, manifest)


def with_metadata(model: Mapping[str, Any], name: str, data: bytes) -> dict[str, Any]:
    """Return a model with bytes as metadata of a name, after what it has."""
    buffers = [*model["buffers"], {"data": np.frombuffer(data, np.uint8)}]
    entry = {"name": name, "buffer": len(buffers) - 1}
    return {**model, "buffers": buffers, "metadata": [*model.get("metadata", ()), entry]}


def _maps(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    return [{"name": name, "tensor_index": x.index} for name, x in tensors.items()]
