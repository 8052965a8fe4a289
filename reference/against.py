"""Compare an export with what a forward pass used, with NumPy alone.

The forward pass is what `reference.dump` wrote of a live model or a SavedModel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["KERNELS", "Difference", "against", "bits", "real_values"]

KERNELS = "kernels/"
_OTHER = (KERNELS, "outputs/")
_RANGES = ("activation", "output", "input")

Arrays = Mapping[str, NDArray[Any]]
Float32Array = NDArray[np.float32]


class Difference(NamedTuple):
    """A tensor, and what is said of it."""

    tensor: str
    text: str
    place: str = ""

    def __str__(self) -> str:
        return f"{self.tensor}{self.place}: {self.text}"


def against(entries: Mapping[str, Any], arrays: Arrays, forward: Arrays) -> Iterator[Difference]:
    """Yield where an export is not what a forward pass used.

    Parameters
    ----------
    entries : mapping of str to mapping
        The manifest's tensors.
    arrays : mapping of str to ndarray
        The export's arrays.
    forward : mapping of str to ndarray
        What `reference.dump` wrote.
    """
    for name, entry in entries.items():
        kernel = forward.get(KERNELS + name)
        if kernel is not None and name in arrays:
            yield from _kernel(name, real_values(name, entry, arrays), kernel)
            if f"{KERNELS}{name}#1" in forward:
                yield Difference(name, "the forward pass reads it in two ways")
        elif entry["role"] == "weight":
            yield Difference(name, "no op of the forward pass reads a kernel of this name")
    if not any(name.startswith("outputs/") for name in forward):
        return  # kernels alone
    acting = {name: _without_call(name) for name in forward if not name.startswith(_OTHER)}
    for name in sorted(set(acting.values())):
        if entries.get(name, {}).get("role") not in _RANGES:
            yield Difference(
                name, "a quantizer acts there in the forward pass, the file holds none"
            )
    for name, entry in entries.items():
        if entry["role"] in _RANGES:
            calls = [call for call, tensor in acting.items() if tensor == name]
            if not calls:
                yield Difference(name, "no quantizer acts there in the forward pass")
            elif entry["num_bits"] is not None:
                for call in calls:
                    yield from _values(call, forward[call], name, entry, arrays)


def _kernel(name: str, real: Float32Array, kernel: Float32Array) -> Iterator[Difference]:
    if real.shape != kernel.shape:
        yield Difference(name, f"of shape {real.shape}, in the forward pass {kernel.shape}")
        return
    differs = np.argwhere(bits(real + 0) != bits(kernel + 0))  # integers have no -0.0
    if len(differs):
        at = tuple(differs[0].tolist())
        yield Difference(
            name,
            f"the file gives {real[at]!s}, the forward pass reads {kernel[at]!s} "
            f"({len(differs)} of {real.size} differ)",
            str(list(at)),
        )


def _values(
    call: str, values: Float32Array, name: str, entry: dict[str, Any], arrays: Arrays
) -> Iterator[Difference]:
    """Yield where an activation's values are not those of its integers."""
    scale, zero_point = arrays[f"{name}.scale"], arrays[f"{name}.zero_point"]
    with np.errstate(invalid="ignore", divide="ignore"):  # a dead range has the scale 0
        integers = np.nan_to_num(np.rint(values / scale)).astype(np.int64)
    differs = bits(integers.astype(np.float32) * scale) != bits(values)
    unsigned = integers + zero_point
    differs |= (unsigned < int(entry["narrow_range"])) | (unsigned >= 2 ** entry["num_bits"])
    if differs.any():
        yield Difference(
            name,
            f"the forward pass makes {values[differs][0]!s} in {call}, which is none of the "
            f"{entry['num_bits']}-bit integers times {scale!s} ({differs.sum()} of {values.size})",
        )


def _without_call(name: str) -> str:
    """Return the tensor of a shared layer's further call: ``d/output`` of ``d#1/output``."""
    layer, _, place = name.rpartition("/")
    return f"{layer.partition('#')[0]}/{place}"


def real_values(name: str, entry: dict[str, Any], arrays: Arrays) -> Float32Array:
    """Return the real values of an exported weight, in the axis order of the model."""
    real = arrays[name]
    if entry["role"] == "weight":
        scale, zero_point = arrays[f"{name}.scale"], arrays[f"{name}.zero_point"]
        real = (real.astype(np.int32) - zero_point).astype(np.float32) * scale
    if entry.get("layout") != entry.get("source_layout"):
        real = real.transpose([entry["layout"].index(letter) for letter in entry["source_layout"]])
    return real


def bits(x: Float32Array) -> NDArray[np.uint32]:
    """Return the bits of floats."""
    return np.ascontiguousarray(x, np.float32).view(np.uint32)
