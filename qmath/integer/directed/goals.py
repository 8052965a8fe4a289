"""The accumulators that are worth reaching, by purpose, or why there are none."""

from __future__ import annotations

from collections.abc import Sequence
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
        half = (1 << (positive.shift - 1)) - positive.addend
        turn = -(-half // positive.multiplier)  # the first of the positive side
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
        first, after = self._first(self.low + 1), self._first(self.high)
        if first is None or after is None:
            first, after = 0, 0
        low, high = max(first, self.least), min(after - 1, self.most)
        if low > high:
            for purpose in ("below a tie", "above a tie", "half to even", "half away from zero"):
                self.goals.unreachable[purpose] = "no result lies between the clamps"
            return
        positive, *negative = self.lines
        middle = (low + high) // 2
        parts = [(positive, low, middle), (positive, middle + 1, high)]
        turn = self._first(1)
        if negative and turn is not None:
            parts = [(negative[0], low, min(turn, high)), (positive, max(turn, low), high)]
        exact = False
        for line, start, stop in parts:
            exact |= self._near(line, start, stop)
        if not exact:
            for purpose in ("half to even", "half away from zero"):
                self.goals.unreachable[purpose] = "no accumulator lies on a tie"

    def _near(self, line: Line, low: int, high: int) -> bool:
        """Add the nearest to ties of a side; return whether one lies on a tie."""
        start, stop = -(-low // self.spacing), high // self.spacing
        if start > stop or line.multiplier <= 0:
            return False
        step, base = line.multiplier * self.spacing, line.multiplier * start * self.spacing
        base += line.addend
        modulus = 1 << line.shift

        def reach(a: int, b: int, modulus: int = modulus) -> list[int]:
            found = least_residues(a, b, modulus, stop - start)
            return [(start + x) * self.spacing for x in found]

        above = reach(step, base)
        below = reach(-step, -base - 1)
        wanted = self.goals.wanted
        wanted.setdefault("above a tie", []).append(above)
        wanted.setdefault("below a tie", []).append(below)
        rest = [(a * line.multiplier + line.addend) % modulus for a in (above[0], below[0])]
        self.goals.above = min(self.goals.above, rest[0] / modulus)
        self.goals.below = min(self.goals.below, 1 - rest[1] / modulus)
        is_exact = not rest[0]
        if is_exact:
            odd = reach(step, base - modulus, 2 * modulus)[0]
            if (odd * line.multiplier + line.addend - modulus) % (2 * modulus) == 0:
                wanted.setdefault("half to even", []).append([odd])
            if line.result(above[0]) <= 0:
                wanted.setdefault("half away from zero", []).append(above[:1])
        return is_exact
