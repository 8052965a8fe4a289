"""The command line: ``python -m reference.prove [--configs NAME …] [--quick] [--resume]``.

``--complete FILE`` runs only what a certificate does not hold yet.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from reference.builds.twins import TWINS
from reference.jit import NO_FMA
from reference.prove import certificate
from reference.prove.journal import Journal, JournalError


def prove(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is not in the journal yet, and return the certificate."""
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if options.against == "xla-cpu-nofma":  # before TensorFlow is imported, here or in a worker
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {NO_FMA}"
    from reference.prove.running import run
    from reference.prove.tasks import select, tasks

    every = tasks(options.quick, options.against)
    chosen = select(every, options.configs)
    where = certificate.environment(options.against)
    journal = None
    finished: dict[str, dict[str, Any]] = {}
    earlier = 0.0
    if options.complete:
        before = certificate.read(options.complete, where)
        earlier = before["cpu_minutes"]
        for name, task in every.items():
            if records := task.held(before):
                finished[name] = {"task": name, "seconds": 0.0, "records": records}
        chosen = {name: every[name] for name in every if name in chosen or name in finished}
    if options.output:
        options.output.parent.mkdir(exist_ok=True)
        path = options.output.with_name(options.output.name + ".journal")
        journal = Journal(
            path, {**where, "quick": options.quick, "against": options.against}, options.resume
        )
        finished |= {name: entry for name, entry in journal.finished.items() if name in chosen}
    left = [name for name in chosen if name not in finished]
    total = sum(task.elements for task in chosen.values())
    done_before = sum(chosen[name].elements for name in finished)
    counter = get_context("spawn").Value("q", done_before)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:5.1f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("proving", total=total, completed=done_before)

        def show() -> None:
            progress.update(bar, completed=counter.value)

        for name, records, seconds in run(
            left, options.quick, options.jobs, counter, show, options.against
        ):
            entry = {"task": name, "seconds": round(seconds, 1), "records": records}
            if journal:
                journal.add(entry)
            finished[name] = entry
            differs = certificate.count_differing(records)
            progress.console.print(f"{name}: {differs} differ, {seconds:.0f} s", highlight=False)
    kinds = {name: task.kind for name, task in chosen.items()}
    made = certificate.build(where, kinds, [finished[name] for name in chosen], earlier)
    if journal:
        certificate.write(made, options.output)
        journal.remove()
    return made


def main(arguments: list[str] | None = None) -> int:
    """Prove, or print the table; return the exit status: 1 if anything differs."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.prove",
        description="Compare qmath with TensorFlow on every float32, and write a certificate.",
    )
    parser.add_argument(
        "--configs", nargs="+", metavar="NAME", help="only these; * and ? stand for other letters"
    )
    parser.add_argument(
        "--against",
        choices=list(TWINS),
        default="tf",
        metavar="NAME",
        help=f"whose kernels: {', '.join(TWINS)}; default: tf, the installed ones, eager",
    )
    parser.add_argument("--quick", action="store_true", help="a slice of everything, in a minute")
    parser.add_argument("--resume", action="store_true", help="go on where the last run stopped")
    parser.add_argument(
        "--complete",
        type=Path,
        metavar="FILE",
        help="keep the records of this certificate, and run what it misses; the default output",
    )
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes; default: all"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: where the repository has it; none with --quick or --configs",
    )
    parser.add_argument(
        "--table", action="store_true", help="print the Markdown table of the certificate"
    )
    options = parser.parse_args(arguments)
    options.output = options.output or options.complete
    if options.output is None and (options.table or not (options.quick or options.configs)):
        options.output = certificate.path(options.against)
    if options.table:
        made = json.loads(options.output.read_text("utf-8"))
    else:
        try:
            made = prove(options)
        except (certificate.CertificateError, JournalError) as error:
            parser.exit(2, f"error: {error}\n")
    print("\n".join(certificate.table(made)))
    return int(made["differing"] > 0)


if __name__ == "__main__":
    sys.exit(main())
