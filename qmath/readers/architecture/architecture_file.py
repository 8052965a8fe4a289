"""The architecture of a model from a file of its own, for weights that were saved without it."""

from __future__ import annotations

from dataclasses import replace

from qmath.containers.bounded_json import MAX_BYTES, parse_json
from qmath.containers.isolation import open_hdf5
from qmath.containers.keras_zip import KerasZip
from qmath.containers.sniff import HDF5, ZIP
from qmath.errors import FileFormatError
from qmath.readers.architecture.architecture import Architecture, read_architecture

__all__ = ["read_architecture_file"]


def read_architecture_file(path: str, *, isolate: bool = False) -> Architecture:
    """Return the architecture that a whole model or a JSON file holds.

    Parameters
    ----------
    path : str
        A ``.keras`` file, a whole ``.h5`` model, or JSON, as ``model.to_json()`` returns it.
    isolate : bool
        Let another process read it, if it is HDF5.

    Raises
    ------
    FileFormatError
        The file holds no architecture.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(HDF5))
            text = head + file.read(0 if head.startswith((HDF5, ZIP)) else MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileFormatError(f"{path}: the architecture cannot be read ({reason})") from None
    if head.startswith(HDF5):
        with open_hdf5(path, isolate=isolate) as opened:
            text = opened.text("", "model_config").encode()
    elif head.startswith(ZIP):
        text = KerasZip(path).read("config.json", MAX_BYTES)
    architecture = read_architecture(parse_json(text, f"{path}: the architecture"))
    if not architecture.layers:
        raise FileFormatError(
            f"{path}: it holds no layers, so it is no architecture that Keras wrote; save that of "
            "the model with open('config.json', 'w').write(model.to_json())"
        )
    return replace(architecture, source=path)
