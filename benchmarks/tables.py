"""Markdown tables, and numbers as they stand in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["faster", "markdown", "size_text", "time_text"]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with its first column to the left and the others to the right, aligned."""
    lines = [list(header), *map(list, rows)]
    if wrong := [line for line in lines if len(line) != len(header)]:
        raise ValueError(f"a row of {len(wrong[0])} cells under {len(header)} columns: {wrong[0]}")
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    text = ["| " + " | ".join(_aligned(line, widths)) + " |" for line in lines]
    rule = "|" + "|".join(
        "-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths)
    )
    return "\n".join([text[0], f"{rule}|", *text[1:]])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Pad a row's cells."""
    return [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]


def faster(ratio: float | None) -> str:
    """Return a ratio with two digits, or a dash for what was not measured."""
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" if ratio < 1 else f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def time_text(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    if seconds >= 0.9995:
        return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 0.9995e-3 else f"{seconds * 1e6:.3g} µs"


def size_text(elements: int) -> str:
    """Return a number of elements in binary thousands."""
    if elements >= 2**20:
        return f"{elements / 2**20:.3g} M"
    return f"{elements / 2**10:.3g} k" if elements >= 2**10 else str(elements)
