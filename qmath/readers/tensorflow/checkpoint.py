"""TensorFlow checkpoints → a `Reading`: weights and ranges are paired by the object graph.

TFMOT's wrapper keeps, for each weight it quantizes, the weight and its range side by side, so that
nothing depends on names; only the ranges of activations are known by theirs. The names of tensors
are those of the variables, from which the names of layers follow. Where a variable was made without
the scope of its layer, as in a model made from a config, the way to it stands for its name.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from qmath.containers.checkpoint_paths import checkpoint_prefix
from qmath.containers.lazy_array import LazyArray
from qmath.containers.tensor_bundle import TensorBundle
from qmath.errors import FileFormatError
from qmath.readers import notes as words
from qmath.readers.architecture.config import LayerFacts
from qmath.readers.architecture.parsing import Architecture
from qmath.readers.architecture.variables import uncounted
from qmath.readers.completion import LEFTOVERS, OWN_WEIGHTS, RANGE_ROLES, STEP, complete, notes_on
from qmath.readers.records import ModelFile, Reading, StoredLayer, StoredTensor
from qmath.readers.tensorflow.object_graph import ObjectGraph, read_object_graph
from qmath.readers.tensorflow.tracked_layers import TrackedLayer, track_layers

__all__ = ["paired_layers", "read"]

_ENDS = ("_min", "_max")
_STATE = ("min_var", "max_var")
_INDEX = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"(?<![^/])layer-\d+(?![^/])")

_Ends = tuple[int, int]


def read(file: ModelFile) -> Reading:
    """Read a checkpoint, as ``save_weights("ckpt")`` and ``tf.train.Checkpoint`` write it.

    The checkpoint itself holds neither the settings of quantizers nor the names of nested models;
    an architecture, of a Sequential or Functional model, does.

    Raises
    ------
    FileFormatError
        The checkpoint is damaged, hostile, or of TensorFlow 1; or the architecture is of another
        model.
    MissingExtraError
        protobuf or google-crc32c is not installed.

    Notes
    -----
    Mirrors what ``QuantizeWrapperV2.build`` and ``QuantizeLayer.build`` of
    ``tensorflow_model_optimization/python/core/quantization/keras`` track. The state of optimizers
    and metrics is left out.
    """
    bundle = TensorBundle(checkpoint_prefix(file.path))
    graph = read_object_graph(bundle)
    known = file.architecture or Architecture(notes=(words.NO_ARCHITECTURE,))
    where = known.where(bundle.path)
    layers = paired_layers(bundle, graph, known.config, where)
    tensors = complete(layers, where, asks_config=True)
    notes = [] if file.architecture else numbered(layers)
    notes += notes_on(layers, tensors)
    files = file.files([bundle.index, *bundle.shards])
    return Reading(tuple(tensors), known, files, tuple(notes))


def paired_layers(
    bundle: TensorBundle, graph: ObjectGraph, config: Any, where: str
) -> list[StoredLayer]:
    """Return the layers of a model with their tensors, whose names are unique.

    Parameters
    ----------
    bundle : TensorBundle
    graph : ObjectGraph
        Of the checkpoint.
    config : JSON value
        Of the model, or ``None``.
    where : str
        The file, for error messages.

    Raises
    ------
    FileFormatError
        The checkpoint is damaged, or the config is of another model.
    """
    tracked = track_layers(graph, config, where)
    pairing = _Pairing(bundle, graph, where, _call_scope(graph, tracked))
    return _named([pairing.layer(layer) for layer in tracked])


def _named(layers: Sequence[StoredLayer]) -> list[StoredLayer]:
    """Return layers whose tensors have unique names.

    Parts of a plain layer, such as the cells of an RNN, are put together; what then has the name of
    another tensor is named by the way to it.
    """
    whole: dict[str | int, StoredLayer] = {}
    taken: defaultdict[str, set[str]] = defaultdict(set)
    for number, layer in enumerate(layers):
        path, names = layer.facts.path, {tensor.own_name for tensor in layer.tensors}
        is_part = layer.facts.kind == "plain" and names.isdisjoint(taken[path])
        if is_part and path in whole:
            whole[path].tensors.extend(layer.tensors)
        else:
            whole[path if is_part else number] = layer
        taken[path] |= names if is_part else set()
    named = [_uncounted(layer) for layer in whole.values()]
    counts = Counter(tensor.name for layer in named for tensor in layer.tensors)
    return [
        layer.with_facts(replace(layer.facts, path=layer.trail))
        if any(counts[tensor.name] > 1 for tensor in layer.tensors)
        else layer
        for layer in named
    ]


def numbered(layers: Sequence[StoredLayer]) -> list[str]:
    """Return a note on the layers and nested models for whose names their numbers stand."""
    paths = (layer.facts.path for layer in layers)
    found = dict.fromkeys(path[: part.end()] for path in paths for part in _NUMBER.finditer(path))
    return [words.numbered(list(found))] if found else []


def _uncounted(layer: StoredLayer) -> StoredLayer:
    names = uncounted([tensor.own_name for tensor in layer.tensors])
    pairs = zip(layer.tensors, names, strict=True)
    tensors = [replace(tensor, layer=layer.facts, own_name=name) for tensor, name in pairs]
    return replace(layer, tensors=tensors)


class _Pairing:
    """Pairs the variables of layers, one after the other."""

    def __init__(self, bundle: TensorBundle, graph: ObjectGraph, where: str, scope: str) -> None:
        self._bundle = bundle
        self._graph = graph
        self._where = where
        self._scope = f"{scope}/" if scope else ""

    def layer(self, layer: TrackedLayer) -> StoredLayer:
        """Return the name and the tensors of a layer."""
        own = self._graph.variables(layer.node)
        scope = _common_scope(
            [self._name(node) for node in ([own[STEP]] if STEP in own else own.values())]
        )
        trail = f"{layer.prefix}{layer.trail or OWN_WEIGHTS}"
        if layer.kind == "plain":
            scope = scope.partition("/")[0]  # what follows is of parts of the layer
        inner = _unquantized(scope) if layer.kind == "wrapper" else scope
        facts = layer.facts
        if facts is None:
            path = f"{layer.prefix}{inner}" if inner else trail
            facts = LayerFacts(path, scope, "", "", {"name": inner}, layer.kind)
        scopes = [facts.saved_name, facts.inner_name, scope, inner]
        if layer.kind == "wrapper":
            tensors = self._wrapper(layer.node, facts, own, scopes)
        elif layer.kind == "quantize_layer":
            ends = self._ends(f"{facts.path}/output", layer.node, "quantizer_vars")
            tensors = [self._range(facts, "output", ends)] if ends else []
        else:
            tensors = self._tensors(facts, {node: name for name, node in own.items()}, {}, scopes)
        has_leftovers = layer.kind == "wrapper" and not LEFTOVERS.isdisjoint(own)
        return StoredLayer(facts, tensors, trail, has_leftovers)

    def _wrapper(
        self, wrapper: int, layer: LayerFacts, own: Mapping[str, int], scopes: Sequence[str]
    ) -> list[StoredTensor]:
        """Return the tensors of TFMOT's wrapper, whose own variables are its ranges."""
        path = layer.path
        variables = self._graph.variables_below(self._graph[wrapper].children["layer"])
        ranges: dict[int, _Ends | None] = {}
        for number, item in self._items(wrapper, "_weight_vars"):
            weight = self._graph.child(item, "0")
            ends = self._ends(f"{path}/_weight_vars/{number}", item, "2")
            if weight is None or not self._graph[weight].is_variable:
                if ends:
                    raise self._unowned(f"{path}/_weight_vars/{number}")
                continue
            variables.setdefault(weight, f"_weight_vars/{number}")
            ranges[weight] = ends
        output = self._ends(f"{path}/output", wrapper, "_output_quantizer_vars")
        used = {node for ends in (*ranges.values(), output) for node in ends or ()}
        others: dict[str, dict[str, int]] = {}
        for name, node in own.items():
            if node in used or node in variables or name == STEP or name in LEFTOVERS:
                continue
            if name[-4:] in _ENDS:
                others.setdefault(name[:-4], {})[name[-4:]] = node
            else:
                variables[node] = name
        tensors = self._tensors(layer, variables, ranges, scopes)
        for name, sides in others.items():
            if name not in RANGE_ROLES or len(sides) < 2:
                raise self._unowned(f"{path}/{name}")
            tensors.append(self._range(layer, name, (sides["_min"], sides["_max"])))
        return tensors + ([self._range(layer, "output", output)] if output else [])

    def _tensors(
        self,
        layer: LayerFacts,
        variables: Mapping[int, str],
        ranges: Mapping[int, _Ends | None],
        scopes: Sequence[str],
    ) -> list[StoredTensor]:
        """Return variables by their names within the layer; by the way there if two are alike.

        Those with an entry in `ranges` are quantized, whether that left a range or not.
        """
        names = {node: _within(self._name(node), scopes) for node in variables}
        counts = Counter(names.values())
        tensors = []
        for node, trail in variables.items():
            name = names[node] if names[node] and counts[names[node]] == 1 else trail
            ends = ranges.get(node)
            low, high = map(self._array, ends) if ends else (None, None)
            values, listed = self._array(node), node in ranges
            tensors.append(StoredTensor(layer, name, values, low, high, quantized=listed))
        return tensors

    def _range(self, layer: LayerFacts, name: str, ends: _Ends) -> StoredTensor:
        low, high = map(self._array, ends)
        return StoredTensor(layer, name, None, low, high)

    def _items(self, node: int, name: str) -> list[tuple[str, int]]:
        """Return what a list holds, in order."""
        holder = self._graph.child(node, name)
        items = self._graph[holder].children.items() if holder is not None else ()
        numbered = [item for item in items if _INDEX.fullmatch(item[0])]
        return sorted(numbered, key=lambda item: int(item[0]))

    def _ends(self, place: str, node: int, *path: str) -> _Ends | None:
        """Return the variables of a range, ``None`` if there is none."""
        holder = self._graph.child(node, *path)
        ends = [] if holder is None else [self._graph.child(holder, end) for end in _STATE]
        kept = tuple(end for end in ends if end is not None and self._graph[end].is_variable)
        if len(kept) == 1:
            raise self._unowned(place)
        return (kept[0], kept[1]) if kept else None

    def _unowned(self, place: str) -> FileFormatError:
        return FileFormatError(
            f"{self._where}: {place} has a range without its other end, or without a tensor that "
            f"it could belong to; the file was edited, or its QuantizeConfig is one that qmath "
            f"cannot read"
        )

    def _name(self, node: int) -> str:
        return self._graph[node].name.removeprefix(self._scope)

    def _array(self, node: int) -> LazyArray:
        return self._bundle.array(self._graph[node].key)


