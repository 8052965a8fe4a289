"""The function of a SavedModel that serves, and what its scopes tell of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from qmath.containers.saved_model import SavedModel
from qmath.readers.pairing import OWN_WEIGHTS
from qmath.readers.saved_model.functions import Frame, FunctionGraph, VariableSource

__all__ = ["Serving", "layer_path", "read_scopes", "serving"]

_SIGNATURES = ("serving_default", "serve")
_READS = frozenset({"ReadVariableOp", "ResourceGather"})

Shape = list[int | None]


class Serving(NamedTuple):
    """A function that serves.

    Attributes
    ----------
    outer, inner : Frame
        Of a signature, and the one within that computes, whose arguments are the model's.
    shapes : mapping of str to list or None
        Of the arguments of `outer`, with the batch.
    """

    outer: Frame
    inner: Frame
    shapes: Mapping[str, Shape | None]


def serving(saved: SavedModel, graph: FunctionGraph) -> Serving | None:
    """Return the function that serves by default, ``None`` if there is none."""
    functions = dict(_functions(saved))
    names = [name for name in (*_SIGNATURES, *functions) if name in functions]
    if not names or functions[names[0]] not in saved.bound:
        return None
    outer = inner = graph.outermost(functions[names[0]])
    while (called := graph.called(inner)) is not None:
        inner = called
    shapes: dict[str, Shape | None] = {}
    if names[0] in saved.signatures:
        for name, tensor in saved.signatures[names[0]].inputs.items():
            sizes = [dim.size if dim.size >= 0 else None for dim in tensor.tensor_shape.dim]
            shapes[name] = None if tensor.tensor_shape.unknown_rank else sizes
    return Serving(outer, inner, shapes)


def read_scopes(graph: FunctionGraph, frame: Frame) -> dict[int, list[list[str]]]:
    """Return the scopes of all ops that read a variable, by its number."""
    scopes: dict[int, list[list[str]]] = {}
    for called in graph.frames(frame):
        for node in called.function.nodes.values():
            if node.op in _READS:
                source = graph.source(called, graph.input(called, node, 0))
                if isinstance(source, VariableSource):
                    path = f"{called.path}{node.name}".split("/")[:-1]
                    scopes.setdefault(source.node, []).append(path)
    return scopes


def layer_path(name: str, scopes: list[list[str]]) -> str:
    """Return the path of the layer that a variable belongs to, below the model's own scope.

    Parameters
    ----------
    name : str
        TensorFlow's name of the variable: ``quant_conv1/kernel_min``.
    scopes : list of list of str
        Of the ops that read it: ``[["model", "block", "quant_conv1", "LastValueQuant"]]``.
    """
    outer = name.split("/")[:-1]
    for path in scopes:
        for own in outer:
            for wrapper in (own, f"quant_{own.removeprefix('quant_')}"):
                if wrapper in path[1:]:
                    place = path.index(wrapper, 1)
                    return "/".join([*path[1:place], wrapper.removeprefix("quant_")])
    if outer:
        return outer[0].removeprefix("quant_")
    # Made without the scope of its layer, as in a model made from a config.
    path = scopes[0][1:-1] if scopes else []
    wrapped = [place for place, part in enumerate(path) if part.startswith("quant_")]
    parts = path[: wrapped[0] + 1] if wrapped else path[:1]
    return "/".join(part.removeprefix("quant_") for part in parts) or OWN_WEIGHTS


def _functions(saved: SavedModel) -> Iterator[tuple[str, str]]:
    """Yield the names of signatures and of their functions."""
    places = {child.local_name: child.node_id for child in saved.objects[0].children}
    number = places.get("signatures", -1)
    if not 0 <= number < len(saved.objects):
        return
    for child in saved.objects[number].children:
        if 0 <= child.node_id < len(saved.objects):
            function = saved.objects[child.node_id].bare_concrete_function
            yield child.local_name, function.concrete_function_name
