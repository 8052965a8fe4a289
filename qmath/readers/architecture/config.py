"""Keras's model config (JSON) → what each layer is, and which TFMOT wrapper is around it.

Data only: no class named in a config is ever looked up or called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qmath.layers import LAMBDAS

__all__ = [
    "Kind",
    "LayerFacts",
    "Serialized",
    "bare_name",
    "is_model",
    "known_lambda",
    "layer_entries",
    "layer_facts",
    "walk_layers",
]

Kind = Literal["wrapper", "quantize_layer", "plain"]

_WRAPPERS = frozenset({"QuantizeWrapper", "QuantizeWrapperV2"})
_COUNTED = re.compile(r"_\d+$")
_TFMOT = "tensorflow_model_optimization."
_MODELS = frozenset({"Functional", "Model", "Sequential"})


@dataclass(frozen=True)
class Serialized:
    """An object as Keras writes it: its class, and what its ``get_config`` returned."""

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Any) -> Serialized | None:
        """Return the object that a JSON value describes, or ``None`` if it describes none."""
        if not isinstance(value, dict) or not _is_name(value.get("class_name")):
            return None
        config = value.get("config")
        return cls(value["class_name"], config if isinstance(config, dict) else {})


@dataclass(frozen=True)
class LayerFacts:
    """What a config says of one layer.

    Attributes
    ----------
    path : str
        The layer's own name (of a wrapped layer, the inner one), after the names of the nested
        models it lies in: ``block/conv1``.
    saved_name : str
        The name Keras knows it by: ``quant_conv1``.
    top : str
        Name of the outermost layer or nested model it belongs to.
    class_name, config
        Of the inner layer.
    kind : {"wrapper", "quantize_layer", "plain"}
        Inside TFMOT's wrapper, TFMOT's ``QuantizeLayer``, or anything else.
    quantize_config : Serialized or None
        The ``QuantizeConfig`` of the wrapper.
    quantizer : Serialized or None
        The quantizer of a ``QuantizeLayer``.
    built_for : tuple of tuple
        As in `qmath.model.Node`.
    """

    path: str
    saved_name: str
    top: str
    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "plain"
    quantize_config: Serialized | None = None
    quantizer: Serialized | None = None
    built_for: tuple[tuple[int | None, ...], ...] = ()

    @property
    def inner_name(self) -> str:
        """The layer's own name, without the path."""
        name = self.config.get("name")
        return name if isinstance(name, str) else self.path.rpartition("/")[2]


def bare_name(class_name: str) -> str:
    """Drop the package of a registered class: ``Package>Class``."""
    return class_name.rpartition(">")[2]


def _is_name(value: Any) -> bool:
    """Tell whether a value is text that a terminal shows as it is."""
    return isinstance(value, str) and value.isprintable()


def is_model(entry: Any) -> bool:
    """Tell whether a layer's entry is a model with layers of its own."""
    if not isinstance(entry, dict):
        return False
    config = entry.get("config")
    if isinstance(config, list):  # a Sequential before Keras 2.2.3
        return entry.get("class_name") == "Sequential"
    return (
        isinstance(config, dict)
        and isinstance(config.get("layers"), list)
        and (bare_name(str(entry.get("class_name"))) in _MODELS or "output_layers" in config)
    )


def layer_entries(model: Any) -> list[dict[str, Any]]:
    """Return the entries of a model's layers that have a class and a config."""
    if not is_model(model):
        return []
    config = model["config"]
    layers = config if isinstance(config, list) else config["layers"]
    return [
        layer
        for layer in layers
        if isinstance(layer, dict)
        and _is_name(layer.get("class_name"))
        and isinstance(layer.get("config"), (dict, list))
    ]


def known_lambda(facts: LayerFacts) -> str | None:
    """Return what a Lambda layer that TFMOT itself adds is in the table of layers, if it is one."""
    if bare_name(facts.class_name) != "Lambda":
        return None
    name, module = _COUNTED.sub("", facts.inner_name), str(facts.config.get("module"))
    return LAMBDAS.get(name) if module.startswith(_TFMOT) else None


def layer_name(entry: Mapping[str, Any]) -> str:
    """Return the name Keras gives a layer's entry, ``""`` if none."""
    config = entry["config"]
    name = entry.get("name") or (config.get("name") if isinstance(config, dict) else None)
    return name if isinstance(name, str) and _is_name(name) else ""


def layer_facts(entry: Mapping[str, Any], prefix: str = "", top: str | None = None) -> LayerFacts:
    """Return what one layer's entry says, looking inside a wrapper.

    Parameters
    ----------
    entry : mapping
        ``{"class_name": …, "config": …}``.
    prefix : str
        Path of the nested model it lies in, ending in ``/``.
    top : str, optional
        Name of the outermost nested model; by default, the layer itself is outermost.
    """
    saved_name = layer_name(entry)
    config = entry["config"] if isinstance(entry["config"], dict) else {}
    class_name = entry["class_name"]
    bare = bare_name(class_name)
    inner = (
        config.get("layer")
        if bare in _WRAPPERS or bare == "QuantizeAnnotate" or ("quantize_config" in config)
        else None
    )
    known_inner = Serialized.read(inner)
    name = saved_name
    kind: Kind = "plain"
    quantize_config = quantizer = None
    if known_inner is not None:
        class_name, config = known_inner.class_name, dict(known_inner.config)
        name = layer_name({"config": config}) or saved_name.removeprefix("quant_")
        if bare != "QuantizeAnnotate":
            kind = "wrapper"
            quantize_config = Serialized.read(entry["config"].get("quantize_config"))
    elif bare == "QuantizeLayer":
        kind = "quantize_layer"
        quantizer = Serialized.read(config.get("quantizer"))
    return LayerFacts(
        path=prefix + name,
        saved_name=saved_name,
        top=saved_name if top is None else top,
        class_name=class_name,
        config=config,
        kind=kind,
        quantize_config=quantize_config,
        quantizer=quantizer,
        built_for=_built_for(entry) or _built_for(inner),
    )


def _built_for(entry: Any) -> tuple[tuple[int | None, ...], ...]:
    """Return the shapes, without the batch, of an entry's ``build_config``, if it has any."""
    value = entry.get("build_config") if isinstance(entry, dict) else None
    shape = value.get("input_shape") if isinstance(value, dict) else None
    if not isinstance(shape, list) or not shape:
        return ()
    shapes = shape if isinstance(shape[0], list) else [shape]
    known = all(
        isinstance(each, list) and all(n is None or (type(n) is int and n > 0) for n in each)
        for each in shapes
    )
    return tuple(tuple(each[1:]) for each in shapes) if known else ()


def walk_layers(model: Any, prefix: str, top: str | None) -> Iterator[LayerFacts]:
    """Yield the facts of every layer, nested ones under their model's path."""
    for entry in layer_entries(model):
        if is_model(entry):
            name = layer_name(entry)
            yield from walk_layers(entry, f"{prefix}{name}/", name if top is None else top)
        else:
            yield layer_facts(entry, prefix, top)
