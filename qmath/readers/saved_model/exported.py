"""Variables that no object keeps apart, as ``model.export()`` writes them → layers.

Which range belongs to which weight is what the fake-quant ops say; the rest are ranges of
activations, and floats. Names are those of the variables, below the scopes that read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qmath.containers.lazy_array import LazyArray
from qmath.containers.tensor_bundle import TensorBundle
from qmath.readers.architecture.config import LayerFacts
from qmath.readers.pairing import LEFTOVERS, STEP, Paired
from qmath.readers.saved_model.fake_quants import FakeQuants
from qmath.readers.saved_model.scopes import layer_path
from qmath.readers.tensorflow.checkpoint import PairedLayer
from qmath.readers.tensorflow.object_graph import ObjectGraph

__all__ = ["exported_layers", "renamed"]

_ACTIVATIONS = frozenset({"pre_activation", "post_activation"})

Scopes = Mapping[str, list[list[str]]]


def exported_layers(
    bundle: TensorBundle,
    objects: ObjectGraph,
    scopes: Scopes,
    ops: FakeQuants,
    keys: Mapping[int | None, str],
) -> list[PairedLayer]:
    """Return layers and their tensors.

    Parameters
    ----------
    bundle : TensorBundle
    objects : ObjectGraph
        Of the checkpoint.
    scopes : mapping of str to list
        Of the ops that read a variable, by its key.
    ops : FakeQuants
    keys : mapping of int to str
        Of the variables that the ops name.

    Raises
    ------
    FileFormatError
        A variable is damaged.
    """
    names = {objects[node].key: objects[node].name for node in objects.listed(0)}
    ranged = {}
    for op in ops.by_range.values():
        low, high, weight = (keys.get(number, "") for number in (op.low, op.high, op.weight))
        if low in names and high in names:
            ranged[weight if op.weight is not None else low] = (low, high)
    ends = {key: place for place in ranged.values() for key in place}
    layers: dict[str, PairedLayer] = {}
    for key, name in names.items():
        leaf = name.rpartition("/")[2]
        pair = ranged.get(key)
        if (key in ends and (pair is None or pair[0] != key)) or leaf == STEP or leaf in LEFTOVERS:
            continue
        path = layer_path(name, scopes.get(key, []))
        own = path.rpartition("/")[2]
        is_weight = pair is None or pair[0] != key
        stem = leaf.removesuffix("_min")
        if is_weight:
            member = Paired(_within(name, own), bundle.array(key))
        else:
            member = Paired(stem if stem in _ACTIVATIONS else "output")
        facts = LayerFacts(path, path, path, "", {"name": own})
        layer = layers.setdefault(path, PairedLayer(facts, [], path))
        if pair is not None:
            member = member._replace(low=bundle.array(pair[0]), high=bundle.array(pair[1]))
            is_input = not is_weight and stem == own
            facts = replace(facts, kind="quantize_layer" if is_input else "wrapper")
            layers[path] = layer._replace(facts=facts)
        layer.members.append(member)
    return list(layers.values())


def renamed(layers: Sequence[PairedLayer], scopes: Scopes) -> list[PairedLayer]:
    """Return layers inside of nested models with the names that scopes give these.

    Without a config, objects hold the places of models among the layers only.
    """
    found = []
    for layer in layers:
        prefix, _, own = layer.facts.path.rpartition("/")
        arrays = [array for member in layer.members for array in (member.values, member.low)]
        paths = [
            layer_path(f"{own}/", scopes[array.path])
            for array in arrays
            if isinstance(array, LazyArray) and array.path in scopes and "layer-" in prefix
        ]
        path = next((path for path in paths if path.rpartition("/")[2] == own), layer.facts.path)
        found.append(layer._replace(facts=replace(layer.facts, path=path)))
    return found


def _within(name: str, layer: str) -> str:
    """Return a variable's name within its layer."""
    parts = name.split("/")
    return "/".join(parts[parts.index(layer) + 1 :]) if layer in parts[:-1] else parts[-1]
