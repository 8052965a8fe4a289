"""Patches for the channels of a weighted sum: inputs that make accumulators what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmath.integer.directed.goals import Goals, Line, goals_of
from qmath.integer.directed.mistakes import DROPPED, Rounding
from qmath.integer.directed.residues import least_roots
from qmath.integer.directed.solving import solve
from qmath.integer.directed.views import View

__all__ = ["GREATEST", "LEAST", "Goal", "Limits", "Patches", "WeightedPatches", "weights_at"]

Int64Array = NDArray[np.int64]
Limits = tuple[int, int]
SEEN_NEAR_TIES = ("double rounding", "16-bit multiplier", "12-bit multiplier")
_FEW = 1 << 12
_DRAWN = 1 << 14  # combinations of the other terms
GREATEST, LEAST = "greatest accumulator", "least accumulator"


@dataclass
class Goal:
    """What a patch is for.

    Attributes
    ----------
    purpose : str
    channel : int
    candidates : list
        What makes it, in the words of the `Patches`; each is tried once.
    tried : int
        How many were.
    takes_any : bool
        Whether any other element that serves the purpose will do.
    """

    purpose: str
    channel: int
    candidates: list[int]
    tried: int = 0
    takes_any: bool = True


class Patches:
    """Goals of a step's channels, and inputs for them.

    Parameters
    ----------
    is_typical : ndarray of bool
        By channel, whether what is found for one position holds for all.

    Attributes
    ----------
    goals : list of list of Goal
        By channel.
    unreachable : dict of str to dict of str to list of int
        By purpose and reason, the channels.
    below, above : ndarray of float64
        By channel, as of `Rounding`.
    widths : ndarray of int64
        By channel, how large accumulators get.
    """

    def __init__(self, is_typical: NDArray[np.bool_]) -> None:
        channels = len(is_typical)
        self.is_typical = is_typical
        self.goals: list[list[Goal]] = [[] for _ in range(channels)]
        self.unreachable: dict[str, dict[str, list[int]]] = {}
        self.below, self.above = np.ones(channels), np.ones(channels)
        self.widths = np.zeros(channels, np.int64)

    def inputs(self, goals: Sequence[Goal]) -> list[Int64Array]:
        """Return for each term the inputs ``(goals, K)`` of the goals' next candidates."""
        raise NotImplementedError

    def exclude(self, purpose: str, reason: str, channels: Sequence[int]) -> None:
        """Note that channels cannot reach a purpose, those of which that is a proof."""
        proved = [channel for channel in channels if self.is_typical[channel]]
        if proved:
            self.unreachable.setdefault(purpose, {}).setdefault(reason, []).extend(proved)


