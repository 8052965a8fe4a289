"""What goes to the terminal: safe whatever a file's names hold, whole when it is piped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["advancing", "console", "count", "printable", "working"]

_PIPED_WIDTH = 10_000  # nothing is wrapped or cut for a program that reads


def console() -> Console:
    """Return a console for standard output that takes text literally."""
    from rich.console import Console

    found = Console(markup=False, emoji=False, highlight=False)
    if found.is_terminal:
        return found
    return Console(markup=False, emoji=False, highlight=False, width=_PIPED_WIDTH)


def working(what: str) -> AbstractContextManager[object]:
    """Return a block during which a terminal shows that work is under way, and nothing else."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True, markup=False).status(what)


@contextmanager
def advancing(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Yield what to call with each amount of work done; a terminal shows a progress bar."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True, markup=False), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


def printable(text: str) -> str:
    r"""Return `text` on one line, with control characters as escapes.

    Examples
    --------
    >>> printable("a\x1b[31m\nb")
    'a\\x1b[31m b'
    """
    flat = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in flat)


def count(number: int, noun: str) -> str:
    """Return a number and its noun.

    Examples
    --------
    >>> count(1, "weight"), count(1234, "weight")
    ('1 weight', '1,234 weights')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
