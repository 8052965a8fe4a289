"""Measure qmath beside its peers: ``python -m benchmarks [NAME …] [--quick]``.

Prints a table for each part and writes one JSON file and one plot. All candidates of a case take
turns in the same run with the same number of threads; read the ratios, not the times. ``--table``
prints a summary of a JSON file, in Markdown, and ``--plot`` with it draws that file's numbers.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from benchmarks import measure, parts, results

TITLES = {
    "kernels": "Kernels",
    "start": "Start",
    "job": "The job: from a file to integers in a file",
    "growth": "Growth",
    "datasets": "Data sets",
    "builds": "Builds of TensorFlow",
    "packing": "Packing",
    "inference": "Inference",
}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    of = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    of.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(parts.PARTS)}; all")
    of.add_argument(
        "--quick",
        action="store_true",
        help="a small slice of each part; inference, whose model takes half a minute, when named",
    )
    of.add_argument("--threads", type=int, default=1, help="for every candidate (1)")
    of.add_argument("--rounds", type=int, help="of each part, instead of its own number")
    of.add_argument(
        "--clock",
        choices=measure.CLOCKS,
        default="wall",
        help="of kernels, growth, datasets, builds, packing; cpu: what the process's threads used, "
        "on a machine that others use, too",
    )
    of.add_argument("--json", type=Path, metavar="FILE", help="write what was measured here")
    of.add_argument("--plot", type=Path, metavar="FILE", help="draw it here (SVG or PNG)")
    of.add_argument("--table", type=Path, metavar="JSON", help="measure nothing; summarise this")
    return of


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks, or summarise what was measured, and print."""
    command = parser()
    options = command.parse_args(arguments)
    if unknown := [name for name in options.names if name not in parts.PARTS]:
        command.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(parts.PARTS)}")
    if min(options.threads, 1 if options.rounds is None else options.rounds) < 1:
        command.error("--threads and --rounds: 1 or more")
    if options.plot and options.plot.suffix not in (".svg", ".png"):
        command.error(f"--plot {options.plot}: .svg or .png")
    if options.plot and not importlib.util.find_spec("matplotlib"):
        command.error("--plot needs matplotlib, which the extra 'benchmarks' installs")
    failures: list[str] = []
    if options.table:
        found = results.read(options.table)
        print(text(found, "summary"))
    else:
        found, failures = measured(options)
        print(text(found, "full"))
    if options.plot:
        from benchmarks import plots

        try:
            plots.draw(found, options.plot)
        except ValueError as error:
            failures.append(str(error))
    for failure in failures:
        print(failure, file=sys.stderr)
    return bool(failures)


def measured(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run the parts, with a progress bar; return results and what failed."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    parts.equal_threads(options.threads)
    settings = {key: getattr(options, key) for key in ("quick", "threads", "clock")}
    found: dict[str, Any] = {"about": results.about(**settings), "parts": {}}
    failures = []
    names = list(dict.fromkeys(options.names)) or parts.usual(options.quick)
    weights = {name: parts.PARTS[name][options.quick] for name in names}
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=sum(weights.values()))
        before = 0
        for name, weight in weights.items():

            def progress(share: float, what: str, name=name, weight=weight, before=before) -> None:
                bar.update(task, completed=before + share * weight, description=f"{name}: {what}")

            try:
                found["parts"][name] = parts.run(
                    name, rounds=options.rounds, progress=progress, **settings
                )
            except RuntimeError as error:
                failures.append(str(error))
            before += weight
            if options.json:  # after each part: what was measured is not lost if a later one fails
                results.write(found, options.json)
    return found, failures


def text(found: dict[str, Any], kind: str) -> str:
    """Return all tables, the ``"full"`` ones or their ``"summary"``, and what they depend on."""
    about = found["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    settings = f"{about['cpu']}, threads: {about['threads']}, clock: {about['clock']}"
    sections = [f"{about['date']}, {settings}; {versions}" + "; quick" * about["quick"]]
    for name, part in found["parts"].items():
        sections.append(f"### {TITLES[name]}\n\n{getattr(parts.load(name), kind)(part['rows'])}")
        if part["skipped"]:
            sections.append(f"Not available, so left out: {', '.join(part['skipped'])}.")
    return "\n\n".join(sections)


if __name__ == "__main__":
    sys.exit(main())
