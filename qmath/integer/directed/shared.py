"""Patches of sums that share inputs, so that their accumulators cannot be chosen one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmath.integer.directed.mistakes import NEAR, Rounding
from qmath.integer.directed.solving import solve
from qmath.integer.directed.views import View
from qmath.integer.directed.weighted import Goal, Limits, Patches, weights_at

__all__ = ["SharedPatches"]

Int64Array = NDArray[np.int64]
Patch = list[Int64Array]  # by source
_MOST, _ALL = 1 << 12, 1 << 18  # changes of half a patch: of a channel, and of all
_CHANGED = 4  # inputs of a half
_NEAREST = 2


@dataclass(frozen=True)
class _Total:
    """What one side of a channel shifts: its addend and what each input adds."""

    weights: Patch
    addend: int
    shift: int

    def of(self, patch: Patch) -> int:
        """Return the total of a patch."""
        return self.addend + sum(int(w @ x) for w, x in zip(self.weights, patch, strict=True))


class SharedPatches(Patches):
    """Patches of sums of which some read the same inputs.

    What an input adds to a channel's total follows from all its weights and their multipliers:
    inputs for a clamp are found by that. Near ties, all pairs of changes of two halves are tried.

    Parameters
    ----------
    views : sequence of View
        Those of one source read the same inputs in the same order.
    sources : sequence of str
        Of each view.
    position, rounding, limits, rng
        As of `WeightedPatches`.
    """

    def __init__(
        self,
        views: Sequence[View],
        sources: Sequence[str],
        position: int,
        rounding: Rounding,
        limits: Sequence[Limits],
        rng: np.random.RandomState,
    ) -> None:
        self.weights = [weights_at(view, position)[0] for view in views]
        count = len(self.weights[0])
        super().__init__(np.zeros(count, bool))
        self.rounding, self.rng = rounding, rng
        names = list(dict.fromkeys(sources))
        self.source = [names.index(name) for name in sources]  # of each term
        self.limits = [limits[sources.index(name)] for name in names]
        self.changes = max(_MOST >> 4, min(_MOST, _ALL // max(count, 1)))
        self.rows: list[Patch] = []  # by channel, all patches
        for channel in range(count):
            self._add(channel)

    def inputs(self, goals: Sequence[Goal]) -> list[Int64Array]:
        """Return for each term the inputs ``(goals, K)`` of the goals' next candidates."""
        return [
            np.stack([self.rows[goal.channel][i][goal.candidates[goal.tried]] for goal in goals])
            for i in self.source
        ]

    def _add(self, channel: int) -> None:
        """Add the goals of a channel, and inputs for them."""
        rows = [np.stack(parts) for parts in zip(*self._patches(channel), strict=True)]
        self.rows.append(rows)
        sums = [rows[i] @ w[channel] for i, w in zip(self.source, self.weights, strict=True)]
        self.widths[channel] = max(int(np.abs(a).max()) for a in sums)
        rounding = self.rounding.of_channels([channel], (len(self.weights[0]),))
        masks, goals = rounding.masks(sums), self.goals[channel]
        below, above = rounding.distances(sums)
        self.below[channel], self.above[channel] = min(below.min(), 1.0), min(above.min(), 1.0)
        several = {"narrow accumulator": np.flatnonzero(masks["narrow accumulator"])}
        for purpose, distance in (("below a tie", below), ("above a tie", above)):
            near = np.isfinite(distance) & (distance <= max(distance.min(), NEAR))
            masks[purpose] = near
            several[purpose] = np.argsort(distance, kind="stable")[: np.count_nonzero(near)]
        for purpose, mask in masks.items():
            found = several.get(purpose, np.flatnonzero(mask)[:1])[: 2 * len(sums) + 2].tolist()
            is_any = purpose not in several
            goals += [Goal(purpose, channel, [row], takes_any=is_any) for row in found]

    def _patches(self, channel: int) -> list[Patch]:
        """Return patches at the ends of accumulators, at clamps, and near ties."""
        weights = [w[channel] for w in self.weights]
        totals = []
        for side in self.rounding.sides:
            added = [np.zeros(len(weights[self.source.index(i)]), np.int64)
                     for i in range(len(self.limits))]  # fmt: skip
            for i, w, m in zip(self.source, weights, side.multipliers, strict=True):
                added[i] += w * int(m[channel])
            totals.append(_Total(added, int(side.addend[channel]), int(side.shift[channel])))
        found = [self._extreme(totals[0].weights, sign) for sign in (1, -1)]
        for i, w in zip(self.source, weights, strict=True):
            alone = [w if i == n else 0 * x for n, x in enumerate(totals[0].weights)]
            found += [self._extreme(alone, sign) for sign in (1, -1)]
        low, high = int(self.rounding.low[channel]), int(self.rounding.high[channel])
        found += self._with_results(totals, [low - 1, low, high, high + 1])
        reached = [t.of(p) >> t.shift for t, p in zip((totals[0], totals[-1]), found, strict=False)]
        most, least = min(reached[0], high), max(reached[1], low)
        near = [least + (most - least) * i // 4 for i in (1, 3)]
        for patch in self._with_results(totals, near):
            for total in totals:
                found += self._near_ties(total, patch, most - least)
        return found

    def _extreme(self, weights: Patch, sign: int) -> Patch:
        """Return inputs that make a sum greatest, or least; noise where it reads none."""
        return [
            np.where(w == 0, self.rng.randint(low, high + 1, len(w), np.int64),
                     np.where(sign * w > 0, high, low))
            for w, (low, high) in zip(weights, self.limits, strict=True)
        ]  # fmt: skip

    def _main(self, total: _Total) -> int:
        """Return the source whose inputs move a total farthest."""
        spans = [
            float(np.abs(w).sum()) * (high - low)
            for w, (low, high) in zip(total.weights, self.limits, strict=True)
        ]
        return int(np.argmax(spans))

    def _with_results(self, totals: Sequence[_Total], results: Sequence[int]) -> list[Patch]:
        """Return patches whose totals lie in the middle of what gives the results, if there are."""
        found = []
        for result in results:
            total = totals[-1] if result <= 0 else totals[0]
            main = self._main(total)
            patch = self._extreme([0 * w for w in total.weights], 1)
            patch[main][:] = 0
            weights, (low, high) = total.weights[main], self.limits[main]
            wanted = (2 * result + 1 << total.shift - 1) - total.of(patch)
            ends = (
                np.minimum(weights * low, weights * high),
                np.maximum(weights * low, weights * high),
            )
            if int(ends[0].sum()) <= wanted <= int(ends[1].sum()):
                solved, _ = solve(weights[np.newaxis], np.array([wanted]), (low, high), self.rng)
                patch[main] = solved[0]
                found.append(patch)
        return found

    def _near_ties(self, total: _Total, patch: Patch, width: int) -> Iterator[Patch]:
        """Yield the patches nearest to a tie, above it and below, of all changes of two halves."""
        main = self._main(total)
        (low, high), weights = self.limits[main], total.weights[main]
        some = np.flatnonzero(weights)
        some = some[self.rng.permutation(len(some))[: 2 * _CHANGED]]
        if len(some) < 2:
            return
        # So far that totals leave a quarter of the results seldom.
        far = np.ldexp(float(width) / (32 * _CHANGED), total.shift) / np.abs(weights[some])
        reach = np.clip(far, 1, high - low).astype(np.int64)
        draws = [self.rng.randint(-r, r + 1, self.changes, np.int64) for r in reach.tolist()]
        x = patch[main][some, np.newaxis]
        changes = np.clip(x + np.stack(draws), low, high) - x
        moved, half = weights[some, np.newaxis] * changes, len(some) // 2
        modulus = np.int64(1) << total.shift
        ours = (moved[:half].sum(0) + total.of(patch)) % modulus
        theirs = moved[half:].sum(0) % modulus
        order = np.argsort(theirs, kind="stable")
        at = np.searchsorted(theirs[order], (modulus - ours) % modulus)
        for partner, sign in ((at % len(order), 1), (at - 1, -1)):
            rest = (ours + theirs[order[partner]]) % modulus
            for best in np.argsort(sign * rest, kind="stable")[:_NEAREST].tolist():
                made = [part.copy() for part in patch]
                made[main][some[:half]] += changes[:half, best]
                made[main][some[half:]] += changes[half:, order[partner[best]]]
                yield made
