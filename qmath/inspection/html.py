"""A report as one HTML page: no scripts, nothing loaded from anywhere, readable without colours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import PurePath
from typing import TYPE_CHECKING

from qmath._text import html_text as _text
from qmath._text import is_plain
from qmath._version import __version__
from qmath.inspection import plots
from qmath.inspection.advice import grouped
from qmath.inspection.cells import cells
from qmath.inspection.drawing import blocks, drawing
from qmath.readers.notes import parts

if TYPE_CHECKING:
    from qmath.inspection.report import Report, Row

__all__ = ["render"]

_SHORT_GRAPH = 40  # steps that are shown at once
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
    sections = {
        "Warnings": "".join(_warnings(report)),
        "Tensors": _table(quantized),
        "Graph": _graph(report),
        "Weights": "".join(_weights(quantized)),
        "Float tensors": _floats(floats),
        "Notes": _notes(report.notes),
    }
    links = [
        f'<li><a href="#{_section(title)}">{title}</a></li>'
        for title, text in sections.items()
        if text
    ]
    body = [
        f"<header><h1>{name}</h1>{_verdict(report)}{_origin(report)}</header>",
        f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>',
    ] + [
        f'<section id="{_section(title)}"><h2>{title}</h2>{text}</section>'
        for title, text in sections.items()
        if text
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{name}: quantization report</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _section(title: str) -> str:
    return "s-" + title.lower().replace(" ", "-")


def _origin(report: Report) -> str:
    """Return what the page was made of, and by which version."""
    digest = f"<br>SHA-256 <code>{report.sha256}</code>" if report.sha256 else ""
    command = ""
    if is_plain(report.source):
        command = f'<br><code class="paste">qmath inspect {_text(report.source)}</code>'
    return f'<p class="origin">qmath {__version__}, of {_text(report.source)}{digest}{command}</p>'


def _prose(text: str) -> str:
    """Return text for HTML, with what is to be pasted as code."""
    return "".join(
        f'<code class="paste">{_text(part)}</code>' if i % 2 else _text(part)
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


def _table(rows: Sequence[Row]) -> str:
    """Return the tensors, and switches that hide those of a role: the style sheet does it."""
    if not rows:
        return "<p>Nothing in this model is quantized.</p>"
    roles = list(dict.fromkeys(row.role for row in rows))
    switches = "".join(
        f'<label><input type="checkbox" id="show-{role}" checked> {role}s</label> '
        for role in roles
    )
    switches += '<label><input type="checkbox" id="only-unready"> only what is not ready</label>'
    body = "".join(
        f'<tr class="{row.role}{"" if row.ready else " unready"}"><th scope="row">{_link(row)}</th>'
        + "".join(
            f'<td data-title="{title}">{_text(cell)}</td>'
            for title, cell in [*cells(row).items()][1:]
        )
        + "</tr>"
        for row in rows
    )
    head = "".join(f'<th scope="col">{title}</th>' for title in cells(rows[0]))
    return (
        f'<p class="filter">{switches}</p><div class="wide" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _graph(report: Report) -> str:
    """Return the drawing of the integer program, where there is one."""
    if report.program is None:
        return ""
    unknown = {row.tensor for row in report.rows if row.role != "float" and row.num_bits is None}
    rows = blocks(report.program, unknown)
    assumption = ", if unknown widths are 8" if unknown else ""
    legend = (
        '<p class="legend"><b class="integers">●</b> integers <b class="float">●</b> float32 '
        '<b class="cut">●</b> cut point; a sum has the width that its weights prove'
        f"{assumption}.</p>"
    )
    is_open = " open" if len(rows) <= _SHORT_GRAPH else ""
    steps = f"<summary>{len(rows)} steps</summary>{drawing(rows)}"
    return f"{legend}<details{is_open}>{steps}</details>"


def _link(row: Row) -> str:
    name = _text(row.tensor)
    return f'<a href="#{_anchor(row)}">{name}</a>' if _has_plots(row) else name


def _anchor(row: Row) -> str:
    """Return an identifier that no two names share and every browser takes."""
    return "t-" + row.tensor.encode().hex()


def _weights(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the plots of every tensor that has something to plot."""
    for row in filter(_has_plots, rows):
        yield (
            f'<section class="tensor" id="{_anchor(row)}"><h3>{_text(row.tensor)}</h3>'
            f'<div class="plots">{_histogram(row)}{_channels(row)}</div></section>'
        )


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
    return f'<ul class="plain">{items}</ul>' * bool(items)


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{_prose(note)}</li>" for note in notes)
    return f"<ul>{items}</ul>" * bool(items)
