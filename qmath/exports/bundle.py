"""From a model to what is exported: integers, scales, zero points, and a manifest of it all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._progress import Progress, with_progress
from qmath._text import html_table
from qmath.containers.lazy_array import LazyArray
from qmath.errors import MissingSettingsError, QmathError
from qmath.exports import manifest
from qmath.exports.weights import Weights
from qmath.integer.deployment import VECTOR_BYTES, deploy, described
from qmath.integer.whole_inputs import Vectors
from qmath.kernels import affine
from qmath.layers import LAYERS
from qmath.model import (
    Float32Array,
    QatModel,
    QatTensor,
    QuantizedTensor,
    ask_for_settings,
    assumed_tensors,
    own_quantized,
)

if TYPE_CHECKING:
    from qmath.integer.directed.cases import Cases
    from qmath.integer.program import Program

__all__ = ["Bundle", "FloatTensor", "QuantizedRange", "fitting", "quantize_model"]


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


class _Order(NamedTuple):
    """Of a weight: the order of the axes that it has, and of those that are exported."""

    source: str | None
    target: str | None


class _Records(Mapping[str, Record]):
    """The records by name; a weight's integers are made when they are asked for, and not kept."""

    def __init__(
        self, records: Mapping[str, _Order | QuantizedRange | FloatTensor], weights: Weights
    ) -> None:
        self._records, self._weights = records, weights

    def __getitem__(self, name: str) -> Record:
        record = self._records[name]
        return _reordered(self._weights[name], *record) if isinstance(record, _Order) else record

    def __contains__(self, name: object) -> bool:
        return name in self._records  # Mapping's own would quantize

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


