"""What travels through qmath: small frozen records, and which settings they still lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._text import html_table
from qmath.errors import MissingSettingsError, QmathError
from qmath.kernels import affine
from qmath.kernels._blocks import get_num_threads
from qmath.kernels.builds import Build, check_build
from qmath.kernels.quantized_tensor import QuantizedTensor

if TYPE_CHECKING:
    from qmath.containers.source_files import SourceFiles

__all__ = [
    "IN_PYTHON", "Graph", "Hint", "MissingSetting", "Node", "QatModel", "QatTensor",
    "QuantSpec", "QuantizedTensor", "Role", "StatedParams", "StoredIntegers",
    "ask_for_settings", "assumed_tensors", "missing_settings", "own_quantized", "why_no_graph",
    "with_build", "with_shapes",
]  # fmt: skip

Role = Literal["weight", "activation", "output", "input", "float"]
Float32Array = NDArray[np.float32]
_ORDER = "The order of the layers is not known: "  # what begins a note of a reader
_OWN = ": quantized by its own config"  # what follows a tensor's name in a note of a reader


@dataclass(frozen=True)
class QuantSpec:
    """How a quantizer was configured; ``None`` marks what no source says.

    Attributes
    ----------
    quantizer : str or None
        TFMOT's class name, such as ``"LastValueQuantizer"``.
    num_bits : int or None
        Width of the integers, 2 to 16.
    per_axis : bool or None
        One range for each index of the last axis, instead of one for the tensor.
    symmetric : bool or None
        Whether training kept the range symmetric. Inference does not depend on it.
    narrow_range : bool or None
        Whether the lowest integer is left unused.
    op : {"vars", "args", "tflite"}
        The TensorFlow op that computes: ``FakeQuantWithMinMaxVars`` (or, per axis,
        ``…VarsPerChannel``), or ``FakeQuantWithMinMaxArgs`` for a fixed range; or TFLite's
        ``QUANTIZE``.
    build : {"tf", "tf<2.6", "xla-cpu", "xla-cpu-nofma"}
        Whose kernels computed it.
    """

    quantizer: str | None = None
    num_bits: int | None = None
    per_axis: bool | None = None
    symmetric: bool | None = None
    narrow_range: bool | None = None
    op: Literal["vars", "args", "tflite"] = "vars"
    build: Build = "tf"

    @property
    def missing(self) -> tuple[str, ...]:
        """The fields without which the integers are not determined."""
        needed = ("num_bits", "narrow_range", "per_axis")
        return tuple(name for name in needed if getattr(self, name) is None)

    @property
    def is_complete(self) -> bool:
        """Whether the integers are determined: width, narrowness and axis are known."""
        return not self.missing


# Where an option would hold a name that `quantizer_option` refuses.
IN_PYTHON = "with quantizers= in Python, as a shell could take a part of the name for a command"


class Hint(NamedTuple):
    """The option that would complete a tensor's settings, and where its width comes from.

    The option is empty if no shell can be trusted with the tensor's name.
    """

    option: str
    why: str

    def __str__(self) -> str:
        return f"Pass the settings of your training script: {self.option or IN_PYTHON} ({self.why})"


@dataclass(frozen=True)
class StoredIntegers:
    """What a tensor's values mean if they are integers that are passed on as they are.

    Keras 3 itself quantized them, or they are the bias of a TFLite file.

    Attributes
    ----------
    num_bits : int
        Width of the integers, which are signed.
    scale : str
        Name of the tensor that divides or multiplies them: the real values are `reconstruction`.
    reconstruction : str
        In NumPy, where ``values`` are the integers and ``scale`` that tensor.
    """

    num_bits: int
    scale: str
    reconstruction: str = "values.astype(np.float32) / scale"

    @property
    def is_bias(self) -> bool:
        """Whether they are a bias, which the integer model adds, and not Keras 3's weights."""
        return self.num_bits > 16


@dataclass(frozen=True, eq=False)
class StatedParams:
    """Scale and zero point of an activation that the file itself states.

    Attributes
    ----------
    scale : ndarray of float32
        Of shape ``()``.
    zero_point : ndarray of int32
        Counted from 0, as TensorFlow counts.
    is_unsigned : bool
        Whether the file's integers count so, too.
    is_from_float : bool
        Whether an operation of the file makes them of floats.
    """

    scale: Float32Array
    zero_point: NDArray[np.int32]
    is_unsigned: bool = False
    is_from_float: bool = False


