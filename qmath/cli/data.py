"""The model's input data, of a file of arrays, or of several."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from numpy.typing import NDArray

from qmath.containers.array_file import read_arrays
from qmath.containers.stored_arrays import Rows, open_arrays
from qmath.errors import FileFormatError
from qmath.integer.api import program_against, program_of
from qmath.integer.program import Program
from qmath.integer.streams import chosen_inputs
from qmath.model import QatModel

__all__ = ["files_of", "read_cuts", "read_labels", "read_program_and_inputs"]


def read_cuts(options: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays of options ``NAME=FILE``, by name.

    Raises
    ------
    FileFormatError
        A file is no array, or holds none of that name.
    """
    found = {}
    for text in options:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise click.UsageError(f"--cut {text!r}: expected NAME=FILE")
        arrays = read_arrays(Path(path))
        array = arrays.get(name, arrays.get("") if len(arrays) == 1 else None)
        if array is None or not array.ndim:
            raise FileFormatError(f"{path} holds no outputs of the name {name}")
        found[name] = array
    return found


def read_program_and_inputs(
    model: QatModel,
    data: Path,
    *,
    require_integer: bool = False,
    cuts: Mapping[str, NDArray[Any]] | None = None,
    against: str | Path | None = None,
) -> tuple[Program, dict[str, Rows]]:
    """Return the program of a model and its data, whose shapes the model may leave open.

    What the model is compared with, `against`, may tell the shapes of cut points, too.
    """
    arrays = open_arrays(data)
    shapes = {name: tuple(x.shape[1:]) for name, x in {**arrays, **(cuts or {})}.items()}
    program = program_against(model, against, shapes)
    if require_integer:
        program_of(program, require_integer=True)
    return program, chosen_inputs(str(data), arrays, program)


def read_labels(text: str, data: Path) -> Rows:
    """Return the labels of that name among the data, else those of a file.

    Raises
    ------
    FileFormatError
        There are none.
    """
    arrays = open_arrays(data)
    if text in arrays:
        return arrays[text]
    if not glob.has_magic(text) and not Path(text).exists():
        names = ", ".join(filter(None, arrays)) or "one without a name"
        raise FileFormatError(
            f"--labels {text!r}: there is no such file, and no such array in {data}, whose arrays "
            f"are: {names}"
        )
    found = open_arrays(text)
    if len(found) != 1:
        names = ", ".join(found)
        raise FileFormatError(f"{text}: labels are one array; the file holds {names or 'nothing'}")
    return next(iter(found.values()))


def files_of(data: Path) -> list[Path]:
    """Return the files that a path, or a pattern, names."""
    return [Path(name) for name in glob.glob(str(data))] or [data]
