"""``qmath diff``: which layer's integers differ, and by how much."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmath.cli.models import ModelArgument, model_argument
from qmath.cli.results import Result, Verb
from qmath.cli.settings import PROFILE, PROFILES_HELP, given, profile_options
from qmath.cli.text import advancing, console, count, printable, show

if TYPE_CHECKING:
    from qmath.integer.comparison import Comparison

__all__ = ["diff"]

_SHOWN = 5
_COLUMNS = ("integers", "teacher-forced", "free-running", "largest", "to tie", "noise")


class _Diff(Verb):
    """The verb, or with ``--op`` the judge of a kernel's results, whose arguments are others."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:  # fmt: skip
        if _has_op(args):
            from qmath.cli.judge import judge

            return judge.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _has_op(args: Sequence[str]) -> bool:
    return any(arg.partition("=")[0] == "--op" for arg in args)


@click.command(
    cls=_Diff,
    short_help="Compare the integers of two runs, layer by layer.",
    epilog="\b\nExamples:\n  qmath diff model.h5 images.npz --profile tflite --against integer\n"
    "  qmath diff model.h5 images.npz --against dump.npz",
)
@model_argument
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--profile",
    "profiles",
    type=PROFILE,
    multiple=True,
    default=("integer",),
    show_default=True,
    help=PROFILES_HELP + " Given twice, the second is compared with.",
)
@profile_options
@click.option(
    "--against",
    metavar="PROFILE|DUMP.npz",
    help="Another profile, or what `python -m reference.dump` wrote from the live model. Default: "
    "exact. Of several models: a folder, with NAME.npz of each.",
)
@click.option(
    "--op",
    expose_value=False,
    metavar="OP",
    help="Judge a kernel's answers to `qmath vectors OP` instead; see qmath diff --op OP --help.",
)
def diff(
    model: ModelArgument,
    data: Path,
    profiles: tuple[str, ...],
    multiplier_bits: int | None,
    rounding: str | None,
    against: str | None,
) -> Result:
    """Compare a run of MODEL on DATA with another profile, or with the trained model itself.

    Columns: integers compared; how many differ when each layer starts from the reference's own
    integers, and when each run goes on with its own; the largest difference; of those that differ,
    the greatest distance from the rounding tie, in steps; what the float32 arithmetic of a trained
    model may be off, in steps. Exit status 1 if a layer differs by more than that explains.
    """
    from qmath.cli.data import read_program_and_inputs
    from qmath.containers.array_file import read_arrays
    from qmath.integer.api import PROFILES
    from qmath.integer.api import diff as compare

    if len(profiles) + (against is not None) > 2:
        raise click.UsageError("two runs can be compared: give --profile twice, or with --against")
    other = against or (profiles[1] if len(profiles) == 2 else "exact")
    program, inputs = read_program_and_inputs(model.load(), data)
    chosen = given(multiplier_bits=multiplier_bits, rounding=rounding)
    with advancing("comparing …", "comparing …") as progress:
        comparison = compare(
            program,
            inputs,
            profile=profiles[0],
            against=other if other in PROFILES else read_arrays(model.within(Path(other), ".npz")),
            progress=progress,
            **chosen,
        )
    _render(comparison)
    for note in program.notes:
        show(f"note: {note}")
    layers = [
        dataclasses.asdict(layer) | {"explained": layer.explained} for layer in comparison.layers
    ]
    explained = all(layer.explained for layer in comparison.layers)
    document = {
        "source": str(model.path), "data": str(data), "profile": profiles[0], "against": other,
        "equal": comparison.first is None, "explained": explained, "layers": layers,
        "notes": list(program.notes),
    }  # fmt: skip
    words = "equal" if comparison.first is None else f"differs from {comparison.first.name} on"
    summary = words + (", as float32 noise explains" if explained and comparison.first else "")
    return Result(document, summary, differs=not explained)


def _render(comparison: Comparison) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold")
    for title in _COLUMNS:
        table.add_column(title, justify="right")
    for layer in comparison.layers:
        tie, noise = (
            "" if value is None else f"{value:.1e}" for value in (layer.farthest_tie, layer.noise)
        )
        table.add_row(
            printable(layer.name), f"{layer.elements:,}", f"{layer.teacher_forced:,}",
            f"{layer.free_running:,}", str(layer.largest), tie, noise,
        )  # fmt: skip
    out = console()
    out.print(table)
    first = comparison.first
    if first is None:
        out.print("equal: no layer's own arithmetic differs")
        return
    verb = "explains" if first.explained else "does not explain"
    out.print(f"first to differ: {printable(first.name)}; float32 noise {verb} it")
    for item in first.differences[:_SHOWN]:
        tie = "" if item.to_tie is None else f", {item.to_tie:.1e} steps from its tie"
        out.print(f"  {list(item.index)}: {item.value}, not {item.reference}{tie}")
    if first.teacher_forced > _SHOWN:
        out.print(f"  and {count(first.teacher_forced - _SHOWN, 'further element')}")
