"""Which inputs an accumulator reads, and with which weights: a term as patches of its source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.directed.taps import counted, taps_of
from qmath.integer.program import Linear, Shape, Term

__all__ = ["View", "disjoint_positions", "in_one_channel", "view_of"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]
_MOST_WEIGHTS = 1 << 23  # of two operations as one


@dataclass(frozen=True, eq=False)
class View:
    """A term at its output positions `P`, in `G` groups of channels that read different inputs.

    Attributes
    ----------
    cells : ndarray of int64
        ``(P, T)``: the pixels that a position reads, counted from 1; 0 where there is padding.
    pixels : ndarray of int64
        ``(pixels + 1, G * D)``: where in the flat source a pixel's channel lies, counted from 1;
        0 where there is padding.
    weights : ndarray of int64
        ``(G, T * D, O)``: output channel ``g * O + o`` has the weights ``[g, :, o]``.
    elements : ndarray of int64
        ``(P, G * O)``: where in the step's flat output an accumulator goes; -1 for nowhere.
    """

    cells: Int64Array
    pixels: Int64Array
    weights: Int64Array
    elements: Int64Array

    @property
    def dense(self) -> Int64Array:
        """The weights ``(T, G * D, G * O)``, with zeros where a group reads nothing."""
        groups, width, outputs = self.weights.shape
        taps = self.cells.shape[1]
        split = self.weights.reshape(groups, taps, width // taps, outputs)
        full = np.zeros((taps, groups, width // taps, groups, outputs), np.int64)
        every = np.arange(groups)
        full[:, every, :, every, :] = split
        return full.reshape(taps, groups * (width // taps), groups * outputs)

    @property
    def is_read(self) -> NDArray[np.bool_]:
        """Of each element, whether it reads anything but padding."""
        places = self.pixels[self.cells].reshape(*self.cells.shape, len(self.weights), -1)
        return np.repeat((places > 0).any((1, 3)), self.weights.shape[2], axis=1)

    def inputs(self, positions: Int64Array | int) -> Int64Array:
        """Return where the inputs of positions lie, ``(…, G, T * D)``, counted from 1."""
        groups = len(self.weights)
        found = self.pixels[self.cells[positions]]  # (..., T, G * D)
        found = found.reshape(*found.shape[:-1], groups, -1)
        found = np.moveaxis(found, -2, -3)
        return np.asarray(found.reshape(*found.shape[:-2], -1))


def view_of(term: Term, before: Shape, after: Shape) -> View | None:
    """Return the view of a term, from its source's shape to its step's; ``None`` if it has none.

    A term has one if nothing is multiplied by another tensor, and of several operations that sum
    up the later ones read whole pixels of the earlier ones. A place that a sum reads twice is twice
    among a position's inputs.
    """
    if any(op.factor for op in term.ops):
        return None
    later = [i for i, op in enumerate(term.ops) if op.sums][1:]
    shapes = [before, *(term.ops[i - 1].shape for i in later), after]
    view: View | None = None
    for start, end, pair in zip([0, *later], [*later, None], pairwise(shapes), strict=True):
        part = _view(term.ops[start:end], *pair)
        view = part if view is None else _composed(view, part)
        if view is None:
            return None
    return view


def _view(operations: Sequence[Linear], before: Shape, after: Shape) -> View:
    """Return the view of operations of which at most one sums up."""
    at = next((i for i, op in enumerate(operations) if op.sums), len(operations))
    source = _moved(counted(before), operations[:at])
    shape = source.shape
    depth = max(shape[-1], 1) if shape else 1
    pixels = np.zeros((source.size // depth + 1, depth), np.int64)
    pixels[1:] = source.reshape(-1, depth)
    if at == len(operations):
        cells = np.arange(1, source.size // depth + 1, dtype=np.int64)[:, np.newaxis]
        weights = np.ones((depth, 1, 1), np.int64)
        return View(cells, pixels, weights, (counted(after) - 1).reshape(len(cells), -1))
    linear, moves = operations[at], operations[at + 1 :]
    cells, weights, results = taps_of(linear, shape)
    added = None if linear.kind == "bilinear" else _added_channels(moves, weights)
    if added is not None:
        pixels, weights = _with_channels(pixels, weights, added)
        return View(cells, pixels, weights, (counted(after) - 1).reshape(len(cells), -1))
    made = _moved(counted(linear.shape), moves)
    elements = np.full(math.prod(linear.shape) + 1, -1, np.int64)
    elements[made.reshape(-1)] = np.arange(made.size)
    return View(cells, pixels, weights, elements[results])


def _with_channels(
    pixels: Int64Array, weights: Int64Array, added: tuple[int, int]
) -> tuple[Int64Array, Int64Array]:
    """Return pixels and weights with channels of zeros before and after."""
    if len(weights) == 1:
        return pixels, np.pad(weights, ((0, 0), (0, 0), added))
    depth = pixels.shape[1] // len(weights)
    groups = added[0] // weights.shape[2], added[1] // weights.shape[2]
    pixels = np.pad(pixels, ((0, 0), (groups[0] * depth, groups[1] * depth)))
    return pixels, np.pad(weights, (groups, (0, 0), (0, 0)))


def _composed(first: View, second: View) -> View | None:
    """Return the view of one after the other, ``None`` if it has none."""
    if _is_alike(first) and _is_alike(second):
        return _through_pixels(in_one_channel(first), in_one_channel(second))
    return _through_pixels(first, second)


def _is_alike(view: View) -> bool:
    """Whether all channels read one channel each, by the same weights."""
    width = view.weights.shape[1]
    return width == view.cells.shape[1] and not (view.weights != view.weights[:1]).any()


def _through_pixels(first: View, second: View) -> View | None:
    """Return the view of one after the other, ``None`` if pixels are made at several positions."""
    position = np.zeros(int(first.elements.max(initial=0)) + 2, np.int64)
    channel = position.copy()
    at, of = np.nonzero(first.elements >= 0)
    position[first.elements[at, of] + 1], channel[first.elements[at, of] + 1] = at + 1, of
    pixels = second.pixels
    is_real = pixels.any(1)
    if not is_real.any() or pixels.max() >= len(position):
        return None
    made_at, channels = position[pixels], channel[pixels[is_real.argmax()]]
    if (made_at != made_at[:, :1]).any() or (channel[pixels[is_real]] != channels).any():
        return None
    if (made_at[is_real] == 0).any():
        return None
    cells = np.concatenate([np.zeros_like(first.cells[:1]), first.cells])[made_at[:, 0]]
    width, depth = first.cells.shape[1] * first.pixels.shape[1], first.elements.shape[1]
    outputs = second.cells.shape[1] * second.elements.shape[1]
    if width * max(depth, outputs) > _MOST_WEIGHTS or len(channels) * outputs > _MOST_WEIGHTS:
        return None
    ours, theirs = first.dense[:, :, channels], second.dense
    # Exact in float64, which is faster: accumulators stay below 2**53.
    product = ours.reshape(-1, ours.shape[2]).astype(np.float64) @ theirs.astype(np.float64)
    return View(
        cells[second.cells].reshape(len(second.cells), -1),
        first.pixels,
        product.astype(np.int64).reshape(1, -1, theirs.shape[2]),
        second.elements,
    )


def in_one_channel(view: View) -> View:
    """Return a view whose channels each read one channel, all alike, as positions of one."""
    groups, width, outputs = view.weights.shape
    pixels = np.concatenate([[0], view.pixels[1:].reshape(-1)])[:, np.newaxis]
    cells = (view.cells[:, np.newaxis] - 1) * groups + np.arange(groups)[:, np.newaxis] + 1
    cells = np.where(view.cells[:, np.newaxis] > 0, cells, 0)
    elements = view.elements.reshape(-1, outputs)
    return View(cells.reshape(len(elements), width), pixels, view.weights[:1], elements)


def disjoint_positions(views: Mapping[str, Sequence[View]], most: int) -> Int64Array:
    """Return positions whose inputs do not overlap, those without padding if any.

    Parameters
    ----------
    views : mapping of str to sequence of View
        By source.
    most : int
        How many positions.
    """
    # By source, which of its pixels each position reads: by the place of their last channel.
    reads = {
        source: np.concatenate([view.pixels.max(1)[view.cells] for view in parts], axis=1)
        for source, parts in views.items()
    }
    present = np.sum([(pixels > 0).sum(1) for pixels in reads.values()], axis=0)
    every = [view for parts in views.values() for view in parts]
    shown = np.all([(view.elements >= 0).any(1) for view in every], axis=0)
    order = np.flatnonzero(shown & (present == present[shown].max(initial=0)))
    used = {source: np.zeros(pixels.max() + 1, bool) for source, pixels in reads.items()}
    found: list[int] = []
    for position in order:
        if len(found) == most:
            break
        if any(used[source][pixels[position]].any() for source, pixels in reads.items()):
            continue
        for source, pixels in reads.items():
            used[source][pixels[position]] = True
            used[source][0] = False
        found.append(int(position))
    return np.array(found, np.int64)


def _added_channels(moves: Sequence[Linear], weights: Int64Array) -> tuple[int, int] | None:
    """Return how many channels of zeros are added before and after, if the moves do no more."""
    before = after = 0
    for op in moves:
        pads = op.attributes.get("pads", ())
        if op.kind != "pad" or any(map(any, pads[:-1])):
            return None
        before, after = before + pads[-1][0], after + pads[-1][1]
    if len(weights) > 1 and (before % weights.shape[2] or after % weights.shape[2]):
        return None
    return before, after


def _moved(indices: Int64Array, moves: Sequence[Linear]) -> Int64Array:
    """Return where values come from after moves, 0 where zeros were added."""
    x: Array = indices[np.newaxis].astype(np.float64)
    for op in moves:
        x = op.apply(x, None)
    return np.asarray(x[0].astype(np.int64))
