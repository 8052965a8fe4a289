"""The function of a SavedModel that serves, and what its scopes tell of names.

``model.export()`` writes variables that no object keeps apart. The fake-quant ops tell which range
belongs to which weight; the rest are ranges of activations, and floats. Names are those of the
variables, below the scopes that read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace

from qmath.containers.lazy_array import LazyArray
from qmath.containers.saved_model import SavedModel
from qmath.containers.tensor_bundle import TensorBundle
from qmath.readers.architecture.config import Kind, LayerFacts
from qmath.readers.completion import LEFTOVERS, OWN_WEIGHTS, RANGE_ROLES, STEP
from qmath.readers.records import StoredLayer, StoredTensor
from qmath.readers.saved_model.functions import Frame, FunctionGraph, VariableSource
from qmath.readers.saved_model.inference import Inference
from qmath.readers.tensorflow.object_graph import ObjectGraph

__all__ = ["exported_layers", "inference_frames", "layer_path", "read_scopes", "renamed", "serving"]

_SIGNATURES = ("serving_default", "serve")
_READS = frozenset({"ReadVariableOp", "ResourceGather"})

Scopes = Mapping[str, list[list[str]]]


def serving(saved: SavedModel, graph: FunctionGraph) -> tuple[str, Frame] | None:
    """Return what serves by default: its signature's name, and the call within that computes.

    ``None`` if nothing serves.
    """
    functions = dict(_functions(saved))
    names = [name for name in (*_SIGNATURES, *functions) if name in functions]
    if not names or functions[names[0]] not in saved.bound:
        return None
    frame = graph.outermost(functions[names[0]])
    while (called := graph.called(frame)) is not None:
        frame = called
    return names[0], frame


def inference_frames(saved: SavedModel, graph: FunctionGraph) -> list[Frame]:
    """Return the frames of all functions that infer.

    They are those of signatures; of a model without any, those that change no variable.
    """
    served = [name for _, name in _functions(saved) if name in saved.bound]
    if served:
        return [graph.outermost(name) for name in served]
    frames = [graph.outermost(name) for name in saved.bound]
    return [frame for frame in frames if not graph.updates(frame)]


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


def exported_layers(
    bundle: TensorBundle,
    objects: ObjectGraph,
    scopes: Scopes,
    found: Inference,
    keys: Mapping[int | None, str],
) -> list[StoredLayer]:
    """Return layers and their tensors.

    Parameters
    ----------
    bundle : TensorBundle
    objects : ObjectGraph
        Of the checkpoint.
    scopes : mapping of str to list
        Of the ops that read a variable, by its key.
    found : Inference
    keys : mapping of int to str
        Of variables by number.

    Raises
    ------
    FileFormatError
        A variable is damaged.
    """
    names = {objects[node].key: objects[node].name for node in objects.listed(0)}
    ranged = {}
    for op, weights in found.ranged():
        low, high = (keys.get(number, "") for number in (op.low, op.high))
        weight = next((keys[n] for n in weights if keys.get(n) in names), low)
        if low in names and high in names:
            ranged[weight] = (low, high)
    ends = {key for place in ranged.values() for key in place}
    ends |= _unpaired(names, {keys.get(number, "") for number in found.variables})
    facts: dict[str, LayerFacts] = {}
    tensors: dict[str, list[StoredTensor]] = {}
    for key, name in names.items():
        leaf = name.rpartition("/")[2]
        low, high = ranged.get(key, ("", ""))
        if (key in ends and low != key) or leaf == STEP or leaf in LEFTOVERS:
            continue
        path = layer_path(name, scopes.get(key, []))
        own = path.rpartition("/")[2]
        layer = facts.setdefault(path, LayerFacts(path, path, path, "", {"name": own}))
        if low == key:
            stem = leaf.removesuffix("_min")
            tensor = StoredTensor(layer, stem if stem in RANGE_ROLES else "output")
            kind: Kind = "quantize_layer" if stem == own else "wrapper"
        else:
            tensor = StoredTensor(layer, _within(name, own), bundle.array(key))
            kind = "wrapper"
        if low:
            tensor = replace(tensor, min=bundle.array(low), max=bundle.array(high))
            facts[path] = replace(layer, kind=kind)
        tensors.setdefault(path, []).append(tensor)
    return [
        StoredLayer(facts[path], own, path).with_facts(facts[path]) for path, own in tensors.items()
    ]


def renamed(layers: Sequence[StoredLayer], scopes: Scopes) -> list[StoredLayer]:
    """Return layers inside of nested models with the names that scopes give these.

    Without a config, objects hold the places of models among the layers only.
    """
    found = []
    for layer in layers:
        prefix, _, own = layer.facts.path.rpartition("/")
        arrays = [array for tensor in layer.tensors for array in (tensor.values, tensor.min)]
        paths = [
            layer_path(f"{own}/", scopes[array.path])
            for array in arrays
            if isinstance(array, LazyArray) and array.path in scopes and "layer-" in prefix
        ]
        path = next((path for path in paths if path.rpartition("/")[2] == own), layer.facts.path)
        found.append(layer.with_facts(replace(layer.facts, path=path)))
    return found


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


def _unpaired(names: Mapping[str, str], used: Set[str]) -> set[str]:
    """Return the keys of ranges of which quantizers compute their ends."""
    ends: dict[str, list[str]] = {}
    for key, name in names.items():
        if name.endswith(("_min", "_max")):
            ends.setdefault(name[:-4], []).append(key)
    return {key for pair in ends.values() if len(pair) == 2 and used & set(pair) for key in pair}


def _within(name: str, layer: str) -> str:
    """Return a variable's name within its layer."""
    parts = name.split("/")
    return "/".join(parts[parts.index(layer) + 1 :]) if layer in parts[:-1] else parts[-1]
