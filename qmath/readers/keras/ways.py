"""The ways in which the ranges of one wrapper can be its quantizers', in order and in shape.

Counted before they are listed, as a file from a stranger may hold any number of ranges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from qmath.containers.lazy_array import LazyArray
from qmath.readers.architecture.config import LayerFacts, Serialized, bare_name
from qmath.readers.settings.facts import settings_of
from qmath.readers.settings.tfmot import (
    activation_ranges,
    class_names,
    config_facts,
    fixed_quantizer,
)

__all__ = ["ACTIVATION", "Pair", "Told", "Way", "Ways"]

# Two ends of a range, as they lie in the file.
Pair = tuple[LazyArray, LazyArray]
# The owner of each range: a weight's name, ``post_activation`` and the like, or ``output``.
Way = tuple[str, ...]

ACTIVATION = "activation"  # one of several that share a name
_NAMES = ("pre_activation", "post_activation")
_KEEPING = frozenset({"LastValueQuantizer", "MovingAverageQuantizer", "AllValuesQuantizer"})
_KEEPING_NONE = frozenset({"FixedQuantizer", "NoQuantizer"})
_MAX_STEPS = 1_000_000
_MAX_DEPTH = 8


class Told:
    """What config and user say of whether a quantizer keeps a range; ``None`` if nothing."""

    def __init__(
        self, layer: LayerFacts, weights: tuple[str, ...], quantizers: Mapping[str, Any]
    ) -> None:
        self._layer = layer
        self._weights = tuple(name.rpartition("/")[2] for name in weights)
        self._quantizers = {key: settings_of(value).kind for key, value in quantizers.items()}

    def of(self, role: str, name: str) -> bool | None:
        """Return what is said of one tensor: by the user of it, of its class, by the config."""
        full = f"{self._layer.path}/{name}"
        classes = class_names(self._layer)
        by_class = {f"{known}.{role}{end}" for known in classes for end in ("", "s")}
        said = [kind for key, kind in self._quantizers.items() if fnmatchcase(full, key)]
        said += [kind for key, kind in self._quantizers.items() if key in by_class]
        own = name.rpartition("/")[2]
        said += [
            str(fact.value)
            for fact in config_facts(self._layer, role, own, self._weights)
            if fact.field == "quantizer"
        ]
        for kind in said:
            if kind in _KEEPING or kind in _KEEPING_NONE:
                return kind in _KEEPING
        return None


@dataclass(frozen=True)
class _Rest:
    """The end of a way: what follows the ranges of the weights."""

    owners: Way
    start: int


class Ways:
    """All ways that fit shapes, order and what is told; counted before they are listed."""

    def __init__(
        self,
        layer: LayerFacts,
        weights: Mapping[str, LazyArray],
        pairs: Sequence[Pair],
        told: Told,
    ) -> None:
        self._names = list(weights)
        self._keeps = [told.of("weight", name) for name in weights]
        self._lasts = [tuple(values.shape[-1:]) for values in weights.values()]
        self._shapes = [tuple(low.shape) for low, _ in pairs]
        self._rests = [
            _Rest(owners, len(pairs) - len(owners))
            for owners in _rests(layer, told, len(pairs))
            if 0 <= len(pairs) - len(owners) <= len(weights) and self._is_scalar(owners)
        ]

    def count(self) -> int | None:
        """Return how many there are, ``None`` if counting takes too long."""
        if not self._rests:
            return 0
        if (len(self._names) + 1) * (len(self._shapes) + 1) > _MAX_STEPS:
            return None
        table = self._table()
        return sum(table[len(self._names)][rest.start] for rest in self._rests)

    def __iter__(self) -> Iterator[Way]:
        table = self._table()
        for rest in self._rests:
            for own in self._of_weights(table, len(self._names), rest.start):
                yield (*own, *rest.owners)

    def _is_scalar(self, owners: Way) -> bool:
        """Tell whether the last ranges are of activations' shapes; the output's may be an array."""
        shapes = self._shapes[len(self._shapes) - len(owners) :]
        return all(
            shape == () or (owner == "output" and len(shape) == 1)
            for owner, shape in zip(owners, shapes, strict=True)
        )

    def _table(self) -> list[list[int]]:
        """Return in how many ways the first i weights can have left the first j ranges."""
        table = [[1] + [0] * len(self._shapes)]
        for keeps, last in zip(self._keeps, self._lasts, strict=True):
            before = table[-1]
            row = [0 if keeps else n for n in before]
            for j, shape in enumerate(self._shapes):
                if keeps is not False and shape in ((), last):
                    row[j + 1] += before[j]
            table.append(row)
        return table

    def _of_weights(self, table: list[list[int]], i: int, j: int) -> Iterator[Way]:
        """Yield the ways counted at ``table[i][j]``."""
        # No recursion: a file may hold more weights than Python has frames.
        stack: list[tuple[int, int, Way]] = [(i, j, ())]
        while stack:
            i, j, kept = stack.pop()
            if not table[i][j]:
                continue
            if i == 0:
                yield kept
                continue
            if not self._keeps[i - 1]:
                stack.append((i - 1, j, kept))
            if (
                j
                and self._keeps[i - 1] is not False
                and self._shapes[j - 1] in ((), self._lasts[i - 1])
            ):
                stack.append((i - 1, j - 1, (self._names[i - 1], *kept)))


def _rests(layer: LayerFacts, told: Told, most: int) -> Iterator[Way]:
    """Yield what can follow the ranges of weights: those of activations, and the output's."""
    if fixed_quantizer(layer) is not None:  # for the output, too
        yield ()
        return
    sequences = list(_activation_sequences(layer, most))
    said = {name: told.of("activation", name) for name in ("pre_activation", "post_activation")}
    if any(keeps is False for keeps in said.values()):
        silent = {name for name, keeps in said.items() if keeps is False}
        sequences = [s for s in sequences if not silent & {*s} and ACTIVATION not in s]
    wanted = {name for name, keeps in said.items() if keeps}
    if wanted:
        keeping = [s for s in sequences if {*s} & {*wanted, ACTIVATION}]
        sequences = keeping or sequences  # of no activation that TFMOT quantizes
    output = told.of("output", "output")
    for sequence in sequences:
        if output is not True:
            yield sequence
        if output is not False:
            yield (*sequence, "output")


