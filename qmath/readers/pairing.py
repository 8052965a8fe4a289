"""Variables as Keras names them → weights with their ranges, activations, and float tensors.

Inside one TFMOT wrapper, ``kernel_min`` and ``kernel_max`` belong to the variable whose last name
is ``kernel``. What cannot be paired surely is an error. Readers of files that pair by other means
than names share what follows: `complete` and `notes_on`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import FileFormatError
from qmath.model import Role
from qmath.readers import notes as words
from qmath.readers.architecture.config import LayerFacts
from qmath.readers.architecture.variables import uncounted
from qmath.readers.records import Fact, StoredLayer, StoredTensor
from qmath.readers.settings.facts import QuantizerSettings
from qmath.readers.settings.tfmot import (
    config_chain,
    expected_ranges,
    expected_weights,
    fixed_quantizer,
    is_custom,
    layer_quantizer,
    stores_fixed,
)

__all__ = [
    "LEFTOVERS",
    "OWN_WEIGHTS",
    "STEP",
    "Variable",
    "check_unique",
    "checked_range",
    "complete",
    "fixed_tensor",
    "notes_on",
    "own_names",
    "pair",
]

_MAX_NAME_PARTS = 16
STEP = "optimizer_step"
# Keras's name for the variables that a model holds itself, outside its layers.
OWN_WEIGHTS = "top_level_model_weights"
_RANGE_ROLES: Mapping[str, Role] = {
    "pre_activation": "activation",
    "post_activation": "activation",
    "output": "output",
}
# What TFMOT's cluster-preserving training adds to a wrapper.
LEFTOVERS = frozenset(
    {"cluster_centroids_tf", "ori_weights_vars_tf", "pulling_indices_tf", "sparsity_mask"}
)

# By its name in Keras, without ``:0``: ``conv1/kernel``, ``quant_d/kernel_min``.
Variable = tuple[str, Any]


def pair(
    groups: Iterable[tuple[str, Sequence[Variable]]], layers: Sequence[LayerFacts], where: str
) -> tuple[list[StoredTensor], list[str]]:
    """Pair the variables of a model.

    Parameters
    ----------
    groups : iterable of (str, sequence of Variable)
        The variables of each outermost layer or nested model, by its name.
    layers : sequence of LayerFacts
        What the config says; for groups it does not know, names alone decide.
    where : str
        The file, for error messages.

    Returns
    -------
    tensors : list of StoredTensor
        In the order of `layers`.
    notes : list of str

    Raises
    ------
    FileFormatError
        A range is incomplete, impossible, or without its weight; or a pairing is not certain.
    """
    paired: list[StoredLayer] = []
    by_top: dict[str, list[LayerFacts]] = {}
    for layer in layers:
        by_top.setdefault(layer.top, []).append(layer)
    for top, variables in groups:
        check_unique((path for path, _ in variables), f"{where}: {top}")
        own = by_top.get(top, [])
        if all(layer.kind == "plain" for layer in own):
            own = _from_names(top, variables) or own or [LayerFacts(top, top, top, "")]
        paired += [
            _pair_layer(layer, members, where)
            for layer, members in _assign(top, own, variables, where)
        ]
    tensors = complete(paired, where)
    return tensors, notes_on(paired, tensors)


def own_names(layer: LayerFacts, paths: Sequence[str]) -> list[tuple[str, bool]]:
    """Return the names of a layer's variables within it, and whether the wrapper may own each.

    The scope before a name is the wrapper's, the inner layer's, or none: that depends on whether
    the model was built, loaded, or made from a config.
    """
    names, may_own = [], []
    for path in paths:
        # A layer's name may hold slashes itself.
        starts = [
            (start, scope)
            for scope in (layer.saved_name, layer.inner_name)
            if (start := f"/{path}".find(f"/{scope}/")) >= 0
        ]
        start, scope = min(starts, default=(-1, layer.saved_name))
        names.append(path[start + len(scope) + 1 :] if starts else path)
        may_own.append(scope == layer.saved_name)
    return list(zip(uncounted(names), may_own, strict=True))


def checked_range(
    name: str, low: Any, high: Any, values: Any, where: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a stored range as arrays, if it is one that TFMOT can have left.

    Raises
    ------
    FileFormatError
        It is not float32, not finite, inverted, or of a shape that does not fit `values`.
    """
    place = f"{where}: the range of {name}"
    arrays = [np.asarray(end) for end in (low, high)]
    if any(array.dtype != np.float32 for array in (*arrays, *([] if values is None else [values]))):
        raise FileFormatError(
            f"{place} or its values are not float32, all that TensorFlow's fake quantization takes"
        )
    minimum, maximum = arrays
    shapes = [()] if values is None else [(), values.shape[-1:]]
    if (
        minimum.shape != maximum.shape
        or minimum.ndim > 1
        or (values is not None and minimum.shape not in shapes)
    ):
        raise FileFormatError(
            f"{place} has the shapes {minimum.shape} and {maximum.shape}, which "
            f"should be equal, and () or one for each index of the last axis; "
            f"the file is damaged"
        )
    if not (np.isfinite(minimum).all() and np.isfinite(maximum).all()):
        raise FileFormatError(f"{place} is not finite; training diverged, or the file is damaged")
    if (minimum > maximum).any():
        raise FileFormatError(f"{place} has min > max; the file is damaged")
    return minimum, maximum


