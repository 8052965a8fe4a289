"""``qmath recover``: integers from what a quantizer returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmath.cli.results import Result, Verb
from qmath.cli.text import advancing, console, count, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.table import Table

    from qmath.kernels.recovered_lattice import Alternative, RecoveredLattice

__all__ = ["recover"]

_SHOWN = 4  # channels and alternatives in words; the count tells the rest
_COLUMNS = {"tensor": 0, "shape": 0, "bits": 1, "lattice": 0, "zero points": 1, "": 0}


@click.command(
    cls=Verb,
    short_help="Find the integers behind fake-quantized floats.",
    epilog="\b\nExample:\n  qmath recover weights.npz --max-bits 8 --axis -1 -o integers.npz",
)
@click.argument("weights", type=click.Path(path_type=Path))
@click.option(
    "--max-bits",
    type=click.IntRange(2, 16),
    default=16,
    show_default=True,
    help="The width of the quantizer, or the largest that comes into question.",
)
@click.option("--axis", type=int, help="Each index of this axis has a scale of its own.")
@click.option(
    "--zero-point", type=int, help="The integer of real zero, which the values do not tell."
)
@click.option("--unsigned", is_flag=True, help="Zero points count from 0, as TensorFlow does.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT.npz",
    help="Write the integers with their scales.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def recover(
    weights: Path,
    max_bits: int,
    axis: int | None,
    zero_point: int | None,
    unsigned: bool,
    output: Path | None,
    overwrite: bool,
) -> Result:
    """Find the integers behind the floats in WEIGHTS, an .npz or .npy of what a quantizer returned.

    Columns: the width that the integers need; the formula that gives the floats in every bit; the
    zero points that --max-bits allow in every channel. Values do not tell which of these it is:
    without --zero-point, integers are relative to zero. OUT holds NAME, NAME.scale,
    NAME.zero_point and NAME.form of each array that was recovered. Exit status 1 if an array has no
    exact lattice.
    """
    from qmath.containers.array_file import read_arrays
    from qmath.exports.arrays.npz import write_arrays
    from qmath.exports.output.atomic import check_output, replacing
    from qmath.kernels.lattice import recover as find

    if output is not None:
        check_output(output, overwrite=overwrite, sources=(weights,))
    arrays = {name or weights.stem: values for name, values in read_arrays(weights).items()}
    floats = _floats(arrays, weights)
    found: dict[str, RecoveredLattice] = {}
    with advancing("recovering …", "recovering …") as progress:
        for name, values in floats.items():
            found[name] = find(
                values, max_bits=max_bits, axis=axis, zero_point=zero_point, signed=not unsigned,
                name=name,
            )  # fmt: skip
            progress(len(found), len(floats))
    exact = {name: lattice for name, lattice in found.items() if lattice.integers is not None}
    if output is not None:
        written = _written(exact)
        with replacing(output, overwrite=overwrite) as file:
            write_arrays(file, written.items())
    skipped = {name: str(x.dtype) for name, x in arrays.items() if name not in floats}
    _render(floats, found, skipped)
    if output is not None:
        console().print(f"{printable(str(output))}: integers of {count(len(exact), 'array')}")
    document = {
        "source": str(weights),
        "output": None if output is None else str(output),
        "arrays": [_document(name, floats[name].shape, found[name]) for name in found],
        "skipped": skipped,
    }
    summary = f"integers of {len(exact)} of {count(len(found), 'array')}"
    return Result(document, summary, differs=len(exact) < len(found))


def _floats(arrays: Mapping[str, NDArray[Any]], path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of floats."""
    from qmath.errors import FileFormatError

    found = {name: values for name, values in arrays.items() if values.dtype.kind == "f"}
    if not found:
        held = ", ".join(sorted({str(values.dtype) for values in arrays.values()})) or "nothing"
        raise FileFormatError(f"{path} holds no floats, but {held}; give what a quantizer returned")
    return found


def _document(name: str, shape: tuple[int, ...], found: RecoveredLattice) -> dict[str, Any]:
    """Return JSON values of one array; numbers are one per channel."""

    def listed(numbers: NDArray[Any] | None) -> list[Any] | None:
        return None if numbers is None else numbers.reshape(-1).tolist()

    return {
        "name": name,
        "shape": list(shape),
        "recovered": found.integers is not None,
        "form": found.form,
        "num_bits": found.num_bits,
        "scale": listed(found.scale),
        "zero_point": listed(found.zero_point),
        "zero_point_min": listed(found.zero_point_min),
        "zero_point_max": listed(found.zero_point_max),
        "unique": found.is_unique,
        "ambiguities": list(found.ambiguities),
        "max_error_ulp": listed(found.max_error_ulp),
        "negative_zeros": found.negative_zeros,
    }


