"""Layers whose variables are paired → all tensors of a model, checked, with notes for the user.

What every reader ends with, by whatever means it paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import FileFormatError
from qmath.model import Role
from qmath.readers import notes as words
from qmath.readers.architecture.config import LayerFacts
from qmath.readers.records import Fact, StoredLayer, StoredTensor
from qmath.readers.settings.facts import QuantizerSettings
from qmath.readers.settings.tfmot import (
    config_chain,
    expected_ranges,
    expected_weights,
    fixed_quantizer,
    is_custom,
    is_never_called,
    layer_quantizer,
    stores_fixed,
    why_own,
)

__all__ = [
    "LEFTOVERS",
    "OWN_WEIGHTS",
    "RANGE_ROLES",
    "STEP",
    "check_unique",
    "checked_range",
    "complete",
    "fixed_tensor",
    "notes_on",
]

STEP = "optimizer_step"
# Keras's name for the variables that a model holds itself, outside its layers.
OWN_WEIGHTS = "top_level_model_weights"
# What TFMOT calls the ranges in a wrapper that are not a weight's, in the order of computation.
RANGE_ROLES: Mapping[str, Role] = {
    "pre_activation": "activation",
    "post_activation": "activation",
    "output": "output",
}
# What TFMOT's cluster-preserving training adds to a wrapper.
LEFTOVERS = frozenset(
    {"cluster_centroids_tf", "ori_weights_vars_tf", "pulling_indices_tf", "sparsity_mask"}
)


def complete(
    layers: Iterable[StoredLayer], where: str, *, asks_config: bool = False
) -> list[StoredTensor]:
    """Return the tensors of all layers, with their roles and their ranges, which are read now.

    Parameters
    ----------
    layers : iterable of StoredLayer
        Without `STEP` and `LEFTOVERS`.
    where : str
        The file, for error messages.
    asks_config : bool
        Whether a layer's config alone tells that a weight without a range may be quantized; where
        there is a graph, it does.

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
        called = [t for t in layer.tensors if not is_never_called(layer.facts, t.own_name)]
        own = [_with_role(tensor, where) for tensor in called]
        if asks_config:
            own = _with_own(layer.facts, own)
        tensors += own + _unstored(layer.facts, own, where)
    check_unique((tensor.name for tensor in tensors), where)
    return tensors


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
    kept = {item.name for item in tensors}
    unused = [item.name for layer in layers for item in layer.tensors if item.name not in kept]
    if unused:
        notes.append(words.unused_quantizers(unused))
    by_keras = [item.name for item in tensors if item.stored]
    if by_keras:
        notes.append(words.stored_integers(by_keras))
    elif not any(item.role != "float" for item in tensors):
        notes.append(words.NOTHING_QUANTIZED)
    return [*notes, *_on_widths(tensors), *_on_own_configs(layers, tensors)]


def _on_widths(tensors: Sequence[StoredTensor]) -> Iterator[str]:
    """Yield what to know of fixed quantizers whose width TFMOT drops."""
    for item in tensors:
        settings = None if item.is_stored else fixed_quantizer(item.layer)
        num_bits = settings.arguments.get("num_bits") if settings else 8
        if num_bits != 8:
            yield words.fixed_bits(item.name, num_bits)


def _on_own_configs(
    layers: Sequence[StoredLayer], tensors: Sequence[StoredTensor]
) -> Iterator[str]:
    """Yield what to know of the user's own configs that left no range."""
    traced = {item.layer.path for item in tensors if item.role != "float"}
    owned = {item.layer.path for item in tensors if item.own}
    bare: dict[str, list[str]] = {}
    fixed: set[str] = set()
    for layer in (layer.facts for layer in layers):
        chain = config_chain(layer)
        if not chain or not is_custom(chain[-1]):
            continue
        name = chain[-1].class_name
        if stores_fixed(chain[-1]) or fixed_quantizer(layer) is not None:
            fixed.add(name)
        elif layer.path not in traced and layer.path not in owned:
            bare.setdefault(name, []).append(layer.path)
    yield from (words.no_ranges(paths, name) for name, paths in bare.items())
    yield from map(words.fixed_unplaced, sorted(fixed))


def _with_own(layer: LayerFacts, tensors: Sequence[StoredTensor]) -> list[StoredTensor]:
    """Return a layer's tensors, those without a range with why they may be quantized.

    Unless the file shows it, that is to be suspected of a kernel where no weight has a range.
    """
    is_bare = not any(item.role == "weight" for item in tensors)
    owns = [
        why_own(layer, item.weight, item.quantized, is_bare and _is_kernel(item))
        if item.role == "float" and item.values is not None
        else item.own
        for item in tensors
    ]
    # Most stay as they are, and a copy takes longer than to see that.
    return [
        item if item.own == own else replace(item, own=own)
        for item, own in zip(tensors, owns, strict=True)
    ]


def _is_kernel(item: StoredTensor) -> bool:
    return len(np.shape(item.values)) > 1 and item.values.dtype == np.float32


def _with_role(tensor: StoredTensor, where: str) -> StoredTensor:
    """Return a tensor with the role that its stored range tells, if it has one."""
    if tensor.min is None or not tensor.is_stored:
        return tensor
    low, high = checked_range(tensor.name, tensor.min, tensor.max, tensor.values, where)
    role: Role = "weight"
    if tensor.values is None:
        is_input = tensor.layer.kind == "quantize_layer"
        role = "input" if is_input else RANGE_ROLES[tensor.own_name]
    return replace(tensor, role=role, min=low, max=high)


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
        roles = RANGE_ROLES
        # Counted, as a custom layer's variables may be named unlike its attributes.
        present = [t.weight for t in tensors if t.role == "weight" and t.is_stored]
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
