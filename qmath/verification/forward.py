"""What a forward pass read, as a judge: it knows nothing of files, settings and quantizers.

``python -m reference.dump`` writes the kernels that the layers of a live model or a SavedModel
compute with, as ``kernels/<tensor>``. Whatever quantized them, an export has to stand for the same
floats.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.containers.array_file import read_arrays
from qmath.errors import FileFormatError
from qmath.model import Float32Array, QatModel, QatTensor

__all__ = ["Forward", "Source", "difference", "differing_names", "read_forward"]

_KERNELS = "kernels/"
_AGAIN = "write it again: python -m reference.dump MODEL -o FORWARD.npz"
Forward = Mapping[str, Float32Array]
Source = str | os.PathLike[str] | Mapping[str, ArrayLike]


def read_forward(source: Source) -> Forward:
    """Return the kernels that a forward pass read, by the names of their tensors.

    Raises
    ------
    FileFormatError
        The file is damaged, or holds no kernels.
    """
    if isinstance(source, Mapping):
        where, arrays = "against", {name: np.asarray(array) for name, array in source.items()}
    else:
        where, arrays = str(source), read_arrays(Path(source))
    kernels = {
        name.removeprefix(_KERNELS): array
        for name, array in arrays.items()
        if name.startswith(_KERNELS)
    }
    if not kernels:
        raise FileFormatError(f"{where} holds no {_KERNELS}<tensor> of a forward pass; {_AGAIN}")
    for name, array in kernels.items():
        if array.dtype != np.float32:
            raise FileFormatError(
                f"{where}: {_KERNELS}{name} is of dtype {array.dtype}, and a forward pass reads "
                f"float32; {_AGAIN}"
            )
    return kernels


def differing_names(model: QatModel, forward: Forward) -> Iterator[str]:
    """Yield in words which weights the forward pass did not read, and what else it read."""
    for tensor in model.tensors.values():
        if tensor.role == "weight" and tensor.name not in forward:
            yield f"{tensor.name}: the forward pass reads no kernel of this name"
    for name in forward:
        first, hash_sign, _ = name.rpartition("#")
        if hash_sign and first in forward:
            yield f"{first}: the forward pass reads it in two ways, and an export holds one"
        elif name not in model.tensors:
            yield f"{name}: the forward pass reads a kernel of this name, and the model has none"


def difference(
    tensor: QatTensor, held: NDArray[Any], arrays: Mapping[str, NDArray[Any]], forward: Forward
) -> tuple[int, str] | None:
    """Return how many elements are not what the forward pass read, and the first in words.

    Parameters
    ----------
    tensor : QatTensor
        With values.
    held : ndarray
        Its integers or floats in the file, with the model's order of axes.
    arrays : mapping of str to ndarray
        The arrays of the file.
    forward : mapping of str to ndarray
        From `read_forward`.

    Returns
    -------
    tuple of int and str, or None
        ``None`` where nothing differs, or the forward pass read no tensor of this name.
    """
    name, kernel = tensor.name, forward.get(tensor.name)
    if kernel is None:
        return None
    if held.shape != kernel.shape:
        text = f"{name}: of shape {held.shape}, and {kernel.shape} in the forward pass"
        return kernel.size, text
    real = _real(tensor, held, arrays) if tensor.role == "weight" else held
    if real is None or real.dtype.kind not in "fiu":  # a damage that is a difference already
        return None
    # Zeros are equal whatever their sign: rounding makes -0.0, and integers have no such zero.
    wrong = (real != kernel) & ~(np.isnan(real) & np.isnan(kernel))
    count = int(np.count_nonzero(wrong))
    if not count:
        return None
    at = tuple(np.argwhere(wrong)[0].tolist())
    verb, reason = "gives", ""
    if tensor.role != "weight":
        verb, reason = "holds the float", ": a quantizer acts there of which it knows nothing"
    return count, (
        f"{name}[{', '.join(map(str, at))}]: the file {verb} {real[at]!s}, the forward pass reads "
        f"{kernel[at]!s} ({count} of {kernel.size} differ){reason}"
    )


def _real(
    tensor: QatTensor, held: NDArray[Any], arrays: Mapping[str, NDArray[Any]]
) -> Float32Array | None:
    """Return what integers stand for, by the formula that every export states.

    In the model's order of axes, the channels' scales run along the last one.
    """
    parts = [arrays[f"{tensor.name}{end}"] for end in (".scale", ".zero_point")]
    shape = (
        np.asarray(tensor.min).shape if tensor.recovered is None else tensor.recovered.scale.shape
    )
    sizes = {math.prod(shape), *(part.size for part in parts)}
    if len(sizes) > 1 or any(array.dtype.kind not in "fiu" for array in (held, *parts)):
        return None
    scale, zero_point = (part.reshape(shape) for part in parts)
    return np.asarray((held.astype(np.int32) - zero_point).astype(np.float32) * scale)
