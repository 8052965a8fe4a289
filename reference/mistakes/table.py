"""The results as tables in Markdown, from the document that ``--json`` writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from reference.mistakes.catalogue import MISTAKES

__all__ = ["tables"]

Results = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]


def tables(results: Results) -> Iterator[str]:
    """Yield the lines of the summary, of the mistakes, and of those that survive in a layer."""
    yield from _summary(results)
    yield ""
    yield from _mistakes(results)
    yield ""
    yield from _survivors(results)


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _summary(results: Results) -> Iterator[str]:
    yield _row(
        "model", "kernel", "not applicable", "equivalent", "others", "killed by directed vectors",
        "by noise", "others, layer by layer", "killed by directed vectors", "by noise",
    )  # fmt: skip
    yield "|---|---|" + "--:|" * 8
    for model, kernels in results.items():
        for kernel, verdicts in kernels.items():
            outcomes = Counter(v["outcome"] for v in verdicts.values())
            real = [v for v in verdicts.values() if v["killed"] or v["survived"]]
            killed = sum(len(v["killed"]) for v in real)
            noise = sum(bool(v["noise"]) for v in real)
            in_layers = sum(len(v["noise"]) for v in real)
            yield _row(
                model, kernel, outcomes["not applicable"], outcomes["equivalent"], len(real),
                outcomes["killed"], "" if kernel in ("tflite", "verilog") else noise,
                killed + sum(len(v["survived"]) for v in real), killed,
                in_layers if kernel == "numpy" else "",
            )  # fmt: skip


def _mistakes(results: Results) -> Iterator[str]:
    yield _row("mistake", *results, "found by")
    yield "|---|" + "---|" * (len(results) + 1)
    group = ""
    for mistake in MISTAKES:
        if mistake.group != group:
            group = mistake.group
            yield _row(f"**{group}**", *("" for _ in results), "")
        of_models = [kernels["numpy"][mistake.name] for kernels in results.values()]
        found: Counter[str] = Counter()
        for verdict in of_models:
            for purposes in verdict["killed"].values():
                found.update(purposes)
        purposes = ", ".join(purpose for purpose, _ in found.most_common(2))
        yield _row(mistake.name, *map(_cell, of_models), purposes)


def _cell(verdict: Mapping[str, Any]) -> str:
    killed, survived = len(verdict["killed"]), len(verdict["survived"])
    if not killed + survived:
        return "=" if verdict["equal"] else ""
    of = f" of {killed + survived}" if survived else ""
    return f"{killed}{of} ({len(verdict['noise'])})"


def _survivors(results: Results) -> Iterator[str]:
    yield _row("model", "mistake", "layer", "kernels", "what would show it")
    yield "|---|---|---|---|---|"
    found: dict[tuple[str, ...], list[str]] = {}
    for model, kernels in results.items():
        for kernel, verdicts in kernels.items():
            for name, verdict in verdicts.items():
                for layer, why in verdict["survived"].items():
                    found.setdefault((model, name, layer, why), []).append(kernel)
    for (model, name, layer, why), where in found.items():
        yield _row(model, name, layer, ", ".join(where), why)
