"""What the sums of one operation read: pixels, weights, and where results go."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.integer import ops
from qmath.integer.program import Linear, Shape

__all__ = ["Taps", "counted", "taps_of"]

Int64Array = NDArray[np.int64]


class Taps(NamedTuple):
    """What the sums of an operation read.

    Attributes
    ----------
    cells : ndarray of int64
        ``(P, T)``: the pixels that a position reads, counted from 1; 0 where there is padding.
    weights : ndarray of int64
        ``(G, T * D, O)``, as of a `View`.
    results : ndarray of int64
        ``(P, G * O)``: where in the operation's flat output a sum goes, counted from 1.
    """

    cells: Int64Array
    weights: Int64Array
    results: Int64Array


def counted(shape: Shape) -> Int64Array:
    """Return the flat indices of an array from 1."""
    return np.arange(1, math.prod(shape) + 1, dtype=np.int64).reshape(shape)


def taps_of(linear: Linear, before: Shape) -> Taps:
    """Return what an operation that sums up reads of its source."""
    if linear.kind == "bilinear":
        return _bilinear(linear, before)
    cells, weights = _taps(linear, before)
    return Taps(cells, weights, counted(linear.shape).reshape(len(cells), -1))


def _taps(linear: Linear, before: Shape) -> tuple[Int64Array, Int64Array]:
    """Return cells and weights."""
    depth = before[-1]
    if linear.kind == "dense":
        cells = counted((math.prod(before[:-1]), 1))
        return cells, np.asarray(linear.weights, np.int64)[np.newaxis]
    grid = counted(before[:-1] if len(before) > 2 else (1, *before[:-1]))
    if linear.weights is None:
        if linear.attributes.get("global"):
            cells = counted((1, math.prod(before[:-1])))
        else:
            cells = _windows(grid, linear.attributes["size"], linear)
        return cells, np.ones((depth, cells.shape[1], 1), np.int64)
    kernel = np.asarray(linear.weights, np.int64)
    if linear.kind == "conv2d_transpose":
        weights = kernel.reshape(-1, *kernel.shape[2:]).transpose(0, 2, 1)
        cells = _scattered(grid, kernel.shape[:2], linear)
        return cells, weights.reshape(1, -1, kernel.shape[2])
    cells = _windows(grid, kernel.shape[:-2], linear)
    if linear.kind == "depthwise_conv2d":
        return cells, kernel.reshape(-1, *kernel.shape[2:]).transpose(1, 0, 2)
    groups = depth // kernel.shape[-2]
    split = kernel.reshape(-1, kernel.shape[-2], groups, kernel.shape[-1] // groups)
    weights = split.transpose(2, 0, 1, 3).reshape(groups, -1, kernel.shape[-1] // groups)
    return cells, weights


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


def _bilinear(linear: Linear, before: Shape) -> Taps:
    """Return the taps of an upsampling: its places between the same pixels are its channels.

    Places at the border, which read fewer pixels, belong to no position.
    """
    depth = before[-1]
    grid, made = counted(before[:-1]), counted(linear.shape)
    axes = [
        _between(length, factor)
        for length, factor in zip(before[:-1], linear.attributes["size"], strict=True)
    ]
    (rows, ys, of_rows), (columns, xs, of_columns) = axes
    cells = grid[rows[:, np.newaxis, :, np.newaxis], columns[:, np.newaxis, :]]
    weights = np.einsum("at,bu->tuab", of_rows, of_columns)
    places = made[ys[:, np.newaxis, :, np.newaxis], xs[:, np.newaxis, :]]  # (…, ys, xs, channels)
    places = np.moveaxis(places, -1, 2)
    count, taps = len(rows) * len(columns), rows.shape[1] * columns.shape[1]
    weights = np.broadcast_to(
        weights.reshape(1, taps, -1), (depth, taps, ys.shape[1] * xs.shape[1])
    )
    return Taps(cells.reshape(count, taps), weights, places.reshape(count, -1))


def _between(length: int, factor: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Return of an axis the pixels beside each position, its places there, and their weights."""
    steps = ops.bilinear_steps(factor)
    place = (2 * np.arange(length * factor, dtype=np.int64) + 1 - factor) * steps // (2 * factor)
    if length == 1 or factor == 1:
        pixels = np.arange(length, dtype=np.int64)[:, np.newaxis]
        return pixels, counted((length, factor)) - 1, np.full((factor, 1), steps, np.int64)
    pixels = np.arange(length - 1, dtype=np.int64)[:, np.newaxis] + np.arange(2)
    share = place[(place >= 0) & (place < steps)]
    first = int(np.argmax(place >= 0))
    places = first + np.arange((length - 1) * factor, dtype=np.int64).reshape(-1, factor)
    return pixels, places, np.stack([steps - share, share], axis=1)
