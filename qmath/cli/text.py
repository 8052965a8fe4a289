"""Text for the terminal: safe whatever names a file holds, and not cut when it is piped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qmath._progress import Pace, Progress

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["QUIET", "advancing", "console", "count", "is_quiet", "printable", "show"]

QUIET = "qmath.quiet"  # key of the flag in the meta of click's context
_PIPED_WIDTH = 10_000  # a program that reads gets nothing wrapped or cut


def console() -> Console:
    """Return a console for standard output that takes text literally."""
    from rich.console import Console

    found = Console(markup=False, emoji=False, highlight=False)
    if found.is_terminal:
        return found
    return Console(markup=False, emoji=False, highlight=False, width=_PIPED_WIDTH)


def show(text: str, indent: str = "") -> None:
    """Print text with names from a file; on a terminal, what is to be pasted on lines of its own.

    Prose is wrapped there, and a paste is not: it would arrive in pieces.
    """
    from qmath.readers.notes import parts

    if not sys.stdout.isatty():
        print(f"{indent}{printable(text)}")
        return
    from rich.padding import Padding

    out = console()
    for i, part in enumerate(parts(printable(text))):
        if i % 2:
            out.print(f"{indent}    {part}", soft_wrap=True)
        elif part.strip():
            out.print(Padding(part.strip(), (0, 0, 0, len(indent))))


@contextmanager
def advancing(before: str, during: str, after: str = "") -> Iterator[Progress]:
    """Yield a function to call with the number done and the total; a terminal shows a bar.

    Its words are `before` until the total is known, then `during`, and `after` at the end.
    """
    if sys.stderr is None or not sys.stderr.isatty() or is_quiet():
        yield lambda _done, _total: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn())
    console = Console(stderr=True, markup=False)
    with bars.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(before, total=None)
        pace = Pace()

        def show(done: int, total: int) -> None:
            words = after if after and done == total else f"{during} {pace.words(done, total)}"
            bar.update(task, description=words, completed=done, total=total)

        yield show


def is_quiet() -> bool:
    """Whether the user wants to read errors alone."""
    import click

    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


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
