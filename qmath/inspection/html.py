"""A report as one HTML page: no scripts, nothing loaded from anywhere, readable without colours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import PurePath
from typing import TYPE_CHECKING

from qmath._text import html_text as _text
from qmath.inspection import plots
from qmath.inspection.advice import grouped
from qmath.inspection.cells import cells
from qmath.readers.notes import parts

if TYPE_CHECKING:
    from qmath.inspection.report import Report, Row

__all__ = ["render"]

_MOST_NAMED = 16  # unused integers in words; the plot shows all


def render(report: Report) -> str:
    """Return a report as an HTML document.

    Parameters
    ----------
    report : Report
        From `qmath.inspect`.

    Returns
    -------
    str
        The whole document, the same for equal reports. Names from the model's file are escaped.

    Examples
    --------
    >>> import qmath
    >>> from qmath.inspection.html import render
    >>> page = render(qmath.inspect("reference/samples/question.h5"))
    >>> "weights 2/2 ready" in page, "<script" in page
    (True, False)
    """
    style = (resources.files("qmath.inspection") / "style.css").read_text(encoding="utf-8")
    name = _text(PurePath(report.source).name)
    quantized = [row for row in report.rows if row.role != "float"]
    floats = [row for row in report.rows if row.role == "float"]
    body = (
        f"<header><h1>{name}</h1>{_verdict(report)}</header>",
        *_warnings(report),
        _table(quantized),
        *_weights(quantized),
        _floats(floats),
        _notes(report.notes),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{name}: quantization report</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _prose(text: str) -> str:
    """Return text for HTML, with what is to be pasted as code."""
    return "".join(
        f"<code>{_text(part)}</code>" if i % 2 else _text(part)
        for i, part in enumerate(parts(text))
    )


def _verdict(report: Report) -> str:
    facts = (
        *report.verdict.facts,
        (not report.warnings, f"warnings: {len(report.warnings)}"),
    )
    marks = {True: ("good", "✓"), False: ("look", "!")}
    items = "".join(
        f'<li class="{marks[good][0]}"><b aria-hidden="true">{marks[good][1]}</b> {text}</li>'
        for good, text in facts
    )
    return f'<ul class="verdict">{items}</ul>'


def _warnings(report: Report) -> Iterator[str]:
    """Yield the warnings, those of one kind together."""
    if not report.warnings:
        return
    yield "<section><h2>Warnings</h2>"
    for kind, severity, remedies in grouped(report.warnings):
        parts = []
        for remedy, items in remedies:
            lines = "".join(
                f"<li><code>{_text(item.where)}</code> {_text(item.message)}</li>" for item in items
            )
            parts.append(f'<ul>{lines}</ul><p class="remedy"><b>Remedy</b> {_prose(remedy)}</p>')
        yield (
            f'<div class="warning {severity}"><h3>{_text(kind)} <span>{severity}</span></h3>'
            f"{''.join(parts)}</div>"
        )
    yield "</section>"


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return "<section><h2>Tensors</h2><p>Nothing in this model is quantized.</p></section>"
    body = "".join(
        f'<tr><th scope="row">{_link(row)}</th>'
        + "".join(
            f'<td data-title="{title}">{_text(cell)}</td>'
            for title, cell in [*cells(row).items()][1:]
        )
        + "</tr>"
        for row in rows
    )
    head = "".join(f'<th scope="col">{title}</th>' for title in cells(rows[0]))
    return (
        '<section><h2>Tensors</h2><div class="wide" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _link(row: Row) -> str:
    name = _text(row.tensor)
    return f'<a href="#{_anchor(row)}">{name}</a>' if _has_plots(row) else name


def _anchor(row: Row) -> str:
    """Return an identifier that no two names share and every browser takes."""
    return "t-" + row.tensor.encode().hex()


def _weights(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the plots of every tensor that has something to plot."""
    heading = "<h2>Weights</h2>"
    for row in filter(_has_plots, rows):
        yield (
            f'{heading}<section class="tensor" id="{_anchor(row)}"><h3>{_text(row.tensor)}</h3>'
            f'<div class="plots">{_histogram(row)}{_channels(row)}</div></section>'
        )
        heading = ""


def _has_plots(row: Row) -> bool:
    return bool(_histogram(row) or _channels(row))


def _channels(row: Row) -> str:
    if row.min is None or row.max is None or len(row.min) < 2:
        return ""
    return (
        f"<figure>{plots.channels(row.min, row.max)}<figcaption>Stored range of each of "
        f"{len(row.min)} channels; a dot marks a dead one, 0 to 0.</figcaption></figure>"
    )


def _histogram(row: Row) -> str:
    if row.histogram is None or row.lowest is None or row.integers_available is None:
        return ""
    width = -(-row.integers_available // len(row.histogram))
    unused = [row.lowest + i for i, n in enumerate(row.histogram) if not n] if width == 1 else []
    words = [f"{row.integers_used} of {row.integers_available} integers used"]
    if 0 < len(unused) <= _MOST_NAMED:
        words.append(f"unused: {', '.join(map(str, unused))}")
    if row.clipped is not None and row.elements:
        words.append(f"{row.clipped / row.elements:.2%} of {row.elements:,} values clipped")
    if width > 1:
        words.append(f"{width} integers a bar")
    plot = plots.histogram(row.histogram, row.lowest, row.lowest + row.integers_available - 1)
    return f"<figure>{plot}<figcaption>{_text('; '.join(words))}.</figcaption></figure>"


def _floats(rows: Iterable[Row]) -> str:
    items = "".join(
        f"<li><code>{_text(row.tensor)}</code> {_text(cells(row)['shape'])}</li>" for row in rows
    )
    return f'<section><h2>Float tensors</h2><ul class="plain">{items}</ul></section>' * bool(items)


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{_prose(note)}</li>" for note in notes)
    return f"<section><h2>Notes</h2><ul>{items}</ul></section>" * bool(items)
