"""``qmath inspect``: the verdict, a table, warnings with their remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmath.cli.models import ModelArgument, model_argument
from qmath.cli.results import Result, Verb
from qmath.cli.tables import NUMBER, Column, numbers, tables
from qmath.cli.text import advancing, console, count, printable, show

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from qmath.exports.c.costs import Cost
    from qmath.inspection.report import Report

__all__ = ["inspect", "same_cells"]

_COLUMNS = {  # the most important first
    "role": Column(),
    "bits": NUMBER,
    "learnt from": Column(most=20),
    "scheme": Column(most=20),
    "range": Column(),
    "zero point": NUMBER,
    "used": NUMBER,
    "clipped": NUMBER,
    "SQNR dB": NUMBER,
    "near ties": NUMBER,
    "shape": Column(),
}
_COSTS = numbers("RAM", "flash", "multiplications", "accumulator bits")
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
        check_output(page, overwrite=overwrite, sources=model.inputs, example="report.html")
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
    return tables(found, _COSTS, out, first="layer")


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
        columns = {title: column for title, column in _COLUMNS.items() if title not in same}
        for table in tables(found, columns, out):
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
