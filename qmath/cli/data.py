"""The model's input data: arrays in an ``.npz``, or one in an ``.npy``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import FileFormatError
from qmath.integer.api import program_of
from qmath.integer.program import Program
from qmath.model import QatModel

__all__ = ["read_arrays", "read_program_and_inputs"]


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz``, or the one of an ``.npy`` under the name ``""``.

    Raises
    ------
    FileFormatError
        It cannot be read, or holds anything but plain arrays.
    """
    try:
        # Opened here, as NumPy leaves a damaged archive open.
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"": loaded}
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise FileFormatError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise FileFormatError(f"{path} is a directory; give an .npz or .npy file") from None
    except Exception as error:  # numpy raises whatever a damaged file makes it raise
        # NumPy takes a file that is not an array for a pickle, and advises to load it "unsafely".
        reason = "" if "allow_pickle" in str(error) else f" ({error})"
        raise FileFormatError(
            f"{path} is not an .npz or .npy of plain arrays{reason}; write one with numpy.savez"
        ) from error


def read_program_and_inputs(
    model: QatModel, data: Path, *, require_integer: bool = False
) -> tuple[Program, dict[str, NDArray[Any]]]:
    """Return the program of a model and its data, whose shapes the model may leave open."""
    arrays = read_arrays(data)
    shapes = {name: x.shape[1:] for name, x in arrays.items()}
    program = program_of(model, require_integer=require_integer, input_shapes=shapes)
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
