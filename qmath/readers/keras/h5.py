"""Keras's HDF5 files → a `Reading`."""

from __future__ import annotations

from collections.abc import Iterator

from qmath.containers.bounded_json import parse_json
from qmath.containers.hdf5 import Hdf5File
from qmath.errors import FileFormatError
from qmath.readers import notes as words
from qmath.readers.architecture.parsing import Architecture, read_architecture
from qmath.readers.completion import OWN_WEIGHTS
from qmath.readers.keras.by_name import Variable, pair
from qmath.readers.records import ModelFile, Reading

__all__ = ["read"]

_CONFIG = "model_config"
_LAYERS = "layer_names"
_WEIGHTS = "model_weights"


def read(file: ModelFile) -> Reading:
    """Read a whole model, weights by name, or weights of the newer format.

    That is what ``model.save("model.h5")``, ``model.save_weights("weights.h5")`` or
    ``model.save_weights("model.weights.h5")`` wrote. Weights of the newer format cannot be read
    without an architecture; weights by name can, but lack what only a config says.

    Raises
    ------
    FileFormatError
        The file is damaged, hostile, or holds something else; or an architecture is needed.
    QmathError
        An architecture is given for a file that holds its own.
    """
    path = file.path
    files = file.files([path])
    with file.open_hdf5() as opened:
        known = file.architecture or Architecture(notes=(words.NO_ARCHITECTURE,))
        if opened.has_attribute("", _CONFIG):
            file.refuse_architecture()
            if not opened.has(_WEIGHTS):
                raise FileFormatError(
                    f"{path}: this HDF5 file holds a model's architecture without its weights; "
                    "save both with model.save('model.h5')"
                )
            known = read_architecture(
                parse_json(opened.text("", _CONFIG), f"{path}: {_CONFIG}"), path
            )
            tensors, notes = pair(_variables(opened, _WEIGHTS), known.layers, path)
        elif opened.names("", _LAYERS) is not None:
            tensors, notes = pair(_variables(opened, ""), known.layers, path)
        else:
            from qmath.readers.keras.v3 import is_v3, read_variables  # which takes time to import

            if not is_v3(opened):
                raise FileFormatError(
                    f"{path}: this HDF5 file holds no Keras model; save one with "
                    "model.save('model.h5')"
                )
            if file.architecture is None:
                raise FileFormatError(
                    f"{path}: this format holds no names; give the file that holds the model's "
                    "architecture: --architecture MODEL.keras, config.json or MODEL.h5 "
                    "(architecture= in Python)"
                )
            tensors, notes = read_variables(opened, known, file.quantizers)
    return Reading(tuple(tensors), known, files, tuple(notes))


def _variables(file: Hdf5File, group: str) -> Iterator[tuple[str, list[Variable]]]:
    """Yield the variables of each layer, as the attributes list them."""
    layers = _listed(file, group, _LAYERS)
    if len(set(layers)) < len(layers):
        raise FileFormatError(
            f"{file.path}: it lists a layer twice; the file was edited, save the model again"
        )
    prefix = f"{group}/" if group else ""
    own = [OWN_WEIGHTS] if file.has(prefix + OWN_WEIGHTS) else []
    for layer in layers + own:
        place = prefix + layer
        yield (
            layer,
            [
                (name.removesuffix(":0"), file.array(f"{place}/{name}"))
                for name in _listed(file, place, "weight_names")
            ],
        )


def _listed(file: Hdf5File, group: str, attribute: str) -> list[str]:
    names = file.names(group, attribute)
    if names is None:
        raise FileFormatError(
            f"{file.path}: {group} does not list its {attribute}; the file was "
            f"cut or edited, save the model again"
        )
    return list(names)
