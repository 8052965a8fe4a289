"""Keras's HDF5 files → a `Reading`."""

from __future__ import annotations

from collections.abc import Iterator

from qmath.checkpoints.architecture import Architecture, read_architecture
from qmath.checkpoints.pairing import OWN_WEIGHTS, Variable, pair
from qmath.checkpoints.reading import Reading, refuse_architecture
from qmath.containers.bounded_json import parse_json
from qmath.containers.hdf5 import Hdf5File
from qmath.errors import FileFormatError
from qmath.source_files import SourceFiles

__all__ = ["read"]

_SUPPORTED = "this version of qmath reads whole models in HDF5: save it with model.save('model.h5')"
_WEIGHTS = "model_weights"


def read(path: str, architecture: Architecture | None) -> Reading:
    """Read a whole model, as ``model.save("model.h5")`` writes it.

    Parameters
    ----------
    path : str
        The file.
    architecture : Architecture or None
        Not needed.

    Raises
    ------
    FileFormatError
        The file is damaged, hostile, or holds something else.
    """
    files = SourceFiles([path])
    with Hdf5File(path) as file:
        _check_whole_model(file)
        refuse_architecture(path, architecture)
        config = parse_json(file.text("", "model_config"), f"{path}: model_config")
        known = read_architecture(config)
        found, notes = pair(_variables(file), known.layers, path)
    return Reading(tuple(found), known, files, tuple(notes))


def _check_whole_model(file: Hdf5File) -> None:
    if file.has_attribute("", "model_config") and file.has(_WEIGHTS):
        return
    kind = "holds no Keras model"
    if file.has_attribute("", "model_config"):
        kind = "holds a model's architecture without its weights"
    elif file.has_attribute("", "layer_names"):
        kind = "holds a model's weights without its architecture (save_weights)"
    elif file.has("layers") or file.has("_layer_checkpoint_dependencies"):
        kind = "holds the weights of a .keras file (.weights.h5), which have no names"
    raise FileFormatError(f"{file.path}: this HDF5 file {kind}; {_SUPPORTED}")


def _variables(file: Hdf5File) -> Iterator[tuple[str, list[Variable]]]:
    """Yield the variables of each layer, as the attributes list them."""
    layers = _listed(file, _WEIGHTS, "layer_names")
    if len(set(layers)) < len(layers):
        raise FileFormatError(
            f"{file.path}: it lists a layer twice; the file was edited, save the model again"
        )
    own = [OWN_WEIGHTS] if file.has(f"{_WEIGHTS}/{OWN_WEIGHTS}") else []
    for layer in layers + own:
        group = f"{_WEIGHTS}/{layer}"
        yield (
            layer,
            [
                Variable(name.removesuffix(":0"), file.array(f"{group}/{name}"))
                for name in _listed(file, group, "weight_names")
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
