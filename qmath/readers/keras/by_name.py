"""Variables as Keras names them → layers whose tensors have their ranges.

Inside one TFMOT wrapper, ``kernel_min`` and ``kernel_max`` belong to the variable whose last name
is ``kernel``. What cannot be paired surely is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qmath.errors import FileFormatError
from qmath.readers.architecture.config import LayerFacts
from qmath.readers.architecture.variables import uncounted
from qmath.readers.completion import LEFTOVERS, RANGE_ROLES, STEP, check_unique, complete, notes_on
from qmath.readers.records import StoredLayer, StoredTensor

__all__ = ["Variable", "own_names", "pair"]

_MAX_NAME_PARTS = 16
_VITIS = "Vitis>"  # the package that Vitis AI registers its classes in
_NOT_TFMOT = (
    "which grew from TFMOT and rounds in another way; qmath reads TFMOT's quantizers only, so use "
    "what Vitis AI exports"
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
        A range is incomplete, impossible, or without its weight; or a pairing is not certain; or
        other quantizers than TFMOT's keep the ranges.
    """
    for layer in layers:
        _refuse_grown_class(layer, where)
    paired: list[StoredLayer] = []
    by_top: dict[str, list[LayerFacts]] = {}
    for layer in layers:
        by_top.setdefault(layer.top, []).append(layer)
    for top, variables in groups:
        check_unique((path for path, _ in variables), f"{where}: {top}")
        _refuse_grown_variables(variables, where)
        own = by_top.get(top, [])
        if all(layer.kind == "plain" for layer in own):
            own = _from_names(top, variables) or own or [LayerFacts(top, top, top, "")]
        paired += [
            _pair_layer(layer, members, where)
            for layer, members in _assign(top, own, variables, where)
        ]
    tensors = complete(paired, where, asks_config=True)
    return tensors, notes_on(paired, tensors)


def _refuse_grown_class(layer: LayerFacts, where: str) -> None:
    """Raise if classes of Vitis AI quantize a layer: its wrappers and ranges have TFMOT's names."""
    serialized = [item.class_name for item in (layer.quantize_config, layer.quantizer) if item]
    for class_name in (layer.class_name, *serialized):
        if class_name.startswith(_VITIS):
            raise FileFormatError(
                f"{where}: {layer.path} is quantized by Vitis AI ({class_name}), {_NOT_TFMOT}"
            )


def _refuse_grown_variables(variables: Sequence[Variable], where: str) -> None:
    """Raise if a wrapper keeps the position of a binary point; weights alone hold no classes."""
    leaves = {path.rpartition("/")[2]: path for path, x in variables if np.shape(x) == ()}
    points = [path for leaf, path in leaves.items() if leaf == "pos" or leaf.endswith("_pos")]
    if STEP in leaves and points:
        raise FileFormatError(
            f"{where}: {points[0]} is the position of a binary point, as Vitis AI keeps it, "
            f"{_NOT_TFMOT}"
        )


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
            own_name = entry if entry in RANGE_ROLES else "output"
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
        owners = len(weights.get(stem, ())) + (stem in RANGE_ROLES)
        if layer.kind == "quantize_layer":
            owners = 1 if len(ranges) == 1 and not weights else 0
        if owners != 1:
            raise FileFormatError(
                f"{place} has a range, and {owners or 'no'} tensors in the layer it could belong "
                f"to; the file was edited, or its QuantizeConfig is one that qmath cannot read"
            )
