"""``qmath export``: integers, scales and zero points to a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmath.cli.completion import format_options, formats
from qmath.cli.models import ModelArgument, model_argument, suffix_of
from qmath.cli.results import Result, Verb
from qmath.cli.text import advancing, count, printable, show

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qmath.exports.bundle import Bundle
    from qmath.exports.exporter import Exporter
    from qmath.model import QatModel

__all__ = ["export"]


@click.command(
    cls=Verb,
    short_help="Write a model's integers to a file.",
    epilog="""\b
Examples:
  qmath export model.h5 -o model.npz
  qmath export *.h5 -o folder
  qmath export model.h5 -o model.npz --layout OHWI --quantizer \\
    'MyConfig.weights=LastValueQuantizer(num_bits=5, symmetric=False,
     narrow_range=True, per_axis=False)'""",
)
@model_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="OUT",
    help="The file to write, or the folder where the format has several files. Of several models: "
    "a folder, for NAME.npz of each, or what --format says.",
)
@click.option(
    "--format",
    "format_",
    shell_complete=formats,
    help="The format, where the suffix of OUT does not say it; a wrong one lists all there are.",
)
@click.option(
    "--option",
    "format_options",
    multiple=True,
    metavar="NAME=VALUE",
    shell_complete=format_options,
    help="An option of the format, such as packing=nibbles. Repeatable.",
)
@click.option(
    "--unsigned", is_flag=True, help="Count the weights' integers from 0, as TensorFlow does."
)
@click.option(
    "--vectors",
    metavar="N|FILE",
    help="Add N golden inputs, or those in an .npz or .npy, with every layer's integers for them, "
    "and directed vectors of every layer.",
)
@click.option(
    "--vector-bytes",
    type=click.IntRange(min=0),
    default=1 << 22,
    show_default=True,
    metavar="N",
    help="What the directed vectors may take; 0 for none.",
)
@click.option(
    "--multiplier-bits",
    type=int,
    default=31,
    show_default=True,
    metavar="8…31",
    help="Width of the integer model's multipliers.",
)
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    metavar="LETTERS",
    help="Axis order of exported kernels, such as OHWI: applies to every kernel whose own order "
    "has the same letters. Repeatable.",
)
@click.option("--strict", is_flag=True, help="Fail where settings are unknown or assumed.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def export(
    model: ModelArgument,
    output: Path,
    format_: str | None,
    format_options: tuple[str, ...],
    unsigned: bool,
    vectors: str | None,
    vector_bytes: int,
    multiplier_bits: int,
    layouts: tuple[str, ...],
    strict: bool,
    overwrite: bool,
) -> Result:
    """Write the integers of MODEL, with scales, zero points and a manifest, to OUT.

    Weights are integers, signed unless --unsigned; activations have a scale and an unsigned zero
    point; biases and other floats are kept as they are. If MODEL runs in integers, its steps
    and their multipliers, addends, shifts and clamps are written, too.
    """
    from qmath.exports.registry import exporter_class
    from qmath.exports.writing import check_outputs
    from qmath.exports.writing import export as export_model

    if model.others:
        format_ = format_ or "npz"
    kind = exporter_class(output, format_)
    output = model.placed(output, suffix_of(kind))
    chosen = dict(_option(kind, text) for text in format_options)
    check_outputs(output, kind(**chosen), overwrite=overwrite, sources=model.inputs)
    with advancing("reading …", "quantizing …", "writing …") as progress:
        loaded = model.load()
        bundle = export_model(
            loaded,
            output,
            format=format_,
            layouts=layouts,
            signed=not unsigned,
            vectors=_vectors(vectors, loaded),
            vector_bytes=vector_bytes,
            multiplier_bits=multiplier_bits,
            strict=strict,
            overwrite=overwrite,
            progress=progress,
            **chosen,
        )
    found = _counts(bundle)
    summary = f"{output}: {_summary(found)}"
    click.echo(printable(summary))
    for note in bundle.manifest["notes"]:
        show(f"note: {note}")
    document = {
        "source": str(model.path), "output": str(output), "format": kind.name, **found,
        "notes": list(bundle.manifest["notes"]),
    }  # fmt: skip
    return Result(document, summary)


def _vectors(text: str | None, model: QatModel) -> int | dict[str, NDArray[Any]] | None:
    """Return the number of vectors, or those of a file by the model's inputs."""
    if text is None:
        return None
    if text.lstrip("-").isdecimal():
        return int(text)
    import numpy as np

    from qmath.cli.data import read_program_and_inputs

    _, inputs = read_program_and_inputs(model, Path(text))
    return {name: np.asarray(x) for name, x in inputs.items()}


def _option(kind: type[Exporter], text: str) -> tuple[str, Any]:
    """Return name and value of an option of a format."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name.isidentifier():
        listed = "".join(f"\n  {o.name}={o.default}: {o.help} ({o.allowed})" for o in kind.options)
        raise click.UsageError(
            f"--option {text!r}: expected NAME=VALUE. Options of {kind.name}:{listed or ' none'}"
        )
    return name, next((o.parsed(value) for o in kind.options if o.name == name), value)


def _counts(bundle: Bundle) -> dict[str, Any]:
    """Return how much was written of what."""
    entries = list(bundle.manifest["tensors"].values())
    weights = [entry for entry in entries if entry["role"] == "weight"]
    floats = sum(entry["role"] == "float" for entry in entries)
    return {
        "weights": len(weights),
        "num_bits": sorted({entry["num_bits"] for entry in weights}),
        "activations": len(entries) - len(weights) - floats,
        "activations_ready": sum("scale_bits" in entry for entry in entries) - len(weights),
        "floats": floats,
        "integer_model": bundle.program is not None,
    }


def _summary(found: Mapping[str, Any]) -> str:
    widths = ", ".join(map(str, found["num_bits"]))
    return (
        f"{count(found['weights'], 'quantized weight')}{f' ({widths} bits)' if widths else ''}, "
        f"scale and zero point of {found['activations_ready']} of "
        f"{count(found['activations'], 'activation')}, {count(found['floats'], 'float tensor')}, "
        + ("the integer model" if found["integer_model"] else "no integer model")
    )
