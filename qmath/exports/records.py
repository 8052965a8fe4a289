"""What an export says of one tensor, in the order of axes that is exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.containers.lazy_array import LazyArray
from qmath.errors import QmathError
from qmath.exports import manifest
from qmath.exports.weights import Weights
from qmath.kernels import affine
from qmath.layers import LAYERS
from qmath.model import Float32Array, QatModel, QatTensor, QuantizedTensor

__all__ = [
    "FloatTensor",
    "Order",
    "QuantizedRange",
    "Record",
    "Records",
    "arrays_of",
    "axes_of",
    "describe",
    "fitting",
    "orders_of",
    "quantized_range",
    "reordered",
]


@dataclass(frozen=True, eq=False)
class QuantizedRange:
    """Scale and zero point of a tensor whose values no file holds, such as an activation.

    Attributes are those of `qmath.QuantizedTensor`.
    """

    scale: Float32Array
    zero_point: NDArray[np.int32]
    num_bits: int
    narrow_range: bool
    signed: bool


@dataclass(frozen=True, eq=False)
class FloatTensor:
    """A tensor that training left float, read from the model when it is asked for.

    Attributes
    ----------
    name : str
    source : array-like
        The floats as the model holds them.
    axes : tuple of int
        The order of the source's axes.
    """

    name: str
    source: ArrayLike
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the exported array."""
        shape = np.shape(self.source)
        return tuple(shape[axis] for axis in self.axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the source."""
        return np.dtype(getattr(self.source, "dtype", None) or np.asarray(self.source).dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = np.asarray(self.source).transpose(self.axes)
        is_damaged = array.dtype.kind == "f" and not np.isfinite(array).all()
        if is_damaged and isinstance(self.source, LazyArray):  # others are the caller's
            raise QmathError(
                f"{self.name} holds values that are not finite: training diverged, or the file "
                "is damaged; save the model again"
            )
        return np.array(array, dtype) if copy else np.asarray(array, dtype)


Record = QuantizedTensor | QuantizedRange | FloatTensor


def arrays_of(
    name: str, record: Record, *, read_floats: bool = True
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of a record under their keys, as `Bundle.arrays` does."""
    if isinstance(record, FloatTensor):
        zeros = np.broadcast_to(np.zeros((), record.dtype), record.shape)
        yield name, np.asarray(record) if read_floats else zeros
        return
    if isinstance(record, QuantizedTensor):
        yield name, record.values
    yield f"{name}.scale", record.scale
    yield f"{name}.zero_point", record.zero_point


class Order(NamedTuple):
    """Of a weight: the order of the axes that it has, and of those that are exported."""

    source: str | None
    target: str | None


class Records(Mapping[str, Record]):
    """The records by name; a weight's integers are made when they are asked for, and not kept."""

    def __init__(
        self, records: Mapping[str, Order | QuantizedRange | FloatTensor], weights: Weights
    ) -> None:
        self._records, self._weights = records, weights

    def __getitem__(self, name: str) -> Record:
        record = self._records[name]
        if not isinstance(record, Order):
            return record
        found = reordered(self._weights[name], *record)
        values = np.ascontiguousarray(found.values).reshape(found.values.shape)
        return dataclasses.replace(found, values=values)

    def __contains__(self, name: object) -> bool:
        return name in self._records  # Mapping's own would quantize

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


def fitting(model: QatModel, layouts: Sequence[str]) -> list[str]:
    """Return the layouts that match a tensor of the model."""
    letters = {"".join(sorted(source)) for source in _own_layouts(model).values() if source}
    return [layout for layout in layouts if "".join(sorted(layout)) in letters]


def _own_layouts(model: QatModel) -> dict[str, str | None]:
    """Return each tensor's own layout, ``None`` where it is unknown."""
    classes = {node.layer: node.class_name for node in model.graph.nodes} if model.graph else {}
    found: dict[str, str | None] = {}
    for name, tensor in model.tensors.items():
        layer, _, weight = name.rpartition("/")
        row = LAYERS.get(classes.get(layer, ""))
        source = (row.kernels.get(weight) if row else None) or None
        if tensor.stored is not None:  # its scale would have to be reordered with it
            source = None
        if tensor.values is None or len(np.shape(tensor.values)) != len(source or ""):
            source = None
        found[name] = source
    return found


def orders_of(model: QatModel, layouts: Sequence[str]) -> dict[str, Order]:
    """Return each tensor's own layout and the one to export, ``None`` where unknown."""
    orders: dict[str, Order] = {}
    if not isinstance(layouts, (list, tuple)) or not all(isinstance(x, str) for x in layouts):
        raise QmathError(f"layouts must be a list of axis orders, ['OHWI'], got {layouts!r}")
    used: dict[str, set[str]] = {layout: set() for layout in layouts}
    for name, source in _own_layouts(model).items():
        if source is None:
            orders[name] = Order(None, None)
            continue
        matching = [layout for layout in used if sorted(layout) == sorted(source)]
        if len(matching) > 1:
            raise QmathError(
                f"layouts {' and '.join(matching)} both apply to {name}; give one of them"
            )
        for layout in matching:
            used[layout].add(name)
        orders[name] = Order(source, matching[0] if matching else source)
    for layout, names in used.items():
        if not names:
            known = sorted({source for source, _ in orders.values() if source})
            raise QmathError(
                f"layout {layout!r} matches no tensor; the model's own layouts are "
                f"{', '.join(known) or 'unknown'}: give the same letters in another order"
            )
    return orders


def axes_of(source: str | None, target: str | None, rank: int) -> tuple[int, ...]:
    """Return the source axis of each target axis."""
    if source is None or target is None:
        return tuple(range(rank))
    return tuple(source.index(letter) for letter in target)


def reordered(
    quantized: QuantizedTensor, source: str | None, target: str | None
) -> QuantizedTensor:
    """Return a weight with its axes in another order, its integers a view."""
    rank = quantized.values.ndim
    axes = axes_of(source, target, rank)
    values = quantized.values.transpose(axes)
    if quantized.axis is None:
        return dataclasses.replace(quantized, values=values)
    axis = axes.index(quantized.axis)
    column = (-1,) + (1,) * (rank - 1 - axis)
    return dataclasses.replace(
        quantized,
        values=values,
        axis=axis,
        scale=quantized.scale.reshape(column),
        zero_point=quantized.zero_point.reshape(column),
    )


def quantized_range(tensor: QatTensor) -> QuantizedRange:
    """Return scale and zero point of a tensor whose settings are complete."""
    low, high = manifest.stored_range(tensor)
    bits, narrow = tensor.spec.num_bits or 0, bool(tensor.spec.narrow_range)
    if tensor.stated is not None:
        stated = tensor.stated
        return QuantizedRange(stated.scale, stated.zero_point, bits, narrow, signed=False)
    scale, zero_point = affine.scale_and_zero_point(
        low, high, bits, narrow_range=narrow, signed=False, name=tensor.name,
        build=tensor.spec.build, op="args" if tensor.spec.op == "args" else "vars",
    )  # fmt: skip
    return QuantizedRange(scale, zero_point, bits, narrow, signed=False)


def describe(record: Record, source: str | None, target: str | None) -> dict[str, Any]:
    """Return the part of a manifest entry that says what the exported arrays are."""
    entry: dict[str, Any] = {}
    if not isinstance(record, FloatTensor):
        entry["signed"] = record.signed
        entry["scale_bits"] = manifest.bit_patterns(record.scale)
        entry["zero_point"] = record.zero_point.ravel().tolist()
    if isinstance(record, QuantizedTensor):
        entry |= {
            "axis": record.axis,
            "shape": list(record.values.shape),
            "dtype": str(record.values.dtype),
        }
    if isinstance(record, FloatTensor):
        entry |= {"shape": list(record.shape), "dtype": str(record.dtype)}
    if not isinstance(record, QuantizedRange):
        entry |= {"layout": target, "source_layout": source}
    return entry
