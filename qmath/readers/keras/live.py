"""`from_keras`: a live Keras model → a `QatModel`, by attributes alone.

Nothing of TensorFlow is imported: TFMOT's wrappers hold each weight, its quantizer and its state,
and every quantizer is called and compared with what was derived.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qmath.containers.bounded_json import parse_json
from qmath.errors import FileFormatError, QmathError
from qmath.kernels.builds import Build, check_build
from qmath.model import QatModel, Role, with_build, with_shapes
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
from qmath.readers.keras.asking import ask_activation, ask_weight, misplaced
from qmath.readers.keras.by_name import own_names
from qmath.readers.keras.used import holds
from qmath.readers.records import StoredTensor, check_told
from qmath.readers.settings.facts import QuantizerSettings, settings_of
from qmath.readers.settings.resolve import resolve

if TYPE_CHECKING:
    from qmath.quantizers import Quantizer

__all__ = ["from_keras"]


def from_keras(
    model: Any,
    quantizers: Mapping[str, Quantizer] | None = None,
    *,
    force: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    build: Build | None = None,
) -> QatModel:
    """Read a live Keras model that TFMOT quantized, and ask its quantizers what they do.

    Parameters
    ----------
    model : tf_keras.Model
        Sequential, Functional or subclassed, with models inside or not.
    quantizers, force
        As in `qmath.load`; a live model seldom leaves anything open.
    shapes, build
        As in `qmath.load`. Quantizers are called eagerly, whatever the build.

    Returns
    -------
    QatModel
        With copies of the values, as they are now; tensors are named as `qmath.load` names them.

    Raises
    ------
    QmathError
        This is no Keras model, it has no weights yet, or a stored range is impossible; a quantizer
        fails, or returns what no integers give; there is no such build.
    ContradictionError
        `quantizers` say something else than the live ones.

    Notes
    -----
    Each weight's quantizer is called as at inference, and what it returns is compared with the
    integers that follow from its class, settings and range, in every bit. Where they differ, as
    with a quantizer of your own, the integers are recovered from what it returned
    (`qmath.recover`), or an error names its class. Those of activations are called on points over
    their range and beyond. One that no layer calls is named in a note and is no tensor.

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
    check_told(quantizers, shapes)
    kernels = check_build("tf" if build is None else build)
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
    where = f"the live {name} {getattr(model, 'name', '')!r}"
    reader = _Reader(where, _some_float(model), kernels)
    for layer, prefix in _leaf_layers(model, ""):
        reader.read(layer, known.get(prefix + layer.name) or _layer_facts(layer, prefix))
    reader.read_own(model)
    try:
        tensors, notes = resolve(reader.tensors, quantizers, force=force)
    except QmathError as error:
        raise type(error)(f"{reader.where}: {error}") from None
    if not any(tensor.role != "float" for tensor in tensors.values()):
        notes.append(words.NOTHING_QUANTIZED)
    if reader.unused:
        notes.append(words.unused_quantizers(reader.unused))
    if reader.leftovers:
        notes.append(words.leftovers(reader.leftovers))
    if getattr(model, "jit_compile", False) is True:
        notes += words.compiled(f"XLA compiles this {name}", kernels)
    recovered = [item.name for item in reader.tensors if item.recovered is not None]
    notes = [*architecture.notes, *reader.notes, *notes, *words.asked_eagerly(recovered, kernels)]
    found = QatModel(tensors, architecture.graph, tuple(notes), name)
    found = with_shapes(found, shapes) if shapes else found
    return found if build is None else with_build(found, build)


