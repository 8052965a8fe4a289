"""A ``.keras`` file → a `Reading`."""

from __future__ import annotations

from qmath.containers.bounded_json import MAX_BYTES, parse_json
from qmath.containers.isolation import open_hdf5
from qmath.containers.keras_zip import KerasZip
from qmath.containers.source_files import SourceFiles
from qmath.readers.architecture.parsing import Architecture, read_architecture
from qmath.readers.dispatch import Reading, refuse_architecture
from qmath.readers.keras.v3 import read_variables

__all__ = ["read"]

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"


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
