"""Keras's model config (JSON) → layers with their wrappers, the graph, and notes on both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qmath.model import Graph
from qmath.readers import notes
from qmath.readers.architecture.config import LayerFacts, bare_name, layer_entries, walk_layers
from qmath.readers.architecture.graph import NotAGraphError, read_graph

__all__ = ["Architecture", "read_architecture"]


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


def read_architecture(model_config: Any) -> Architecture:
    """Read ``{"class_name": …, "config": …}`` of a model, as Keras 2 and 3 write it.

    Parameters
    ----------
    model_config : JSON value
        Anything: what is not understood gives fewer layers, or no graph, and a note.

    Returns
    -------
    Architecture
    """
    layers = tuple(walk_layers(model_config, "", None))
    found: list[str] = []
    graph = None
    try:
        graph = read_graph(model_config)
    except NotAGraphError as error:
        found.append(notes.no_graph(str(error)))
    lambdas = [layer.path for layer in layers if bare_name(layer.class_name) == "Lambda"]
    if lambdas:
        found.append(notes.lambda_layers(lambdas))
    if any(
        bare_name(entry["class_name"]) == "QuantizeAnnotate"
        for entry in layer_entries(model_config)
    ):
        found.append(notes.ANNOTATED_ONLY)
    return Architecture(layers, graph, tuple(found), model_config)
