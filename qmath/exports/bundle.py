"""From a model to what is exported: integers, scales, zero points, and a manifest of it all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qmath._progress import Progress, with_progress
from qmath._text import html_table
from qmath.errors import MissingSettingsError, QmathError
from qmath.exports import manifest
from qmath.exports.records import (
    FloatTensor,
    Order,
    QuantizedRange,
    Record,
    Records,
    arrays_of,
    axes_of,
    describe,
    fitting,
    orders_of,
    quantized_range,
    reordered,
)
from qmath.exports.weights import Rows, Weights
from qmath.integer.deployment import VECTOR_BYTES, deploy, described
from qmath.integer.profiles.fixed import checked_multiplier_bits
from qmath.integer.whole_inputs import Vectors
from qmath.model import (
    QatModel,
    QatTensor,
    QuantizedTensor,
    ask_for_settings,
    assumed_tensors,
    own_quantized,
)

if TYPE_CHECKING:
    from qmath.exports.exporter import ArrayWriter
    from qmath.integer.directed.cases import Cases
    from qmath.integer.program import Program

__all__ = [
    "Bundle", "FloatTensor", "QuantizedRange", "Record", "fitting", "quantize_model",
    "quantized_range",
]  # fmt: skip


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
            yield from arrays_of(name, record, read_floats=read_floats)
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
    writer: ArrayWriter | None = None,
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
    writer : ArrayWriter, optional
        Takes every array of the bundle as it is made, as `Exporter.writer` says.

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
    made = _Tensors(model, orders_of(model, layouts), signed, writer)
    for tensor in with_progress(model.tensors.values(), progress):
        made.add(tensor)
    weights = made.weights
    deployed = deploy(
        model,
        vectors,
        multiplier_bits,
        lambda tensor: weights[tensor.name],
        vector_bytes=vector_bytes,
    )
    others = {**deployed.constants, **deployed.vectors}
    for key in made.owners.keys() & others:
        raise _taken(made.owners[key], key, "the integer model")
    if writer is not None:
        for key, array in others.items():
            writer.add(key, array)
        weights.release()
    options = {
        "layouts": list(layouts),
        "signed": signed,
        "vectors": 0,
        "multiplier_bits": checked_multiplier_bits(multiplier_bits),
        **deployed.options,
        **({} if model.build == "tf" else {"build": model.build}),
    }
    notes += deployed.notes
    stated = manifest.build(model, made.entries, deployed.description, options, notes)
    return Bundle(
        Records(made.records, weights),
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


class _Tensors:
    """The tensors of a model, quantized one after another, and written where there is a writer."""

    def __init__(
        self,
        model: QatModel,
        orders: Mapping[str, Order],
        signed: bool,
        writer: ArrayWriter | None,
    ) -> None:
        self._orders, self._writer = orders, writer
        self.owners = _owners(model)
        self.weights = Weights(model.tensors, signed, None if writer is None else self)
        self.records: dict[str, Order | QuantizedRange | FloatTensor] = {}
        self.entries: dict[str, Any] = {}

    def add(self, tensor: QatTensor) -> None:
        """Add a tensor's record and what the manifest says of it."""
        name, order = tensor.name, self._orders[tensor.name]
        entry: dict[str, Any] = {"role": tensor.role, "num_bits": None}
        if tensor.role != "float":
            entry |= manifest.settings(tensor)
        record: Record | None = None
        is_written = False
        if tensor.role == "float" and tensor.values is not None:
            axes = axes_of(*order, len(np.shape(tensor.values)))
            record = self.records[name] = FloatTensor(name, tensor.values, axes)
        elif tensor.role == "weight":
            self.records[name] = order
            integers, counts, is_written = self.weights.quantize_and_count(name)
            record = reordered(integers, *order)
            entry |= counts
        elif tensor.role != "float" and tensor.spec.is_complete:
            record = self.records[name] = quantized_range(tensor)
        if record is not None:
            entry |= describe(record, *order)
        if tensor.role == "float" and tensor.stored is not None:
            entry["stored"] = dataclasses.asdict(tensor.stored)
        self.entries[name] = entry
        if self._writer is not None and record is not None:
            for key, array in arrays_of(name, record):
                if key != name or not is_written:
                    self._writer.add(key, array)

    def rows(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows | None:
        """Return what takes the rows of a weight, unless they are exported in another order."""
        source, target = self._orders[name]
        if self._writer is None or source != target:
            return None
        return self._writer.rows(name, shape, dtype)

    def read(self, name: str) -> NDArray[Any]:
        """Return the integers of a weight that was written, in the model's own order of axes."""
        assert self._writer is not None
        values = self._writer.read(name)
        axes = axes_of(*self._orders[name], values.ndim)
        return np.ascontiguousarray(values.transpose([axes.index(i) for i in range(values.ndim)]))


def _owners(model: QatModel) -> dict[str, str]:
    """Return the tensor of each key; raise where two have one, or no file can hold it."""
    owners = {"manifest": "the manifest"}
    for name, tensor in model.tensors.items():
        parts = []
        if tensor.role == "weight" or (tensor.role == "float" and tensor.values is not None):
            parts = [""]
        if tensor.role == "weight" or (tensor.role != "float" and tensor.spec.is_complete):
            parts += [".scale", ".zero_point"]
        for key in (name + part for part in parts):
            if key in owners:
                raise _taken(name, key, owners[key])
            if not key.isprintable():
                raise QmathError(
                    f"{name!r}: the name has characters that a file cannot hold; rename the layer"
                )
            owners[key] = name
    return owners


def _taken(name: str, key: str, owner: str) -> QmathError:
    return QmathError(
        f"{name}: the exported name {key!r} is also that of {owner}; rename the layer"
    )
