"""An object graph → the layers in it, each with its variables, in the model's order.

Without a config, a layer is known by what TFMOT attaches to it: a wrapper keeps ``_weight_vars``, a
``QuantizeLayer`` ``quantizer_vars``. All else is plain. Sequential and Functional models number
their layers (``layer-0``), as a config does: this is how the two are matched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qmath.errors import FileFormatError
from qmath.readers.architecture.config import (
    Kind,
    LayerFacts,
    bare_name,
    is_model,
    layer_entries,
    layer_facts,
    layer_name,
)
from qmath.readers.completion import STEP
from qmath.readers.tensorflow.object_graph import ObjectGraph

__all__ = ["TrackedLayer", "track_layers"]


@dataclass(frozen=True)
class TrackedLayer:
    """A layer, or another object that holds variables.

    Attributes
    ----------
    node : int
        Its number in the object graph.
    prefix : str
        Path of the nested models it lies in, by the names in the config or, without one, by their
        numbers, ending in ``/``: ``block/``, ``layer-1/``.
    trail : str
        The attributes that lead to it from there.
    is_numbered : bool
        Whether it is a layer of a Sequential or Functional model.
    facts : LayerFacts or None
        What the config says, of a plain object also if it lies inside a layer with a config.
    kind : {"wrapper", "quantize_layer", "plain"}
        As in `LayerFacts`.
    entry : JSON value
        Of the config, that of this layer or model.
    top : str or None
        Name of the outermost nested model it lies in.
    """

    node: int
    prefix: str = ""
    trail: str = ""
    is_numbered: bool = False
    facts: LayerFacts | None = None
    kind: Kind = "plain"
    entry: Any = None
    top: str | None = None


def track_layers(graph: ObjectGraph, config: Any, where: str) -> list[TrackedLayer]:
    """Return all layers with variables; a shared one under each of the models it lies in.

    Parameters
    ----------
    graph : ObjectGraph
        Of a checkpoint.
    config : JSON value
        The model's config, or ``None``.
    where : str
        The file, for error messages.

    Raises
    ------
    FileFormatError
        The config is of another model, or the graph is damaged.
    """
    top = _top(graph)
    if config is not None and not (is_model(config) and graph[top].is_functional):
        raise FileFormatError(
            f"{where}: an architecture can be matched to the checkpoint of a Sequential or "
            f"Functional model, which this is not; leave the architecture out"
        )
    return list(_Walk(graph, where).layers(top, config))


def _top(graph: ObjectGraph) -> int:
    """Return the model itself, if what was saved is a ``tf.train.Checkpoint`` around it."""
    if graph[0].is_functional:
        return 0
    parts = [child for child in graph.parts(0).values() if child != 0]
    is_around = len(parts) == 1 and (graph[parts[0]].is_functional or not graph.variables(0))
    return parts[0] if is_around else 0


class _Walk:
    def __init__(self, graph: ObjectGraph, where: str) -> None:
        self._graph = graph
        self._where = where

    def layers(self, top: int, config: Any) -> Iterator[TrackedLayer]:
        """Yield layers depth first, without recursion."""
        seen: set[tuple[int, str]] = set()
        stack = [TrackedLayer(top, entry=config)]
        while stack:
            visit = stack.pop()
            self._graph.spend(visit.prefix + visit.trail)
            if (visit.node, visit.prefix) in seen:
                continue
            seen.add((visit.node, visit.prefix))
            if self._graph[visit.node].is_functional:
                stack += reversed(self._inside_model(visit))
                continue
            kind = self._kind(visit.node)
            facts = visit.facts
            if visit.entry is not None:
                facts = layer_facts(visit.entry, visit.prefix, visit.top)
                self._check(facts, kind, visit.trail)
            if kind != "plain" or self._graph.variables(visit.node):
                yield replace(visit, facts=facts, kind=kind)
            if kind == "plain":
                stack += reversed(
                    [
                        TrackedLayer(
                            child,
                            visit.prefix,
                            f"{visit.trail}/{name}" if visit.trail else name,
                            visit.is_numbered,
                            facts=facts,
                        )
                        for name, child in self._graph.parts(visit.node).items()
                    ]
                )

    def _inside_model(self, visit: TrackedLayer) -> list[TrackedLayer]:
        """Return what a numbered model holds: its layers, and what else a subclass attached."""
        children = self._graph[visit.node].children
        prefix = f"{visit.prefix}{visit.trail}/" if visit.trail else visit.prefix
        top = visit.top
        if visit.entry is not None and visit.trail:
            name = layer_name(visit.entry)
            prefix, top = f"{visit.prefix}{name}/", name if top is None else top
        entries = self._entries(visit.entry, children)
        numbered = {}
        for number, entry in enumerate(entries):
            numbered[children[f"layer-{number}"]] = (f"layer-{number}", entry)
        visits = [
            TrackedLayer(child, prefix, name, True, entry=entry, top=top)
            for child, (name, entry) in numbered.items()
        ]
        return visits + [
            TrackedLayer(child, prefix, name)
            for name, child in self._graph.parts(visit.node).items()
            if child not in numbered and child != visit.node
        ]

    def _entries(self, model: Any, children: Mapping[str, int]) -> list[Any]:
        """Return the config's entry of each numbered layer, ``None`` without a config."""
        count = 0
        while f"layer-{count}" in children:
            count += 1
        if not is_model(model):
            return [None] * count
        entries = layer_entries(model)
        if len(entries) == count + 1 and bare_name(entries[0]["class_name"]) == "InputLayer":
            entries = entries[1:]  # a Sequential does not number it
        if len(entries) != count:
            raise self._another_model(
                f"{layer_name(model)!r} has {len(entries)} layers there, {count} here"
            )
        return entries

    def _kind(self, node: int) -> Kind:
        children = self._graph[node].children
        if {"_weight_vars", "layer"} <= children.keys():
            return "wrapper"
        if "quantizer_vars" in children or set(children) == {STEP}:
            return "quantize_layer"
        return "plain"

    def _check(self, facts: LayerFacts, kind: Kind, trail: str) -> None:
        if facts.kind != kind:
            said, found = (
                {
                    "wrapper": "a quantized layer",
                    "quantize_layer": "a QuantizeLayer",
                    "plain": "a layer without quantizers",
                }[which]
                for which in (facts.kind, kind)
            )
            raise self._another_model(f"{facts.path!r} is {said} there, {trail} {found} here")

    def _another_model(self, reason: str) -> FileFormatError:
        return FileFormatError(
            f"{self._where}: the architecture is that of another model: {reason}; give the one "
            f"whose weights these are"
        )