class WeightedPatches(Patches):
    """Patches of sums of which at least one has weights.

    Parameters
    ----------
    views : sequence of View
    position : int
        The position whose patches stand for all.
    rounding : Rounding
        Of the channels.
    limits : sequence of (int, int)
        Lowest and highest integer of each term's source, relative to its zero point.
    rng : RandomState
    is_uniform : bool
        Whether all positions have the same constants.
    """

    def __init__(
        self,
        views: Sequence[View],
        position: int,
        rounding: Rounding,
        limits: Sequence[Limits],
        rng: np.random.RandomState,
        is_uniform: bool,
    ) -> None:
        pairs = [weights_at(view, position) for view in views]
        self.weights = [weights for weights, _ in pairs]
        self.is_full = np.all([full for _, full in pairs], axis=0)
        is_alone = np.sum([weights.any(1) for weights in self.weights], axis=0) <= 1
        super().__init__(is_alone & is_uniform & self.is_full)
        self.limits, self.rng, self.rounding = limits, rng, rounding
        spans = [
            np.abs(m).astype(np.float64) * np.abs(w).sum(1) * (high - low)
            for m, w, (low, high) in zip(
                rounding.sides[0].multipliers, self.weights, limits, strict=True
            )
        ]
        self.term = np.argmax(spans, axis=0)  # of each channel, the one that is solved
        self.others = [
            rng.randint(low, high + 1, w.shape, np.int64)
            for w, (low, high) in zip(self.weights, limits, strict=True)
        ]
        self._put_others_on_ties()
        self._add_goals()

    def inputs(self, goals: Sequence[Goal]) -> list[Int64Array]:
        """Return for each term the inputs ``(goals, K)`` of the goals' next candidates."""
        channels = np.array([goal.channel for goal in goals], np.int64)
        found = [x[channels] for x in self.others]
        targets = np.array([goal.candidates[goal.tried] for goal in goals], np.int64)
        unrest = 0.2 if goals[0].tried else 0.5
        for i, limits in enumerate(self.limits):
            rows = self.term[channels] == i
            weights = self.weights[i][channels[rows]]
            found[i][rows] = solve(weights, targets[rows], limits, self.rng, unrest)[0]
        for purpose, is_top in ((GREATEST, True), (LEAST, False)):
            rows = np.array([goal.purpose == purpose for goal in goals], bool)
            for i, (low, high) in enumerate(self.limits):
                w = self.weights[i][channels[rows]]
                ends = np.where((w > 0) == is_top, high, low)
                found[i][rows] = np.where(w == 0, found[i][rows], ends)
        return found

    def _solved(self, parts: Sequence[Int64Array]) -> Int64Array:
        """Return of each channel the number that belongs to the term that is solved."""
        return np.asarray(np.stack(parts)[self.term, np.arange(len(self.term))])

    def _put_others_on_ties(self) -> None:
        """Choose single integers beside a weighted term so that some sum lies on a tie."""
        singles = [i for i, w in enumerate(self.weights) if w.shape[1] == 1]
        if not singles or len(singles) != len(self.weights) - 1:
            return
        (main,) = {*range(len(self.weights))} - {*singles}
        drawn = {i: self.rng.randint(self.limits[i][0], self.limits[i][1] + 1, _DRAWN, np.int64)
                 for i in singles}  # fmt: skip
        low, high = self.limits[main]
        side = self.rounding.sides[0]
        for channel in np.flatnonzero(self.term == main).tolist():
            w, shift = self.weights[main][channel], int(side.shift[channel])
            rest = np.full(_DRAWN, side.addend[channel], np.int64)
            for i in singles:
                rest += drawn[i] * int(self.weights[i][channel, 0] * side.multipliers[i][channel])
            least = int(np.minimum(w * low, w * high).sum())
            most = int(np.maximum(w * low, w * high).sum())
            multiplier = int(side.multipliers[main][channel])
            a, is_root = least_roots(multiplier, rest, shift, least)
            y = (a * multiplier + rest) >> shift
            shows = (y > self.rounding.low[channel]) & (y <= self.rounding.high[channel])
            fits = is_root & (a <= most) & shows
            if fits.any():
                best = int(np.argmax(fits * (1 + (y % 2) + 2 * (y <= 0))))
                for i in singles:
                    self.others[i][channel, 0] = drawn[i][best]

    def _add_goals(self) -> None:
        pairs = list(zip(self.weights, self.limits, strict=True))
        tops = self._solved([np.maximum(w * a, w * b).sum(1) for w, (a, b) in pairs])
        bottoms = self._solved([np.minimum(w * a, w * b).sum(1) for w, (a, b) in pairs])
        spacings = self._solved([np.gcd.reduce(np.abs(w), axis=1) for w in self.weights])
        sums = [(w * x).sum(1) for w, x in zip(self.weights, self.others, strict=True)]
        multipliers = [self._solved(side.multipliers) for side in self.rounding.sides]
        addends = []
        for side in self.rounding.sides:
            products = [m * a for m, a in zip(side.multipliers, sums, strict=True)]
            addends.append(side.addend + np.sum(products, axis=0) - self._solved(products))
        self.widths = np.maximum(tops, -bottoms)
        self._add_ends()
        for c in range(len(self.goals)):
            sign = 1 if multipliers[0][c] >= 0 else -1
            lines = [
                Line(sign * int(m[c]), int(a[c]), int(side.shift[c]))
                for m, a, side in zip(multipliers, addends, self.rounding.sides, strict=True)
            ]
            ends = int(bottoms[c]), int(tops[c])
            ends = ends if sign > 0 else (-ends[1], -ends[0])
            clamps = int(self.rounding.low[c]), int(self.rounding.high[c])
            self._add(c, sign, goals_of(lines, clamps, ends, int(spacings[c])))
            self._add_wrapping(c, int(bottoms[c]), int(tops[c]), int(spacings[c]))
        self._exclude_far(self.widths)
        self._add_few(bottoms, tops, spacings)

    def _exclude_far(self, tops: Int64Array) -> None:
        """Note of which channels a multiplier without low bits cannot change a result."""
        for width in (16, 12):
            dropped = max(self.rounding.multiplier_bits - width, 0)
            error = np.zeros(len(tops))
            for side in self.rounding.sides:
                lost = np.abs(self._solved(side.multipliers)) & ((1 << dropped) - 1)
                error = np.maximum(error, np.ldexp(lost * tops.astype(np.float64), -side.shift))
            is_same = error < np.minimum(self.below, self.above)
            if len(self.weights) == 1:
                reason = "no accumulator lies near enough to a tie"
                self.exclude(f"{width}-bit multiplier", reason, np.flatnonzero(is_same).tolist())

    def _add(self, channel: int, sign: int, goals: Goals) -> None:
        for purpose, parts in goals.wanted.items():
            for candidates in parts:
                self.goals[channel].append(
                    Goal(
                        purpose,
                        channel,
                        [sign * a for a in candidates],
                        takes_any=not purpose.endswith("a tie"),
                    )
                )
        for purpose, reason in goals.unreachable.items():
            self.exclude(purpose, reason, [channel])
        self.below[channel], self.above[channel] = goals.below, goals.above

    def _add_wrapping(self, channel: int, low: int, high: int, spacing: int) -> None:
        """Add the accumulators that a width too narrow sends farthest away."""
        spacing = max(spacing, 1)
        for dropped in range(1, DROPPED + 1):
            end = 1 << max(self.rounding.bits[self.term[channel]] - dropped - 1, 0)
            upper, lower = -(-end // spacing) * spacing, -(end // spacing + 1) * spacing
            candidates = [a for a in (upper, lower) if low <= a <= high]
            if candidates:
                name, takes_any = "narrow accumulator", dropped == DROPPED
                self.goals[channel].append(Goal(name, channel, candidates, takes_any=takes_any))

    def _add_few(self, lows: Int64Array, highs: Int64Array, spacings: Int64Array) -> None:
        """Add what is found by looking at all accumulators, where there are few."""
        if len(self.weights) > 1:
            return
        counts = (highs - lows) // np.maximum(spacings, 1) + 1
        few = np.flatnonzero(counts <= _FEW)
        for channels in (few[i : i + 64] for i in range(0, len(few), 64)):
            steps = np.arange(counts[channels].max())[:, np.newaxis]
            a = np.minimum(lows[channels] + steps * spacings[channels], highs[channels])
            masks = self.rounding.of_channels(channels, (len(counts),)).masks([a])
            for purpose in SEEN_NEAR_TIES:
                mask = masks.get(purpose, np.zeros(a.shape, bool))
                exists, first = mask.any(0), mask.argmax(0)
                for i in np.flatnonzero(exists).tolist():
                    channel = int(channels[i])
                    self.goals[channel].append(Goal(purpose, channel, [int(a[first[i], i])]))
                self.exclude(purpose, "no accumulator does it", channels[~exists].tolist())

    def _add_ends(self) -> None:
        """Add the greatest and the least accumulators, where a patch can have them."""
        for purpose, side, better in ((GREATEST, 1, np.maximum), (LEAST, 0, np.minimum)):
            is_reached = np.ones(len(self.goals), bool)
            for w, (low, high), ends in zip(
                self.weights, self.limits, self.rounding.ends, strict=True
            ):
                is_reached &= better(w * low, w * high).sum(1) == ends[side]
            for channel in np.flatnonzero(is_reached).tolist():
                self.goals[channel].append(Goal(purpose, channel, [0]))
            missing = np.flatnonzero(~is_reached & ~self.is_full).tolist()
            if missing:  # patches are where most is read
                reason = "no position reads all of its weights"
                self.unreachable.setdefault(purpose, {})[reason] = missing


def weights_at(view: View, position: int) -> tuple[Int64Array, NDArray[np.bool_]]:
    """Return the weights of each channel, ``(C, K)``, 0 where the position reads padding.

    Also whether it reads all that a channel has.
    """
    groups, width, outputs = view.weights.shape
    every = view.weights.transpose(0, 2, 1).reshape(groups * outputs, width)
    exists = view.pixels.any(0).reshape(groups, -1).any(1)  # or it stands for zeros
    every = every * np.repeat(exists, outputs)[:, np.newaxis]
    is_read = np.repeat(view.inputs(position) > 0, outputs, axis=0)
    return every * is_read, (is_read | (every == 0)).all(1)
