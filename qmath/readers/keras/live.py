"""`from_keras`: a live Keras model → a `QatModel`, by attributes alone.

Nothing of TensorFlow is imported: TFMOT's wrappers hold each weight, its quantizer and its state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qmath.containers.bounded_json import parse_json
from qmath.errors import FileFormatError, QmathError
from qmath.model import QatModel, Role
from qmath.readers import notes as words
from qmath.readers.architecture.config import LayerFacts, Serialized
from qmath.readers.architecture.parsing import Architecture, read_architecture
from qmath.readers.completion import (
    LEFTOVERS,
    OWN_WEIGHTS,
    STEP,
    checked_range,
    fixed_tensor,
)
from qmath.readers.keras.by_name import own_names
from qmath.readers.records import Fact, StoredTensor
from qmath.readers.settings.facts import QuantizerSettings, quantizer_facts, settings_of
from qmath.readers.settings.resolve import resolve

__all__ = ["from_keras"]

_SOURCE = "live quantizer"


def from_keras(model: Any) -> QatModel:
    """Read a live Keras model that TFMOT quantized, with the settings of its quantizers.

    Parameters
    ----------
    model : tf_keras.Model
        Sequential, Functional or subclassed, with models inside or not.

    Returns
    -------
    QatModel
        With copies of the values, as they are now; tensors are named as `qmath.load` names them.

    Raises
    ------
    QmathError
        This is no Keras model, it has no weights yet, or a stored range is impossible.

    Examples
    --------
    >>> model = qmath.from_keras(keras_model)  # doctest: +SKIP
    >>> model.tensors["conv1/kernel"].quantize().values  # doctest: +SKIP
    """
    if not hasattr(model, "layers") or not hasattr(model, "get_config"):
        raise QmathError(
            f"from_keras takes a Keras model, not {type(model).__name__}; for a file "
            f"there is qmath.load"
        )
    name = type(model).__name__
    architecture = _architecture(model)
    if not getattr(model, "built", True):
        raise QmathError(
            f"this {name} is not built and has no weights yet; call it on data, or "
            f"model.build(input_shape), first"
        )
    known = {
        layer.path.removesuffix(layer.inner_name) + layer.saved_name: layer
        for layer in architecture.layers
    }
    reader = _Reader(f"the live {name} {getattr(model, 'name', '')!r}")
    for layer, prefix in _leaf_layers(model, ""):
        reader.read(layer, known.get(prefix + layer.name) or _layer_facts(layer, prefix))
    reader.read_own(model)
    try:
        tensors, notes = resolve(reader.tensors)
    except QmathError as error:
        raise type(error)(f"{reader.where}: {error}") from None
    if not any(tensor.role != "float" for tensor in tensors.values()):
        notes.append(words.NOTHING_QUANTIZED)
    if reader.leftovers:
        notes.append(words.leftovers(reader.leftovers))
    return QatModel(tensors, architecture.graph, (*architecture.notes, *reader.notes, *notes), name)


class _Reader:
    """Collects the tensors of one layer after the other."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.tensors: list[StoredTensor] = []
        self.notes: list[str] = []
        self.leftovers: list[str] = []
        self._names: set[str] = set()

    def read(self, layer: Any, facts: LayerFacts) -> None:
        """Add the tensors of one layer, in the order in which Keras saves them."""
        weights, ranges = _quantized(layer)
        by_id = {id(variable): (quantizer, state) for variable, quantizer, state in weights}
        starts = {
            id(state["min_var"]): (name, quantizer, state)
            for name, quantizer, state in ranges
            if _keeps_range(state)
        }
        skipped = {
            id(variable)
            for *_, state in (*weights, *ranges)
            if isinstance(state, Mapping)
            for variable in state.values()
        }
        variables = _variables(layer)
        paths = [variable.name.partition(":")[0] for variable in variables]
        for variable, (name, _) in zip(variables, own_names(facts, paths), strict=True):
            leaf = name.rpartition("/")[2]
            if id(variable) in starts:
                self._add_range(facts, *starts[id(variable)])
            elif facts.kind == "plain" and leaf == STEP:
                raise QmathError(
                    f"{self.where}: layer {facts.path} holds quantized layers inside, "
                    f"where only models can be looked into; save it and load the file"
                )
            elif id(variable) in skipped or leaf == STEP:
                if leaf in LEFTOVERS and facts.path not in self.leftovers:
                    self.leftovers.append(facts.path)
            else:
                self._add_variable(facts, name, variable, by_id.get(id(variable)))
        for name, quantizer, state in ranges:
            settings = settings_of(quantizer)
            if settings.kind == "FixedQuantizer":
                role = _role(facts, name)
                item = fixed_tensor(
                    facts,
                    name,
                    role,
                    settings,
                    self._facts(f"{facts.path}/{name}", quantizer, settings),
                )
                self._append(item)
            elif settings.kind is None and not _keeps_range(state):
                self.notes.append(
                    words.unreadable_quantizer(f"{facts.path}/{name}", settings.class_name)
                )

    def read_own(self, model: Any) -> None:
        """Add the variables that the model itself holds, outside its layers."""
        place = LayerFacts(OWN_WEIGHTS, OWN_WEIGHTS, OWN_WEIGHTS, "")
        for variable in (
            *getattr(model, "_trainable_weights", ()),
            *getattr(model, "_non_trainable_weights", ()),
        ):
            self._add_variable(place, variable.name.partition(":")[0], variable, None)

    def _add_variable(
        self, layer: LayerFacts, name: str, variable: Any, quantized: tuple[Any, Any] | None
    ) -> None:
        values = np.array(variable.numpy())
        item = StoredTensor(layer, name, values)
        if quantized is not None:
            quantizer, state = quantized
            settings = settings_of(quantizer)
            if settings.kind == "FixedQuantizer":
                fixed = fixed_tensor(layer, name, "weight", settings)
                item = replace(item, role="weight", min=fixed.min, max=fixed.max, is_stored=False)
            elif settings.kind != "NoQuantizer" and _keeps_range(state):
                item = self._with_range(item, "weight", state)
            elif settings.kind != "NoQuantizer":
                self.notes.append(words.unreadable_quantizer(item.name, settings.class_name))
            if item.role == "weight":
                item = replace(item, facts=self._facts(item.name, quantizer, settings))
        self._append(item)

    def _add_range(self, layer: LayerFacts, name: str, quantizer: Any, state: Any) -> None:
        item = StoredTensor(layer, name)
        settings = settings_of(quantizer)
        self._append(
            replace(
                self._with_range(item, _role(layer, name), state),
                facts=self._facts(item.name, quantizer, settings),
            )
        )

    def _with_range(self, item: StoredTensor, role: Role, state: Mapping[str, Any]) -> StoredTensor:
        try:
            low, high = checked_range(
                item.name,
                state["min_var"].numpy(),
                state["max_var"].numpy(),
                item.values,
                self.where,
            )
        except FileFormatError as error:
            raise QmathError(str(error)) from None
        return replace(item, role=role, min=low, max=high)

    def _facts(self, name: str, quantizer: Any, settings: QuantizerSettings) -> tuple[Fact, ...]:
        if settings.kind is not None and _overrides_call(quantizer, settings.kind):
            self.notes.append(words.overridden_call(name, settings.class_name, settings.kind))
        width = settings.arguments.get("num_bits")
        if settings.kind == "FixedQuantizer" and width != 8:
            self.notes.append(words.fixed_bits(name, width))
        return tuple(quantizer_facts(settings, _SOURCE, f"the live {settings.class_name} says"))

    def _append(self, item: StoredTensor) -> None:
        if item.name in self._names:
            raise QmathError(
                f"{self.where}: two tensors are named {item.name!r}; give the layers "
                f"different names"
            )
        self._names.add(item.name)
        self.tensors.append(item)