def fixed_tensor(
    layer: LayerFacts,
    name: str,
    role: Role,
    settings: QuantizerSettings,
    facts: tuple[Fact, ...] = (),
) -> StoredTensor:
    """Return the tensor of a `FixedQuantizer`, whose arguments are its range.

    Raises
    ------
    FileFormatError
        The arguments are no range.
    """
    ends = [settings.arguments.get(key) for key in ("init_min", "init_max")]
    if not all(isinstance(end, (int, float)) and abs(end) < 3e38 for end in ends):
        raise FileFormatError(
            f"{layer.path}: its FixedQuantizer has no range of two numbers, but "
            f"{ends[0]!r} to {ends[1]!r}; the file is damaged"
        )
    low, high = (np.asarray(end, np.float32) for end in ends)
    return StoredTensor(layer, name, min=low, max=high, role=role, is_stored=False, facts=facts)


def complete(layers: Iterable[StoredLayer], where: str) -> list[StoredTensor]:
    """Return the tensors of all layers, with their roles and their ranges, which are read now.

    Parameters
    ----------
    layers : iterable of StoredLayer
        Without `STEP` and `LEFTOVERS`.
    where : str
        The file, for error messages.

    Returns
    -------
    list of StoredTensor
        The same, and of each layer those of fixed quantizers, which keep no variables.

    Raises
    ------
    FileFormatError
        A range is impossible, or one that a layer's config demands is missing; or two tensors have
        one name.
    """
    tensors: list[StoredTensor] = []
    for layer in layers:
        own = [_with_role(tensor, where) for tensor in layer.tensors]
        tensors += own + _unstored(layer.facts, own, where)
    check_unique((tensor.name for tensor in tensors), where)
    return tensors


def _with_role(tensor: StoredTensor, where: str) -> StoredTensor:
    """Return a tensor with the role that its stored range tells, if it has one."""
    if tensor.min is None or not tensor.is_stored:
        return tensor
    low, high = checked_range(tensor.name, tensor.min, tensor.max, tensor.values, where)
    role: Role = "weight"
    if tensor.values is None:
        is_input = tensor.layer.kind == "quantize_layer"
        role = "input" if is_input else _RANGE_ROLES[tensor.own_name]
    return replace(tensor, role=role, min=low, max=high)


