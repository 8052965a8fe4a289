"""``qmath diff --op``: whether a kernel answered the cases of ``qmath vectors``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from qmath.cli.results import Result, Verb
from qmath.cli.text import console
from qmath.cli.vectors import OPS

__all__ = ["judge"]


@click.command(
    "diff-op",
    cls=Verb,
    epilog="\b\nExamples:\n  qmath vectors fake_quant | ./mine | qmath diff --op fake_quant\n"
    "  qmath diff --op conv answers",
)
@click.option("--op", type=click.Choice(OPS), required=True, help="What the results are of.")
@click.argument("results", type=click.Path(path_type=Path), required=False)
def judge(op: str, results: Path | None) -> Result:
    """Judge RESULTS, by default standard input: cases of qmath vectors, each with its result.

    Says how many results differ, which, how far from a rounding tie they are, and with which other
    arithmetic all of them agree. Exit status 1 if any differs, 2 if they cannot be judged.
    """
    from qmath.errors import FileFormatError
    from qmath.testing.pipe.judge import judge as found_in

    if results is None:
        if sys.stdin is None:
            raise FileFormatError("standard input is closed; give RESULTS, or a pipe")
        try:
            judgement = found_in(sys.stdin.buffer, op)
        except OSError as error:
            raise FileFormatError(f"cannot read standard input: {error.strerror}") from error
    else:
        try:
            with results.open("rb") as stream:
                judgement = found_in(stream, op, str(results))
        except OSError as error:
            raise FileFormatError(f"cannot read {results}: {error.strerror or error}") from error
    out = console()
    for line in judgement.lines():
        out.print(line)
    document = {"op": op, "source": str(results or "-"), **dataclasses.asdict(judgement)}
    return Result(document, next(judgement.lines()), differs=not judgement.ok)
