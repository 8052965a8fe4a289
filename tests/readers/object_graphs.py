"""Small checkpoints with object graphs, from nested dicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.containers.bundles import message, write_arrays

_NODE = "TrackableObjectGraph.TrackableObject"


class Var(NamedTuple):
    """A variable, by TensorFlow's name; two that are one object are one variable."""

    name: str
    values: Any = 1.0


Tree = Mapping[str, Any]


def reference(name: str, node: int) -> Any:
    return message(f"{_NODE}.ObjectReference", node_id=node, local_name=name)


def graph_of(root: Tree) -> tuple[Any, dict[str, Any]]:
    """The object graph of nested dicts, whose leaves are `Var`, and the values by key.

    A dict or `Var` that is there twice is one object; a dict may contain itself.
    """
    numbers: dict[int, int] = {id(root): 0}
    objects: list[Any] = [root]
    nodes: list[Any] = []
    arrays: dict[str, Any] = {}
    for item in objects:  # grows meanwhile
        if isinstance(item, Var):
            key = f"v{len(nodes)}/.ATTRIBUTES/VARIABLE_VALUE"
            fields = {"name": "VARIABLE_VALUE", "full_name": item.name, "checkpoint_key": key}
            attribute = message(f"{_NODE}.SerializedTensor", **fields)
            nodes.append(message(_NODE, attributes=[attribute]))
            arrays[key] = item.values
            continue
        children = []
        for name, child in item.items():
            if id(child) not in numbers:
                numbers[id(child)] = len(objects)
                objects.append(child)
            children.append(reference(name, numbers[id(child)]))
        nodes.append(message(_NODE, children=children))
    return message("TrackableObjectGraph", nodes=nodes), arrays


def save(prefix: Path, root: Tree) -> Path:
    """Write a checkpoint of nested dicts."""
    graph, arrays = graph_of(root)
    return write_arrays(prefix, arrays, graph)


def wrapper(name: str = "d", scope: str | None = None, **more: Any) -> dict[str, Any]:
    """TFMOT's wrapper around a layer with a kernel of 4 bits and a float bias.

    `scope` is that of all its variables, by default the names of layer and wrapper.
    """
    inner, outer = (f"{name}/", f"quant_{name}/") if scope is None else (scope, scope)
    kernel = Var(f"{inner}kernel", np.linspace(-0.8, 0.7, 6, dtype=np.float32).reshape(2, 3))
    low, high = Var(f"{outer}kernel_min", -0.8), Var(f"{outer}kernel_max", 0.7)
    return {
        "layer": {"kernel": kernel, "bias": Var(f"{inner}bias", [0.0, 1.0, 2.0])},
        "optimizer_step": Var(f"{outer}optimizer_step", -1),
        "_weight_vars": {"0": {"0": kernel, "2": {"min_var": low, "max_var": high}}},
        "kernel_min": low,
        "kernel_max": high,
        **more,
    }


def span(stem: str, scope: str = "quant_d", low: float = -1.0, high: float = 5.0) -> dict[str, Var]:
    """The variables of a range that are known by their names."""
    return {
        f"{stem}_min": Var(f"{scope}/{stem}_min", low),
        f"{stem}_max": Var(f"{scope}/{stem}_max", high),
    }


def quantize_layer(name: str = "quantize_layer") -> dict[str, Any]:
    """TFMOT's quantizer of the input."""
    ends = span(name, name)
    low, high = ends.values()
    state = {"min_var": low, "max_var": high}
    return {**ends, "quantizer_vars": state, "optimizer_step": Var(f"{name}/optimizer_step", -1)}


def dense(name: str = "head") -> dict[str, Any]:
    """A float layer."""
    return {"kernel": Var(f"{name}/kernel", np.ones((3, 2))), "bias": Var(f"{name}/bias", [1, 2])}


def model(*layers: Tree, **more: Any) -> dict[str, Any]:
    """A Sequential or Functional model."""
    numbered: dict[str, Any] = {}
    for number, layer in enumerate(layers):
        if layer:
            numbered[f"layer_with_weights-{number}"] = layer
        numbered[f"layer-{number}"] = layer
    return {**numbered, **more}
