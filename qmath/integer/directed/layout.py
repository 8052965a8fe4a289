"""Where patches go: the views of a step's terms, and positions that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    """

    views: tuple[View, ...]
    positions: Int64Array
    groups: int

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
        """Return for each term each channel's least and greatest sum, 0 where it is not read."""
        ends = []
        for view, term in zip(self.views, terms, strict=True):
            low, high = term.params.limits
            groups = view.pixels[view.cells].reshape(*view.cells.shape, len(view.weights), -1)
            is_read = np.repeat((groups > 0).any((1, 3)), view.weights.shape[2], axis=1)
            shown = view.elements >= 0
            pair = []
            for better in (np.minimum, np.maximum):
                sums = better(view.weights * low, view.weights * high).sum(1).reshape(-1)
                end = np.zeros(math.prod(shape), np.int64)
                end[view.elements[shown]] = (is_read * sums)[shown]
                pair.append(end.reshape(shape))
            ends.append((pair[0], pair[1]))
        return tuple(ends)


def layout_of(step: Requantize, shapes: Mapping[str, Shape]) -> Layout | None:
    """Return where patches go; ``None`` where a term has no view, or sources are shared.

    Parameters
    ----------
    step : Requantize
    shapes : mapping of str to tuple
        Of the step's sources.
    """
    views = []
    by_source: dict[str, list[View]] = {}
    for term in step.value.terms:
        view = view_of(term, shapes[term.source], step.shape) if math.prod(step.shape) else None
        if view is None:
            return None
        views.append(view)
        by_source.setdefault(term.source, []).append(view)
    if any(not np.array_equal(view.elements, views[0].elements) for view in views[1:]):
        return None
    if any(_is_shared(parts) for parts in by_source.values()):
        return None
    positions = disjoint_positions(by_source, _MOST_POSITIONS)
    if not len(positions):
        return None
    return Layout(tuple(views), positions, math.gcd(*(len(view.weights) for view in views)))


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


def _is_shared(views: Sequence[View]) -> bool:
    """Whether an accumulator reads one source by weights more than once."""
    if all(view.weights.shape[1] == 1 for view in views):
        return False
    reads = [view.weights.any(1).reshape(-1) for view in views]
    return bool((np.sum(reads, axis=0) > 1).any())
