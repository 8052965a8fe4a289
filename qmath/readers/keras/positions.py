"""Variables by position → tensors by name: one layer of Keras's newer format.

TFMOT's wrapper holds weights of the inner layer, ``optimizer_step``, and both ends of each range.
The weights are the inner layer's trainable ones and then, again, those that are quantized (layout
A); or the latter alone, if the inner layer was frozen or not yet built (layout B). What is not
quantized is stored with the inner layer as well. Ranges follow in the order of
`QuantizeWrapperV2.build`: those of the weights, of the activations, of the output. What
cluster-preserving training leaves behind precedes its weight: two floats, and with the ranges an
array of integers.

Positions are turned into names only if there is exactly one way to do so. One thing this format
cannot show: if a config of the user's own gives a weight a quantizer without variables
(`FixedQuantizer`) and quantizes the output as well, there are as many ranges as if neither were so,
and the output's counts as the weight's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations, product

import numpy as np

from qmath.containers.lazy_array import LazyArray
from qmath.errors import FileFormatError
from qmath.readers.architecture.config import LayerFacts, bare_name
from qmath.readers.architecture.variables import Slot, slots_of
from qmath.readers.keras.quantized import name_quantized, quantization_mode
from qmath.readers.records import StoredLayer, StoredTensor
from qmath.readers.settings.tfmot import activation_ranges, expected_weights, fixed_quantizer

__all__ = ["Variables", "name_variables"]

# The variables of a layer by the group that holds them, relative to the layer's: "", "layer/cell".
Variables = Mapping[str, Sequence[LazyArray]]

_WRAPPED = "layer"
_REMEDY = "save the model as .h5 or as a SavedModel, which hold the names"
_MAX_WAYS = 10_000


def name_variables(layer: LayerFacts, variables: Variables, where: str) -> StoredLayer:
    """Return the tensors of one layer.

    Parameters
    ----------
    layer : LayerFacts
        What the config says of it.
    variables : mapping of str to sequence of LazyArray
        All that the file holds of it.
    where : str
        The file, for error messages.

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
        return _name_wrapped(layer, slots, variables, place)
    if slots is None or any(not slot.name for slot in slots):
        return StoredLayer(layer, _number(layer, variables, place))
    named: list[StoredTensor] = []
    for group, members in _by_group(slots).items():
        values = variables.get(group, ())
        if len(members) != len(values) or not all(map(_fits, members, values)):
            raise _mismatch(layer, members, values, place)
        named += [
            StoredTensor(layer, slot.name, value)
            for slot, value in zip(members, values, strict=True)
        ]
    rest = {group: values for group, values in variables.items() if group not in _by_group(slots)}
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
            f"{_shapes(own)}; the file was edited, or its quantizer is not one of TFMOT's"
        )
    return [StoredTensor(layer, "output", None, before[0], before[1])] if before else []


