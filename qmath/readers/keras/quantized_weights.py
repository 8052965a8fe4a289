"""Which variables of a wrapper are which weights, where variables have no names.

What a config quantizes, the wrapper holds in the config's order, and the inner layer has lost, but
for weights that are quantized and never put in place. Shapes and equal bits tell the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import combinations, islice, product
from typing import TypeAlias

import numpy as np

from qmath.containers.lazy_array import LazyArray
from qmath.errors import FileFormatError
from qmath.readers.architecture.config import LayerFacts
from qmath.readers.architecture.variables import Slot
from qmath.readers.keras.assignments import REMEDY
from qmath.readers.settings.tfmot import config_chain, expected_weights, is_custom

__all__ = ["assign_weights", "by_group", "mismatch", "shapes_of"]

Values: TypeAlias = dict[Slot, LazyArray]

_MAX_STEPS = 10_000
_MAX_QUANTIZED = 200  # far fewer than the frames that Python allows
_MAX_PERMUTED = 6


def assign_weights(
    layer: LayerFacts,
    slots: Sequence[Slot],
    weights: Sequence[LazyArray],
    clustered: Collection[int],
    inner: Mapping[str, list[LazyArray]],
    place: str,
) -> tuple[Values, Values]:
    """Tell which variables are which.

    Parameters
    ----------
    layer : LayerFacts
    slots : sequence of Slot
        The variables of the inner layer.
    weights : sequence of LazyArray
        Those that the wrapper holds.
    clustered : collection of int
        Which of the quantized weights have two floats of clustering before them.
    inner : mapping of str to list of LazyArray
        Those that the inner layer still holds, by group.
    place : str
        File and layer, for error messages.

    Returns
    -------
    quantized : dict of Slot to LazyArray
        In the order of their ranges.
    floats : dict of Slot to LazyArray
        The others.

    Raises
    ------
    FileFormatError
        No way fits, or several do.
    """
    lost = len(slots) - sum(map(len, inner.values()))
    if not 0 <= lost <= _MAX_QUANTIZED or len(weights) > 2 * len(slots) + 2 * len(clustered):
        raise mismatch(layer, slots, weights, place)
    search = _Search(layer, slots, inner, place)
    trainable = [slot for slot in slots if slot.trainable]
    # Layout A, all trainable ones and then those that are quantized; and layout B, the latter.
    layouts = []
    for first in sorted({len(trainable), 0}, reverse=True):
        again = list(weights[first:])
        for i in sorted(clustered):
            del again[i : i + 2]
        if len(weights) >= first:
            layouts.append((dict(zip(trainable, weights[:first], strict=False)), again))
    found = [way for known, again in layouts if len(again) == lost
             for way in search.ways(known, again)]  # fmt: skip
    if not found:  # perhaps some were never put in place, so that the inner layer still has them
        found = [way for known, again in layouts if len(again) > lost
                 for way in search.ways(known, again)]  # fmt: skip
    if not found:
        raise mismatch(layer, slots, weights, place)
    if len(found) > 1:
        listed = "; or ".join(", ".join(slot.name for slot in way) for way, _ in found[:2])
        raise FileFormatError(
            f"{place}: this format holds no names, and shapes and values leave open which of the "
            f"layer's variables are the quantized ones, and in which order: {listed}; {REMEDY}"
        )
    return found[0]


class _Search:
    """All ways in which the variables of one wrapper can be its weights."""

    def __init__(
        self,
        layer: LayerFacts,
        slots: Sequence[Slot],
        inner: Mapping[str, Sequence[LazyArray]],
        place: str,
    ) -> None:
        self._slots = slots
        self._inner = inner
        self._place = place
        self._wanted = expected_weights(layer)
        chain = config_chain(layer)
        self._is_own = bool(chain) and not is_custom(chain[-1])
        self._steps = 0
        self._digests: dict[int, bytes] = {}

    def ways(self, known: Values, again: Sequence[LazyArray]) -> Iterator[tuple[Values, Values]]:
        """Yield at most two ways, given the variables that are known, and the quantized ones."""
        yield from islice(self._ways(known, again), 2)

    def _ways(self, known: Values, again: Sequence[LazyArray]) -> Iterator[tuple[Values, Values]]:
        for floats in self._ways_to_keep(known):
            for order in self._orders(known, floats, again, ()):
                yield dict(zip(order, again, strict=True)), floats

    def _ways_to_keep(self, known: Values) -> Iterator[Values]:
        """Yield every way in which the inner layer's variables can be some of its slots."""
        groups = by_group(self._slots)
        if set(self._inner) - set(groups):
            return
        choices = []
        for group, members in groups.items():
            values = self._inner.get(group, ())
            kept = list(islice(combinations(members, len(values)), _MAX_STEPS + 1))
            if len(kept) > _MAX_STEPS:
                raise self._too_many()
            choices.append(
                [
                    dict(zip(some, values, strict=True))
                    for some in kept
                    if all(
                        slot.fits(v.shape) and (slot not in known or self._same(known[slot], v))
                        for slot, v in zip(some, values, strict=True)
                    )
                ]
            )
        for parts in product(*choices):
            self._count_step()
            yield {slot: value for part in parts for slot, value in part.items()}

    def _orders(
        self, known: Values, floats: Values, again: Sequence[LazyArray], chosen: tuple[Slot, ...]
    ) -> Iterator[tuple[Slot, ...]]:
        """Yield the orders in which weights can have been quantized, those `chosen` first."""
        self._count_step()
        lost = [slot for slot in self._slots if slot not in floats]
        i = len(chosen)
        if i == len(again):
            if set(lost) <= set(chosen) and len(self._wanted) in (0, i):
                yield chosen
            return
        candidates = lost if len(again) == len(lost) else self._slots
        if self._is_own and not self._wanted and len(again) == len(lost) > _MAX_PERMUTED:
            candidates = lost[i : i + 1]  # configs of TFMOT's own take cells in their order
        for slot in candidates:
            if (
                slot not in chosen
                and slot.fits(again[i].shape)
                and (not known or self._same(known.get(slot), again[i]))
                and (slot not in floats or self._same(floats[slot], again[i]))
                and self._is_wanted(slot, i)
            ):
                yield from self._orders(known, floats, again, (*chosen, slot))

    def _is_wanted(self, slot: Slot, i: int) -> bool:
        own = slot.name.rpartition("/")[2]
        return not self._wanted or self._wanted[i : i + 1] == (own,)

    def _same(self, one: LazyArray | None, other: LazyArray) -> bool:
        """Tell whether two arrays hold the same bits."""
        return (
            one is not None
            and one.shape == other.shape
            and one.dtype == other.dtype
            and self._digest(one) == self._digest(other)
        )

    def _digest(self, value: LazyArray) -> bytes:
        if id(value) not in self._digests:
            self._digests[id(value)] = sha256(np.asarray(value).tobytes()).digest()
        return self._digests[id(value)]

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise self._too_many()

    def _too_many(self) -> FileFormatError:
        return FileFormatError(
            f"{self._place}: this format holds no names, and there are more than {_MAX_STEPS} ways "
            f"to name its {len(self._slots)} variables; {REMEDY}"
        )


def by_group(slots: Sequence[Slot]) -> dict[str, list[Slot]]:
    """Return the variables of a layer by the group that holds them, trainable ones first."""
    groups: dict[str, list[Slot]] = {}
    for slot in sorted(slots, key=lambda slot: not slot.trainable):
        groups.setdefault(slot.group, []).append(slot)
    return groups


def shapes_of(values: Sequence[LazyArray]) -> str:
    """Return dtypes and shapes for an error message."""
    return ", ".join(f"{value.dtype}{list(value.shape)}" for value in values[:20]) or "nothing"


def mismatch(
    layer: LayerFacts, slots: Sequence[Slot], values: Sequence[LazyArray], place: str
) -> FileFormatError:
    """Return the error that a layer's variables are not those of its config."""
    names = ", ".join(slot.name for slot in slots[:20]) or "none"
    chain = config_chain(layer)
    own = ""
    if chain and is_custom(chain[-1]):
        own = f" quantizers of {chain[-1].class_name} keep other variables than a range,"
    return FileFormatError(
        f"{place}: {layer.class_name} of this config has the variables {names}, and the file "
        f"holds {shapes_of(values)}, which are not those; they were saved of another model,{own} "
        "or the file was edited"
    )
