"""Judge every layer class, or networks: ``python -m reference.matrix [--networks] …``.

Each cell is a small model with one layer, quantized by TFMOT: saved to every container and read
again, exported to every format and verified, run under `exact` and `integer` from TensorFlow's own
integers, its C compiled and its self-check run, its ONNX file run by ONNX Runtime. What is done is
kept in ``--state FILE``, one cell a line, and not done again. The exit status is 1 if anything is
wrong: an integer that TensorFlow's float32 noise does not explain, a failing check, an exception
that is not qmath's own, or a refusal for a reason that `reference.matrix.table` does not know.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reference.matrix.judging import Count, Verdict
from reference.matrix.running import class_of_cell, judged, names
from reference.matrix.table import faults, listing, table

__all__ = ["main"]


def _read(state: Path) -> dict[str, Verdict]:
    """Return the verdicts of a state file; of a cell that is there twice, the last."""
    found: dict[str, Verdict] = {}
    for line in state.read_text().splitlines() if state.exists() else ():
        entry: dict[str, Any] = json.loads(line)
        counts = {name: Count(**count) for name, count in entry.pop("counts").items()}
        found[entry["name"]] = Verdict(**entry, counts=counts)
    return found


def _judged(wanted: Sequence[str], jobs: int) -> Iterator[Verdict]:
    if jobs == 1:
        yield from map(judged, wanted)
        return
    # TensorFlow's threads do not survive a fork.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(judged, wanted)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge what the command line names, and print the table of all that is in the state file."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.matrix", description="Judge every layer class, or networks."
    )
    parser.add_argument("--networks", action="store_true", help="whole networks, not layers")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="GLOB", help="cells of these names"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="where verdicts are kept; default: nowhere"
    )
    parser.add_argument(
        "--again", action="store_true", help="judge the cells anew that are in the state file"
    )
    parser.add_argument("--done", action="store_true", help="print what the state file has")
    parser.add_argument("--classes", action="store_true", help="a row for each class of layers")
    parser.add_argument("--list", action="store_true", help="print the names of the cells alone")
    options = parser.parse_args(arguments)
    known = names(options.networks)
    wanted = [name for name in known if any(fnmatch.fnmatchcase(name, g) for g in options.only)]
    if not wanted:
        parser.error(f"nothing is named {' or '.join(options.only)}")
    if options.list:
        print("\n".join(wanted))
        return 0
    found = _read(options.state) if options.state else {}
    missing = [name for name in wanted if options.again or name not in found]
    if options.done:
        missing, wanted = [], [name for name in wanted if name in found]
    for verdict in _judged(missing, options.jobs):
        found[verdict.name] = verdict
        wrong = "; ".join(faults(verdict))
        print(f"{verdict.name}: {verdict.kind} {verdict.seconds} s {wrong}", file=sys.stderr)
        if options.state:
            with options.state.open("a") as file:
                file.write(json.dumps(asdict(verdict)) + "\n")
    shown = [found[name] for name in wanted]
    lines = table(shown, class_of_cell) if options.classes else table(shown)
    print("\n".join([*lines, "", *listing(shown)]))
    return int(any(any(faults(verdict)) for verdict in shown))


if __name__ == "__main__":
    sys.exit(main())
