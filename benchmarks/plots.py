"""One picture of what was measured: a panel for each of the most telling ratios."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.kernels import OURS
from benchmarks.measure import Row
from benchmarks.tables import size_text

__all__ = ["draw"]

COLOURS = {
    OURS: "#d62728",
    "memcpy": "#7f7f7f",
    "TensorFlow": "#1f77b4",
    "TensorFlow, memory kept": "#7fb2d9",
    "PyTorch": "#ff7f0e",
    "ONNX Runtime": "#9467bd",
    "ai-edge-quantizer": "#2ca02c",
    "naive NumPy": "#8c564b",
}
CASES = [
    ("fake_quant", "tensor"),
    ("fake_quant", "channel"),
    ("int8", "tensor"),
    ("int8", "channel"),
]


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw results to an SVG or PNG file; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "qmath", "font.size": 8.5, "axes.titlesize": 9.5})
    from matplotlib import pyplot

    rows = {name: part["rows"] for name, part in found["parts"].items()}
    panels: list[Callable[[Any], None]] = []
    if rows.get("kernels"):
        panels += [lambda on, case=case: _kernel(on, rows["kernels"], *case) for case in CASES]
    if rows.get("start"):
        panels.append(lambda on: _start(on, rows["start"]))
    if rows.get("job"):
        panels.append(lambda on: _job(on, rows["job"]))
    if not panels:
        raise ValueError("kernels, start and job are drawn, and none of them was measured")
    height = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(height, 2, figsize=(9, 3 * height + 0.6), squeeze=False)
    for panel, on in zip(panels, axes.flat, strict=False):
        panel(on)
    for on in axes.flat[len(panels) :]:
        on.set_axis_off()
    about = found["about"]
    tensorflow = about["versions"].get("tensorflow", "none")
    figure.suptitle(
        f"{about['cpu']}, threads: {about['threads']}, NumPy {about['versions']['numpy']}, "
        f"TensorFlow {tensorflow}, {about['date']}",
        fontsize=9,
    )
    handles = {}
    for on in axes.flat:
        handles |= dict(zip(*reversed(on.get_legend_handles_labels()), strict=True))
    kernels = {name: handles[name] for name in COLOURS if name in handles}
    if kernels:
        figure.legend(
            kernels.values(), kernels, ncols=4, loc="lower center", frameon=False, fontsize=8.5
        )
    figure.tight_layout(rect=(0, 0.55 / (3 * height + 0.6) if kernels else 0, 1, 1))
    figure.savefig(
        path,
        dpi=110,
        facecolor="white",
        metadata={"Date": None} if path.suffix == ".svg" else None,
    )
    pyplot.close(figure)


def _kernel(on: Any, rows: list[Row], operation: str, per: str) -> None:
    """Draw how many times as long as qmath everyone takes, over the size."""
    rows = [row for row in rows if (row["operation"], row["per"]) == (operation, per)]
    rows = [row for row in rows if len(row["shape"]) == 2 and row["shape"][1] == 64]
    rows.sort(key=lambda row: row["elements"])
    for name, colour in COLOURS.items():
        points = [row for row in rows if name in row["times_qmath"]]
        on.plot(
            [row["elements"] for row in points],
            [row["times_qmath"][name] for row in points],
            color=colour,
            label=name if points else None,
            marker="o",
            markersize=3,
            linewidth=2.2 if name == OURS else 1.3,
        )
    on.set(xscale="log", yscale="log", title=f"{operation} per {per}: time, in qmath's")
    on.set_ylabel("above 1: qmath is faster")
    sizes = [row["elements"] for row in rows]
    on.set_xticks(sizes, [size_text(size) for size in sizes])
    on.minorticks_off()
    on.set_xlabel("elements")
    _plain(on.yaxis)
    on.grid(alpha=0.3)


def _plain(axis: Any) -> None:
    """Write a log axis as 0.1, 1, 10."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))


def _bars(
    on: Any, labels: list[str], values: list[float], texts: list[str], colours: list[str]
) -> None:
    """Draw bars from the left on a log axis, each with its text."""
    on.barh(labels, values, color=colours, height=0.6, log=True)
    for index, (value, text) in enumerate(zip(values, texts, strict=True)):
        on.text(value * 1.08, index, text, va="center", fontsize=8)
    on.set_xlim(min(1, *values) * 0.7, max(values) * 40)
    on.invert_yaxis()
    _plain(on.xaxis)
    on.grid(axis="x", alpha=0.3)


def _start(on: Any, rows: list[Row]) -> None:
    """Draw the time of imports, in imports of NumPy."""
    base = next(row["milliseconds"] for row in rows if row["import"] == "numpy")
    names = {
        "qmath, its kernels used": "qmath,\nkernels used",
        "tensorflow_model_optimization": "TFMOT",
    }
    labels = [names.get(row["import"], row["import"]) for row in rows]
    ratios = [row["milliseconds"] / base for row in rows]
    texts = [
        f"{ratio:.2g}x, {row['mebibytes']:,.0f} MiB"
        for ratio, row in zip(ratios, rows, strict=True)
    ]
    colours = [COLOURS[OURS if "qmath" in label else "TensorFlow"] for label in labels]
    _bars(on, labels, ratios, texts, colours)
    on.set_title("import: time, in NumPy's; resident memory")


def _job(on: Any, rows: list[Row]) -> None:
    """Draw how much faster the job is than in TensorFlow, and with what share of its memory."""
    labels, ratios, texts = [], [], []
    for row in rows:
        if "tensorflow" in row:
            ratios.append(row["tensorflow"]["seconds"] / row["qmath"]["seconds"])
            share = row["qmath"]["mebibytes"] / row["tensorflow"]["mebibytes"]
            texts.append(f"{ratios[-1]:.3g}x, {share:.0%} of memory")
            labels.append(f"{row['model']},\n{row['container']}")
    if not labels:
        on.set_axis_off()
        return
    _bars(on, labels, ratios, texts, [COLOURS[OURS]] * len(labels))
    on.set_title("qmath export: faster than TensorFlow, times")
