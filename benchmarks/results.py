"""What becomes of measurements: a Markdown table, JSON, and a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np

Row = dict[str, object]


def write_json(rows: list[Row], path: Path, **settings: object) -> None:
    """Write the rows and what they depend on."""
    about = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        **settings,
    }
    path.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def table(rows: Iterable[Row]) -> str:
    """Return a Markdown table: a line for each case, microseconds of each candidate, and ratios."""
    rows = list(rows)
    names = list(dict.fromkeys(str(row["candidate"]) for row in rows))
    lines = [
        "| case | shape | " + " | ".join(names) + " | qmath : TensorFlow |",
        "|---" * (len(names) + 3) + "|",
    ]
    cases: dict[tuple[object, ...], dict[object, Row]] = {}
    for row in rows:
        cases.setdefault((row["case"], str(row["shape"])), {})[row["candidate"]] = row
    for (case, shape), found in cases.items():
        cells = [_cell(found.get(name)) for name in names]
        ratio = found.get("qmath", {}).get("to_TensorFlow", "")
        lines.append(f"| {case} | {shape} | " + " | ".join(cells) + f" | {ratio} |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    """Return a median with its quartiles, in microseconds."""
    if row is None:
        return ""
    return "{:.4g} ({:.4g} … {:.4g})".format(*(row[f"{k}_us"] for k in ("median", "low", "high")))


def plot(rows: list[Row], path: Path) -> None:
    """Draw nanoseconds per element over the size, a panel for each case; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "qmath"
    from matplotlib import pyplot

    rows = [row for row in rows if len(row["shape"]) == 2]  # type: ignore[arg-type]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = pyplot.subplots(-(-len(cases) // 2), 2, figsize=(11, 3 * -(-len(cases) // 2)))
    for panel, case in zip(axes.flat, cases, strict=False):
        for name in dict.fromkeys(row["candidate"] for row in rows if row["case"] == case):
            points = [r for r in rows if (r["case"], r["candidate"]) == (case, name)]
            points.sort(key=lambda row: row["elements"])
            sizes = [row["elements"] for row in points]
            each = [1e3 * row["median_us"] / row["elements"] for row in points]
            panel.loglog(sizes, each, marker="o", markersize=3, label=name)
        panel.set(title=case, xlabel="elements", ylabel="ns per element")
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
