"""Keras's model config (JSON), alone or in a file of its own → layers, the graph, notes on both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qmath.containers.bounded_json import MAX_BYTES, parse_json
from qmath.containers.hdf5 import Hdf5File
from qmath.containers.keras_zip import KerasZip, ZipSection
from qmath.containers.sniff import HDF5, ZIP
from qmath.containers.source_files import open_source, stamp_of, unchanged
from qmath.containers.tflite.schema import IDENTIFIER
from qmath.errors import FileFormatError
from qmath.model import Graph
from qmath.readers import notes
from qmath.readers.architecture.config import (
    LayerFacts,
    bare_name,
    known_lambda,
    layer_entries,
    walk_layers,
)
from qmath.readers.architecture.fields import check_config
from qmath.readers.architecture.graph import NotAGraphError, read_graph

__all__ = ["Architecture", "open_hdf5", "read_architecture", "read_architecture_file"]


@dataclass(frozen=True)
class Architecture:
    """What a model's config says.

    Attributes
    ----------
    layers : tuple of LayerFacts
        All layers, those of nested models under their path.
    graph : Graph or None
        ``None`` if it cannot be told.
    notes : tuple of str
        For the user.
    config : JSON value
        The config itself: ``{"class_name": …, "config": …}``.
    source : str
        The file, if it is another than that of the weights.
    """

    layers: tuple[LayerFacts, ...] = ()
    graph: Graph | None = None
    notes: tuple[str, ...] = ()
    config: Any = None
    source: str = ""

    def where(self, path: str) -> str:
        """Return how messages name a file of weights that is read with this architecture."""
        return f"{path}, with the architecture of {self.source}" if self.source else path


def read_architecture(model_config: Any, where: str = "the config") -> Architecture:
    """Read ``{"class_name": …, "config": …}`` of a model, as Keras 2 and 3 write it.

    Parameters
    ----------
    model_config : JSON value
        Anything: what is not understood gives fewer layers, or no graph, and a note.
    where : str
        The file, for error messages.

    Returns
    -------
    Architecture

    Raises
    ------
    FileFormatError
        A layer of a class that is known has a setting that it cannot have.
    """
    layers = tuple(walk_layers(model_config, "", None))
    for layer in layers:
        check_config(layer.class_name, layer.config, f"{where}: {layer.path}")
    found: list[str] = []
    graph = None
    try:
        graph = read_graph(model_config)
    except NotAGraphError as error:
        found.append(notes.no_graph(str(error)))
    lambdas = [
        layer.path
        for layer in layers
        if bare_name(layer.class_name) == "Lambda" and known_lambda(layer) is None
    ]
    if lambdas:
        found.append(notes.lambda_layers(lambdas))
    if any(
        bare_name(entry["class_name"]) == "QuantizeAnnotate"
        for entry in layer_entries(model_config)
    ):
        found.append(notes.ANNOTATED_ONLY)
    return Architecture(layers, graph, tuple(found), model_config)


def read_architecture_file(path: str, *, isolate: bool = False) -> Architecture:
    """Return the architecture that a whole model or a JSON file holds, for weights without it.

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
        with open_source(path) as file, unchanged(file, stamp_of(file), path):
            head = file.read(len(HDF5))
            text = head + file.read(0 if head.startswith((HDF5, ZIP)) else MAX_BYTES)
    except FileFormatError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileFormatError(f"{path}: the architecture cannot be read ({reason})") from None
    if head[4:] == IDENTIFIER:
        raise FileFormatError(
            f"{path}: this is a TFLite file, which holds no architecture of Keras's; name the "
            ".keras or .h5 file, or the JSON, of the model that was converted"
        )
    if head.startswith(HDF5):
        with open_hdf5(path, isolate=isolate) as opened:
            text = opened.text("", "model_config").encode()
    elif head.startswith(ZIP):
        text = KerasZip(path).read("config.json", MAX_BYTES)
    architecture = read_architecture(parse_json(text, f"{path}: the architecture"), path)
    if not architecture.layers:
        raise FileFormatError(
            f"{path}: it holds no layers, so it is no architecture that Keras wrote; save that of "
            "the model with open('config.json', 'w').write(model.to_json())"
        )
    return replace(architecture, source=path)


def open_hdf5(path: str, section: ZipSection | None = None, *, isolate: bool = False) -> Hdf5File:
    """Return an HDF5 file to be opened in a ``with`` statement, here or in a process of its own."""
    if not isolate:
        return Hdf5File(path, section)
    from qmath.containers.isolation import IsolatedHdf5File  # which takes time to import

    return IsolatedHdf5File(path, section)
