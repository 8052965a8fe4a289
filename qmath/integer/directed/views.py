"""Which inputs an accumulator reads, and with which weights: a term as patches of its source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer import ops
from qmath.integer.program import Linear, Shape, Term

__all__ = ["View", "disjoint_positions", "view_of"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]


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

    def inputs(self, positions: Int64Array | int) -> Int64Array:
        """Return where the inputs of positions lie, ``(…, G, T * D)``, counted from 1."""
        groups = len(self.weights)
        found = self.pixels[self.cells[positions]]  # (..., T, G * D)
        found = found.reshape(*found.shape[:-1], groups, -1)
        found = np.moveaxis(found, -2, -3)
        return np.asarray(found.reshape(*found.shape[:-2], -1))


def view_of(term: Term, before: Shape, after: Shape) -> View | None:
    """Return the view of a term, from its source's shape to its step's; ``None`` if it has none.

    A term has one if at most one of its operations sums up, by the same weights everywhere, no sum
    reads an input twice, and nothing is multiplied by another tensor.
    """
    summing = [i for i, op in enumerate(term.ops) if op.sums]
    if len(summing) > 1 or any(op.factor or op.kind == "bilinear" for op in term.ops):
        return None
    at = summing[0] if summing else len(term.ops)
    source = _moved(_counted(before), term.ops[:at])
    shape = source.shape
    added = (0, 0)
    if summing:
        linear, moves = term.ops[at], term.ops[at + 1 :]
        cells, weights, depth = _taps(linear, shape)
        found = _added_channels(moves, weights)
        made = _counted(after) if found else _moved(_counted(linear.shape), moves)
        added = found or added
        size = math.prod(after) if found else math.prod(linear.shape)
    else:
        depth = shape[-1] if shape else 1
        cells = np.arange(1, source.size // max(depth, 1) + 1, dtype=np.int64)[:, np.newaxis]
        weights = np.ones((depth, 1, 1), np.int64)
        made, size = _counted(after), source.size
    pixels = np.zeros((source.size // max(depth, 1) + 1, depth), np.int64)
    pixels[1:] = source.reshape(-1, depth)
    if len(weights) == 1:
        weights = np.pad(weights, ((0, 0), (0, 0), added))
    else:
        groups = tuple(n // weights.shape[2] for n in added)
        pixels = np.pad(pixels, ((0, 0), tuple(n * depth // len(weights) for n in groups)))
        weights = np.pad(weights, (groups, (0, 0), (0, 0)))
    elements = np.full(size + 1, -1, np.int64)
    elements[made.reshape(-1)] = np.arange(made.size)
    return View(cells, pixels, weights, elements[1:].reshape(len(cells), -1))


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


def _added_channels(moves: tuple[Linear, ...], weights: Int64Array) -> tuple[int, int] | None:
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


def _counted(shape: Shape) -> Int64Array:
    """Return the flat indices of an array from 1."""
    return np.arange(1, math.prod(shape) + 1, dtype=np.int64).reshape(shape)


def _moved(indices: Int64Array, moves: tuple[Linear, ...]) -> Int64Array:
    """Return where values come from after moves, 0 where zeros were added."""
    x: Array = indices[np.newaxis].astype(np.float64)
    for op in moves:
        x = op.apply(x, None)
    return np.asarray(x[0].astype(np.int64))


def _taps(linear: Linear, before: Shape) -> tuple[Int64Array, Int64Array, int]:
    """Return cells and weights of a view, and the channels that a pixel has."""
    depth = before[-1]
    if linear.kind == "dense":
        cells = _counted((math.prod(before[:-1]), 1))
        return cells, np.asarray(linear.weights, np.int64)[np.newaxis], depth
    grid = _counted(before[:-1] if len(before) > 2 else (1, *before[:-1]))
    if linear.weights is None:
        if linear.attributes.get("global"):
            cells = _counted((1, math.prod(before[:-1])))
        else:
            cells = _windows(grid, linear.attributes["size"], linear)
        return cells, np.ones((depth, cells.shape[1], 1), np.int64), depth
    kernel = np.asarray(linear.weights, np.int64)
    if linear.kind == "conv2d_transpose":
        weights = kernel.reshape(-1, *kernel.shape[2:]).transpose(0, 2, 1)
        cells = _scattered(grid, kernel.shape[:2], linear)
        return cells, weights.reshape(1, -1, kernel.shape[2]), depth
    cells = _windows(grid, kernel.shape[:-2], linear)
    if linear.kind == "depthwise_conv2d":
        return cells, kernel.reshape(-1, *kernel.shape[2:]).transpose(1, 0, 2), depth
    groups = depth // kernel.shape[-2]
    split = kernel.reshape(-1, kernel.shape[-2], groups, kernel.shape[-1] // groups)
    weights = split.transpose(2, 0, 1, 3).reshape(groups, -1, kernel.shape[-1] // groups)
    return cells, weights, depth


def _windows(grid: Int64Array, kernel: Iterable[int], linear: Linear) -> Int64Array:
    """Return the pixels of each window, ``(P, T)``."""
    attributes, size = linear.attributes, tuple(kernel)
    padded = ops.pad(grid[np.newaxis, ..., np.newaxis], attributes["pads"])
    view = ops.windows(padded, size, attributes["strides"], attributes.get("dilation", (1, 1)))
    return np.asarray(view.reshape(-1, math.prod(size)))


def _scattered(grid: Int64Array, kernel: Iterable[int], linear: Linear) -> Int64Array:
    """Return the pixels that reach each output of a transposed convolution, ``(P, T)``."""
    size, strides = linear.attributes["size"], linear.attributes["strides"]
    dilation = linear.attributes.get("dilation", (1, 1))
    found = []
    for taps in np.ndindex(*kernel):
        axes = []
        for axis, tap in enumerate(taps):
            offset = linear.attributes["crops"][axis][0] - tap * dilation[axis]
            reach = np.arange(size[axis]) + offset
            fits = (reach % strides[axis] == 0) & (reach >= 0)
            index = reach // strides[axis]
            axes.append(np.where(fits & (index < grid.shape[axis]), index, -1))
        rows, columns = np.meshgrid(*axes, indexing="ij")
        is_read = (rows >= 0) & (columns >= 0)
        found.append(np.where(is_read, grid[rows, columns], 0).reshape(-1))
    return np.stack(found, axis=1)