def _render(
    floats: Mapping[str, NDArray[Any]],
    found: Mapping[str, RecoveredLattice],
    skipped: Mapping[str, str],
) -> None:
    out = console()
    out.print(_table(floats, found))
    for name, lattice in found.items():
        for line in _remarks(lattice):
            out.print(f"{printable(name)}: {line}")
    for name, dtype in skipped.items():
        out.print(f"{printable(name)}: skipped, as it is {dtype}")


def _table(floats: Mapping[str, NDArray[Any]], found: Mapping[str, RecoveredLattice]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, is_number in _COLUMNS.items():
        justify: Any = "right" if is_number else "left"
        table.add_column(title, justify=justify, overflow="fold")
    for name, lattice in found.items():
        shape = "x".join(map(str, floats[name].shape)) or "scalar"
        table.add_row(printable(name), shape, *_cells(lattice))
    return table


def _cells(found: RecoveredLattice) -> tuple[str, str, str, str]:
    """Return width, lattice, zero points and verdict."""
    if found.form is None or found.scale is None:
        error = float(found.max_error_ulp.max(initial=0))
        channels = int((found.max_error_ulp > 0).sum())
        place = "" if found.axis is None else f" in {count(channels, 'channel')}"
        return "", f"none that is exact: off by up to {error:.3g} ulp{place}", "", "not recovered"
    scales = sorted(found.scale[found.scale > 0]) or [found.scale.dtype.type(0)]
    spelled = dict.fromkeys(str(scale) for scale in scales[:1] + scales[-1:])
    lattice = f"{found.form}, scale {' … '.join(spelled)}"
    zero_points = ""
    if found.zero_point_min is not None and found.zero_point_max is not None:
        ends = found.zero_point_min.reshape(-1), found.zero_point_max.reshape(-1)
        zero_points = f"{max(ends[0], default=0)} … {min(ends[1], default=0)}"
    return str(found.num_bits), lattice, zero_points, "unique" if found.is_unique else "ambiguous"


def _remarks(found: RecoveredLattice) -> Iterator[str]:
    """Yield what else fits, and what did not come back."""
    if found.form is None and found.axis is None:
        yield "if each channel has a scale of its own, give their axis with --axis"
    groups: dict[tuple[str, str], list[int]] = {}
    for channel, (why, others) in enumerate(
        zip(found.ambiguities, found.alternatives, strict=True)
    ):
        if why:
            groups.setdefault((why, _spelled(others)), []).append(channel)
    for (why, words), channels in list(groups.items())[:_SHOWN]:
        place = f" in {_listed(channels)}" if found.axis is not None else ""
        yield f"ambiguous{place}, {why}{words and ': '}{words}"
    hidden = list(groups.values())[_SHOWN:]
    if hidden:
        yield f"ambiguous in {count(sum(map(len, hidden)), 'further channel')}"
    if found.negative_zeros:
        verb = "is" if found.negative_zeros == 1 else "are"
        yield f"{count(found.negative_zeros, 'value')} {verb} -0.0, which comes back as 0.0"


def _listed(channels: Sequence[int]) -> str:
    more = ", …" if len(channels) > _SHOWN else ""
    numbers = ", ".join(map(str, channels[:_SHOWN]))
    return f"{count(len(channels), 'channel')} ({numbers}{more})"


def _spelled(others: Sequence[Alternative]) -> str:
    """Return the coarsest alternatives in words."""
    words = [
        f"integers times {other.factor} ({count(other.num_bits, 'bit')})"
        if other.factor
        else f"{other.form} with scale {other.scale} ({count(other.num_bits, 'bit')})"
        for other in others[:_SHOWN]
    ]
    return ", ".join(words + ["…"] * (len(others) > _SHOWN))


def _written(found: Mapping[str, RecoveredLattice]) -> dict[str, Any]:
    """Return what OUT holds.

    Raises
    ------
    QmathError
        An array is named like the scale of another.
    """
    import numpy as np

    from qmath.errors import QmathError

    arrays: dict[str, Any] = dict.fromkeys(found)
    for name, lattice in found.items():
        parts = {"scale": lattice.scale, "zero_point": lattice.zero_point}
        for part, value in {**parts, "form": np.array(lattice.form)}.items():
            if f"{name}.{part}" in arrays:
                raise QmathError(
                    f"{name}.{part} is an array of its own, so the {part} of {name} cannot be "
                    "written beside it; rename one"
                )
            arrays[f"{name}.{part}"] = value
        arrays[name] = lattice.integers
    return arrays