def _assign(
    top: str, layers: Sequence[LayerFacts], variables: Sequence[Variable], where: str
) -> list[tuple[LayerFacts, list[Variable]]]:
    """Tell which layer of a group each variable belongs to, by the scopes in its name."""
    if len(layers) == 1 and layers[0].saved_name == top:
        return [(layers[0], list(variables))]
    any_quantized = any(layer.kind != "plain" for layer in layers)
    by_saved: dict[str, list[int]] = {}
    by_inner: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        by_saved.setdefault(layer.saved_name, []).append(i)
        by_inner.setdefault(layer.inner_name, []).append(i)
    names = by_saved.keys() | by_inner.keys()
    longest = min(max((name.count("/") for name in names), default=0) + 1, _MAX_NAME_PARTS)
    members: list[list[Variable]] = [[] for _ in layers]
    others: list[Variable] = []
    for variable in variables:
        path = variable[0]
        scope, leaf = _first_scope(path, names, longest), path.rpartition("/")[2]
        owners = [] if scope is None else by_saved.get(scope) or by_inner[scope]
        if any_quantized and (
            len(owners) > 1 or (not owners and leaf.endswith(("_min", "_max", STEP)))
        ):
            raise FileFormatError(
                f"{where}: {path} could belong to more than one layer "
                f"of {top!r}; save that model by itself"
            )
        (members[owners[0]] if len(owners) == 1 else others).append(variable)
    assigned = list(zip(layers, members, strict=True))
    return assigned + ([(LayerFacts(top, top, top, ""), others)] if others else [])


def _first_scope(path: str, layers: Collection[str], longest: int) -> str | None:
    """Return the first of these layers, of names of `longest` parts, among a variable's scopes."""
    parts = path.split("/")
    for start in range(len(parts) - 1):
        for end in range(min(start + longest, len(parts) - 1), start, -1):
            if (scope := "/".join(parts[start:end])) in layers:
                return scope
    return None


def _from_names(top: str, variables: Sequence[Variable]) -> list[LayerFacts]:
    """Return the TFMOT layers that a config does not show, such as those inside custom layers.

    Every one of them keeps a variable for its steps.
    """
    layers = []
    leaves = {path.rpartition("/")[2] for path, _ in variables}
    for path, _ in variables:
        scope, _, leaf = path.rpartition("/")
        if leaf != STEP:
            continue
        saved = top if f"/{scope}".endswith(f"/{top}") else scope.rpartition("/")[2] or top
        is_layer = f"{saved}_min" in leaves
        prefix = "" if saved == top else f"{top}/"
        inner = saved if is_layer else saved.removeprefix("quant_")
        layers.append(
            LayerFacts(
                prefix + inner,
                saved,
                top,
                "",
                {"name": inner},
                kind="quantize_layer" if is_layer else "wrapper",
            )
        )
    return layers


def _pair_layer(layer: LayerFacts, variables: Sequence[Variable], where: str) -> StoredLayer:
    """Return the tensors of one layer, those of a wrapper or ``QuantizeLayer`` with ranges."""
    kept = [
        variable
        for variable in variables
        if layer.kind == "plain" or variable[0].rpartition("/")[2] not in LEFTOVERS
    ]
    names = own_names(layer, [path for path, _ in kept])
    if layer.kind == "plain":
        tensors = [
            StoredTensor(layer, name, values)
            for (name, _), (_, values) in zip(names, kept, strict=True)
        ]
        return StoredLayer(layer, tensors)
    ranges: dict[str, dict[str, Any]] = {}
    weights: dict[str, list[str]] = {}
    order: list[StoredTensor | str] = []
    for (name, may_be_own), (_, values) in zip(names, kept, strict=True):
        stem, end = name[:-4], name[-4:]
        if name == STEP:
            continue
        if may_be_own and stem and "/" not in stem and end in ("_min", "_max"):
            if stem not in ranges:
                order.append(stem)
            ranges.setdefault(stem, {})[end] = values
        else:
            weights.setdefault(name.rpartition("/")[2], []).append(name)
            order.append(StoredTensor(layer, name, values))
    _check_partners(layer, ranges, weights, where)
    tensors = []
    for entry in order:
        if isinstance(entry, StoredTensor):
            tensor, stem = entry, entry.weight
        elif entry not in weights:
            own_name = entry if entry in _RANGE_ROLES else "output"
            tensor, stem = StoredTensor(layer, own_name), entry
        else:
            continue
        if stem in ranges:
            tensor = replace(tensor, min=ranges[stem]["_min"], max=ranges[stem]["_max"])
        tensors.append(tensor)
    return StoredLayer(layer, tensors, has_leftovers=len(kept) < len(variables))