@dataclass(frozen=True, eq=False)
class Bundle:
    """All that an export holds.

    Attributes
    ----------
    tensors : mapping of str to QuantizedTensor, QuantizedRange or FloatTensor
        By name, in the model's order. Ranges whose settings are unknown are in the manifest only.
        Along an axis that is not the last, `scale` and `zero_point` have shape ``(C, 1, …)``, so
        that the formula of reconstruction holds as it is written.
    manifest : dict
        JSON values only, as ``manifest.schema.json`` in this package describes them.
    model : QatModel
        What the bundle was made from.
    weights : mapping of str to QuantizedTensor
        Those of `tensors` in the model's own order of axes, quantized once.
    program : Program or None
        The integer model; ``None`` where the model has none, which a note explains.
    constants : mapping of str to ndarray
        Of the program, as `qmath.integer.describe.arrays` names them.
    vectors : mapping of str to ndarray
        Golden test vectors: ``vectors/<input>`` floats, ``vectors/<step>`` the integers, unsigned,
        or floats, that the profile ``integer`` makes of them; and the arrays of `directed`, under
        the keys that the manifest's ``directed`` lists.
    directed : mapping of str to Cases
        Vectors of single steps, aimed at mistakes: `qmath.integer.directed.cases.Cases`.
    """

    tensors: Mapping[str, Record]
    manifest: dict[str, Any]
    model: QatModel
    weights: Mapping[str, QuantizedTensor]
    program: Program | None = None
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    vectors: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    directed: Mapping[str, Cases] = field(default_factory=dict)

    def __repr__(self) -> str:
        program = "no integer model" if self.program is None else repr(self.program)[1:-1]
        return f"<Bundle of {self.model.source}: {len(self.tensors)} tensors; {program}>"

    def _repr_html_(self) -> str:
        """Show the tensors in a notebook."""
        keys = ("role", "shape", "dtype", "num_bits", "zero_point")
        entries = self.manifest["tensors"].items()
        rows = [
            {"tensor": name, **{key: entry.get(key) for key in keys}} for name, entry in entries
        ]
        return html_table(repr(self)[1:-1], rows)

    @property
    def obstacles(self) -> str:
        """Why there is no integer model, where there is none."""
        notes = [note for note in self.manifest["notes"] if not note.startswith("Assumed: ")]
        return "; ".join(notes) or "the file holds no layers"

    def keys(self) -> Iterator[str]:
        """Yield the keys of `arrays`, which are not made for it."""
        for name, entry in self.manifest["tensors"].items():
            if "dtype" in entry:
                yield name
            if "scale_bits" in entry:
                yield f"{name}.scale"
                yield f"{name}.zero_point"
        yield from self.constants
        yield from self.vectors

    def arrays(self, *, read_floats: bool = True) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield every array under its key, made or read one tensor at a time.

        The keys are ``<tensor>``, ``<tensor>.scale`` and ``<tensor>.zero_point``, and those of
        `constants` and `vectors`. Without `read_floats` the model is not read: zeros that take no
        memory stand for the tensors that training left float.
        """
        for name, record in self.tensors.items():
            if isinstance(record, FloatTensor):
                zeros = np.broadcast_to(np.zeros((), record.dtype), record.shape)
                yield name, np.asarray(record) if read_floats else zeros
                continue
            if isinstance(record, QuantizedTensor):
                yield name, record.values
            yield f"{name}.scale", record.scale
            yield f"{name}.zero_point", record.zero_point
        yield from self.constants.items()
        yield from self.vectors.items()


def quantize_model(
    model: QatModel,
    *,
    strict: bool = False,
    layouts: Sequence[str] = (),
    signed: bool = True,
    vectors: Vectors = 0,
    vector_bytes: int = VECTOR_BYTES,
    multiplier_bits: int = 31,
    progress: Progress | None = None,
) -> Bundle:
    """Quantize all of a model: stored values to their stored ranges.

    Parameters
    ----------
    model : QatModel
        From `qmath.load` or `qmath.from_keras`.
    strict : bool
        Raise where the settings of an activation are unknown, instead of exporting its range;
        where it is assumed, and not shown by the model, which quantizer used a range; and where one
        that left no range may have quantized a weight.
    layouts : sequence of str
        Axis orders to export in, such as ``"OHWI"``: each applies to every tensor whose own
        layout has the same letters (``HWIO`` of Conv2D, ``HWOI`` of Conv2DTranspose; there are
        ``HWIM`` of DepthwiseConv2D, ``IO`` of Dense, ``WIO`` of Conv1D, ``WIM`` of
        DepthwiseConv1D, ``DHWIO`` of Conv3D).
    signed : bool
        Two's complement integers of the weights, or TensorFlow's unsigned count.
    vectors : int, array-like or mapping of str to array-like
        How many golden inputs of the model to draw, or inputs of your own, for each input by its
        name. Every layer's integers are added, and directed vectors of each layer.
    vector_bytes : int
        How many bytes the directed vectors may take; 0 for none.
    multiplier_bits : int
        Width of the integer model's multipliers, 8 to 31.
    progress : callable, optional
        Called with how many tensors are done, and of how many.

    Returns
    -------
    Bundle
        Integers of every quantized weight; unsigned scale and zero point of every
        activation, output and input; the other floats as they are; the integer model with its
        constants and test vectors, if there is one; the manifest.

    Raises
    ------
    MissingSettingsError
        The settings of a weight are in no file, or `strict` asks for more: all are listed at once.
    QmathError
        A layout matches nothing; names collide; a tensor or range determines no integers; a number
        is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from qmath.model import QatModel, QatTensor, QuantSpec
    >>> spec = QuantSpec("LastValueQuantizer", num_bits=4, per_axis=False, narrow_range=False)
    >>> kernel = QatTensor("dense/kernel", "weight", np.float32([[0.5, -1.0]]), np.float32(-1),
    ...                    np.float32(0.875), spec)
    >>> bundle = quantize_model(QatModel({"dense/kernel": kernel}))
    >>> bundle.tensors["dense/kernel"].values
    array([[ 4, -8]], dtype=int8)
    """
    tensors = model.tensors.values()
    unknown = {t.role for t in tensors if t.role != "float" and not t.spec.is_complete}
    if "weight" in unknown or (strict and unknown):
        raise MissingSettingsError(ask_for_settings(model, unknown if strict else {"weight"}))
    if strict:
        _refuse_unsure(model)
    notes = [*model.notes, *([ask_for_settings(model, unknown)] if unknown else [])]
    orders = _orders(model, layouts)
    weights = Weights(model.tensors, signed)
    records: dict[str, _Order | QuantizedRange | FloatTensor] = {}
    entries: dict[str, Any] = {}
    for name, tensor in with_progress(model.tensors.items(), progress):
        order = source, target = orders[name]
        entry: dict[str, Any] = {"role": tensor.role, "num_bits": None}
        if tensor.role != "float":
            entry |= manifest.settings(tensor)
        if tensor.role == "float" and tensor.values is not None:
            axes = _axes(source, target, len(np.shape(tensor.values)))
            record = FloatTensor(name, tensor.values, axes)
            records[name] = record
            entry |= _describe(record, source, target)
            if tensor.stored is not None:
                entry["stored"] = dataclasses.asdict(tensor.stored)
        elif tensor.role == "weight":
            records[name] = order
            integers, counts = weights.quantize_and_count(name)
            entry |= counts | _describe(_reordered(integers, *order), *order)
        elif tensor.spec.is_complete:
            records[name] = known = quantized_range(tensor)
            entry |= _describe(known, source, target)
        entries[name] = entry
    deployed = deploy(
        model,
        vectors,
        multiplier_bits,
        lambda tensor: weights[tensor.name],
        vector_bytes=vector_bytes,
    )
    _check_keys(records, (*deployed.constants, *deployed.vectors))
    options = {
        "layouts": list(layouts),
        "signed": signed,
        "vectors": 0,
        "multiplier_bits": multiplier_bits,
        **deployed.options,
        **({} if model.build == "tf" else {"build": model.build}),
    }
    notes += deployed.notes
    stated = manifest.build(model, entries, deployed.description, options, notes)
    return Bundle(
        _Records(records, weights),
        stated | ({"directed": described(deployed.directed)} if deployed.directed else {}),
        model,
        weights,
        deployed.program,
        deployed.constants,
        deployed.vectors,
        deployed.directed,
    )


def _refuse_unsure(model: QatModel) -> None:
    """Raise if a tensor may be quantized otherwise than the model's settings say."""
    assumed, own = assumed_tensors(model), own_quantized(model)
    if not assumed and not own:
        return
    parts = [f"assumed: the settings of {', '.join(assumed)}"] if assumed else []
    if own:
        parts.append(f"float here, and quantized by its own config: {', '.join(own)}")
    raise MissingSettingsError(
        f"{'; '.join(parts)}; strict takes only what is shown: load a SavedModel, use "
        f"qmath.from_keras, or say what the training script does with --quantizer (quantizers=)"
    )


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