@dataclass(frozen=True, eq=False)
class QatTensor:
    """A float tensor, or the range of one, as a model holds it.

    Attributes
    ----------
    name : str
        ``<layer path>/<weight>``, without ``:0`` and without the wrapper's ``quant_``.
    role : {"weight", "activation", "output", "input", "float"}
        A quantized weight; a quantized activation inside a layer; a layer's quantized output;
        the quantized model input; or a tensor that training left as it was.
    values : array-like or None
        The stored floats (lazy: `shape`, `dtype` and ``__array__``); ``None`` where only a range
        is stored, as for activations.
    min, max : ndarray of float32 or None
        The stored range, shape ``()`` or ``(C,)``; ``None`` for float tensors.
    spec : QuantSpec
        How the quantizer was configured, as far as known.
    provenance : mapping of str to str
        For each known field of `spec`, where it was learnt.
    hint : Hint or None
        What to tell a user who has to supply the settings.
    stored : StoredIntegers or None
        Set where `values` are integers of Keras 3's own quantization, which TFMOT had no part in,
        or a TFLite file's bias; the role is ``"float"``, as of all that is exported unchanged.
    recovered : QuantizedTensor or None
        The signed integers of `values`, which the forward pass uses, where a quantizer of the
        user's own left no range, or the file holds them; `min` and `max` are then what the width
        could reach. Along an axis that is not the last, the scales have a shape that broadcasts
        against the integers.
    stated : StatedParams or None
        What the file says of an activation's integers, where it holds no range: `min` and `max` are
        what the integers reach.
    """

    name: str
    role: Role
    values: ArrayLike | None = None
    min: Float32Array | None = None
    max: Float32Array | None = None
    spec: QuantSpec = field(default_factory=QuantSpec)
    provenance: Mapping[str, str] = field(default_factory=dict)
    hint: Hint | None = None
    stored: StoredIntegers | None = None
    recovered: QuantizedTensor | None = None
    stated: StatedParams | None = None

    def __repr__(self) -> str:
        values, spec = self.values, self.spec
        ends = 0 if self.min is None else self.min.size
        dtype = getattr(values, "dtype", "numbers")
        array = "" if values is None else f", {dtype} of shape {np.shape(values)}"
        bits = "" if self.role == "float" else f", {spec.num_bits or 'an unknown number of'} bits"
        ranges = f", {ends} range{'s' * (ends > 1)}" if ends else ""
        return f"<QatTensor {self.name!r}: {self.role}{array}{bits}{ranges}>"

    def quantize(self, *, signed: bool | None = None) -> QuantizedTensor:
        """Return the integers that training saw: stored range, stored values.

        Parameters
        ----------
        signed : bool, optional
            Two's complement integers, or TensorFlow's unsigned count. Default: signed for a
            weight, unsigned for anything else.

        Returns
        -------
        QuantizedTensor

        Raises
        ------
        MissingSettingsError
            The width, narrowness or axis is in no file; the message says how to supply it.
        QmathError
            The tensor is float, holds a range only, or holds values without integers (NaN).
        """
        if self.min is None or self.max is None:
            raise QmathError(f"{self.name}: training left this tensor float; it has no range")
        if self.values is None:
            raise QmathError(
                f"{self.name}: the file holds its range, not its values; quantize your "
                f"own with qmath.quantize(values, tensor.min, tensor.max, num_bits)"
            )
        if self.recovered is not None:
            return _counted(self.recovered, signed is not False)
        spec = self.spec
        if spec.num_bits is None or spec.narrow_range is None or spec.per_axis is None:
            hint = f". {self.hint}" if self.hint else ""
            raise MissingSettingsError(f"{self.name}: in no file: {', '.join(spec.missing)}{hint}")
        if spec.op == "tflite":
            raise QmathError(f"{self.name}: a TFLite file holds its integers, not what they were")
        return affine.quantize(
            self.values,
            self.min,
            self.max,
            spec.num_bits,
            narrow_range=spec.narrow_range,
            per_axis=spec.per_axis,
            op=spec.op,
            signed=self.role == "weight" if signed is None else signed,
            name=self.name,
            build=spec.build,
        )


