"""``qmath inspect``: the verdict, a table, warnings with their remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmath.cli.settings import model_options, read_settings
from qmath.cli.text import console, count, printable, working

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from qmath.report import Report, Row

__all__ = ["inspect"]

# Title of a column to whether it is a number. Titles wrap, and so do schemes and ranges.
_SETTINGS = {"tensor": 0, "shape": 0, "role": 0, "bits": 1, "scheme": 0, "learnt from": 0}
_VALUES = {"range": 0, "zero point": 1, "used": 1, "clipped": 1, "near ties": 1, "SQNR dB": 1}
_UNBOUNDED = 10_000


@click.command(
    short_help="Say what a model holds and what is missing.",
    epilog="\b\nExample:\n  qmath inspect model.h5",
)
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def inspect(
    model: Path, options: tuple[str, ...], settings: Path | None, force: bool, as_json: bool
) -> None:
    """Say what a quantization-aware trained MODEL holds, what is missing, and what looks wrong.

    Columns: role; width and scheme; where the width was learnt; the stored range; the zero
    point (weights signed, the rest unsigned); integers used of those the width offers; share of
    values outside the range; values so close to a rounding tie that other kernels could differ;
    signal-to-quantization-noise ratio.
    """
    from qmath.report import inspect as report_on

    with working("reading …"):
        report = report_on(model, read_settings(options, settings), force=force)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2, allow_nan=False))
    else:
        _render(report, console())


def _render(report: Report, out: Console) -> None:
    out.print(printable(report.source))
    out.print(str(report.verdict), style="bold")
    quantized = [row for row in report.rows if row.role != "float"]
    if quantized:
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
            out.print(f"  {printable(line)}")
        out.print(f"  → {printable(remedy)}")
    for note in report.notes:
        out.print(f"note: {printable(note)}")


def _tables(rows: list[Row], out: Console) -> list[Table]:
    """Return one table, or two where a terminal is too narrow for it."""
    from rich.measure import Measurement

    cells = [_cells(row) for row in rows]
    # Names come first: they are broken only where they would fill more than half the line.
    name = min(max(len(row.tensor) for row in rows), out.width // 2)
    whole = _table(cells, {**_SETTINGS, **_VALUES}, name)
    unbounded = out.options.update(max_width=_UNBOUNDED)
    if Measurement.get(out, unbounded, whole).maximum <= out.width:
        return [whole]
    return [_table(cells, _SETTINGS, name), _table(cells, {"tensor": 0, **_VALUES}, name)]


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


def _cells(row: Row) -> dict[str, str]:
    """Return a row's cells by title; of several channels, the extremes."""
    used = f"{row.integers_used}/{row.integers_available}" if row.integers_used is not None else ""
    clipped = "" if row.clipped is None or not row.elements else f"{row.clipped / row.elements:.1%}"
    return {
        "tensor": row.tensor,
        "shape": "x".join(map(str, row.shape)) if row.shape is not None else "",
        "role": row.role,
        "bits": str(row.num_bits) if row.num_bits is not None else "?",
        "scheme": row.scheme,
        "learnt from": row.evidence.get("num_bits", "unknown"),
        "range": _range(row),
        "zero point": _extremes(row.zero_point),
        "used": used,
        "clipped": clipped,
        "near ties": str(row.near_ties) if row.near_ties is not None else "",
        "SQNR dB": f"{row.sqnr_db:.1f}" if row.sqnr_db is not None else "",
    }


def _range(row: Row) -> str:
    ends = [[end for end in side or () if end is not None] for side in (row.min, row.max)]
    if not all(ends):
        return "not finite"
    channels = f" ({len(ends[0])} channels)" if len(ends[0]) > 1 else ""
    return f"{min(ends[0]):.4g} … {max(ends[1]):.4g}{channels}"


def _extremes(values: tuple[int, ...] | None) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} … {high}"
