"""Variables by position → tensors by name: one layer of Keras's newer format.

TFMOT's wrapper holds weights of the inner layer, ``optimizer_step``, and both ends of each range.
The weights are the inner layer's trainable ones and then, again, those that are quantized (layout
A); or the latter alone, if the inner layer was frozen or not yet built (layout B). What is not
quantized is stored with the inner layer as well. Ranges follow in the order of
`QuantizeWrapperV2.build`: those of the weights, of the activations, of the output. What
cluster-preserving training leaves behind precedes its weight: two floats, and with the ranges an
array of integers.

Positions are turned into names only if there is exactly one way to do so: `quantized_weights` tells
those of the weights, `assignments` those of the ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qmath.containers.lazy_array import LazyArray
from qmath.errors import FileFormatError
from qmath.readers.architecture.config import LayerFacts, bare_name
from qmath.readers.architecture.variables import Slot, slots_of
from qmath.readers.keras.assignments import REMEDY, assign_ranges
from qmath.readers.keras.quantized import name_quantized, quantization_mode
from qmath.readers.keras.quantized_weights import assign_weights, by_group, mismatch, shapes_of
from qmath.readers.records import StoredLayer, StoredTensor

__all__ = ["Variables", "name_variables"]

# The variables of a layer by the group that holds them, relative to the layer's: "", "layer/cell".
Variables = Mapping[str, Sequence[LazyArray]]

_WRAPPED = "layer"


def name_variables(
    layer: LayerFacts, variables: Variables, where: str, quantizers: Mapping[str, Any]
) -> StoredLayer:
    """Return the tensors of one layer.

    Parameters
    ----------
    layer : LayerFacts
        What the config says of it.
    variables : mapping of str to sequence of LazyArray
        All that the file holds of it.
    where : str
        The file, for error messages.
    quantizers : mapping of str to quantizer
        What the user says, as in `qmath.load`.

    Raises
    ------
    FileFormatError
        The file holds other variables than the layer has, or there are several ways to name them.
    """
    place = f"{where}: {layer.path}"
    if layer.kind == "quantize_layer":
        return StoredLayer(layer, _name_range(layer, variables, place))
    slots = slots_of(bare_name(layer.class_name), layer.config)
    mode = quantization_mode(layer)
    if mode is not None and layer.kind == "plain" and variables:
        if set(variables) - {""}:
            raise FileFormatError(f"{place}: it holds more than a {layer.class_name} does")
        return StoredLayer(layer, name_quantized(layer, mode, variables[""], place))
    if layer.kind == "wrapper":
        return _name_wrapped(layer, slots, variables, quantizers, place)
    if slots is None or any(not slot.name for slot in slots):
        return StoredLayer(layer, _number(layer, variables, place))
    named: list[StoredTensor] = []
    for group, members in by_group(slots).items():
        values = variables.get(group, ())
        if len(members) != len(values) or not all(
            slot.fits(v.shape) for slot, v in zip(members, values, strict=True)
        ):
            raise mismatch(layer, members, values, place)
        named += [
            StoredTensor(layer, slot.name, value)
            for slot, value in zip(members, values, strict=True)
        ]
    rest = {group: values for group, values in variables.items() if group not in by_group(slots)}
    order = {slot.name: i for i, slot in enumerate(slots)}
    named.sort(key=lambda item: order[item.own_name])
    return StoredLayer(layer, named + _number(layer, rest, place))


def _name_range(layer: LayerFacts, variables: Variables, place: str) -> list[StoredTensor]:
    """Return the range of a ``QuantizeLayer``: min, max, step; or none, of a fixed quantizer."""
    own = list(variables.get("", ()))
    before, after = _around_step(own, place)
    if after or len(before) not in (0, 2) or set(variables) - {""}:
        raise FileFormatError(
            f"{place}: a QuantizeLayer holds one range or none, and this one "
            f"{shapes_of(own)}; the file was edited, or its quantizer is not one of TFMOT's"
        )
    return [StoredTensor(layer, "output", None, before[0], before[1])] if before else []


def _name_wrapped(
    layer: LayerFacts,
    slots: Sequence[Slot] | None,
    variables: Variables,
    quantizers: Mapping[str, Any],
    place: str,
) -> StoredLayer:
    weights, after = _around_step(list(variables.get("", ())), place)
    ends: list[LazyArray] = []
    clustered: set[int] = set()  # which of the quantized weights
    for value in after:
        if value.dtype.kind == "i":
            clustered.add(len(ends) // 2)
        else:
            ends.append(value)
    inner = {
        group[len(_WRAPPED) :].strip("/"): list(values)
        for group, values in variables.items()
        if group.split("/")[0] == _WRAPPED
    }
    if len(inner) < len([group for group in variables if group]):
        raise FileFormatError(f"{place}: it holds more than TFMOT's wrapper does; {REMEDY}")
    inner = {group: values for group, values in inner.items() if values}
    if slots is None or any(not slot.name for slot in slots):
        if weights or inner:
            raise FileFormatError(
                f"{place}: this format holds no names, and {layer.class_name} is not one of "
                f"Keras's layers, so that those of its weights are unknown; {REMEDY}"
            )
        slots = ()
    quantized, floats = assign_weights(layer, slots, weights, clustered, inner, place)
    members = _attach_ranges(layer, slots, quantized, floats, ends, quantizers, place)
    known = {slot.name for slot in quantized}
    members = [replace(member, quantized=member.own_name in known) for member in members]
    return StoredLayer(layer, members, has_leftovers=bool(clustered))


def _attach_ranges(
    layer: LayerFacts,
    slots: Sequence[Slot],
    quantized: Mapping[Slot, LazyArray],
    floats: Mapping[Slot, LazyArray],
    ends: Sequence[LazyArray],
    quantizers: Mapping[str, Any],
    place: str,
) -> list[StoredTensor]:
    if len(ends) % 2:
        raise FileFormatError(
            f"{place}: it holds {len(ends)} variables of quantizers, and a range has two ends; one "
            f"that keeps others cannot be read by position: {REMEDY}"
        )
    pairs = list(zip(ends[::2], ends[1::2], strict=True))
    weights = {slot.name: values for slot, values in quantized.items()}
    owners = assign_ranges(layer, weights, pairs, quantizers, place)
    ranges = dict(zip(owners, pairs, strict=True))
    others = [name for name in owners if name not in weights]
    named = [
        StoredTensor(
            layer,
            slot.name,
            quantized.get(slot, floats.get(slot)),
            *ranges.get(slot.name, (None, None)),
        )
        for slot in slots
    ]
    return named + [StoredTensor(layer, name, None, *ranges[name]) for name in others]


def _around_step(own: Sequence[LazyArray], place: str) -> tuple[list[LazyArray], list[LazyArray]]:
    """Split the variables of something of TFMOT's at ``optimizer_step``, its only integer."""
    steps = [i for i, value in enumerate(own) if value.dtype == np.int32 and value.shape == ()]
    if len(steps) != 1:
        raise FileFormatError(
            f"{place}: TFMOT keeps an integer there for its steps, and the file holds "
            f"{shapes_of(own)}; the weights were saved of another model, or the file was cut"
        )
    return list(own[: steps[0]]), list(own[steps[0] + 1 :])


def _number(layer: LayerFacts, variables: Variables, place: str) -> list[StoredTensor]:
    """Return variables whose names are in no file by their positions, if they surely are float."""
    named: list[StoredTensor] = []
    for group, values in variables.items():
        if any(value.dtype == np.int32 and value.shape == () for value in values):
            raise FileFormatError(
                f"{place}: this format holds no names, and something in this layer may be "
                f"quantized; {REMEDY}"
            )
        named += [
            StoredTensor(layer, f"{group}/{i}".strip("/"), value) for i, value in enumerate(values)
        ]
    return named
