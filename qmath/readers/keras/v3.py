"""Keras's newer format: ``.keras`` → a `Reading`, ``model.weights.h5`` alone → tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmath.containers.bounded_json import MAX_BYTES, parse_json
from qmath.containers.hdf5 import Hdf5File
from qmath.containers.keras_zip import KerasZip
from qmath.containers.lazy_array import LazyArray
from qmath.errors import FileFormatError
from qmath.readers import notes as words
from qmath.readers.architecture.config import is_model
from qmath.readers.architecture.parsing import Architecture, read_architecture
from qmath.readers.completion import complete, notes_on
from qmath.readers.keras.groups import CONTAINERS, find_groups
from qmath.readers.keras.positions import name_variables
from qmath.readers.records import ModelFile, Reading, StoredLayer, StoredTensor

__all__ = ["is_v3", "read", "read_variables"]

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
_VARIABLES = "vars"


def read(file: ModelFile) -> Reading:
    """Read a model, as ``model.save("model.keras")`` writes it.

    Raises
    ------
    FileFormatError
        The file is damaged, hostile, or holds something else.
    QmathError
        An architecture is given, which the file holds itself.
    """
    files = file.files([file.path])
    archive = KerasZip(file.path)
    config = parse_json(archive.read(_CONFIG, MAX_BYTES), f"{file.path}: {_CONFIG}")
    file.refuse_architecture()
    known = read_architecture(config, file.path)
    with file.open_hdf5(archive.section(_WEIGHTS)) as opened:
        tensors, notes = read_variables(opened, known, file.quantizers)
    return Reading(tuple(tensors), known, files, tuple(notes))


def is_v3(file: Hdf5File) -> bool:
    """Tell whether an HDF5 file is of the newer format."""
    return any(file.has(name) for name in (*CONTAINERS, _VARIABLES))


def read_variables(
    file: Hdf5File, architecture: Architecture, quantizers: Mapping[str, Any]
) -> tuple[list[StoredTensor], list[str]]:
    """Name and pair the variables of a model.

    Parameters
    ----------
    file : Hdf5File
        Open.
    architecture : Architecture
        Of the model.
    quantizers : mapping of str to quantizer
        What the user says, as in `qmath.load`.

    Returns
    -------
    tensors : list of StoredTensor
    notes : list of str

    Raises
    ------
    FileFormatError
        The model is subclassed, so that no file tells its variables' names; the file holds other
        variables than the model has; or several ways to name them remain.
    """
    if not is_model(architecture.config):
        raise FileFormatError(
            f"{file.path}: this format holds no names, and the model is no Sequential or "
            "Functional one, whose architecture would tell them; save it as .h5 or as a SavedModel"
        )
    where = architecture.where(file.path)
    layers: list[StoredLayer] = []
    for facts, group in find_groups(file, architecture):
        layers.append(name_variables(facts, _variables(file, group), where, quantizers))
    unnamed = [
        layer.facts.path
        for layer in layers
        if any(tensor.weight.isdigit() for tensor in layer.tensors)
    ]
    tensors = complete(layers, where, asks_config=True)
    notes = [words.unnamed(unnamed)] if unnamed else []
    return tensors, notes + notes_on(layers, tensors)


def _variables(file: Hdf5File, group: str | None) -> dict[str, list[LazyArray]]:
    """Return the variables below a layer's group, by the group that holds them."""
    places: dict[str, list[str]] = {}
    for path in file.datasets(group) if group else ():
        inside, _, number = path[len(group or "") + 1 :].rpartition("/")
        places.setdefault(inside, []).append(number)
    found: dict[str, list[LazyArray]] = {}
    for inside, numbers in places.items():
        parent, _, last = f"/{inside}".rpartition("/")
        if last != _VARIABLES or {*numbers} != {str(i) for i in range(len(numbers))}:
            raise FileFormatError(
                f"{file.path}: {group}/{inside} should hold variables numbered from 0, and holds "
                f"{', '.join(sorted(numbers)[:5])}; the file was cut or edited, save the model "
                "again"
            )
        found[parent.strip("/")] = [
            file.array(f"{group}/{inside}/{i}") for i in range(len(numbers))
        ]
    return found