def _architecture(model: Any) -> Architecture:
    try:
        text = json.dumps(
            {"class_name": type(model).__name__, "config": model.get_config()}, default=_plain
        )
    except Exception:  # whatever a user's get_config raises, the tensors do not need it
        return read_architecture(None)
    return read_architecture(parse_json(text, "the model's config"))


def _plain(value: Any) -> Any:
    """Return what Keras's own JSON encoder would write for an object in a config."""
    if hasattr(value, "get_config"):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return str(getattr(value, "__name__", value))


def _leaf_layers(model: Any, prefix: str) -> Iterator[tuple[Any, str]]:
    for layer in model.layers:
        if _is_a(layer, "Model"):
            yield from _leaf_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield layer, prefix


def _is_a(thing: Any, class_name: str) -> bool:
    return any(base.__name__ == class_name for base in type(thing).__mro__)


def _layer_facts(layer: Any, prefix: str) -> LayerFacts:
    if hasattr(layer, "quantize_config") and hasattr(layer, "_weight_vars"):
        inner = layer.layer
        config = Serialized(type(layer.quantize_config).__name__)
        return LayerFacts(
            prefix + inner.name,
            layer.name,
            prefix or layer.name,
            type(inner).__name__,
            {"name": inner.name},
            "wrapper",
            config,
        )
    return LayerFacts(
        prefix + layer.name,
        layer.name,
        prefix or layer.name,
        type(layer).__name__,
        {"name": layer.name},
        "quantize_layer" if _is_a(layer, "QuantizeLayer") else "plain",
    )


def _quantized(layer: Any) -> tuple[list[tuple[Any, Any, Any]], list[tuple[str, Any, Any]]]:
    """Return a layer's quantized weights, and its other quantizers by name, with their states."""
    weights = [tuple(entry) for entry in getattr(layer, "_weight_vars", ())]
    ranges: list[tuple[str, Any, Any]] = []
    for activation in getattr(layer, "_quantize_activations", ()):
        for name in ("pre_activation", "post_activation"):
            if hasattr(activation, f"_{name}_vars"):
                ranges.append((name, activation.quantizer, getattr(activation, f"_{name}_vars")))
    for quantizer in list(getattr(layer, "_output_quantizers", None) or ())[:1]:
        ranges.append(("output", quantizer, getattr(layer, "_output_quantizer_vars", None)))
    if _is_a(layer, "QuantizeLayer") and layer.quantizer:
        ranges.append(("output", layer.quantizer, getattr(layer, "quantizer_vars", None)))
    return weights, ranges


def _keeps_range(state: Any) -> bool:
    return isinstance(state, Mapping) and "min_var" in state and "max_var" in state


def _role(layer: LayerFacts, name: str) -> Role:
    if layer.kind == "quantize_layer":
        return "input"
    return "output" if name == "output" else "activation"


def _variables(layer: Any) -> list[Any]:
    """Return a layer's variables once each, trainable ones first, as Keras saves them."""
    both = [*layer.trainable_weights, *layer.non_trainable_weights]
    return list({id(variable): variable for variable in both}.values())


def _overrides_call(quantizer: Any, kind: str) -> bool:
    """Tell whether a subclass from outside TFMOT computes in its own way."""
    for base in type(quantizer).__mro__:
        if base.__name__ == kind:
            return False
        if "__call__" in vars(base):
            return not base.__module__.startswith("tensorflow_model_optimization.")
    return False
