"""Where patches go: the views of a step's terms, and positions that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmath.integer.bounds import channel_intervals
from qmath.integer.directed.joined import joined, reads_twice, side_by_side
from qmath.integer.directed.views import View, disjoint_positions, view_of
from qmath.integer.program import Requantize, Shape, Term

__all__ = ["Layout", "channels_of", "layout_of"]

Int64Array = NDArray[np.int64]
_MOST_POSITIONS = 1 << 16


@dataclass(frozen=True, eq=False)
class Layout:
    """Where patches go.

    Attributes
    ----------
    views : tuple of View
        Of each term.
    positions : ndarray of int64
        Slots for patches: positions whose inputs do not overlap.
    groups : int
        Of channels that do not share inputs, so that each has its own patch in a slot.
    is_joined : bool
        Whether terms read the same inputs, or one reads an input twice: the views of a source that
        is so read have the same inputs in the same order.
    """

    views: tuple[View, ...]
    positions: Int64Array
    groups: int
    is_joined: bool = False

    def inputs(self, term: int, slot: int) -> Int64Array:
        """Return where all inputs of a slot lie in a term's source, counted from 0."""
        found = self.views[term].inputs(int(self.positions[slot])).reshape(-1)
        return np.asarray(found[found > 0] - 1)

    def inputs_of(self, term: int, slots: Int64Array, channels: Int64Array) -> Int64Array:
        """Return where the inputs of channels in slots lie, ``(J, K)``, from 1; 0 for nowhere."""
        view = self.views[term]
        groups, width, outputs = view.weights.shape
        depth = view.pixels.shape[1] // groups
        within = (channels // outputs)[:, np.newaxis] * depth + np.arange(depth)
        cells = view.cells[self.positions[slots]]
        found = view.pixels[cells[:, :, np.newaxis], within[:, np.newaxis, :]]
        is_read = view.weights.any(1).reshape(-1)[channels]
        return np.asarray(found.reshape(len(slots), width) * is_read[:, np.newaxis])

    def last_inputs(self, term: int) -> tuple[Int64Array, Int64Array]:
        """Return where the inputs of the last output lie, from 0, and their weights."""
        view = self.views[term]
        position, channel = np.unravel_index(view.elements.argmax(), view.elements.shape)
        group, output = divmod(int(channel), view.weights.shape[2])
        at, weights = view.inputs(int(position))[group], view.weights[group, :, output]
        is_read = (at > 0) & (weights != 0)
        return np.asarray(at[is_read] - 1), np.asarray(weights[is_read])

    def ends(
        self, terms: Sequence[Term], shape: Shape
    ) -> tuple[tuple[Int64Array, Int64Array], ...]:
        """Return for each term each element's least and greatest sum, 0 where it is not read."""
        ends = []
        for view, term in zip(self.views, terms, strict=True):
            low, high = term.params.limits
            is_read, shown = view.is_read, view.elements >= 0
            pair = []
            for better, proved in zip(
                (np.minimum, np.maximum), channel_intervals(term), strict=True
            ):
                sums = better(view.weights * low, view.weights * high).sum(1).reshape(-1)
                end = np.broadcast_to(proved, shape).reshape(-1).copy()
                end[view.elements[shown]] = (is_read * sums)[shown]
                pair.append(end.reshape(shape))
            ends.append((pair[0], pair[1]))
        return tuple(ends)


def layout_of(step: Requantize, shapes: Mapping[str, Shape]) -> Layout | None:
    """Return where patches go; ``None`` where a term has no view, or none that fits the others'.

    Parameters
    ----------
    step : Requantize
    shapes : mapping of str to tuple
        Of the step's sources.
    """
    views = []
    for term in step.value.terms:
        view = view_of(term, shapes[term.source], step.shape) if math.prod(step.shape) else None
        if view is None:
            return None
        views.append(view)
    if any(not np.array_equal(view.elements, views[0].elements) for view in views[1:]):
        views = side_by_side(views)
    by_source: dict[str, list[int]] = {}
    for number, term in enumerate(step.value.terms):
        by_source.setdefault(term.source, []).append(number)
    is_joined = False
    for numbers in by_source.values() if views else ():
        if reads_twice([views[i] for i in numbers]):
            found = joined([views[i] for i in numbers])
            if found is None:
                return None
            is_joined = True
            for i, view in zip(numbers, found, strict=True):
                views[i] = view
    if not views:
        return None
    parts = {source: [views[i] for i in numbers] for source, numbers in by_source.items()}
    positions = disjoint_positions(parts, _MOST_POSITIONS)
    if not len(positions):
        return None
    groups = math.gcd(*(len(view.weights) for view in views))
    return Layout(tuple(views), positions, groups, is_joined)


def channels_of(layout: Layout | None, shape: Shape) -> Int64Array:
    """Return the accumulator's channel of each flat element of an output."""
    last = max(shape[-1] if shape else 1, 1)
    channel = np.arange(math.prod(shape), dtype=np.int64) % last
    if layout is not None:
        elements = layout.views[0].elements
        columns = np.broadcast_to(np.arange(elements.shape[1]), elements.shape)
        channel[:] = elements.shape[1] - 1
        channel[elements[elements >= 0]] = columns[elements >= 0]
    return channel
