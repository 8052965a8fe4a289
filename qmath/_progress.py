"""Progress: what long work says of itself to whoever asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

__all__ = ["Progress", "with_progress"]

T = TypeVar("T")

# Called with how much is done, and of how much.
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
