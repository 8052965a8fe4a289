"""``qmath run``: the integer model on data."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmath.cli.settings import (
    PROFILE,
    PROFILES_HELP,
    ModelArgument,
    given,
    model_argument,
    profile_options,
)
from qmath.cli.text import advancing, console, count, printable

if TYPE_CHECKING:
    from rich.table import Table

    from qmath.integer.profiles.fixed import FixedPoint

__all__ = ["run"]


@click.command(
    short_help="Run the integer model on data.",
    epilog="\b\nExample:\n  qmath run model.h5 images.npz --profile integer -o outputs.npz",
)
@model_argument
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--profile", type=PROFILE, default="integer", show_default=True, help=PROFILES_HELP)
@profile_options
@click.option("--require-integer", is_flag=True, help="Fail if a layer has to run in float32.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT.npz",
    help="Write the outputs, and the integers of every quantized tensor.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def run(
    model: ModelArgument,
    data: Path,
    profile: str,
    multiplier_bits: int | None,
    rounding: str | None,
    require_integer: bool,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Run MODEL in integers on DATA, an .npz with an array for each input, or an .npy.

    OUT holds output/NAME (float32) for each output of the model and NAME (unsigned integers, as
    TensorFlow counts) for each quantized tensor; under the profile integer also its constants.
    With y = sum(accumulator * NAME.multiplier) + NAME.addend, whose addend holds the rounding's
    half, y >> NAME.shift clamped to NAME.low … NAME.high is the integer relative to the zero point.
    NAME.multiplier.0, .1, … belong to the tensors in NAME.sources. For a leaky ReLU, NAME.negative
    holds the constants that apply where y is below that half, 1 << (NAME.shift - 1).
    """
    import numpy as np

    from qmath.cli.data import read_program_and_inputs
    from qmath.exports.arrays.npz import write_arrays
    from qmath.exports.output.atomic import check_output, replacing
    from qmath.integer.api import run as run_model
    from qmath.integer.describe import arrays as arrays_of
    from qmath.integer.profiles.fixed import constants
    from qmath.integer.program import sources

    if output is not None:
        check_output(output, overwrite=overwrite, sources=(*model.inputs, data))
    program, inputs = read_program_and_inputs(model.load(), data, require_integer=require_integer)
    chosen = given(multiplier_bits=multiplier_bits, rounding=rounding)
    with advancing("running …", "running …") as progress:
        result = run_model(
            program, inputs, profile=profile, progress=progress,
            **chosen,
        )  # fmt: skip
    out = console()
    for name, values in result.outputs.items():
        out.print(f"{printable(name)}: {count(len(values), 'example')} of shape {values.shape[1:]}")
    fixed = constants(program, multiplier_bits or 31) if profile == "integer" else {}
    if fixed:
        out.print(_table(fixed))
    for name, remedy in program.float_layers.items():
        out.print(f"in float32: {printable(f'{name}; {remedy}')}")
    for note in program.notes:
        out.print(f"note: {printable(note)}")
    if output is not None:
        arrays = {f"output/{name}": values for name, values in result.outputs.items()}
        arrays |= arrays_of(program, fixed) if fixed else {}
        arrays |= {f"{name}.sources": np.array(sources(program.step(name))) for name in fixed}
        with replacing(output, overwrite=overwrite) as file:
            write_arrays(file, chain(arrays.items(), result.integers.items()))
        out.print(f"{printable(str(output))}: {count(len(result.integers), 'quantized tensor')}")


def _table(fixed: Mapping[str, tuple[FixedPoint, ...]]) -> Table:
    """Return what hardware has to provide for each tensor."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold")
    for title in ("accumulator bits", "multiplier bits", "shift", "error in steps"):
        table.add_column(title, justify="right")
    for name, (first, *_) in fixed.items():
        largest = max(int(abs(m).max(initial=0)) for m in first.multipliers)
        shifts = int(first.shift.min()), int(first.shift.max())
        widest = max(int(bits.max()) for bits in first.accumulator_bits)
        table.add_row(
            printable(name),
            str(widest),
            str(largest.bit_length()),
            " … ".join(map(str, dict.fromkeys(shifts))),
            f"{first.error:.1e}",
        )
    return table