def _activation_sequences(layer: LayerFacts, most: int) -> Iterator[Way]:
    """Yield the ranges that quantized activations of a layer can have left, in any order."""
    yield ()
    ranges = [
        activation_ranges(replace(layer, config={"": value}))
        for value in _activations(layer.config, 0)
    ]
    pre, post = (sum(own == (name,) for own in ranges) for name in _NAMES)
    both = ranges.count(_NAMES)
    if pre:
        yield _NAMES[:1]
    if post:
        yield _NAMES[1:]
    if both or (pre and post):
        yield _NAMES
    if pre and post:
        yield _NAMES[::-1]
    for length in range(2, min(most, pre + post + 2 * both) + 1):
        if pre + post == 0:
            repeats = length % 2 == 0 and length > 2
        else:
            repeats = length > 2 or max(pre, post) > 1
        if repeats:
            yield (ACTIVATION,) * length


def _activations(value: Any, depth: int) -> Iterator[Any]:
    """Yield the activations in a layer's config, each as if it were put in place quantized."""
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, entry in entries:
        read = Serialized.read(entry)
        if read is not None and bare_name(read.class_name) == "QuantizeAwareActivation":
            yield entry
        elif str(key).endswith("activation"):
            yield {"class_name": "QuantizeAwareActivation", "config": {"activation": entry}}
        elif isinstance(entry, (Mapping, list)) and depth < _MAX_DEPTH:
            yield from _activations(entry, depth + 1)
