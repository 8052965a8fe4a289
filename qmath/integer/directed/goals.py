"""The accumulators that are worth reaching, by purpose, or why there are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qmath.integer.directed.residues import least_residues

__all__ = ["Goals", "Line", "goals_of"]


@dataclass(frozen=True)
class Line:
    """One side's ``(a * multiplier + addend) >> shift`` of an accumulator `a`."""

    multiplier: int
    addend: int
    shift: int

    def first(self, result: int) -> int | None:
        """Return the least accumulator that gives `result` or more, of a rising line."""
        if self.multiplier <= 0:
            return None
        return -((self.addend - (result << self.shift)) // self.multiplier)

    def result(self, a: int) -> int:
        """Return what an accumulator gives."""
        return (a * self.multiplier + self.addend) >> self.shift


@dataclass
class Goals:
    """What a channel's accumulator should be.

    Attributes
    ----------
    wanted : dict of str to list of list of int
        By purpose, what is to be reached: of each list one accumulator, the first is the best.
    unreachable : dict of str to str
        By purpose, why there are none.
    below, above : float
        How near to a tie accumulators come, in steps, or ``2**-12``.
    """

    wanted: dict[str, list[list[int]]] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)
    below: float = 1.0
    above: float = 1.0


def goals_of(
    lines: Sequence[Line], clamps: tuple[int, int], ends: tuple[int, int], spacing: int
) -> Goals:
    """Return the goals of a channel.

    Parameters
    ----------
    lines : sequence of Line
        Rising; of a leaky ReLU the second one is for negative results.
    clamps : tuple of int
        Lowest and highest result.
    ends : tuple of int
        Least and greatest accumulator.
    spacing : int
        Accumulators are multiples of it.
    """
    return _Channel(lines, clamps, ends, max(spacing, 1)).goals


class _Channel:
    """Goals of one channel under construction."""

    def __init__(
        self, lines: Sequence[Line], clamps: tuple[int, int], ends: tuple[int, int], spacing: int
    ) -> None:
        self.lines, self.low, self.high = lines, *clamps
        self.least, self.most = ends
        self.spacing = spacing
        self.goals = Goals()
        self._clamps()
        self._ties()

    def _result(self, a: int) -> int:
        positive, *negative = self.lines
        if negative and a * positive.multiplier + positive.addend < 1 << (positive.shift - 1):
            return negative[0].result(a)
        return positive.result(a)

    def _first(self, result: int) -> int | None:
        """Return the least accumulator that gives `result` or more."""
        positive, *negative = self.lines
        first = positive.first(result)
        if not negative or first is None:
            return first
        turn = self._first_positive()
        if result > 0:
            return max(first, turn)
        below = negative[0].first(result)
        return turn if below is None else min(below, turn)

    def _clamps(self) -> None:
        """Find what hits, and what just passes, both clamps."""
        for purpose, result, is_top in (
            ("upper clamp", self.high, True),
            ("past the upper clamp", self.high + 1, False),
            ("lower clamp", self.low, False),
            ("past the lower clamp", self.low - 1, True),
        ):
            first, after = self._first(result), self._first(result + 1)
            if first is None or after is None:
                self.goals.unreachable[purpose] = "its multiplier is 0"
                continue
            bottom = -(-max(first, self.least) // self.spacing) * self.spacing
            top = min(after - 1, self.most) // self.spacing * self.spacing
            if bottom <= top:
                near = (
                    range(top, bottom - 1, -self.spacing)
                    if is_top
                    else range(bottom, top + 1, self.spacing)
                )
                self.goals.wanted[purpose] = [[*near[:2], near[len(near) // 2]]]
                continue
            reached = self._result(self.least), self._result(self.most)
            if reached[0] <= result <= reached[1]:
                self.goals.unreachable[purpose] = "no accumulator gives this integer"
            else:
                self.goals.unreachable[purpose] = "the least and greatest accumulator stay within"

    def _ties(self) -> None:
        """Find what comes nearest to ties, among results that no clamp hides."""
        wanted = self.goals.wanted
        exact = False
        for line, low, high in self._visible(self.low + 1, self.high):
            found = self._nearest(line, low, high, 1)
            if found:
                wanted.setdefault("above a tie", []).append(found)
                rest = self._rest(line, found[0])
                self.goals.above = min(self.goals.above, rest / (1 << line.shift))
                if not rest:
                    exact = True
                    self._add_exact(line, low, high)
        for line, low, high in self._visible(self.low, self.high - 1):
            found = self._nearest(line, low, high, -1)
            if found:
                wanted.setdefault("below a tie", []).append(found)
                rest = self._rest(line, found[0])
                self.goals.below = min(self.goals.below, 1 - rest / (1 << line.shift))
        for purpose in ("above a tie", "below a tie"):
            if purpose not in wanted:
                self.goals.unreachable[purpose] = "no result lies between the clamps"
        for purpose in ("half to even", "half away from zero"):
            if not exact:
                self.goals.unreachable[purpose] = "no accumulator lies on a tie"

    def _visible(self, least: int, most: int) -> Iterator[tuple[Line, int, int]]:
        """Yield the lower and the upper part of the accumulators with these results."""
        first, after = self._first(least), self._first(most + 1)
        if first is None or after is None:
            return
        low, high = max(first, self.least), min(after - 1, self.most)
        positive, *negative = self.lines
        if negative:
            turn = self._first_positive()
            yield negative[0], low, min(turn - 1, high)
            yield positive, max(turn, low), high
        else:
            middle = (low + high) // 2
            yield positive, low, middle
            yield positive, middle + 1, high

    def _first_positive(self) -> int:
        """Return the least accumulator that the positive side counts for."""
        positive = self.lines[0]
        return -((positive.addend - (1 << (positive.shift - 1))) // positive.multiplier)

    def _rest(self, line: Line, a: int) -> int:
        """Return how far above a tie an accumulator's result lies, in ``2**-shift``."""
        return (a * line.multiplier + line.addend) % (1 << line.shift)

    def _nearest(
        self, line: Line, low: int, high: int, sign: int, offset: int = 0, bits: int = 0
    ) -> list[int]:
        """Return the accumulators that come nearest to a tie from above, or below (sign -1).

        With `offset` and `bits`, to one in that many bits more that is `offset` above a multiple.
        """
        start, stop = -(-low // self.spacing), high // self.spacing
        if start > stop or line.multiplier <= 0:
            return []
        step = sign * line.multiplier * self.spacing
        base = sign * (line.multiplier * start * self.spacing + line.addend - offset)
        modulus = 1 << line.shift + bits
        found = least_residues(step, base - (sign < 0), modulus, stop - start)
        return [(start + x) * self.spacing for x in found]

    def _add_exact(self, line: Line, low: int, high: int) -> None:
        """Add accumulators on ties, of which there are some, that others would round otherwise."""
        wanted = self.goals.wanted
        odd = self._nearest(line, low, high, 1, 1 << line.shift, 1)[0]
        if not self._rest(line, odd) and line.result(odd) % 2:
            wanted.setdefault("half to even", []).append([odd])
        below = min(high, (self._first(1) or 0) - 1)  # the last that gives 0 or less
        away = self._nearest(line, low, below, 1)
        if away and not self._rest(line, away[0]):
            wanted.setdefault("half away from zero", []).append(away[:1])
