"""Views that differ, or read the same inputs, brought together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qmath.integer.directed.views import View, in_one_channel

__all__ = ["joined", "reads_twice", "side_by_side"]

Int64Array = NDArray[np.int64]
_MOST = 1 << 22  # places looked at


def side_by_side(views: Sequence[View]) -> list[View]:
    """Return views of elements that only one of them makes, as channels beside each other.

    Single integers are one channel. Empty if two views make the same element.
    """
    parts = [_only_read(in_one_channel(x) if x.weights.shape[1] == 1 else x) for x in views]
    every = np.concatenate([part.elements[part.elements >= 0] for part in parts])
    if len(np.unique(every)) < len(every):
        return []
    count = max(len(part.elements) for part in parts)
    rows = [((0, count - len(part.elements)), (0, 0)) for part in parts]
    elements = np.concatenate(
        [np.pad(x.elements, row, constant_values=-1) for x, row in zip(parts, rows, strict=True)], 1
    )
    found, start = [], 0
    for part, row in zip(parts, rows, strict=True):
        dense = part.dense.reshape(-1, part.elements.shape[1])
        weights = np.zeros((1, len(dense), elements.shape[1]), np.int64)
        weights[0, :, start : start + dense.shape[1]] = dense
        start += dense.shape[1]
        found.append(View(np.pad(part.cells, row), part.pixels, weights, elements))
    return found


def _only_read(view: View) -> View:
    """Return a view without the positions, and the elements, that read padding alone."""
    elements = np.where(view.is_read, view.elements, -1)
    some = (elements >= 0).any(1)
    return replace(view, cells=view.cells[some], elements=elements[some])


def reads_twice(views: Sequence[View]) -> bool:
    """Whether an accumulator reads a place of the views' source twice, or by weights of several.

    Sums of single integers may.
    """
    if any(_repeats(view) for view in views):
        return True
    if len(views) == 1 or all(view.weights.shape[1] == 1 for view in views):
        return False
    reads = [view.weights.any(1).reshape(-1) for view in views]
    return bool((np.sum(reads, axis=0) > 1).any())


def joined(views: Sequence[View]) -> list[View] | None:
    """Return views of one source that have the same inputs in the same order, each once.

    Positions whose inputs coincide otherwise than those of the one that reads most are left without
    inputs. ``None`` if there is too much to look at.
    """
    widths = [view.cells.shape[1] * view.pixels.shape[1] for view in views]
    count = max(len(views[0].cells), views[0].elements.shape[1])
    if sum(widths) * count > _MOST:
        return None
    every = np.arange(len(views[0].cells))
    places = [view.pixels[view.cells].reshape(len(every), -1) for view in views]
    wide = np.concatenate(places, axis=1)
    ordered = np.sort(wide, axis=1)
    distinct = ((np.diff(ordered, axis=1) != 0) & (ordered[:, 1:] > 0)).sum(1)
    distinct += ordered[:, 0] > 0
    shown = np.all([(view.elements >= 0).any(1) for view in views], axis=0)
    typical = int(np.argmax(np.where(shown, distinct, -1)))
    found, first, slot = np.unique(wide[typical], return_index=True, return_inverse=True)
    slot = slot.reshape(-1) - (found[0] == 0)  # -1 is padding
    cells = wide[:, first[found > 0]]
    same = np.where(slot >= 0, cells[:, np.maximum(slot, 0)], 0) == wide
    fits = same.all(1) & (distinct == cells.shape[1])
    cells = cells * fits[:, np.newaxis]
    size = max(int(wide.max()) + 1, 1)
    pixels = np.arange(size, dtype=np.int64)[:, np.newaxis]
    result, start = [], 0
    for view, part in zip(views, places, strict=True):
        of_view = slot[start : start + part.shape[1]]
        start += part.shape[1]
        weights = np.zeros((cells.shape[1], view.elements.shape[1]), np.int64)
        dense = view.dense.reshape(part.shape[1], -1)
        np.add.at(weights, of_view[of_view >= 0], dense[of_view >= 0])
        result.append(replace(view, cells=cells, pixels=pixels, weights=weights[np.newaxis]))
    return result


def _repeats(view: View) -> bool:
    """Whether some position has a pixel twice."""
    ordered = np.sort(view.cells, axis=1)
    return bool(((np.diff(ordered, axis=1) == 0) & (ordered[:, 1:] > 0)).any())
