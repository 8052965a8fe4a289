"""Which bytes of a file belong to which array, so that no few bytes make many arrays."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

__all__ = ["Extents"]


class Extents:
    """The bytes of one file that are taken, each by one owner."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._owners: set[str] = set()

    def take(self, owner: str, spans: Sequence[tuple[int, int]]) -> bool:
        """Give bytes to an owner; tell whether nobody had them.

        Parameters
        ----------
        owner : str
            Whoever has taken bytes before keeps those.
        spans : sequence of pairs of int
            The first byte of each stretch, and the one after its last.
        """
        if owner in self._owners:
            return True
        starts, ends = self._starts, self._ends
        for start, end in sorted(spans) if len(spans) > 1 else spans:
            at = bisect_right(starts, start)
            if start == end:
                continue
            if (at and ends[at - 1] > start) or (at < len(starts) and end > starts[at]):
                return False
            starts.insert(at, start)
            ends.insert(at, end)
        self._owners.add(owner)
        return True
