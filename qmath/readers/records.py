"""What passes between readers: a file, its tensors in their layers, statements on quantizers.

A reader turns a `ModelFile` into a `Reading`. It pairs tensors with ranges (`StoredLayer`),
`completion` checks them, and `settings.resolve` makes a `QatTensor` of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from qmath.containers.hdf5 import Hdf5File
from qmath.containers.keras_zip import ZipSection
from qmath.containers.source_files import SourceFiles
from qmath.errors import QmathError
from qmath.model import QuantizedTensor, Role, StoredIntegers
from qmath.readers.architecture.config import LayerFacts
from qmath.readers.architecture.parsing import (
    Architecture,
    open_hdf5,
    read_architecture_file,
)

__all__ = [
    "ASKED",
    "SOURCES",
    "Fact",
    "ModelFile",
    "Reading",
    "StoredLayer",
    "StoredTensor",
    "check_told",
]

ASKED = "live quantizer, asked"
# The first that states a field is shown as its provenance. With `force`, the user comes first.
SOURCES = (
    ASKED,
    "recovered from the values",
    "graph",
    "config",
    "range shape",
    "user",
    "range ratio",
)


def check_told(quantizers: object, shapes: object) -> None:
    """Raise unless what the user tells is by name.

    Raises
    ------
    QmathError
        It is no mapping; what it holds is checked where it is used.
    """
    for argument, told, expected in (
        ("quantizers", quantizers, "{'MyConfig.weights': LastValueQuantizer(…)}"),
        ("shapes", shapes, "{'image': (32, 32, 3)}"),
    ):
        if told is not None and not isinstance(told, Mapping):
            raise QmathError(f"{argument} must be a mapping by names, {expected}, got {told!r}")


@dataclass(frozen=True)
class ModelFile:
    """A file that is to be read, and how: what `qmath.load` was asked for.

    Attributes
    ----------
    path : str
        As `sniff` takes it.
    beside : str or None
        Path of the file that holds the model's architecture, for weights without it.
    isolate : bool
        Let another process read HDF5 files, whose library crashes or hangs on some damaged ones.
    quantizers : mapping of str to quantizer
        What the user says of settings, for readers that have to know whose a range is.
    build : str
        Whose kernels the user says computed the model.
    """

    path: str
    beside: str | None = None
    isolate: bool = False
    quantizers: Mapping[str, Any] = field(default_factory=dict)
    build: str = "tf"

    @cached_property
    def architecture(self) -> Architecture | None:
        """What `beside` holds, read when it is first asked for; ``None`` if nothing was given."""
        if self.beside is None:
            return None
        return read_architecture_file(self.beside, isolate=self.isolate)

    def refuse_architecture(self) -> None:
        """Raise if an architecture was given for a file that holds its own."""
        if self.beside is not None:
            raise QmathError(f"{self.path} holds its own architecture; leave {self.beside} out")

    def open_hdf5(self, section: ZipSection | None = None) -> Hdf5File:
        """Return the file, or a section of it, to be opened in a ``with`` statement."""
        return open_hdf5(self.path, section, isolate=self.isolate)

    def files(self, paths: Iterable[str], root: str | None = None) -> SourceFiles:
        """Return these files and `beside`, as `SourceFiles` counts them."""
        return SourceFiles([*paths, *([self.beside] if self.beside is not None else [])], root)


@dataclass(frozen=True)
class Fact:
    """One statement about one field of a tensor's `QuantSpec`.

    Attributes
    ----------
    field : str
        Of `QuantSpec`.
    value : object
        What the source states.
    source : str
        One of `SOURCES`.
    says : str
        The source in a sentence: ``"the file's MyConfig says"``.
    """

    field: str
    value: Any
    source: str
    says: str


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as a file or a live model holds it, before anything is known of its quantizer.

    Attributes
    ----------
    layer : LayerFacts
        Where it belongs.
    own_name : str
        Within its layer: ``kernel``, ``lstm_cell/kernel``, ``post_activation``, ``output``.
    values : array-like or None
        Of a weight or a float tensor; ``None`` for an activation.
    min, max : array-like or None
        The stored range: as it lies in the file until it is checked, then arrays of float32.
    role
        As in `QatTensor`; ``"float"`` until the range is checked.
    is_stored : bool
        Whether variables hold the range, instead of the arguments of a `FixedQuantizer`.
    stored, recovered
        As in `QatTensor`.
    quantized : bool or None
        Of a weight, whether the file shows that its layer's config quantizes it; ``None`` where it
        does not show that.
    own : str
        Of a tensor without a range, why it may be quantized all the same; ``""`` if it is not.
    facts : tuple of Fact
        What is known beyond doubt: of a live quantizer, after which no config and no ratio is
        asked, or from a graph, which wins over them.
    """

    layer: LayerFacts
    own_name: str
    values: Any = None
    min: Any = None
    max: Any = None
    role: Role = "float"
    is_stored: bool = True
    stored: StoredIntegers | None = None
    recovered: QuantizedTensor | None = None
    quantized: bool | None = None
    own: str = ""
    facts: tuple[Fact, ...] = ()

    @property
    def name(self) -> str:
        """The name in the model: ``<layer path>/<weight>``."""
        return f"{self.layer.path}/{self.own_name}"

    @property
    def weight(self) -> str:
        """The variable's own name, without scopes, or ``post_activation`` and the like."""
        return self.own_name.rpartition("/")[2]


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """A layer with its tensors, which are paired with their ranges.

    Attributes
    ----------
    facts : LayerFacts
    tensors : list of StoredTensor
        In the order in which Keras saves them, without what training needs alone.
    trail : str
        The way to it in an object graph, which stands for a name that is not unique.
    has_leftovers : bool
        Whether variables of cluster- or prune-preserving training were left out.
    """

    facts: LayerFacts
    tensors: list[StoredTensor]
    trail: str = ""
    has_leftovers: bool = False

    def with_facts(self, facts: LayerFacts) -> StoredLayer:
        """Return the same tensors in a layer of which something else is known."""
        tensors = [replace(tensor, layer=facts) for tensor in self.tensors]
        return replace(self, facts=facts, tensors=tensors)


@dataclass(frozen=True, eq=False)
class Reading:
    """What a file holds, before anything is known of the quantizers.

    Attributes
    ----------
    tensors : tuple of StoredTensor
        All in the model's order. What the file proves (a graph's fake-quant ops) is in their
        `facts`.
    architecture : Architecture
        Layers and graph, empty if unknown.
    files : SourceFiles
        The files that were read.
    notes : tuple of str
        For the user, besides those of the architecture.
    """

    tensors: tuple[StoredTensor, ...]
    architecture: Architecture
    files: SourceFiles
    notes: tuple[str, ...] = ()
