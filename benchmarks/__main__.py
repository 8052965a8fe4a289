"""Measure qmath beside its peers: ``python -m benchmarks [--quick] [--json F] [--plot F]``.

Prints a Markdown table of medians with quartiles. All candidates of a case take turns in the same
run with the same number of threads; read the ratios, not the times. The other benchmarks of this
folder are commands of their own: ``python -m benchmarks.startup``, ``.packing``, ``.inference``,
``.job``, ``.growth``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks import kernels, measure, results

BENCHMARKS = {"kernels": kernels}  # modules with measure(quick, threads, rounds, progress)


def main() -> None:
    """Run the benchmarks and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="few sizes")
    parser.add_argument("--threads", type=int, default=1, help="for every candidate")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--clock",
        choices=measure.CLOCKS,
        default="wall",
        help="cpu: what the process's threads used, on a machine that others use, too",
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw them here (SVG or PNG)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(
            f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}"
        )
    measure.choose_clock(options.clock)
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in options.names or BENCHMARKS:
            task = progress.add_task(name, total=None)
            measured = BENCHMARKS[name].measure(
                options.quick,
                options.threads,
                options.rounds,
                lambda text, task=task, name=name: progress.update(
                    task, description=f"{name}: {text}"
                ),
            )
            rows += list(measured)
    print(results.table(rows))
    if absent := kernels.missing():
        print(f"\nnot installed, so left out: {', '.join(absent)}")
    if options.json:
        settings = {"threads": options.threads, "rounds": options.rounds, "clock": options.clock}
        results.write_json(rows, options.json, **settings)
    if options.plot:
        results.plot(rows, options.plot)


if __name__ == "__main__":
    main()
