"""The matrix in Markdown, and which refusals are meant."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence

from reference.matrix.judging import Count, Verdict

__all__ = ["MEANT", "faults", "listing", "meaning", "table"]

# What was tried, what is said of it, and why that is right.
MEANT = (
    ("build", "*", "Keras or TFMOT itself does not build it"),
    ("save *", "Keras: *", "Keras itself does not write it"),
    (
        "load exported",
        "*the order of its layers is not known (*",
        "of ops alone, without a config, only layers whose ops are unmistakable are known",
    ),
    (
        "export cmsis-nn",
        "*nothing in this model is a layer of CMSIS-NN*",
        "its functions take activations of 8 bits and kernels of 8 and 4",
    ),
    ("export tflite", "*TFLite does not hold *", "TFLite has no operator for it, or no such type"),
)


def _label(name: str) -> str:
    return name.rpartition("/w")[0] or name


def meaning(what: str, reason: str) -> str | None:
    """Return why a refusal is right, ``None`` if nothing says so."""
    for pattern, said, why in MEANT:
        if fnmatch.fnmatchcase(what, pattern) and fnmatch.fnmatchcase(reason, said):
            return why
    return None


def faults(verdict: Verdict) -> Iterator[str]:
    """Yield what is wrong with a model."""
    for what, reason in verdict.faults.items():
        yield f"{what}: {reason}"
    for name, count in verdict.counts.items():
        if count.unexplained:
            yield f"{name}: {count.unexplained} unexplained, {'; '.join(count.listed)}"
    for what, reason in verdict.refusals.items():
        if meaning(what, reason) is None and not _follows(what, verdict):
            yield f"{what} refused: {reason}"


def _follows(what: str, verdict: Verdict) -> bool:
    """Tell whether a refusal is the consequence of another one."""
    return what.startswith("export ") and "program" in verdict.refusals


def table(verdicts: Sequence[Verdict], by: Callable[[str], str] = _label) -> Iterator[str]:
    """Yield the lines of a table: a row for each layer with its cells of all widths.

    Parameters
    ----------
    verdicts : sequence of Verdict
    by : callable, optional
        What belongs in one row, by the name of a cell; default: a case.
    """
    yield "| layer | models | kind | integers | differing | explained | ONNX Runtime | C | faults |"
    yield "|---|---:|---|---:|---:|---:|---:|---:|---:|"
    rows: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        rows.setdefault(by(verdict.name), []).append(verdict)
    rows["all"] = list(verdicts)
    for name, row in rows.items():
        kinds = dict.fromkeys(verdict.kind for verdict in row)
        counts = [v.counts[profile] for v in row for profile in ("exact", "integer")
                  if profile in v.counts]  # fmt: skip
        total = _added(counts)
        onnx = _added([v.counts["onnxruntime"] for v in row if "onnxruntime" in v.counts])
        in_c = sum("self-check in C" in verdict.did for verdict in row)
        wrong = sum(any(faults(verdict)) for verdict in row)
        yield (
            f"| {name} | {len(row)} | {', '.join(kinds) if name != 'all' else ''} "
            f"| {total.integers:,} | {total.differing:,} "
            f"| {total.explained + total.beside_floats:,} "
            f"| {onnx.differing:,} of {onnx.integers:,} | {in_c} | {wrong} |"
        )


def _added(counts: Sequence[Count]) -> Count:
    return Count(
        *(sum(getattr(count, key) for count in counts)
          for key in ("integers", "differing", "explained", "beside_floats"))
    )  # fmt: skip


def listing(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Yield a line for each fault, tensor that differs, and refusal, with what has it."""
    lines: dict[str, list[str]] = {}
    for verdict in verdicts:
        for line in faults(verdict):
            lines.setdefault(f"FAULT {line}", []).append(verdict.name)
        for profile, count in verdict.counts.items():
            for line in count.listed:
                lines.setdefault(f"differs, {profile}: {line}", []).append(verdict.name)
        for what, reason in verdict.refusals.items():
            why = meaning(what, reason)
            if why is not None:
                lines.setdefault(f"refused, {what}: {why}", []).append(verdict.name)
        for name in (*verdict.floats, *verdict.cuts):
            if name != "after":
                lines.setdefault(f"{verdict.kind}: {name}", []).append(verdict.name)
    for line, names in sorted(lines.items()):
        shown = ", ".join(names[:3]) + (f", … ({len(names)})" if len(names) > 3 else "")
        yield f"- {line} ({shown})"
