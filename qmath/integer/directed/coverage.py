"""Which channels reach which purpose, by which elements, and which never do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.directed.cases import PURPOSES, Tags, channels_text
from qmath.integer.directed.mistakes import DROPPED, Rounding
from qmath.integer.directed.views import View
from qmath.integer.program import Shape

__all__ = ["Coverage", "few"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]
_MOST_TAGS = 256  # of one purpose
_FEW = 4  # channels that show a border, or a constant input
_BORDER_BYTES = 1 << 10
_SEARCHED = PURPOSES[: PURPOSES.index("constant input")]


class Coverage:
    """What the inputs of a step have reached so far.

    Parameters
    ----------
    rounding : Rounding
    channel : ndarray of int64
        The channel of each flat element of an output.
    shape : tuple of int
        Of an output.

    Attributes
    ----------
    tags : Tags
    """

    def __init__(self, rounding: Rounding, channel: Int64Array, shape: Shape) -> None:
        self.rounding, self.channel, self.shape = rounding, channel, shape
        self.tags = Tags()
        self._reached = np.zeros((len(PURPOSES), int(channel.max(initial=0)) + 1), bool)

    @property
    def most_bytes(self) -> int:
        """How many bytes the tags can take."""
        rows = len(_SEARCHED) * min(self._reached.shape[1], _MOST_TAGS)
        return 8 * rows + _BORDER_BYTES

    def is_reached(self, purpose: str, channel: int) -> bool:
        """Whether a channel reaches a purpose."""
        return bool(self._reached[PURPOSES.index(purpose), channel])

    def note(self, masks: Mapping[str, NDArray[np.bool_]], offset: int) -> None:
        """Tag the first element of each channel that serves a purpose not served before.

        `offset` is the flat index of the masks' first element.
        """
        for purpose, mask in masks.items():
            reached = self._reached[PURPOSES.index(purpose)]
            new = mask.reshape(-1, len(self.channel)) & ~reached[self.channel]
            index = np.flatnonzero(new)
            channels, first = np.unique(
                self.channel[index % max(len(self.channel), 1)], return_index=True
            )
            room = max(_MOST_TAGS - int(reached.sum()), 0)
            reached[channels] = True
            self.tags.add(purpose, (index[first] + offset)[:room])

    def note_borders(self, views: Sequence[View], expected: Array, zero_point: int) -> None:
        """Tag, for every way in which windows reach over the border, elements that show it."""
        flat = expected.reshape(-1).astype(np.int64) - zero_point
        low, high = (
            np.broadcast_to(limit, self.shape).reshape(-1)
            for limit in (self.rounding.low, self.rounding.high)
        )
        shows = (flat > low) & (flat < high)
        for view in views:
            is_padding = view.pixels[view.cells].max(-1) == 0
            patterns, kind = np.unique(is_padding, axis=0, return_inverse=True)
            some = np.flatnonzero(patterns.any(1) & ~patterns.all(1))
            for number in some[: _BORDER_BYTES // (8 * _FEW)]:
                elements = view.elements[kind.reshape(-1) == number]
                elements = elements[elements >= 0]
                self.tags.add("border", few(elements[shows[elements]]))

    def left(
        self, unreachable: Mapping[str, Mapping[str, Sequence[int]]]
    ) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """Return which channels do not reach a purpose: by reason where there is one, else as such.

        `unreachable` holds channels by purpose and reason, whether they were reached or not.
        """
        reasons: dict[str, dict[str, Sequence[int]]] = {
            purpose: dict(unreachable.get(purpose, {})) for purpose in _SEARCHED
        }
        self._add_narrow(reasons)
        proved: dict[str, dict[str, str]] = {}
        missed = {}
        for purpose, reached in zip(_SEARCHED, self._reached, strict=False):
            left = ~reached
            for reason, channels in reasons[purpose].items():
                these = [channel for channel in sorted(channels) if left[channel]]
                if these:
                    proved.setdefault(purpose, {})[reason] = channels_text(these)
                    left[these] = False
            if left.any():
                missed[purpose] = channels_text(np.flatnonzero(left).tolist())
        return proved, missed

    def _add_narrow(self, reasons: Mapping[str, dict[str, Sequence[int]]]) -> None:
        """Add what narrower multipliers and accumulators cannot change."""
        rounding = self.rounding.of_channels(slice(None), self.shape)
        for width in (16, 12):
            dropped = max(self.rounding.multiplier_bits - width, 0)
            lost = [m & ((1 << dropped) - 1) for s in rounding.sides for m in s.multipliers]
            is_same = np.all([bits == 0 for bits in lost], axis=0)
            reasons[f"{width}-bit multiplier"]["its multipliers have no more bits"] = self._all(
                is_same
            )
        fits = np.ones(len(self.channel), bool)
        for (low, high), bits in zip(rounding.ends, rounding.bits, strict=True):
            end = 1 << max(bits - DROPPED - 1, 0)
            fits &= (low >= -end) & (high < end)
        reason = "its accumulators need fewer bits than another channel's"
        reasons["narrow accumulator"][reason] = self._all(fits)

    def _all(self, is_so: NDArray[np.bool_]) -> list[int]:
        """Return the channels of which all elements are so."""
        others = np.bincount(self.channel, ~is_so, self._reached.shape[1])
        return [int(channel) for channel in np.flatnonzero(others == 0)]


def few(elements: Int64Array) -> Int64Array:
    """Return a few elements, evenly spaced."""
    return elements[:: max(1, len(elements) // _FEW)][:_FEW]