def _name_wrapped(
    layer: LayerFacts, slots: Sequence[Slot] | None, variables: Variables, place: str
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
        raise FileFormatError(f"{place}: it holds more than TFMOT's wrapper does; {_REMEDY}")
    inner = {group: values for group, values in inner.items() if values}
    if slots is None or any(not slot.name for slot in slots):
        if weights or inner:
            raise FileFormatError(
                f"{place}: this format holds no names, and {layer.class_name} is not one of "
                f"Keras's layers, so that those of its weights are unknown; {_REMEDY}"
            )
        slots = ()
    quantized, floats = _assign(layer, slots, weights, clustered, inner, place)
    members = _attach_ranges(layer, slots, quantized, floats, ends, place)
    return StoredLayer(layer, members, has_leftovers=bool(clustered))


def _assign(
    layer: LayerFacts,
    slots: Sequence[Slot],
    weights: list[LazyArray],
    clustered: set[int],
    inner: Mapping[str, list[LazyArray]],
    place: str,
) -> tuple[dict[Slot, LazyArray], dict[Slot, LazyArray]]:
    """Tell which variables are which, the quantized ones in the order of their ranges.

    The inner layer has lost a variable for each that is quantized, which tells their number, and
    with it the layout.
    """
    trainable = [slot for slot in slots if slot.trainable]
    count = len(slots) - sum(map(len, inner.values()))
    spare = len(weights) - count - 2 * len(clustered)
    if count < 0 or spare not in (0, len(trainable)):
        raise _mismatch(layer, slots, weights, place)
    everything = dict(zip(trainable, weights[:spare], strict=False))
    again = weights[spare:]
    for i in sorted(clustered):
        del again[i : i + 2]
    if len(again) != count:
        raise _mismatch(layer, slots, weights, place)
    ways = []
    for floats in _ways_to_keep(slots, inner, place):
        left = [slot for slot in slots if slot not in floats]
        if any(not _same(everything[slot], floats[slot]) for slot in everything if slot in floats):
            continue
        for order in _orders(layer, left):
            if all(
                _fits(slot, value) and (not everything or _same(everything.get(slot), value))
                for slot, value in zip(order, again, strict=True)
            ):
                ways.append((dict(zip(order, again, strict=True)), floats))
    if not ways:
        raise _mismatch(layer, slots, weights, place)
    if len(ways) > 1:
        names = ", ".join(slot.name for slot in ways[0][0])
        raise FileFormatError(
            f"{place}: this format holds no names, and the shapes leave open which of the "
            f"layer's variables are the quantized ones ({names}, or others); {_REMEDY}"
        )
    return ways[0]


def _ways_to_keep(
    slots: Sequence[Slot], inner: Mapping[str, list[LazyArray]], place: str
) -> Iterator[dict[Slot, LazyArray]]:
    """Yield every way in which the inner layer's remaining variables can be some of its slots."""
    groups = _by_group(slots)
    if set(inner) - set(groups):
        return
    choices = [
        [
            dict(zip(kept, inner.get(group, ()), strict=True))
            for kept in combinations(members, len(inner.get(group, ())))
            if all(map(_fits, kept, inner.get(group, ())))
        ]
        for group, members in groups.items()
    ]
    for number, parts in enumerate(product(*choices)):
        if number > _MAX_WAYS:
            raise FileFormatError(f"{place}: it has too many variables without names; {_REMEDY}")
        yield {slot: value for part in parts for slot, value in part.items()}


def _orders(layer: LayerFacts, slots: Sequence[Slot]) -> Iterator[tuple[Slot, ...]]:
    """Yield the orders in which weights can have been quantized: one, if the config tells it."""
    wanted = expected_weights(layer)
    orders = permutations(slots) if len(slots) <= 6 else iter([tuple(slots)])
    for order in orders:
        if not wanted or tuple(slot.name.rpartition("/")[2] for slot in order) == wanted:
            yield order


def _attach_ranges(
    layer: LayerFacts,
    slots: Sequence[Slot],
    quantized: Mapping[Slot, LazyArray],
    floats: Mapping[Slot, LazyArray],
    ends: Sequence[LazyArray],
    place: str,
) -> list[StoredTensor]:
    pairs = list(zip(ends[::2], ends[1::2], strict=False))
    others = [] if fixed_quantizer(layer) else list(activation_ranges(layer))
    spare = len(pairs) - len(quantized) - len(others)
    if len(set(others)) < len(others):
        raise FileFormatError(
            f"{place}: two of its activations are quantized, {' and '.join(others)}, and qmath "
            "has no names to tell them apart"
        )
    if len(ends) % 2 or spare not in (0, 1):
        raise FileFormatError(
            f"{place}: it holds {len(ends)} ends of ranges for {len(quantized)} quantized weights "
            f"and {len(others)} activations; a quantizer without variables (FixedQuantizer) "
            f"leaves open which are which: {_REMEDY}"
        )
    if spare:
        others.append("output")
    ranges = dict(zip([*quantized, *others], pairs, strict=True))
    named = [
        StoredTensor(
            layer,
            slot.name,
            quantized.get(slot, floats.get(slot)),
            *ranges.get(slot, (None, None)),
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
            f"{_shapes(own)}; the weights were saved of another model, or the file was cut"
        )
    return list(own[: steps[0]]), list(own[steps[0] + 1 :])


def _number(layer: LayerFacts, variables: Variables, place: str) -> list[StoredTensor]:
    """Return variables whose names are in no file by their positions, if they surely are float."""
    named: list[StoredTensor] = []
    for group, values in variables.items():
        if any(value.dtype == np.int32 and value.shape == () for value in values):
            raise FileFormatError(
                f"{place}: this format holds no names, and something in this layer may be "
                f"quantized; {_REMEDY}"
            )
        named += [
            StoredTensor(layer, f"{group}/{i}".strip("/"), value) for i, value in enumerate(values)
        ]
    return named


def _by_group(slots: Sequence[Slot]) -> dict[str, list[Slot]]:
    groups: dict[str, list[Slot]] = {}
    for slot in sorted(slots, key=lambda slot: not slot.trainable):
        groups.setdefault(slot.group, []).append(slot)
    return groups


def _fits(slot: Slot, value: LazyArray) -> bool:
    return slot.fits(value.shape)


def _same(one: LazyArray | None, other: LazyArray) -> bool:
    """Tell whether two arrays hold the same bits."""
    return (
        one is not None
        and one.shape == other.shape
        and one.dtype == other.dtype
        and np.asarray(one).tobytes() == np.asarray(other).tobytes()
    )


def _shapes(values: Sequence[LazyArray]) -> str:
    return ", ".join(f"{value.dtype}{list(value.shape)}" for value in values) or "nothing"


def _mismatch(
    layer: LayerFacts, slots: Sequence[Slot], values: Sequence[LazyArray], place: str
) -> FileFormatError:
    names = ", ".join(slot.name for slot in slots) or "none"
    return FileFormatError(
        f"{place}: {layer.class_name} of this config has the variables {names}, and the file "
        f"holds {_shapes(values)}, which are not those; they were saved of another model, or the "
        "file was edited"
    )
