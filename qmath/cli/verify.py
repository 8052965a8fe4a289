"""``qmath verify``: an independent check of an exported file."""

from __future__ import annotations

from pathlib import Path

import click

from qmath.cli.settings import ModelArgument, model_argument
from qmath.cli.text import advancing, console, count, printable

__all__ = ["verify"]

_SHOWN = 20  # differences in words; the others are counted


@click.command(
    short_help="Check an exported file against the model.",
    epilog="\b\nExamples:\n  qmath verify model.h5 model.npz\n"
    "  qmath verify model.h5 model.npz --against forward.npz",
)
@model_argument
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--format", "format_", help="The format, where the suffix of OUTPUT does not say it.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FORWARD.npz",
    help="The kernels that the trained model computes with, as `python -m reference.dump` writes "
    "them.",
)
def verify(
    model: ModelArgument,
    output: Path,
    format_: str | None,
    against: Path | None,
) -> int:
    """Check OUTPUT, which export wrote, against MODEL: every integer, scale and setting.

    Settings that are not in MODEL are those that OUTPUT says export was given, unless --quantizer
    or --settings give them. Exit status 1 if anything differs.
    """
    from qmath.verification.check import verify as check

    with advancing("reading …", "comparing …") as progress:
        result = check(
            model.load(),
            output,
            format=format_,
            against=against,
            progress=progress,
        )
    out = console()
    counts = (
        f"{count(result.tensors, 'tensor')}, {count(result.elements, 'element')} compared, "
        f"{count(result.near_ties, 'near-tie')} decided by TensorFlow's float32 arithmetic"
    )
    if result.assumed:
        out.print(f"as given to export: the settings of {printable(', '.join(result.assumed))}")
    if result.assumptions:
        out.print(
            "assumed, not checked: which quantizer acted on "
            f"{printable(', '.join(result.assumptions))}"
            + ("" if against else "; --against FORWARD.npz would tell for weights")
        )
    if result.ok:
        out.print(f"{printable(str(output))}: equal; {counts}")
        return 0
    out.print(f"{printable(str(output))}: differs; {counts}")
    for line in result.differences[:_SHOWN]:
        out.print(f"  {printable(line)}")
    if len(result.differences) > _SHOWN:
        out.print(f"  and {count(len(result.differences) - _SHOWN, 'further difference')}")
    return 1
