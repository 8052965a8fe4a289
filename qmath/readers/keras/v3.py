"""Keras's newer format: ``.keras`` → a `Reading`, ``model.weights.h5`` alone → tensors by name."""

from __future__ import annotations

from qmath.containers.bounded_json import MAX_BYTES, parse_json
from qmath.containers.hdf5 import Hdf5File
from qmath.containers.isolation import open_hdf5
from qmath.containers.keras_zip import KerasZip
from qmath.containers.lazy_array import LazyArray
from qmath.containers.source_files import SourceFiles
from qmath.errors import FileFormatError
from qmath.readers import notes as words
from qmath.readers.architecture.config import LayerFacts, is_model
from qmath.readers.architecture.parsing import Architecture, read_architecture
from qmath.readers.dispatch import Reading, refuse_architecture
from qmath.readers.keras.groups import CONTAINERS, find_groups
from qmath.readers.keras.positions import name_variables
from qmath.readers.pairing import check_unique, complete, notes_on
from qmath.readers.settings.facts import Found

__all__ = ["is_v3", "read", "read_variables"]

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
_VARIABLES = "vars"


def read(path: str, architecture: Architecture | None, *, isolate: bool = False) -> Reading:
    """Read a model, as ``model.save("model.keras")`` writes it.

    Parameters
    ----------
    path : str
        The file.
    architecture : Architecture or None
        Not needed.
    isolate : bool
        Let another process read it.

    Raises
    ------
    FileFormatError
        The file is damaged, hostile, or holds something else.
    """
    files = SourceFiles([path])
    archive = KerasZip(path)
    config = parse_json(archive.read(_CONFIG, MAX_BYTES), f"{path}: {_CONFIG}")
    refuse_architecture(path, architecture)
    known = read_architecture(config)
    with open_hdf5(path, archive.section(_WEIGHTS), isolate=isolate) as file:
        found, notes = read_variables(file, known)
    return Reading(tuple(found), known, files, tuple(notes))


def is_v3(file: Hdf5File) -> bool:
    """Tell whether an HDF5 file is of the newer format."""
    return any(file.has(name) for name in (*CONTAINERS, _VARIABLES))


def read_variables(file: Hdf5File, architecture: Architecture) -> tuple[list[Found], list[str]]:
    """Name and pair the variables of a model.

    Parameters
    ----------
    file : Hdf5File
        Open.
    architecture : Architecture
        Of the model.

    Returns
    -------
    found : list of Found
    notes : list of str

    Raises
    ------
    FileFormatError
        The model is subclassed, so that no file tells its variables' names; the file holds other
        variables than the model has; or several ways to name them remain.
    """
    where = file.path
    if not is_model(architecture.config):
        raise FileFormatError(
            f"{where}: this format holds no names, and the model is no Sequential or Functional "
            "one, whose architecture would tell them; save it as .h5 or as a SavedModel"
        )
    if architecture.source:
        where += f", with the architecture of {architecture.source}"
    found: list[Found] = []
    layers: list[LayerFacts] = []
    unnamed: list[str] = []
    left_over: list[str] = []
    for layer, group in find_groups(file, architecture):
        variables = _variables(file, group)
        named = name_variables(layer, variables, where)
        layers.append(layer)
        found += complete(layer, named.members, where)
        if named.has_leftovers:
            left_over.append(layer.path)
        if any(item.name.rpartition("/")[2].isdigit() for item in named.members):
            unnamed.append(layer.path)
    check_unique((item.name for item in found), where)
    told = [words.unnamed(unnamed)] if unnamed else []
    told += [words.leftovers(left_over)] if left_over else []
    return found, told + notes_on(found, layers)


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
