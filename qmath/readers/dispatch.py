"""A path → what its file holds: the one place that knows every reader.

A reader is a module of this package with

    def read(file: ModelFile) -> Reading

whose file is of the kind that `sniff` names. Weights that are saved alone need `file.architecture`;
a reader of files that hold their own refuses another (`file.refuse_architecture`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Protocol

import numpy as np

from qmath.containers.sniff import Kind, sniff
from qmath.errors import FileFormatError
from qmath.readers.architecture.config import LayerFacts, bare_name
from qmath.readers.architecture.parsing import Architecture
from qmath.readers.architecture.variables import Slot, slots_of
from qmath.readers.completion import OWN_WEIGHTS
from qmath.readers.records import ModelFile, Reading

__all__ = ["read_model"]

# By kind; imported when such a file is met, as each needs libraries of its own.
_READERS: Mapping[Kind, str] = {
    "hdf5": "qmath.readers.keras.h5",
    "keras_zip": "qmath.readers.keras.v3",
    "saved_model": "qmath.readers.saved_model.reader",
    "tf_checkpoint": "qmath.readers.tensorflow.checkpoint",
}


class Reader(Protocol):
    """A module that reads one kind of file."""

    def read(self, file: ModelFile) -> Reading:
        """Read the file."""


def read_model(file: ModelFile) -> Reading:
    """Read a file of any kind, told apart by content.

    All bytes of untrusted files are read in here, except the values of lazy tensors.

    Raises
    ------
    FileFormatError
        The file is damaged, hostile, or of a kind that is not read; or its weights do not belong to
        the architecture, that of their own file or of another.
    """
    kind = sniff(file.path)
    beside = file.architecture
    reader: Reader = import_module(_READERS[kind])
    reading = reader.read(file)
    if beside is not None:
        _check_agreement(reading, beside, file.path)
    else:
        _check_shapes(reading, reading.architecture, file.path)
    return reading


def _check_agreement(reading: Reading, architecture: Architecture, path: str) -> None:
    """Raise unless a file's layers have exactly the variables that another's architecture asks for.

    The message names both files.
    """
    shapes = _shapes(reading)
    kinds = {layer.path: layer.kind for layer in architecture.layers}
    for item in reading.tensors:
        kind = kinds.get(item.layer.path)
        if kind is None and item.layer.top != OWN_WEIGHTS:
            raise _disagree(path, architecture, f"{item.name} belongs to no layer of the latter")
        if kind not in (None, item.layer.kind):
            where = "former" if kind == "plain" else "latter"
            raise _disagree(
                path, architecture, f"TFMOT quantizes {item.layer.path} in the {where} alone"
            )
    for _, name, _ in _named_slots(architecture):
        if name not in shapes:
            raise _disagree(path, architecture, f"the former lacks {name}")
    _check_shapes(reading, architecture, path)


def _check_shapes(reading: Reading, architecture: Architecture, path: str) -> None:
    """Raise if a variable has another shape than its layer's config says."""
    shapes = _shapes(reading)
    for layer, name, slot in _named_slots(architecture):
        if name in shapes and not slot.fits(shapes[name]):
            wanted = ", ".join("any" if n is None else str(n) for n in slot.shape or ())
            how = (
                f"{name} has the shape {shapes[name]}, and {layer.class_name} of that config "
                f"one of ({wanted})"
            )
            if architecture.source:
                raise _disagree(path, architecture, how)
            raise FileFormatError(f"{path}: {how}; the file is damaged, save the model again")


def _shapes(reading: Reading) -> dict[str, tuple[int, ...]]:
    return {item.name: np.shape(item.values) for item in reading.tensors if item.values is not None}


def _named_slots(architecture: Architecture) -> Iterator[tuple[LayerFacts, str, Slot]]:
    """Yield the variables that Keras's own layers must have, by the name of the tensor."""
    for layer in architecture.layers:
        for slot in slots_of(bare_name(layer.class_name), layer.config) or ():
            if slot.name:
                yield layer, f"{layer.path}/{slot.name}", slot


def _disagree(path: str, architecture: Architecture, how: str) -> FileFormatError:
    return FileFormatError(
        f"{path} does not hold the weights of the architecture in {architecture.source}: {how}; "
        "give the architecture of the model that was saved"
    )
