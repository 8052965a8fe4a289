"""Tables of named rows, which no width of a terminal cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["NUMBER", "Column", "numbers", "tables"]

_GAP = 2  # between columns


class Column(NamedTuple):
    """A column's nature.

    Attributes
    ----------
    is_number : bool
        Whether its cells end below each other.
    most : int or None
        The most of its width that it needs, where its words can go on several lines.
    """

    is_number: bool = False
    most: int | None = None


NUMBER = Column(is_number=True)


def numbers(*titles: str) -> dict[str, Column]:
    """Return columns of numbers."""
    return dict.fromkeys(titles, NUMBER)


def tables(
    rows: Sequence[Mapping[str, str]],
    columns: Mapping[str, Column],
    out: Console,
    first: str = "tensor",
) -> list[Table]:
    """Return one table, or several below each other where a terminal is too narrow for it.

    Each begins with the names, so that its rows can be read alone. Columns go into the first table
    that has room, in the order of their importance.

    Parameters
    ----------
    rows : sequence of mapping of str to str
        The cells by the titles of their columns.
    columns : mapping of str to Column
        By title.
    out : Console
        Where the tables go.
    first : str
        The title of the names, which are a column of their own.
    """
    from rich.cells import cell_len

    texts = {title: [title, *(row[title] for row in rows)] for title in (first, *columns)}
    natural = {title: max(map(cell_len, column)) for title, column in texts.items()}
    # Names are broken only where they would fill more than half the line.
    name = min(natural.pop(first), out.width // 2)
    line = out.width - name
    parts: list[dict[str, int]] = [{}]
    for title, width in natural.items():
        words = max(cell_len(word) for text in texts[title] for word in text.split(" "))
        least = min(width, max(words, columns[title].most or width), line - _GAP)
        if _filled(parts[-1]) + _GAP + least > line:
            parts.append({})
        parts[-1][title] = least
    for widths in parts:
        for title in widths:  # what is left serves the columns that were made narrow
            room = line - _filled(widths)
            widths[title] += min(room, natural[title] - widths[title])
    return [_table(rows, columns, {first: name, **widths}) for widths in parts]


def _filled(widths: dict[str, int]) -> int:
    return sum(_GAP + width for width in widths.values())


def _table(
    rows: Sequence[Mapping[str, str]], columns: Mapping[str, Column], widths: dict[str, int]
) -> Table:
    """Return a table of columns that are so wide, whose longer texts are broken."""
    from rich.table import Table

    # The gaps are columns: which column's width they count to depends on the version of rich.
    table = Table(box=None, padding=0, header_style="bold")
    for i, (title, width) in enumerate(widths.items()):
        if i:
            table.add_column(width=_GAP)
        is_number = title in columns and columns[title].is_number
        justify: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(title, justify=justify, overflow="fold", width=width)
    for row in rows:
        first, *others = (row[title] for title in widths)
        table.add_row(first, *(cell for text in others for cell in ("", text)))
    return table
