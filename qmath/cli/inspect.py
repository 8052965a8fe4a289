"""``qmath inspect``: the verdict, a table, warnings with their remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from qmath.cli.models import ModelArgument, model_argument
from qmath.cli.results import Result, Verb
from qmath.cli.text import advancing, console, count, printable, show

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from qmath.exports.c.costs import Cost
    from qmath.inspection.report import Report

__all__ = ["inspect", "same_cells"]

# Titles of columns, the most important first; whether each is a number; the most of its width that
# it needs, where its words can go on several lines.
_COLUMNS: dict[str, tuple[bool, int | None]] = {
    "role": (False, None),
    "bits": (True, None),
    "learnt from": (False, 20),
    "scheme": (False, 20),
    "range": (False, None),
    "zero point": (True, None),
    "used": (True, None),
    "clipped": (True, None),
    "SQNR dB": (True, None),
    "near ties": (True, None),
    "shape": (False, None),
}
_COSTS: dict[str, tuple[bool, int | None]] = dict.fromkeys(
    ("RAM", "flash", "multiplications", "accumulator bits"), (True, None)
)
_GAP = 2  # between columns
_STYLES = {"error": "red", "warning": "yellow", "hint": "cyan"}
_LONG_TABLE = 12  # rows
_MOST_LINES = 8  # of one kind of warning, and names of float tensors, on a terminal


@click.command(
    cls=Verb,
    short_help="Say what a model holds and what is missing.",
    epilog="\b\nExamples:\n  qmath inspect model.h5\n  qmath inspect model.h5 --html report.html\n"
    "  qmath inspect *.h5 --json",
)
@model_argument
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    metavar="PAGE.html",
    help="Write the report as a page of its own, with histograms and the channels' ranges. Of "
    "several models: a folder, for NAME.html of each.",
)
@click.option("--overwrite", is_flag=True, help="Replace PAGE if it exists.")
@click.option(
    "--costs",
    "with_costs",
    is_flag=True,
    help="Say, too, what each layer costs in C: RAM, flash, multiplications, accumulator bits.",
)
def inspect(
    model: ModelArgument,
    page: Path | None,
    overwrite: bool,
    with_costs: bool,
) -> Result:
    """Say what a quantization-aware trained MODEL holds, what is missing, and what looks wrong.

    Columns: role; width and scheme; where the width was learnt, and what is assumed; the stored
    range; the zero point (weights signed, the rest unsigned); integers used of those the width
    offers; share of values outside the range; values so close to a rounding tie that other kernels
    could differ; signal-to-quantization-noise ratio.
    """
    from qmath.exports.output.atomic import check_output, replacing
    from qmath.inspection.costs import costs
    from qmath.inspection.html import render
    from qmath.inspection.report import inspect as report_on

    if page is not None:
        page = model.placed(page, ".html")
        check_output(page, overwrite=overwrite, sources=model.inputs)
    with advancing("reading …", "looking …") as progress:
        loaded = model.load()
        report = report_on(loaded, progress=progress)
        layers, arena = costs(loaded) if with_costs else ({}, 0)
    if page is not None:
        with replacing(page, overwrite=overwrite) as file:
            file.write(render(report).encode())
    out = console()
    _render(report, out)
    for table in _costs(layers, arena, out) if layers else ():
        out.print()
        out.print(table)
    document = report.as_dict()
    if with_costs:
        each = {name: cost._asdict() for name, cost in layers.items()}
        document["costs"] = {"arena": arena, "layers": each}
    return Result(document, str(report.verdict))


def _costs(layers: Mapping[str, Cost], arena: int, out: Console) -> list[Table]:
    """Return the table of what each layer costs, in several parts if it is too wide."""
    titles = ("layer", *_COSTS)
    rows = [(printable(name), *map(str, cost)) for name, cost in layers.items()]
    flash, products = (sum(cost[i] for cost in layers.values()) for i in (1, 2))
    rows.append(("all", str(arena), str(flash), str(products), ""))
    found = [dict(zip(titles, row, strict=True)) for row in rows]
    return _tables(found, list(_COSTS), out, first="layer")


def _render(report: Report, out: Console) -> None:
    from qmath.inspection.advice import grouped
    from qmath.inspection.cells import cells

    out.print(printable(report.source))
    out.print(str(report.verdict), style="bold")
    quantized = [row for row in report.rows if row.role != "float"]
    if not quantized:  # of which a note says why
        for note in report.notes:
            show(f"note: {note}")
    else:
        found = [
            {title: printable(text) for title, text in cells(row).items()} for row in quantized
        ]
        same = same_cells(found)
        if same:
            out.print("\nall: " + ", ".join(f"{title} {text}" for title, text in same.items()))
        for table in _tables(found, [title for title in _COLUMNS if title not in same], out):
            out.print()
            out.print(table)
    floats = [printable(row.tensor) for row in report.rows if row.role == "float"]
    if floats:
        shown = floats[:_MOST_LINES] if out.is_terminal else floats
        more = f" and {len(floats) - len(shown):,} more" if len(floats) > len(shown) else ""
        out.print(f"\n{count(len(floats), 'float tensor')}: {', '.join(shown)}{more}")
    if report.warnings:
        out.print(f"\n{count(len(report.warnings), 'warning')}", style="bold")
    for kind, severity, remedies in grouped(report.warnings):
        out.print(f"{kind} ({severity})", style=_STYLES[severity])
        for remedy, items in remedies:
            some = items[:_MOST_LINES] if out.is_terminal else items
            for item in some:
                show(f"{item.where}: {item.message}", "  ")
            if len(items) > len(some):
                out.print(f"  … and {len(items) - len(some):,} more; --json and --html have all")
            show(f"→ {remedy}", "  ")
    for note in report.notes if quantized else ():
        show(f"note: {note}")


def same_cells(rows: list[dict[str, str]]) -> dict[str, str]:
    """Return the cells that are alike in every row of a long table, to be said once."""
    if len(rows) < _LONG_TABLE:
        return {}
    return {
        title: rows[0][title]
        for title in _COLUMNS
        if rows[0][title] and all(row[title] == rows[0][title] for row in rows)
    }


def _tables(
    rows: list[dict[str, str]], titles: list[str], out: Console, first: str = "tensor"
) -> list[Table]:
    """Return one table, or several below each other where a terminal is too narrow for it.

    Each begins with the names, so that its rows can be read alone. Columns go into the first table
    that has room, in the order of their importance.
    """
    from rich.cells import cell_len

    texts = {title: [title, *(row[title] for row in rows)] for title in (first, *titles)}
    natural = {title: max(map(cell_len, column)) for title, column in texts.items()}
    # Names are broken only where they would fill more than half the line.
    name = min(natural.pop(first), out.width // 2)
    line = out.width - name
    tables: list[dict[str, int]] = [{}]
    for title, width in natural.items():
        words = max(cell_len(word) for text in texts[title] for word in text.split(" "))
        least = min(width, max(words, _column(title)[1] or width), line - _GAP)
        if _filled(tables[-1]) + _GAP + least > line:
            tables.append({})
        tables[-1][title] = least
    for widths in tables:
        for title in widths:  # what is left serves the columns that were made narrow
            room = line - _filled(widths)
            widths[title] += min(room, natural[title] - widths[title])
    return [_table(rows, {first: name, **widths}) for widths in tables]


def _filled(widths: dict[str, int]) -> int:
    return sum(_GAP + width for width in widths.values())


def _column(title: str) -> tuple[bool, int | None]:
    return (_COLUMNS | _COSTS).get(title, (False, None))


def _table(rows: list[dict[str, str]], widths: dict[str, int]) -> Table:
    """Return a table of columns that are so wide, whose longer texts are broken."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for title, width in widths.items():
        justify: Literal["left", "right"] = "right" if _column(title)[0] else "left"
        table.add_column(title, justify=justify, overflow="fold", width=width)
    for row in rows:
        table.add_row(*(row[title] for title in widths))
    return table
