"""``qmath verify``: an independent check of an exported file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmath.cli.completion import formats
from qmath.cli.models import ModelArgument, model_argument, suffix_of
from qmath.cli.results import Result, Verb
from qmath.cli.text import advancing, console, count, printable

if TYPE_CHECKING:
    from qmath.verification.check import Verification

__all__ = ["verify"]

_SHOWN = 20  # differences in words; the others are counted


@click.command(
    cls=Verb,
    short_help="Check an exported file against the model.",
    epilog="\b\nExamples:\n  qmath verify model.h5 model.npz\n"
    "  qmath verify model.h5 model.npz --against forward.npz\n"
    "  qmath verify *.h5 folder",
)
@model_argument
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_",
    shell_complete=formats,
    help="The format, where the suffix of OUTPUT does not say it.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FORWARD.npz",
    help="The kernels that the trained model computes with, as `python -m reference.dump` writes "
    "them.",
)
@click.option(
    "--all-floats",
    is_flag=True,
    help="Prove besides, for each range of MODEL, that qmath's kernel is what TensorFlow's is "
    "defined to be on every one of the 2**32 floats.",
)
def verify(
    model: ModelArgument,
    output: Path,
    format_: str | None,
    against: Path | None,
    all_floats: bool,
) -> Result:
    """Check OUTPUT, which export wrote, against MODEL: every integer, scale and setting.

    Settings that are not in MODEL are those that OUTPUT says export was given, unless --quantizer
    or --settings give them; so is the build, unless --build names it. Exit status 1 if anything
    differs. For several models, OUTPUT is the folder that export made for them, and FORWARD.npz
    one with a file of each model's name.
    """
    from qmath.verification.check import verify as check

    output = _output_of(model, output, format_)
    against = against and model.within(against, ".npz")
    with advancing("reading …", "comparing …") as progress:
        result = check(
            model.load(),
            output,
            format=format_,
            against=against,
            all_floats=all_floats,
            progress=progress,
        )
    _render(result, output, can_tell=against is None)
    document = {"source": str(model.path), "output": str(output), "equal": result.ok}
    document |= dataclasses.asdict(result)
    if result.all_floats is not None:
        document["all_floats"] = result.all_floats._asdict()
    summary = f"{output}: {'equal' if result.ok else 'differs'}"
    return Result(document, summary, differs=not result.ok)


def _output_of(model: ModelArgument, output: Path, format_: str | None) -> Path:
    """Return `output`, or what it holds of one of several models."""
    from qmath.errors import FileFormatError
    from qmath.exports.registry import exporter_class

    if not model.others:
        return output
    if format_ is not None:
        return model.within(output, suffix_of(exporter_class(output, format_)))
    name = model.within(output, "").name
    found = [
        path
        for path in sorted(output.glob("*"))
        if (path.name if path.is_dir() else path.stem) == name
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise FileFormatError(f"{output} holds no output of the name {name}")
    listed = ", ".join(path.name for path in found)
    raise FileFormatError(
        f"{output} holds several of {model.path}: {listed}; say which by --format"
    )


def _render(result: Verification, output: Path, *, can_tell: bool) -> None:
    out = console()
    counts = (
        f"{count(result.tensors, 'tensor')}, {count(result.elements, 'element')} compared, "
        f"{count(result.near_ties, 'near-tie')} decided by TensorFlow's float32 arithmetic"
    )
    if result.build != "tf":
        counts = f"build {result.build}; {counts}"
    if result.assumed:
        out.print(f"as given to export: the settings of {printable(', '.join(result.assumed))}")
    if result.assumptions:
        out.print(
            "assumed, not checked: which quantizer acted on "
            f"{printable(', '.join(result.assumptions))}"
            + ("; --against FORWARD.npz would tell for weights" if can_tell else "")
        )
    if result.all_floats is not None:
        proof = result.all_floats
        out.print(
            f"all floats: the kernel of {count(proof.ranges, 'range')} compared with its "
            f"definition at both sides of {count(proof.steps, 'step')}, which proves it for all "
            f"2**32 inputs: {count(len(proof.differences), 'difference')}"
        )
    if result.ok:
        out.print(f"{printable(str(output))}: equal; {counts}")
        return
    out.print(f"{printable(str(output))}: differs; {counts}")
    for line in result.differences[:_SHOWN]:
        out.print(f"  {printable(line)}")
    if len(result.differences) > _SHOWN:
        out.print(f"  and {count(len(result.differences) - _SHOWN, 'further difference')}")
