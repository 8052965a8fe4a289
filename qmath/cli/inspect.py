"""``qmath inspect``: the verdict, a table, warnings with their remedy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmath.cli.models import ModelArgument, model_argument
from qmath.cli.results import Result, Verb
from qmath.cli.text import advancing, console, count, printable, show

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from qmath.inspection.report import Report, Row

__all__ = ["inspect"]

# Title of a column to whether it is a number. Titles wrap, and so do schemes and ranges.
_SETTINGS = {"tensor": 0, "shape": 0, "role": 0, "bits": 1, "scheme": 0, "learnt from": 0}
_VALUES = {"range": 0, "zero point": 1, "used": 1, "clipped": 1, "near ties": 1, "SQNR dB": 1}
_UNBOUNDED = 10_000


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
def inspect(
    model: ModelArgument,
    page: Path | None,
    overwrite: bool,
) -> Result:
    """Say what a quantization-aware trained MODEL holds, what is missing, and what looks wrong.

    Columns: role; width and scheme; where the width was learnt, and what is assumed; the stored
    range; the zero point (weights signed, the rest unsigned); integers used of those the width
    offers; share of values outside the range; values so close to a rounding tie that other kernels
    could differ; signal-to-quantization-noise ratio.
    """
    from qmath.exports.output.atomic import check_output, replacing
    from qmath.inspection.html import render
    from qmath.inspection.report import inspect as report_on

    if page is not None:
        page = model.placed(page, ".html")
        check_output(page, overwrite=overwrite, sources=model.inputs)
    with advancing("reading …", "looking …") as progress:
        report = report_on(
            model.load(),
            progress=progress,
        )
    if page is not None:
        with replacing(page, overwrite=overwrite) as file:
            file.write(render(report).encode())
    _render(report, console())
    return Result(report.as_dict(), str(report.verdict))


def _render(report: Report, out: Console) -> None:
    out.print(printable(report.source))
    out.print(str(report.verdict), style="bold")
    quantized = [row for row in report.rows if row.role != "float"]
    if not quantized:  # of which a note says why
        for note in report.notes:
            show(f"note: {note}")
    else:
        for table in _tables(quantized, out):
            out.print()
            out.print(table)
    floats = [printable(row.tensor) for row in report.rows if row.role == "float"]
    if floats:
        out.print(f"\n{count(len(floats), 'float tensor')}: {', '.join(floats)}")
    if report.warnings:
        out.print(f"\n{count(len(report.warnings), 'warning')}", style="bold")
    groups: dict[tuple[str, str], list[str]] = {}
    for item in report.warnings:
        groups.setdefault((item.kind, item.remedy), []).append(f"{item.where}: {item.message}")
    for (kind, remedy), lines in groups.items():
        out.print(kind, style="yellow")
        for line in lines:
            show(line, "  ")
        show(f"→ {remedy}", "  ")
    for note in report.notes if quantized else ():
        show(f"note: {note}")


def _tables(rows: list[Row], out: Console) -> list[Table]:
    """Return one table, or two where a terminal is too narrow for it."""
    from rich.measure import Measurement

    from qmath.inspection.cells import cells

    found = [cells(row) for row in rows]
    # Names come first: they are broken only where they would fill more than half the line.
    name = min(max(len(row.tensor) for row in rows), out.width // 2)
    whole = _table(found, {**_SETTINGS, **_VALUES}, name)
    unbounded = out.options.update(max_width=_UNBOUNDED)
    if Measurement.get(out, unbounded, whole).maximum <= out.width:
        return [whole]
    return [_table(found, _SETTINGS, name), _table(found, {"tensor": 0, **_VALUES}, name)]


def _table(rows: list[dict[str, str]], titles: dict[str, int], name: int) -> Table:
    """Return a table of the columns `titles`, that of names at least `name` wide."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, is_number in titles.items():
        table.add_column(
            title,
            justify="right" if is_number else "left",
            overflow="fold",
            min_width=name if title == "tensor" else None,
        )
    for row in rows:
        table.add_row(*(printable(row[title]) for title in titles))
    return table
