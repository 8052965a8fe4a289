"""A report's row in words: the same on a terminal and on a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmath.inspection.report import Row

__all__ = ["cells"]


def cells(row: Row) -> dict[str, str]:
    """Return the cells of a row by their titles; of several channels, the extremes."""
    used = f"{row.integers_used}/{row.integers_available}" if row.integers_used is not None else ""
    clipped = "" if row.clipped is None or not row.elements else f"{row.clipped / row.elements:.1%}"
    return {
        "tensor": row.tensor,
        "shape": "x".join(map(str, row.shape)) if row.shape is not None else "",
        "role": row.role,
        "bits": str(row.num_bits) if row.num_bits is not None else "?",
        "scheme": row.scheme,
        "learnt from": _sources(row),
        "range": _range(row),
        "zero point": _extremes(row.zero_point),
        "used": used,
        "clipped": clipped,
        "near ties": str(row.near_ties) if row.near_ties is not None else "",
        "SQNR dB": f"{row.sqnr_db:.1f}" if row.sqnr_db is not None else "",
    }


def _sources(row: Row) -> str:
    """Return where the width was learnt, and whether other settings are assumed."""
    width = row.provenance.get("num_bits", "unknown")
    assumed = [source for source in row.provenance.values() if source.startswith("assumed")]
    return width if not assumed or width.startswith("assumed") else f"{width}, rest assumed"


def _range(row: Row) -> str:
    if row.min is None or row.max is None:
        return ""
    ends = [[end for end in side if end is not None] for side in (row.min, row.max)]
    if not all(ends):
        return "not finite"
    channels = f" ({len(ends[0])} channels)" if len(ends[0]) > 1 else ""
    return f"{min(ends[0]):.4g} … {max(ends[1]):.4g}{channels}"


def _extremes(values: tuple[int, ...] | None) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} … {high}"
