"""Mistakes in a kernel of TFLite's integer operators, judged by the vectors that a ``.tflite`` has.

The kernel rounds as tflite-micro does, twice. Its numbers (biases, multipliers, shifts) are those
that `qmath.integer.profiles.tflite_parts` says of the file, which its runtimes prove elsewhere.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.containers.tflite.file import parsed
from qmath.exports.bundle import quantize_model
from qmath.exports.tflite.ties import with_own_zero_points
from qmath.exports.tflite.vectors import VECTORS
from qmath.integer.profiles.tflite_arithmetic import (
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    rounding_divide_by_pot,
)
from qmath.integer.profiles.tflite_kernels import Kernel as Numbers
from qmath.integer.profiles.tflite_parts import parts
from qmath.integer.program import Program, Requantize
from qmath.model import QatModel
from reference.mistakes.catalogue import MISTAKES, Mistake
from reference.mistakes.judge import Verdict, in_numpy
from reference.mistakes.kernel import Here, Kernel
from reference.mistakes.layers import Constants, Layer

__all__ = ["TfliteKernel", "in_tflite", "layers_of_tflite"]

Array = NDArray[Any]
_SUMS = ("ADD", "SUB")
_ALONE = ("MEAN", "MUL", "QUANTIZE", "RELU", "RELU6", "LEAKY_RELU")


@dataclass(frozen=True, eq=False)
class SumConstants(Constants):
    """Of a sum of two tensors: each is scaled by itself, to the left first, and so is the total."""

    left: int = 0
    shifts: tuple[Array, ...] = ()
    last: Array | int = 1


class TfliteKernel(Kernel):
    """Computes layers as tflite-micro does; `Constants` have the half of one rounding."""

    margin = 4  # accumulators between which two roundings and one may differ

    def _side(self, c: Constants, sums: Sequence[Array], here: Here) -> tuple[Array, Array]:
        here = replace(here, constants=c, sums=sums)
        if isinstance(c, SumConstants):
            scaled = [
                multiply_by_quantized_multiplier(a << c.left, m, shift)
                for a, m, shift in zip(sums, c.multipliers, c.shifts, strict=True)
            ]
            total = sum(scaled, start=np.int64(0)) * c.last + c.addend
        else:
            (a,), (m,) = sums, c.multipliers
            total = a * m + c.addend
        total = self.at("total", total, here)
        high = (total - (np.int64(1) << (c.shift - 1)) + (1 << 30)) >> 31
        twice = rounding_divide_by_pot(high, np.maximum(c.shift - 31, 0))
        y = np.where(c.shift > 31, twice, total >> c.shift)
        return total, self.at("rounded", y, replace(here, before=total))


def in_tflite(
    model: QatModel, path: Path, layers: Iterable[Layer], mistakes: Sequence[Mistake] = MISTAKES
) -> dict[str, Verdict]:
    """Judge mistakes in the kernel of TFLite's operators: see `layers_of_tflite`."""
    return in_numpy(layers_of_tflite(model, path, layers), mistakes, TfliteKernel)


def layers_of_tflite(model: QatModel, path: Path, layers: Iterable[Layer]) -> Iterator[Layer]:
    """Yield the layers of a model with what a ``.tflite`` has of them.

    Parameters
    ----------
    model : QatModel
    path : Path
        Of the ``.tflite``, which was exported with vectors.
    layers : iterable of Layer
        As `reference.mistakes.layers.layers_of` reads them from the ``.npz``.
    """
    held = parsed(path.read_bytes(), path.name).metadata[VECTORS]
    arrays = np.load(io.BytesIO(held))
    bundle = quantize_model(model)
    assert bundle.program is not None
    program = with_own_zero_points(bundle.program)
    for layer in layers:
        if f"directed/{layer.name}.expected" not in arrays:
            continue
        found = _constants(program, layer)
        if found is not None or layer.kind != "requantize":
            positive, negative = found or (None, None)
            made = replace(layer, constants=positive, negative=negative, noise=None)
            yield _with_vectors(made, arrays, program)


def _with_vectors(layer: Layer, arrays: Mapping[str, Array], program: Program) -> Layer:
    def unsigned(key: str, name: str) -> Array:
        half = 1 << (program.quant_params[name].num_bits - 1)
        return arrays[key].astype(np.int64) + half

    key = f"directed/{layer.name}"
    micro = f"{key}.expected.tflm"
    inputs = {
        source: unsigned(f"{key}.input.{number}", source)
        for number, source in enumerate(layer.inputs)
    }
    expected = unsigned(micro if micro in arrays else f"{key}.expected", layer.name)
    return replace(layer, inputs=inputs, expected=expected, tags=arrays[f"{key}.tags"])


def _constants(program: Program, layer: Layer) -> tuple[Constants, Constants | None] | None:
    """Return the constants of both sides of an activation, ``None`` if this kernel has no form."""
    step = program.step(layer.name)
    if not isinstance(step, Requantize):
        return None
    found = parts(step)
    if len(found) > 1 or len(found[0].kernels) > 1 or found[0].moves:
        return None
    (numbers,) = found[0].kernels
    low, high = (np.int64(end) for end in numbers.limits)
    if numbers.op in _SUMS:
        signs = (1, -1) if numbers.op == "SUB" else (1, 1)
        *multipliers, last = numbers.multipliers
        shift = 31 - numbers.shifts[2]
        return SumConstants(
            tuple(np.asarray(m * sign) for m, sign in zip(multipliers, signs, strict=True)),
            np.int64(1) << (shift - 1), np.asarray(shift), low, high,
            left=numbers.left_shift, shifts=numbers.shifts[:2], last=last,
        ), None  # fmt: skip
    if numbers.bias is None and numbers.op not in _ALONE:
        return None
    sides = [
        _side(_multiplier(numbers, i), numbers, low, high) for i in range(len(numbers.multipliers))
    ]
    return sides[0], sides[1] if len(sides) > 1 else None


def _multiplier(numbers: Numbers, side: int) -> tuple[Array, Array]:
    if numbers.op != "MUL":
        return numbers.multipliers[side], numbers.shifts[side]
    first, second = (np.float64(q.scale) for q in numbers.inputs)  # as tflite-micro does
    return quantize_multiplier(first * second / np.float64(numbers.output.scale))


def _side(scaling: tuple[Array, Array], numbers: Numbers, low: Any, high: Any) -> Constants:
    multiplier, shift = scaling[0], 31 - scaling[1]
    half = np.int64(1) << (shift - 1)
    if numbers.bias is None:
        return Constants((np.asarray(multiplier),), half, np.asarray(shift), low, high)
    assert numbers.weight_sign is not None
    signed = np.asarray(multiplier * numbers.weight_sign)
    return Constants((signed,), numbers.bias * multiplier + half, np.asarray(shift), low, high)
