"""``qmath export``: integers, scales and zero points to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qmath.cli.settings import model_options, read_settings
from qmath.cli.text import console, count, printable, working

if TYPE_CHECKING:
    from qmath.bundle import Bundle

__all__ = ["export"]


@click.command(
    short_help="Write a model's integers to a file.",
    epilog="""\b
Examples:
  qmath export model.h5 -o model.npz
  qmath export model.h5 -o model.npz --layout OHWI --quantizer \\
    'MyConfig.weights=LastValueQuantizer(num_bits=5, symmetric=False,
     narrow_range=True, per_axis=False)'""",
)
@model_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="OUT.npz",
    help="The file to write.",
)
@click.option("--format", "format_", help="The format, where the suffix of OUT does not say it.")
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    metavar="LETTERS",
    help="Axis order of exported kernels, such as OHWI: applies to every kernel whose own order "
    "has the same letters. Repeatable.",
)
@click.option(
    "--strict", is_flag=True, help="Fail where the settings of an activation are unknown."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def export(
    model: Path,
    options: tuple[str, ...],
    settings: Path | None,
    force: bool,
    output: Path,
    format_: str | None,
    layouts: tuple[str, ...],
    strict: bool,
    overwrite: bool,
) -> None:
    """Write the integers of MODEL, with scales, zero points and a manifest, to OUT.

    Weights are integers, signed; activations have a scale and an unsigned zero point; biases and
    other floats are kept as they are.
    """
    from qmath.exports import export as export_model

    with working("quantizing …"):
        bundle = export_model(
            model,
            output,
            quantizers=read_settings(options, settings),
            format=format_,
            layouts=layouts,
            strict=strict,
            overwrite=overwrite,
            force=force,
        )
    out = console()
    out.print(f"{printable(str(output))}: {_summary(bundle)}")
    for note in bundle.manifest["notes"]:
        out.print(f"note: {printable(note)}")


def _summary(bundle: Bundle) -> str:
    entries = list(bundle.manifest["tensors"].values())
    weights = [entry for entry in entries if entry["role"] == "weight"]
    floats = sum(entry["role"] == "float" for entry in entries)
    ranges = len(entries) - len(weights) - floats
    known = sum("scale_bits" in entry for entry in entries) - len(weights)
    widths = ", ".join(str(bits) for bits in sorted({entry["num_bits"] for entry in weights}))
    return (
        f"{count(len(weights), 'quantized weight')}{f' ({widths} bits)' if widths else ''}, "
        f"scale and zero point of {known} of {count(ranges, 'activation')}, "
        f"{count(floats, 'float tensor')}"
    )
