"""``qmath run``: the integer model on data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmath.cli.settings import model_options, profile_options, read_settings
from qmath.cli.text import advancing, console, count, printable

if TYPE_CHECKING:
    from rich.table import Table

    from qmath.integer.profiles import FixedPoint

__all__ = ["run"]


@click.command(
    short_help="Run the integer model on data.",
    epilog="\b\nExample:\n  qmath run model.h5 images.npz --profile integer -o outputs.npz",
)
@model_options
@click.argument("data", type=click.Path(path_type=Path))
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
    model: Path,
    options: tuple[str, ...],
    settings: Path | None,
    force: bool,
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
    TensorFlow counts) for each quantized tensor; under the profile integer also its constants:
    (sum(accumulator * NAME.multiplier) + NAME.addend) >> NAME.shift is the integer relative to the
    zero point, before clamping. The addend holds the rounding's half.
    """
    import numpy as np

    from qmath.cli.data import read_inputs
    from qmath.exports.atomic import check_output, replacing
    from qmath.integer.api import constants, program_of
    from qmath.integer.api import run as run_model

    if output is not None:
        check_output(output, overwrite=overwrite)
    program = program_of(
        model, quantizers=read_settings(options, settings), force=force,
        require_integer=require_integer,
    )  # fmt: skip
    inputs = read_inputs(data, program)
    given = {"multiplier_bits": multiplier_bits, "rounding": rounding}
    chosen: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    with advancing("running …", len(next(iter(inputs.values())))) as progress:
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
    for name, remedy in program.islands.items():
        out.print(f"in float32: {printable(f'{name}; {remedy}')}")
    for note in program.notes:
        out.print(f"note: {printable(note)}")
    if output is not None:
        arrays = {f"output/{name}": values for name, values in result.outputs.items()}
        with replacing(output, overwrite=overwrite) as file:
            np.savez(file, **arrays, **result.integers, **_arrays(fixed))  # type: ignore[arg-type]
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
        table.add_row(
            printable(name), str(max(first.accumulator_bits)), str(largest.bit_length()),
            " … ".join(map(str, dict.fromkeys(shifts))), f"{first.error:.1e}",
        )  # fmt: skip
    return table


def _arrays(fixed: Mapping[str, tuple[FixedPoint, ...]]) -> dict[str, Any]:
    """Return the constants as arrays by name."""
    arrays: dict[str, Any] = {}
    for name, sides in fixed.items():
        for side, constants in zip(("", ".negative"), sides, strict=False):
            for i, multiplier in enumerate(constants.multipliers):
                term = f".{i}" if len(constants.multipliers) > 1 else ""
                arrays[f"{name}{side}.multiplier{term}"] = multiplier
            arrays[f"{name}{side}.addend"] = constants.addend
            arrays[f"{name}{side}.shift"] = constants.shift
    return arrays