def _call_scope(graph: ObjectGraph, layers: Sequence[TrackedLayer]) -> str:
    """Return the name that a subclassed model puts before those of its layers, ``""`` if none."""
    if any(layer.is_numbered and not layer.prefix for layer in layers):
        return ""
    names = [
        graph[node].name.split("/")
        for layer in layers
        if layer.trail and not layer.is_numbered
        for node in graph.variables(layer.node).values()
    ]
    first = {parts[0] for parts in names if len(parts) > 2}
    is_shared = len(first) == 1 and all(len(parts) > 2 for parts in names)
    return first.pop() if is_shared else ""


def _common_scope(names: Sequence[str]) -> str:
    """Return the scopes that all variables have in common."""
    scopes = [name.split("/")[:-1] for name in names]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*scopes, strict=False))
    return "/".join(parts[0] for parts in shared)


def _unquantized(scope: str) -> str:
    """Return the scope of a wrapped layer, from that of TFMOT's wrapper."""
    if scope.startswith("quant_"):
        return scope.removeprefix("quant_")
    outer, slash, own = scope.rpartition("/")
    return outer + slash + own.removeprefix("quant_")


def _within(name: str, scopes: Sequence[str]) -> str:
    """Return a variable's name within its layer: after the layer's, which may hold slashes."""
    for scope in scopes:
        _, found, rest = f"/{name}".partition(f"/{scope}/")
        if scope and found:
            return rest
    return name
