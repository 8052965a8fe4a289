"""Text for people: what is printed to be pasted, and how objects show themselves in notebooks.

Names come from files, and no quoting serves sh, bash, zsh, ksh, csh, fish, PowerShell and cmd at
once. So nothing to be pasted is escaped: a text is plain, or is not offered. A browser has one
way of escaping, and everything that it shows is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["OPTIONS", "as_glob", "html_table", "html_text", "is_plain", "quantizer_option"]

# These characters mean themselves in every shell, in quotes and out of them; but for a hyphen at
# the start, which makes an option. Longer texts do not fit the line that a terminal takes.
_PLAIN = r"(?!-)[A-Za-z0-9_./-]{1,200}"
# Double quotes are the only ones of cmd, too. Between them, all shells leave these alone as well.
_OPTION = r'--quantizer "(?!-)[A-Za-z0-9_./?-]{1,200}=[A-Za-z0-9_]+\([A-Za-z0-9_=,. -]*\)"'
# A pattern for several of `quantizer_option` in a row, in any text.
OPTIONS = f"{_OPTION}(?: {_OPTION})*"
_MOST_ROWS = 40  # of a table in a notebook
_LONGEST = 80  # text of a cell there


def is_plain(text: str) -> bool:
    """Tell whether every shell takes a text from a file as it is.

    Examples
    --------
    >>> [is_plain(name) for name in ("block/conv1.kernel", "größe", "$(touch x)", "-rf", "")]
    [True, False, False, False, False]
    """
    return re.fullmatch(_PLAIN, text) is not None


def as_glob(name: str) -> str:
    """Return a pattern for a name, with ``?`` for each character that is not plain.

    It is no pattern for a shell, as an option holds it in quotes.

    Examples
    --------
    >>> as_glob("größe;1/kernel"), as_glob("-conv/kernel")
    ('gr??e?1/kernel', '?conv/kernel')
    """
    return re.sub(r"^-|[^A-Za-z0-9_./-]", "?", name)


def quantizer_option(key: str, quantizer: str) -> str:
    """Return ``--quantizer "KEY=QUANTIZER"``, or nothing if a shell could read it otherwise.

    Parameters
    ----------
    key : str
        A tensor's name or `as_glob` of it, or a class and role.
    quantizer : str
        A call, such as ``LastValueQuantizer(num_bits=4)``.

    Examples
    --------
    >>> quantizer_option("MyConfig.weights", "NoQuantizer()")
    '--quantizer "MyConfig.weights=NoQuantizer()"'
    >>> quantizer_option("$(touch x).weights", "NoQuantizer()")
    ''
    """
    option = f'--quantizer "{key}={quantizer}"'
    return option if re.fullmatch(_OPTION, option) else ""


def html_text(text: object) -> str:
    r"""Return text for HTML, control characters as escapes.

    Examples
    --------
    >>> html_text("<b>\x1b")
    '&lt;b&gt;\\x1b'
    """
    from html import escape

    printable = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)
    )
    return escape(printable)


def html_table(caption: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Return what a notebook shows of an object: a line, and a table of its first forty rows.

    Examples
    --------
    >>> html_table("1 tensor", [{"tensor": "a/kernel"}])
    '<p>1 tensor</p><table><tr><th>tensor</th></tr><tr><td>a/kernel</td></tr></table>'
    """
    table = ""
    if rows:
        lines = [f"<th>{html_text(title)}</th>" for title in rows[0]]
        table = f"<tr>{''.join(lines)}</tr>"
        for row in rows[:_MOST_ROWS]:
            cells = (f"<td>{_cell(cell)}</td>" for cell in row.values())
            table += f"<tr>{''.join(cells)}</tr>"
        table = f"<table>{table}</table>"
    more = f"<p>… and {len(rows) - _MOST_ROWS:,} more</p>" if len(rows) > _MOST_ROWS else ""
    return f"<p>{html_text(caption)}</p>{table}{more}"


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return html_text(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
