"""Keras 3's own quantization: layers whose integers and scales the file already holds.

They are passed on as they are, in Keras's convention: the real value is an integer *divided* by the
scale. Mirrors ``variable_serialization_spec`` of ``keras/src/layers/core/dense.py``,
``einsum_dense.py`` and ``embedding.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qmath.containers.lazy_array import LazyArray
from qmath.errors import FileFormatError, QmathError
from qmath.kernels.packing import unpack
from qmath.layers import LAYERS
from qmath.model import StoredIntegers
from qmath.readers.architecture.config import LayerFacts, Serialized, bare_name
from qmath.readers.records import StoredTensor

__all__ = ["name_quantized", "quantization_mode"]

_WIDTHS = {"int8": 8, "int4/-1": 4}
_CLASSES = ("Dense", "EinsumDense", "Embedding")
_EQUATION = re.compile(r"(?:\.\.\.)?([a-zA-Z]+)(?:\.\.\.)?,([a-zA-Z]+)->(?:\.\.\.)?([a-zA-Z]+)")


@dataclass(frozen=True, eq=False)
class _Unpacked:
    """A lazy array of 4-bit integers, two in each byte of the file's."""

    packed: LazyArray
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int8)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("unpacking from a file always copies")
        try:
            values = unpack(np.asarray(self.packed), 4, "keras_int4", self.shape, signed=True)
        except QmathError as error:
            raise FileFormatError(f"{self.packed}: {error}; the file is damaged") from None
        return values.astype(self.dtype if dtype is None else dtype, copy=False)


def quantization_mode(layer: LayerFacts) -> str | None:
    """Return how Keras quantized a layer: ``"int8"``, ``"int4/128"``, … or ``None``."""
    policy = Serialized.read(layer.config.get("dtype"))
    mode = policy.config.get("mode") if policy else None
    return mode if isinstance(mode, str) and mode.isprintable() else None


def name_quantized(
    layer: LayerFacts, mode: str, values: Sequence[LazyArray], place: str
) -> list[StoredTensor]:
    """Return the tensors of a layer that Keras quantized.

    Parameters
    ----------
    layer : LayerFacts
        The layer.
    mode : str
        From `quantization_mode`.
    values : sequence of LazyArray
        The layer's own variables.
    place : str
        File and layer, for error messages.

    Returns
    -------
    list of StoredTensor
        The integers, of 4 bits unpacked; the bias; the scale, of a shape that broadcasts.

    Raises
    ------
    FileFormatError
        The mode or the layer's class is not supported, or the variables are not those.
    """
    class_name = bare_name(layer.class_name)
    num_bits = _WIDTHS.get(mode)
    if class_name not in _CLASSES or num_bits is None:
        raise FileFormatError(
            f"{place}: Keras quantized this {class_name} in the mode {mode!r}; qmath passes on "
            "int8, and int4 with one scale for each channel (block_size=-1), of Dense, "
            "EinsumDense and Embedding"
        )
    weight = LAYERS[class_name].kernel
    names = list(_names(layer, weight))
    if len(values) != len(names):
        raise FileFormatError(
            f"{place}: {class_name} of the mode {mode} has the variables {', '.join(names)}, and "
            f"the file holds {len(values)}; they were saved of another model"
        )
    found: dict[str, Any] = dict(zip(names, values, strict=True))
    integers, scale = found[weight], found[f"{weight}_scale"]
    if integers.dtype != np.int8 or len(integers.shape) < 2 or scale.dtype != np.float32:
        raise FileFormatError(
            f"{place}: {weight} should be int8 and its scale float32, and they are "
            f"{integers.dtype} and {scale.dtype}; they were saved of another model"
        )
    if num_bits == 4:
        columns = _columns(layer, integers, scale)
        if integers.shape[-1] != (columns + 1) // 2:
            raise _other_shape(place, weight, integers, scale)
        integers = _Unpacked(integers, (*integers.shape[:-1], columns))
    ends = np.asarray(scale)
    if not (np.isfinite(ends).all() and (ends > 0).all()):
        raise FileFormatError(
            f"{place}: a scale of {weight} is not finite and positive; the file is damaged"
        )
    try:
        found[f"{weight}_scale"] = _broadcast(layer, num_bits, ends, integers.shape)
    except ValueError:
        raise _other_shape(place, weight, integers, scale) from None
    found[weight] = integers
    stored = StoredIntegers(num_bits, f"{layer.path}/{weight}_scale")
    return [
        StoredTensor(layer, name, value, stored=stored if name == weight else None)
        for name, value in found.items()
    ]


def _names(layer: LayerFacts, weight: str) -> Iterator[str]:
    """Yield a layer's variables in the order in which Keras saves them."""
    yield weight
    has_bias = {
        "Dense": layer.config.get("use_bias", True),
        "EinsumDense": layer.config.get("bias_axes"),
    }
    if has_bias.get(bare_name(layer.class_name)):
        yield "bias"
    yield f"{weight}_scale"


def _columns(layer: LayerFacts, packed: LazyArray, scale: LazyArray) -> int:
    """Return how many integers the packed rows hold; an odd last one has half a byte alone."""
    if bare_name(layer.class_name) != "Embedding":
        return scale.shape[-1] if scale.shape else 0
    columns = layer.config.get("output_dim")
    return columns if type(columns) is int else 2 * packed.shape[-1]


def _broadcast(
    layer: LayerFacts, num_bits: int, scale: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return a scale with as many axes as its integers, 1 where it is the same for all.

    An ``EinsumDense`` of 8 bits stores it in the axis order of its output; its 4-bit kernel is
    stored as a matrix whose rows are what the equation sums over.
    """
    class_name = bare_name(layer.class_name)
    if class_name == "Embedding":
        return scale.reshape([shape[0], *[1] * (len(shape) - 1)])
    if class_name == "Dense" or num_bits == 4:
        return scale.reshape([*[1] * (len(shape) - 1), shape[-1]])
    match = _EQUATION.fullmatch(str(layer.config.get("equation")).replace(" ", ""))
    if match is None or len(match[2]) != len(shape):
        raise ValueError(layer.config.get("equation"))
    _, kernel, output = match.groups()
    lengths = dict(zip(kernel, shape, strict=True))
    kept = [label for label in output if label in lengths]
    ordered = scale.reshape([lengths[label] for label in kept])
    order = [kept.index(label) for label in kernel if label in kept]
    along = [lengths[label] if label in kept else 1 for label in kernel]
    return np.reshape(ordered.transpose(order), along)


def _other_shape(place: str, weight: str, integers: Any, scale: Any) -> FileFormatError:
    return FileFormatError(
        f"{place}: {weight} of shape {integers.shape} and its scale of shape {scale.shape} do not "
        "belong together; they were saved of another model, or by a Keras older than 3.15"
    )