def _orders(model: QatModel, layouts: Sequence[str]) -> dict[str, _Order]:
    """Return each tensor's own layout and the one to export, ``None`` where unknown."""
    orders: dict[str, _Order] = {}
    if not isinstance(layouts, (list, tuple)) or not all(isinstance(x, str) for x in layouts):
        raise QmathError(f"layouts must be a list of axis orders, ['OHWI'], got {layouts!r}")
    used: dict[str, set[str]] = {layout: set() for layout in layouts}
    for name, source in _own_layouts(model).items():
        if source is None:
            orders[name] = _Order(None, None)
            continue
        matching = [layout for layout in used if sorted(layout) == sorted(source)]
        if len(matching) > 1:
            raise QmathError(
                f"layouts {' and '.join(matching)} both apply to {name}; give one of them"
            )
        for layout in matching:
            used[layout].add(name)
        orders[name] = _Order(source, matching[0] if matching else source)
    for layout, names in used.items():
        if not names:
            known = sorted({source for source, _ in orders.values() if source})
            raise QmathError(
                f"layout {layout!r} matches no tensor; the model's own layouts are "
                f"{', '.join(known) or 'unknown'}: give the same letters in another order"
            )
    return orders


def _axes(source: str | None, target: str | None, rank: int) -> tuple[int, ...]:
    """Return the source axis of each target axis."""
    if source is None or target is None:
        return tuple(range(rank))
    return tuple(source.index(letter) for letter in target)


def _reordered(
    quantized: QuantizedTensor, source: str | None, target: str | None
) -> QuantizedTensor:
    """Return a weight with its axes in another order."""
    shape = quantized.values.shape
    axes = _axes(source, target, len(shape))
    values = np.ascontiguousarray(quantized.values.transpose(axes)).reshape(
        [shape[axis] for axis in axes]
    )
    if quantized.axis is None:
        return dataclasses.replace(quantized, values=values)
    axis = axes.index(quantized.axis)
    column = (-1,) + (1,) * (len(shape) - 1 - axis)
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


def _check_keys(
    records: Mapping[str, _Order | QuantizedRange | FloatTensor], others: Iterable[str]
) -> None:
    """Raise where two arrays would have one name, or one that no file can hold."""
    owners = {"manifest": "the manifest", **dict.fromkeys(others, "the integer model")}
    for name, record in records.items():
        parts = [""] if not isinstance(record, QuantizedRange) else []
        parts += [".scale", ".zero_point"] if not isinstance(record, FloatTensor) else []
        for key in (name + part for part in parts):
            if key in owners:
                raise QmathError(
                    f"{name}: the exported name {key!r} is also that of {owners[key]}; "
                    "rename the layer"
                )
            if not key.isprintable():
                raise QmathError(
                    f"{name!r}: the name has characters that a file cannot hold; rename the layer"
                )
            owners[key] = name


def _describe(record: Record, source: str | None, target: str | None) -> dict[str, Any]:
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