def _counted(quantized: QuantizedTensor, signed: bool) -> QuantizedTensor:
    """Return signed integers as they are, or counted from 0."""
    if signed:
        return quantized
    half = 1 << (quantized.num_bits - 1)
    values = (quantized.values.astype(np.int32) + half).astype(
        affine.smallest_dtype(quantized.num_bits, False)
    )
    return replace(
        quantized, values=values, zero_point=quantized.zero_point + np.int32(half), signed=False
    )


@dataclass(frozen=True)
class Node:
    """One call of a layer: what a deployment needs to know besides its tensors.

    Attributes
    ----------
    name : str
        Unique in the graph: the layer's path, with ``#1``, ``#2``, … for the further calls of a
        shared layer.
    layer : str
        Path of the layer, the prefix of its tensors' names.
    class_name : str
        Keras class, such as ``"Conv2D"``; of a wrapped layer, the inner one.
    inputs : tuple of str
        Names of the nodes whose outputs feed it, in order.
    config : mapping
        The inner layer's own Keras config, JSON values only (strides, padding, activation, …).
    quantize_config : str or None
        Class name of the TFMOT ``QuantizeConfig`` around it, ``None`` if it was left float.
    built_for : tuple of tuple
        The shapes of its inputs without the batch, where the config says what the layer was built
        for; ``None`` stands for what was left open.
    arguments : tuple of str
        Names of what it is called with besides its inputs, of which there is more to know than this
        says: ``use_causal_mask``.
    outputs : int
        How many of its outputs others read. `inputs` do not tell them apart.
    """

    name: str
    layer: str
    class_name: str
    inputs: tuple[str, ...]
    config: Mapping[str, Any]
    quantize_config: str | None = None
    built_for: tuple[tuple[int | None, ...], ...] = field(default=(), compare=False)
    arguments: tuple[str, ...] = field(default=(), compare=False)
    outputs: int = field(default=1, compare=False)


