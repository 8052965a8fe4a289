"""``qmath run``: the integer model on data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmath.cli.completion import kept
from qmath.cli.models import ModelArgument, model_argument
from qmath.cli.results import Result, Verb
from qmath.cli.settings import CUT, PROFILE, PROFILES_HELP, given, profile_options
from qmath.cli.tables import Column, numbers, tables
from qmath.cli.text import advancing, console, count, printable, show
from qmath.cli.workers import check_resumed, computing, resuming, worker_options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from qmath.integer.api import Run
    from qmath.integer.profiles.fixed import FixedPoint
    from qmath.integer.program import Program
    from qmath.integer.reducers import Activation

__all__ = ["run"]

_OF_USE = numbers("integers used", "clipped", "SQNR dB")
_OF_CONSTANTS = {
    "accumulator bits": Column(is_number=True, most=11),
    "multiplier bits": Column(is_number=True, most=10),
    "shift": Column(is_number=True),
    "error in steps": Column(is_number=True, most=8),
}


@click.command(
    cls=Verb,
    short_help="Run the integer model on data.",
    epilog="\b\nExample:\n  qmath run model.h5 images.npz --profile integer -o outputs.npz",
)
@model_argument
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--profile", type=PROFILE, default="integer", show_default=True, help=PROFILES_HELP)
@profile_options
@click.option(
    "--engine",
    type=click.Choice(["numpy", "c"]),
    default="numpy",
    show_default=True,
    help="What computes: NumPy, or the exported C, compiled by CC, or cc, for the profile integer.",
)
@click.option("--cut", "cuts", multiple=True, metavar="NAME=FILE", help=CUT)
@click.option("--require-integer", is_flag=True, help="Fail if a layer has to run in float32.")
@click.option(
    "--labels",
    metavar="NAME|FILE",
    help="Report the accuracy: class numbers, or one-hot rows, of an array of DATA or of a file.",
)
@click.option(
    "--activations",
    is_flag=True,
    help="Report how many integers of each tensor are used, how many results are clipped, and the "
    "signal-to-noise ratio.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="outputs|TENSOR",
    shell_complete=kept,
    help="Of the tensors, write these alone. Repeatable.",
)
@worker_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT.npz",
    help="Write the outputs, and the integers of every quantized tensor, or what --keep says. Of "
    "several models: a folder, for NAME.npz of each.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def run(
    model: ModelArgument,
    data: Path,
    profile: str,
    multiplier_bits: int | None,
    rounding: str | None,
    engine: str,
    cuts: tuple[str, ...],
    require_integer: bool,
    labels: str | None,
    activations: bool,
    keep: tuple[str, ...],
    workers: int | None,
    scheduler: str | None,
    resume: Path | None,
    output: Path | None,
    overwrite: bool,
) -> Result:
    """Run MODEL in integers on DATA, an .npz with an array for each input, or an .npy.

    DATA may be a pattern of such files, 'shards/*.npz', which are joined. They are read part by
    part.

    OUT holds output/NAME (float32) for each output of the model and NAME (unsigned integers, as
    TensorFlow counts) for each quantized tensor; under the profile integer also its constants.
    With y = sum(accumulator * NAME.multiplier) + NAME.addend, whose addend holds the rounding's
    half, y >> NAME.shift clamped to NAME.low … NAME.high is the integer relative to the zero point.
    NAME.multiplier.0, .1, … belong to the tensors in NAME.sources. For a leaky ReLU, NAME.negative
    holds the constants that apply where y is below that half, 1 << (NAME.shift - 1).
    """
    from qmath.cli.data import files_of, read_cuts, read_labels, read_program_and_inputs
    from qmath.cli.written import Written, written
    from qmath.engine.api import engine_named
    from qmath.exports.output.atomic import check_output
    from qmath.integer.api import profile_named
    from qmath.integer.api import run as run_model
    from qmath.integer.executor import planned
    from qmath.integer.profiles.fixed import constants

    check_resumed(resume, model, [output, *files_of(data)])
    if output is not None:
        output = model.placed(output, ".npz")
        sources = (*model.inputs, *files_of(data))
        check_output(output, overwrite=overwrite, sources=sources, example="outputs.npz")
    elif keep:
        raise click.UsageError("--keep says what -o OUT.npz is to hold: give both")
    recorded = read_cuts(cuts)
    loaded = model.load()
    program, inputs = read_program_and_inputs(
        loaded, data, require_integer=require_integer, cuts=recorded
    )
    chosen = given(multiplier_bits=multiplier_bits, rounding=rounding)
    computed = planned(program, profile_named(profile, **chosen))
    chosen |= {} if labels is None else {"labels": read_labels(labels, data)}
    fixed = constants(program, multiplier_bits or 31) if profile == "integer" else {}
    to = Written(
        output, program, computed, inputs, recorded, _kept(program, keep), fixed, overwrite
    )
    with (
        resuming(resume),
        computing(workers, scheduler) as where,
        advancing("running …", "running …") as progress,
        written(to, resume) as sink,
    ):
        result = run_model(
            program, inputs, engine=engine_named(engine, loaded), profile=profile,
            progress=progress, cuts=recorded, activations=activations, keep=to.kept,
            resume=resume, sink=sink, **where, **chosen,
        )  # fmt: skip
    needs = {name: _needs(first) for name, (first, *_) in fixed.items()}
    _render(result, needs)
    if output is not None:
        out = console()
        kind = "" if output.suffix == ".npz" else " in an .npz, whatever its name says"
        number = count(len(to.quantized), "quantized tensor")
        out.print(f"{printable(str(output))}: {number}{kind}")
    document = {
        "source": str(model.path), "data": str(data), "profile": profile,
        "engine": result.engine,
        "output": None if output is None else str(output), **_document(result, needs),
    }  # fmt: skip
    return Result(document, count(len(document["tensors"]), "quantized tensor"))


def _kept(program: Program, names: Sequence[str]) -> list[str]:
    """Return the tensors to write; default: all."""
    if not names:
        return [step.name for step in program.steps]
    return [kept for name in names for kept in (program.outputs if name == "outputs" else (name,))]


def _shapes(result: Run, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of those tensors that were computed, be they kept or not."""
    lacking = {*result.missing, *chain(*result.missing.values())}
    steps = (result.program.step(name) for name in names if name not in lacking)
    return {step.name: (result.examples, *step.shape) for step in steps}


