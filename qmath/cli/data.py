"""The model's input data, of a file of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from numpy.typing import NDArray

from qmath.containers.array_file import read_arrays
from qmath.errors import FileFormatError
from qmath.integer.api import program_against, program_of
from qmath.integer.program import Program
from qmath.model import QatModel

__all__ = ["read_cuts", "read_program_and_inputs"]


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
) -> tuple[Program, dict[str, NDArray[Any]]]:
    """Return the program of a model and its data, whose shapes the model may leave open.

    What the model is compared with, `against`, may tell the shapes of cut points, too.
    """
    arrays = read_arrays(data)
    shapes = {name: x.shape[1:] for name, x in (arrays | dict(cuts or {})).items()}
    program = program_against(model, against, shapes)
    if require_integer:
        program_of(program, require_integer=True)
    return program, _chosen_inputs(data, arrays, program)


def _chosen_inputs(
    path: Path, arrays: dict[str, NDArray[Any]], program: Program
) -> dict[str, NDArray[Any]]:
    """Return the data of each input: by its name, or the one array of its shape.

    Raises
    ------
    FileFormatError
        The file's data do not fit; the message names the inputs and their shapes.
    """
    if all(name in arrays and arrays[name].ndim for name in program.inputs):
        return {name: arrays[name] for name in program.inputs}
    fitting = {
        name: [
            key for key, x in arrays.items() if x.shape[1:] == shape and x.ndim == len(shape) + 1
        ]
        for name, shape in program.inputs.items()
    }
    if len(fitting) == 1 and len(next(iter(fitting.values()))) == 1:
        return {name: arrays[keys[0]] for name, keys in fitting.items()}
    wanted = ", ".join(
        f"{name} of shape (N, {', '.join(map(str, shape))})"
        for name, shape in program.inputs.items()
    )
    held = ", ".join(f"{key or 'an array'} of shape {x.shape}" for key, x in arrays.items())
    raise FileFormatError(f"{path}: the model needs {wanted}; the file holds {held or 'nothing'}")