@dataclass(frozen=True)
class Graph:
    """The calls of a model in topological order, its inputs and outputs named as in `nodes`."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class QatModel:
    """All of a model that quantization-aware training left behind.

    Attributes
    ----------
    tensors : mapping of str to QatTensor
        By name, in the model's order.
    graph : Graph or None
        ``None`` where the file holds no architecture.
    notes : tuple of str
        What the reader wants the user to know.
    source : str
        The file that was read, or the class of the live model.
    files : SourceFiles or None
        Everything that was read; ``None`` for a live model.
    shapes : mapping of str to tuple
        Shapes without the batch that the user gave: of inputs, and of the outputs of layers.
    build : str
        Whose kernels computed all that is quantized.
    is_build_told : bool
        Whether the user named it: otherwise `qmath.verify` takes the manifest's.
    """

    tensors: Mapping[str, QatTensor]
    graph: Graph | None = None
    notes: tuple[str, ...] = ()
    source: str = ""
    files: SourceFiles | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    build: Build = "tf"
    is_build_told: bool = False

    def __repr__(self) -> str:
        roles = Counter(tensor.role for tensor in self.tensors.values())
        tensors = ", ".join(f"{number} {role}" for role, number in roles.items())
        layers = "no layers" if self.graph is None else f"{len(self.graph.nodes)} layers"
        return f"<QatModel of {self.source}: tensors: {tensors or 'none'}; {layers}>"

    def _repr_html_(self) -> str:
        """Show the quantized tensors in a notebook."""
        rows = [
            {
                "tensor": tensor.name,
                "role": tensor.role,
                "shape": "" if tensor.values is None else np.shape(tensor.values),
                "quantizer": tensor.spec.quantizer,
                "bits": tensor.spec.num_bits,
                "learnt from": tensor.provenance.get("num_bits", ""),
            }
            for tensor in self.tensors.values()
            if tensor.role != "float"
        ]
        return html_table(repr(self)[1:-1], rows)

    @property
    def sha256(self) -> str | None:
        """The digest of `files`, which are read for it when it is first asked for."""
        return self.files.sha256 if self.files else None

    def hashing(self) -> AbstractContextManager[None]:
        """Return what computes `sha256` beside its body, if threads may be used."""
        return self.files.hashing() if self.files and get_num_threads() > 1 else nullcontext()


def with_shapes(model: QatModel, shapes: Mapping[str, Sequence[int]]) -> QatModel:
    """Return a model with shapes of its inputs, and of its layers' outputs, without the batch.

    Raises
    ------
    QmathError
        A name is no layer's, or a shape is none.
    """
    names = [node.name for node in model.graph.nodes] if model.graph else []
    found = {}
    for name, shape in shapes.items():
        if str(name).removesuffix("/activation") not in names:
            raise QmathError(f"shapes has {name}, which is no layer of {model.source}")
        lengths = tuple(shape) if isinstance(shape, Sequence) else ()
        if not lengths or not all(isinstance(n, int) and n > 0 for n in lengths):
            raise QmathError(f"{name}: {shape!r} is no shape; give its lengths without the batch")
        found[name] = lengths
    return replace(model, shapes=found)


def with_build(model: QatModel, build: Build) -> QatModel:
    """Return a model whose quantized tensors another build of TensorFlow computed.

    Raises
    ------
    QmathError
        There is no such build.
    """
    check_build(build)
    tensors = dict(model.tensors)
    for name, tensor in model.tensors.items():
        if tensor.role != "float" and tensor.spec.build != build:
            tensors[name] = replace(tensor, spec=replace(tensor.spec, build=build))
    return replace(model, tensors=tensors, build=build, is_build_told=True)


class MissingSetting(NamedTuple):
    """Settings that the user has to supply, and the option that supplies them.

    Attributes
    ----------
    option : str
        What to paste into a shell: ``--quantizer "MyConfig.activation=MovingAverageQuantizer(…)"``.
        Empty if the names in the file are such that a shell could read them as commands.
    tensors : tuple of str
        Names of the tensors it is for, all of one `role`.
    role : str
        As in `QatTensor`.
    why : str
        Where the suggested width comes from.
    """

    option: str
    tensors: tuple[str, ...]
    role: Role
    why: str


def missing_settings(model: QatModel) -> list[MissingSetting]:
    """List what no source says about a model's quantized tensors, by the option that says it.

    Parameters
    ----------
    model : QatModel
        From `qmath.load` or `qmath.from_keras`.

    Returns
    -------
    list of MissingSetting
        In the model's order; empty if everything is known.
    """
    groups: dict[tuple[str, Role, str], list[str]] = {}
    for name, tensor in model.tensors.items():
        if tensor.role != "float" and not tensor.spec.is_complete:
            option, why = tensor.hint or ("", "")
            groups.setdefault((option, tensor.role, why), []).append(name)
    return [
        MissingSetting(option, tuple(names), role, why)
        for (option, role, why), names in groups.items()
    ]


def ask_for_settings(model: QatModel, roles: Set[str]) -> str:
    """Say which settings are missing of tensors of these roles, with the options to paste."""
    missing = [item for item in missing_settings(model) if item.role in roles]
    names = ", ".join(name for item in missing for name in item.tensors)
    options = " ".join(item.option for item in missing if item.option)
    if not all(item.option for item in missing):
        options = f"{options}, and the others {IN_PYTHON}" if options else IN_PYTHON
    reasons = "; ".join(dict.fromkeys(item.why for item in missing if item.why))
    return (
        f"the quantizer settings of {names} are in no file; pass those of your training script: "
        f"{options}{f' ({reasons})' if reasons else ''}"
    )


def assumed_tensors(model: QatModel) -> tuple[str, ...]:
    """Return the names of the tensors with a setting that no source shows, so that it is assumed.

    The provenance of such a setting begins with ``assumed``.
    """
    return tuple(
        name
        for name, tensor in model.tensors.items()
        if any(source.startswith("assumed") for source in tensor.provenance.values())
    )


def own_quantized(model: QatModel) -> tuple[str, ...]:
    """Return the names of the weights that a quantizer of the user's own changes unseen.

    It left no range, so that these tensors are floats here; a reader's note names each.
    """
    return tuple(note.partition(_OWN)[0] for note in model.notes if _OWN in note)


def why_no_graph(model: QatModel) -> str:
    """Say why there is no graph, of a model without one."""
    for note in model.notes:
        if note.startswith(_ORDER):
            reason = note.removeprefix(_ORDER).partition(". The tensors")[0]
            return f"the order of its layers is not known ({reason})"
    return "the file holds no layers, only tensors"
