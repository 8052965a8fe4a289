"""What ``--against`` may name: a file of arrays, raw bytes, or a folder of them, by its content."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.containers.array_file import is_array_file, read_arrays, read_bytes
from qmath.errors import FileFormatError, QmathError
from qmath.integer.judging.integers import RawArray
from qmath.integer.judging.names import named, tensor_named
from qmath.integer.program import Program, Shape

__all__ = ["arrays_of", "shapes_of"]

Arrays = Mapping[str, NDArray[Any] | RawArray]
_ITEM_SIZES = (1, 2, 4, 8)


class _Kind(NamedTuple):
    """One kind of content: how it is recognized, and its arrays by what they are called there."""

    is_this: Callable[[Path], bool]
    read: Callable[[Path, str, Program, int], Arrays]


def arrays_of(path: str | os.PathLike[str], program: Program, examples: int) -> Arrays:
    """Return the arrays of a file or a folder.

    Parameters
    ----------
    path : path
        An ``.npz``, an ``.npy``, raw bytes, or a folder of ``.npy`` and raw files. What holds one
        array is that of the last tensor, or of that which its name says, or of `NAME` in
        ``NAME=FILE``.
    program : Program
        Gives raw bytes their shapes.
    examples : int
        How many the data have.

    Raises
    ------
    FileFormatError
        There is no such file, or it has another length.
    """
    text, name = os.fspath(path), ""
    if "=" in text and not os.path.lexists(text):
        name, _, text = text.partition("=")
        name = tensor_named(program, name)
    found = Path(text)
    kind = next(kind for kind in _KINDS if kind.is_this(found))
    return kind.read(found, name, program, examples)


def shapes_of(path: str | os.PathLike[str]) -> dict[str, Shape]:
    """Return the shapes of a file's or a folder's arrays without the batch, as far as it says them.

    Raises
    ------
    FileFormatError
        There is no such file.
    """
    text, name = os.fspath(path), ""
    if "=" in text and not os.path.lexists(text):
        name, _, text = text.partition("=")
    found = Path(text)
    if found.is_dir():
        named_files = {
            file.relative_to(found).with_suffix("").as_posix(): file
            for file in sorted(found.rglob("*.npy"))
        }
    else:
        named_files = {name: found}
    shapes = {}
    for key, file in named_files.items():
        if is_array_file(file):
            for own, array in read_arrays(file).items():
                shapes[key or own] = array.shape[1:]
    return shapes


def _read_folder(path: Path, name: str, program: Program, examples: int) -> Arrays:
    if name:
        raise FileFormatError(f"{path} is a folder; in {name}=FILE, give the file of one tensor")
    files = {
        file.relative_to(path).with_suffix("").as_posix(): file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    }
    if not files:
        raise FileFormatError(f"{path}: the folder holds no files; give one with a file per tensor")
    # What is no tensor is not read, and named where the arrays are.
    tensors, _ = named(program, {key: key for key in files})
    found: dict[str, NDArray[Any] | RawArray] = {}
    for key, file in files.items():
        tensor = next((name for name, of in tensors.items() if of == key), None)
        if tensor is None:
            found[key] = np.empty(0)
        elif is_array_file(file):
            found[key] = _only(file, read_arrays(file))
        else:
            found[key] = _raw(file, tensor, program, examples)
    return found


def _read_arrays(path: Path, name: str, program: Program, _examples: int) -> Arrays:
    arrays = read_arrays(path)
    if "" in arrays or name:
        return {name or _meant(path, program): _only(path, arrays)}
    return arrays


def _read_raw(path: Path, name: str, program: Program, examples: int) -> Arrays:
    tensor = name or _meant(path, program)
    return {tensor: _raw(path, tensor, program, examples)}


_KINDS = (
    _Kind(Path.is_dir, _read_folder),
    _Kind(is_array_file, _read_arrays),
    _Kind(lambda _: True, _read_raw),
)


def _only(path: Path, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    if len(arrays) != 1:
        raise FileFormatError(f"{path} holds {len(arrays)} arrays; give a file of one, as an .npy")
    return next(iter(arrays.values()))


def _meant(path: Path, program: Program) -> str:
    """Return the tensor of a file with one array: that of its name, or the last."""
    try:
        return tensor_named(program, path.stem)
    except QmathError:
        return program.quantized[-1].name


def _raw(path: Path, tensor: str, program: Program, examples: int) -> RawArray:
    """Return little-endian integers, whose size the length tells."""
    shape = (examples, *program.step(tensor).shape)
    count = math.prod(shape)
    content = read_bytes(path, count * _ITEM_SIZES[-1])
    size = len(content) // count if count else 1
    if size not in _ITEM_SIZES or size * count != len(content):
        sizes = ", ".join(f"{count * size:,} (int{8 * size})" for size in _ITEM_SIZES)
        raise FileFormatError(
            f"{path}: it has {path.stat().st_size:,} bytes; as raw integers, {tensor} of shape "
            f"{shape} has {sizes}"
        )
    return RawArray(np.frombuffer(content, f"<u{size}"))
