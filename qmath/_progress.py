"""Progress: what long work says of itself to whoever asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

__all__ = ["Pace", "Progress", "with_progress"]

T = TypeVar("T")

# Called with how much is done, and of how much; 0 where that is not known.
Progress = Callable[[int, int], object]


def with_progress(items: Collection[T], progress: Progress | None) -> Iterator[T]:
    """Yield the items, and tell `progress` after the work on each.

    Examples
    --------
    >>> for name in with_progress(["a", "b"], lambda done, total: print(f"{done} of {total}")):
    ...     print(name)
    a
    1 of 2
    b
    2 of 2
    """
    for done, item in enumerate(items, 1):
        yield item
        if progress is not None:
            progress(done, len(items))


class Pace:
    """How fast work goes, and how long it still takes, counted from the first words.

    What is done then may have been done before, by a run that is resumed.

    Parameters
    ----------
    clock : callable
        Returns seconds.

    Examples
    --------
    >>> seconds = iter([0.0, 2.0])
    >>> pace = Pace(lambda: next(seconds))
    >>> pace.words(1000, 2000), pace.words(1500, 2000)
    ('', '250/s, 2 s left')
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def words(self, done: int, total: int) -> str:
        """Return the mean rate so far, and the time left if the total is known."""
        now = self._clock()
        if self._first is None or done < self._first[0]:  # which a second pass begins with
            self._first = done, now
        before, start = self._first
        if done <= before or now <= start:
            return ""
        rate = (done - before) / (now - start)
        number = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
        if total <= done:
            return number
        left = round((total - done) / rate)
        if left < 60:
            return f"{number}, {left} s left"
        minutes, seconds = divmod(left, 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return f"{number}, {clock} left"