def _check_partners(
    layer: LayerFacts,
    ranges: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Sequence[str]],
    where: str,
) -> None:
    """Raise unless every range is complete and belongs to exactly one thing."""
    for stem, ends in ranges.items():
        place = f"{where}: {layer.path}/{stem}"
        if len(ends) < 2:
            raise FileFormatError(
                f"{place}{next(iter(ends))} has no counterpart: a range needs "
                f"both ends; the file was cut or edited, save the model again"
            )
        owners = len(weights.get(stem, ())) + (stem in _RANGE_ROLES)
        if layer.kind == "quantize_layer":
            owners = 1 if len(ranges) == 1 and not weights else 0
        if owners != 1:
            raise FileFormatError(
                f"{place} has a range, and {owners or 'no'} tensors in the layer it could belong "
                f"to; the file was edited, or its QuantizeConfig is one that qmath cannot read"
            )


def _unstored(layer: LayerFacts, tensors: Sequence[StoredTensor], where: str) -> list[StoredTensor]:
    """Return the tensors of fixed quantizers; raise if a range that must be stored is not."""
    fixed = fixed_quantizer(layer)
    ranged = {item.weight for item in tensors if item.role not in ("float", "weight")}
    if layer.kind == "quantize_layer":
        settings = layer_quantizer(layer)
        keeps_range = settings is not None and settings.kind not in (None, "NoQuantizer")
        missing = ["output"] if keeps_range and not ranged else []
        roles: Mapping[str, Role] = {"output": "input"}
    else:
        weights = expected_weights(layer)
        missing = [name for name in expected_ranges(layer) if name not in ranged]
        roles = _RANGE_ROLES
        # Counted, as a custom layer's variables may be named unlike its attributes.
        present = [item.weight for item in tensors if item.role == "weight"]
        if len(present) < len(weights):
            lacking = [name for name in weights if name not in present]
            raise _missing_range(f"{where}: {layer.path}/{(lacking or weights)[0]}")
    if fixed is not None:
        return [fixed_tensor(layer, name, roles[name], fixed) for name in missing]
    if missing:
        raise _missing_range(f"{where}: {layer.path}/{missing[0]}")
    return []


def _missing_range(place: str) -> FileFormatError:
    return FileFormatError(
        f"{place} is quantized, as the layer's config says, and its range is "
        f"missing; saving failed or the file was cut, save the model again"
    )


def check_unique(names: Iterable[str], where: str) -> None:
    """Raise `FileFormatError` if two tensors have one name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise FileFormatError(
                f"{where}: two tensors are named {name!r}; the file was edited, "
                f"or two layers have the same name"
            )
        seen.add(name)


def notes_on(layers: Sequence[StoredLayer], tensors: Sequence[StoredTensor]) -> list[str]:
    """Return what the user should know of a model's tensors, and of what left no trace.

    Parameters
    ----------
    layers : sequence of StoredLayer
        All that hold variables.
    tensors : sequence of StoredTensor
        All of the model, from `complete`.
    """
    left_over = [layer.facts.path for layer in layers if layer.has_leftovers]
    notes = [words.leftovers(left_over)] if left_over else []
    by_keras = [item.name for item in tensors if item.stored]
    if by_keras:
        notes.append(words.stored_integers(by_keras))
    elif not any(item.role != "float" for item in tensors):
        notes.append(words.NOTHING_QUANTIZED)
    for item in tensors:
        settings = None if item.is_stored else fixed_quantizer(item.layer)
        num_bits = settings.arguments.get("num_bits") if settings else 8
        if num_bits != 8:
            notes.append(words.fixed_bits(item.name, num_bits))
    traced = {item.layer.path for item in tensors if item.role != "float"}
    bare: dict[str, list[str]] = {}
    fixed: set[str] = set()
    for layer in (layer.facts for layer in layers):
        chain = config_chain(layer)
        if not chain or not is_custom(chain[-1]):
            continue
        name = chain[-1].class_name
        if stores_fixed(chain[-1]) or fixed_quantizer(layer) is not None:
            fixed.add(name)
        elif layer.path not in traced:
            bare.setdefault(name, []).append(layer.path)
    notes += [words.no_ranges(paths, name) for name, paths in bare.items()]
    return notes + [words.fixed_unplaced(name) for name in sorted(fixed)]