def _document(result: Run, needs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    program = result.program
    return {
        "examples": result.examples,
        "outputs": {
            name: {"shape": list(shape)} for name, shape in _shapes(result, program.outputs).items()
        },
        "tensors": {
            name: {"shape": list(shape)}
            for name, shape in _shapes(result, program.quant_params).items()
        },
        "accuracy": result.accuracy,
        "activations": {
            name: {
                "used": use.used,
                "of": len(use.counts),
                "clipped": use.clipped,
                "sqnr": use.sqnr,
                "counts": use.counts.tolist(),
            }
            for name, use in result.activations.items()
        },
        "constants": needs,
        "float_layers": dict(program.float_layers),
        "missing": {name: list(needing) for name, needing in result.missing.items()},
        "notes": _notes(result),
    }


def _notes(result: Run) -> list[str]:
    if result.examples:
        return list(result.program.notes)
    none = "the data hold no examples, so nothing was computed, and there is no accuracy"
    return [*result.program.notes, f"{none}; check DATA"]


def _needs(constants: FixedPoint) -> dict[str, Any]:
    """Return what hardware has to provide for a tensor."""
    largest = max(int(abs(m).max(initial=0)) for m in constants.multipliers)
    return {
        "accumulator_bits": max(int(bits.max()) for bits in constants.accumulator_bits),
        "multiplier_bits": largest.bit_length(),
        "shift": [int(constants.shift.min()), int(constants.shift.max())],
        "error": float(constants.error),
    }


def _render(result: Run, needs: Mapping[str, Mapping[str, Any]]) -> None:
    out = console()
    for name, (examples, *shape) in _shapes(result, result.program.outputs).items():
        out.print(f"{printable(name)}: {count(examples, 'example')} of shape {tuple(shape)}")
    if result.accuracy is not None:
        out.print(f"accuracy: {result.accuracy:.4%}")
    for table in _tables(needs, out) if needs else ():
        out.print(table)
    for table in _tables_of_use(result.activations, out) if result.activations else ():
        out.print(table)
    cuts = {cut.name.removesuffix("/activation") for cut in result.program.cuts}
    for name, remedy in result.program.float_layers.items():
        show(f"{'a cut point' if name in cuts else 'in float32'}: {name}; {remedy}")
    for name, needing in result.missing.items():
        show(f"not computed, for want of {name}: {', '.join(needing) or 'what follows it'}")
    for note in _notes(result):
        show(f"note: {note}")


def _tables_of_use(activations: Mapping[str, Activation], out: Console) -> list[Table]:
    rows = []
    for name, use in activations.items():
        clipped, total = use.clipped, int(use.counts.sum())
        cells = (
            printable(name),
            f"{use.used:,} of {len(use.counts):,}",
            "" if clipped is None else f"{clipped:,} ({clipped / total:.2%})",
            "" if use.sqnr is None else f"{use.sqnr:.1f}",
        )
        rows.append(dict(zip(("tensor", *_OF_USE), cells, strict=True)))
    return tables(rows, _OF_USE, out)


def _tables(needs: Mapping[str, Mapping[str, Any]], out: Console) -> list[Table]:
    rows = []
    for name, need in needs.items():
        cells = (
            printable(name),
            str(need["accumulator_bits"]),
            str(need["multiplier_bits"]),
            " … ".join(map(str, dict.fromkeys(need["shift"]))),
            f"{need['error']:.1e}",
        )
        rows.append(dict(zip(("tensor", *_OF_CONSTANTS), cells, strict=True)))
    return tables(rows, _OF_CONSTANTS, out)