class _Reader:
    """Collects the tensors of one layer after the other."""

    def __init__(self, where: str, some_float: Any, build: Build) -> None:
        self.where = where
        # An old TensorFlow is a build itself; under XLA, too, quantizers that are called are eager.
        self.builds: Sequence[Build] = ("tf",) if build == "tf" else ("tf", build)
        self.some_float = some_float
        self.tensors: list[StoredTensor] = []
        self.notes: list[str] = []
        self.leftovers: list[str] = []
        self.unused: list[str] = []
        self._names: set[str] = set()

    def read(self, layer: Any, facts: LayerFacts) -> None:
        """Add the tensors of one layer, in the order in which Keras saves them."""
        weights, ranges, idle = _quantized(layer)
        self.unused += [f"{facts.path}/{name}" for name, _ in idle]
        by_id = {id(variable): (quantizer, state) for variable, quantizer, state in weights}
        places: dict[int, int] = {}
        starts = {
            id(state["min_var"]): (name, quantizer, state)
            for name, quantizer, state in ranges
            if _keeps_range(state)
        }
        skipped = {
            id(variable)
            for *_, state in (*weights, *ranges, *idle)
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
                places[id(variable)] = len(self.tensors) - 1
        if weights and hasattr(layer.quantize_config, "set_quantize_weights"):
            for number in misplaced(layer, weights, f"{self.where}: {facts.path}"):
                self._set_aside(places[number], type(layer.quantize_config).__name__)
        for name, quantizer, state in ranges:
            if not _keeps_range(state):
                self._add_range(facts, name, quantizer, state)

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
        item = StoredTensor(layer, name, np.array(variable.numpy()))
        if quantized is not None:
            quantizer, state = quantized
            settings = self._settings(item.name, quantizer)
            if settings.kind == "FixedQuantizer":
                fixed = fixed_tensor(layer, name, "weight", settings)
                item = replace(item, min=fixed.min, max=fixed.max, is_stored=False)
            elif settings.kind != "NoQuantizer" and _keeps_range(state):
                item = self._with_range(item, "weight", state)
            try:
                item, note = ask_weight(item, variable, quantizer, state, settings, self.builds)
            except QmathError as error:
                raise QmathError(f"{self.where}: {error}") from error
            self.notes += [note] if note else []
        self._append(item)

    def _set_aside(self, place: int, config: str) -> None:
        """Make a weight float: its layer uses something else than its quantizer returns."""
        item = self.tensors[place]
        why = f"set_quantize_weights of {config} puts something else into the layer"
        self.tensors[place] = replace(
            item, role="float", min=None, max=None, recovered=None, own=why
        )

    def _add_range(self, layer: LayerFacts, name: str, quantizer: Any, state: Any) -> None:
        item = StoredTensor(layer, name, role=_role(layer, name))
        settings = self._settings(item.name, quantizer)
        some = self.some_float
        if settings.kind == "FixedQuantizer":
            item = fixed_tensor(layer, name, item.role, settings)
        elif settings.kind != "NoQuantizer" and _keeps_range(state):
            item, some = self._with_range(item, item.role, state), state["min_var"]
        try:
            asked, note = ask_activation(item, quantizer, state, settings, some, self.builds)
        except QmathError as error:
            raise QmathError(f"{self.where}: {error}") from error
        self.notes += [note] if note else []
        if asked is not None:
            self._append(asked)

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

    def _settings(self, name: str, quantizer: Any) -> QuantizerSettings:
        settings = settings_of(quantizer)
        width = settings.arguments.get("num_bits")
        if settings.kind == "FixedQuantizer" and width != 8:
            self.notes.append(words.fixed_bits(name, width))
        return settings

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
    except NotImplementedError:  # a subclassed model has no config
        return read_architecture(None)
    except Exception as error:  # whatever a user's get_config raises, the tensors do not need it
        said = " ".join(str(error).split())[:200]
        reason = f"get_config() of a layer, or of the model, raises {type(error).__name__}: {said}"
        return Architecture(notes=(words.no_graph(reason),))
    return read_architecture(parse_json(text, "the model's config"), "the model's config")


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


def _quantized(
    layer: Any,
) -> tuple[list[tuple[Any, Any, Any]], list[tuple[str, Any, Any]], list[tuple[str, Any]]]:
    """Return a layer's quantized weights, its other quantizers by name, and those never called.

    Each with its state.
    """
    weights = [tuple(entry) for entry in getattr(layer, "_weight_vars", ())]
    ranges: list[tuple[str, Any, Any]] = []
    idle: list[tuple[str, Any]] = []
    for activation in getattr(layer, "_quantize_activations", ()):
        is_held = holds(layer.layer, activation)
        for name in ("pre_activation", "post_activation"):
            if not hasattr(activation, f"_{name}_vars"):
                continue
            state = getattr(activation, f"_{name}_vars")
            if is_held:
                ranges.append((name, activation.quantizer, state))
            else:
                idle.append((name, state))
    for quantizer in list(getattr(layer, "_output_quantizers", None) or ())[:1]:
        ranges.append(("output", quantizer, getattr(layer, "_output_quantizer_vars", None)))
    if _is_a(layer, "QuantizeLayer") and layer.quantizer:
        ranges.append(("output", layer.quantizer, getattr(layer, "quantizer_vars", None)))
    return weights, ranges, idle


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


def _some_float(model: Any) -> Any:
    """Return a variable of float32 whose first value is finite, ``None`` if there is none."""
    for variable in getattr(model, "weights", ()):
        values = variable.numpy()
        if values.dtype == np.float32 and values.size and np.isfinite(values.flat[0]):
            return variable
    return None
