"""The profile `tflite`: what TFLite's reference kernels compute.

The bias is rounded to int32, in steps of input scale times weight scale, and the accumulator is
multiplied by the float32 scales' quotient. TFLite's delegates start from the same integers and
round the product otherwise, which is why there is no one TFLite result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.profiles import tflite_arithmetic as arithmetic
from qmath.integer.profiles.converter import check_converted, converted
from qmath.integer.profiles.exact import Exact
from qmath.integer.profiles.tflite_kernels import Kernel, TfliteStored
from qmath.integer.profiles.tflite_parts import Part, kernels, parts
from qmath.integer.profiles.tflite_tables import softmax, table
from qmath.integer.program import (
    Linear,
    MoveStep,
    Program,
    QuantParams,
    Requantize,
    SoftmaxStep,
    Step,
    TableStep,
)
from qmath.kernels.affine import check_flag

__all__ = ["Kernel", "Tflite", "TfliteStored", "kernels"]

Array = NDArray[Any]
Int64Array = NDArray[np.int64]


class Tflite:
    """TFLite's reference kernels: int32 bias, 31-bit multipliers, two roundings.

    Parameters
    ----------
    rounding : {"double", "single"}
        ``"single"`` is what a TFLite built with ``TFLITE_SINGLE_ROUNDING`` does, as some
        microcontroller builds are. Dense layers round once, from float64, in either.
    stored : mapping of str to mapping, optional
        By step and weight tensor, the scales and biases of a deployed file; see `kernels`.
    converts : bool
        Whether the program is a trained one, of which TensorFlow's converter makes a file; else
        its steps are the operations of a file, one for one.

    Notes
    -----
    Identical to TensorFlow 2.21's ``BUILTIN_REF`` resolver, operation by operation, where a file
    holds the same scales. What the converter computes in float32 is refused, such as a dense layer
    with batch normalization; what a file computes so is rounded as by `Exact`. Not mirrored: the
    converter's rounding of a float model input, and functions that the model ends with.
    """

    name = "tflite"

    def __init__(
        self,
        rounding: arithmetic.Rounding = "double",
        stored: Mapping[str, Mapping[str, TfliteStored]] | None = None,
        converts: bool = True,
    ) -> None:
        if not isinstance(rounding, str) or rounding not in ("double", "single"):
            raise QmathError(f"rounding must be 'double' or 'single', got {rounding!r}")
        self.rounding = rounding
        self.converts = check_flag(converts, "converts")
        self._stored = _checked(stored)
        self._exact = Exact()
        self._parts: WeakKeyDictionary[Requantize, tuple[Part, ...]] = WeakKeyDictionary()

    def planned(self, program: Program) -> Program:
        """Return a program as the converter writes it, or a file's with TFLite's own functions."""
        if any(params.op == "tflite" for params in program.quant_params.values()):
            return _with_functions(program)
        return converted(program) if self.converts else program

    def requantize(
        self, step: Requantize, sums: Sequence[Array], intervals: Sequence[tuple[int, int]]
    ) -> Array:
        """Return the integers relative to the output's zero point, as float32."""
        if step.params.is_from_float:
            return self._exact.requantize(step, sums, intervals)
        if step not in self._parts:
            if self.converts and step.params.op != "tflite":
                check_converted(step)
            found = parts(step, self._stored.get(step.name))
            self._parts[step] = tuple(_spread(part) for part in found)
        results = self._parts[step]
        if len(results) == 1:
            return self._run(results[0], sums)
        out = np.empty((len(sums[0]), *step.shape), np.float32)
        for part in results:
            region = (slice(None), *part.region)
            out[region] = self._run(part, [sums[i][region] for i in part.sources])
        return out

    def _run(self, part: Part, sums: Sequence[Array]) -> Array:
        values = [np.asarray(total, np.int64) for total in sums]
        for kernel in part.kernels:
            if kernel.constant is not None:
                values.insert(0 if kernel.is_constant_first else 1, kernel.constant)
            result = self._compute(kernel, values)
            low, high = self._limits(kernel)
            values = [np.clip(result, low, high)]
        return values[0].astype(np.float32)

    def _limits(self, kernel: Kernel) -> tuple[int, int]:
        """Return a kernel's clamps, relative to the output's zero point."""
        return kernel.limits

    def _compute(self, kernel: Kernel, values: Sequence[Array]) -> Array:
        """Return a kernel's result before its clamps, relative to the output's zero point."""
        if kernel.bias is not None:
            return self._weighted(kernel, values[0] * kernel.weight_sign + kernel.bias)
        if kernel.op in ("ADD", "SUB"):
            return self._add(kernel, *values)
        if kernel.op == "MUL":
            total = values[0] if len(values) == 1 else values[0] * values[1]
            return self._product(kernel, total)
        if kernel.op == "PRELU":
            return self._sloped(kernel, *values)
        if kernel.op == "SUM":
            return self._total(kernel, values[0])
        if kernel.op == "RESIZE_BILINEAR":
            return self._interpolated(kernel, values[0])
        if kernel.op == "AVERAGE_POOL_2D":
            return self._averaged(kernel, values[0])
        if kernel.op == "LEAKY_RELU":
            return self._leaky(kernel, values[0])
        if kernel.op == "QUANTIZE":
            return self._quantize(kernel, values[0])
        if kernel.op == "MEAN":
            return self._mean(kernel, values[0])
        return self._activated(kernel, values[0])

    def _scaled(self, kernel: Kernel, x: Int64Array, i: int = 0) -> Array:
        return self._multiplied(x, kernel.multipliers[i], kernel.shifts[i])

    def _multiplied(self, x: Int64Array, multiplier: Int64Array, shift: Int64Array) -> Array:
        return arithmetic.multiply_by_quantized_multiplier(x, multiplier, shift, self.rounding)

    def _weighted(self, kernel: Kernel, x: Int64Array) -> Array:
        if kernel.op != "FULLY_CONNECTED":
            if kernel.is_wide:
                return self._reduced(kernel, x)
            return self._scaled(kernel, x)
        assert kernel.weight_scale is not None
        scale = np.float64(kernel.inputs[0].scale) * kernel.weight_scale.astype(np.float64)
        return arithmetic.round_half_away(x * (scale / np.float64(kernel.output.scale)))

    def _reduced(self, kernel: Kernel, x: Int64Array) -> Array:
        return arithmetic.multiply_by_reduced_multiplier(x, kernel.multipliers[0], kernel.shifts[0])

    def _add(self, kernel: Kernel, a: Int64Array, b: Int64Array) -> Array:
        first, second = (
            self._scaled(kernel, x << kernel.left_shift, i) for i, x in enumerate((a, b))
        )
        total = first - second if kernel.op == "SUB" else first + second
        return self._scaled(kernel, total, 2)

    def _product(self, kernel: Kernel, x: Int64Array) -> Array:
        return self._scaled(kernel, x)

    def _activated(self, kernel: Kernel, x: Int64Array) -> Array:
        return self._scaled(kernel, x)

    def _quantize(self, kernel: Kernel, x: Int64Array) -> Array:
        return self._scaled(kernel, x)

    def _mean(self, kernel: Kernel, x: Int64Array) -> Array:
        return self._scaled(kernel, x)

    def _leaky(self, kernel: Kernel, x: Int64Array) -> Array:
        return np.where(x >= 0, self._scaled(kernel, x), self._scaled(kernel, x, 1))

    def _sloped(self, kernel: Kernel, x: Int64Array, slopes: Int64Array) -> Array:
        return np.where(x >= 0, self._scaled(kernel, x), self._scaled(kernel, x * slopes, 1))

    def _total(self, kernel: Kernel, x: Int64Array) -> Array:
        assert kernel.count is not None
        (source,), output, count = kernel.inputs, kernel.output, int(kernel.count)
        total = x + source.zero_point * count
        zero_points = source.zero_point, output.zero_point
        made = arithmetic.total_in_float(total, count, source.scale / output.scale, zero_points)
        return made - output.zero_point

    def _interpolated(self, kernel: Kernel, x: Int64Array) -> Array:
        return self._averaged(kernel, x)

    def _averaged(self, kernel: Kernel, x: Int64Array) -> Array:
        """Divide the stored integers' sum, ties away from their zero."""
        assert kernel.count is not None
        zero_point = kernel.output.stored_zero_point
        return arithmetic.average(x + zero_point * kernel.count, kernel.count) - zero_point


def _checked(stored: object) -> Mapping[str, Mapping[str, TfliteStored]]:
    """Return what a file holds of each step, nothing of none."""
    if stored is None:
        return {}
    expected = "stored must be {STEP: {TENSOR: TfliteStored}}"
    if not isinstance(stored, Mapping):
        raise QmathError(f"{expected}, got {stored!r}")
    for name, held in stored.items():
        if not isinstance(held, Mapping) or not all(
            isinstance(x, TfliteStored) for x in held.values()
        ):
            raise QmathError(f"{expected}; it has {held!r} for {name!r}")
    return stored


def _with_functions(program: Program) -> Program:
    """Return a file's program with the tables of its operations, and its softmax, as TFLite's."""
    params = program.quant_params
    steps: list[Step] = []
    for step in program.steps:
        if isinstance(step, TableStep) and step.kernel:
            step = replace(step, table=table(step, params[step.source]))
        elif isinstance(step, SoftmaxStep) and _has_softmax(step, params[step.source]):
            apply = partial(_softmax, params[step.source], step.params)
            step = MoveStep(step.name, step.source, apply, step.params, step.shape)
        steps.append(step)
    return replace(program, steps=tuple(steps))


def _has_softmax(step: SoftmaxStep, source: QuantParams) -> bool:
    return step.axis == -1 and step.params.num_bits == source.num_bits in (8, 16)


def _softmax(source: QuantParams, params: QuantParams, x: Array) -> Array:
    return softmax(x, source, params).astype(np.float32)


def _spread(part: Part) -> Part:
    """Return the part with the channels' numbers where its moves put the channels."""
    if not part.moves:
        return part
    linear = part.terms[0].ops[0]
    kernel = part.kernels[0].moved(lambda array: _moved(array, linear, part.moves))
    return Part(part.region, part.sources, part.terms, (kernel,), part.moves)


def _moved(array: Array, linear: Linear, moves: Sequence[Linear]) -> Array:
    array = np.broadcast_to(array, linear.shape)[np.newaxis]
    for move in moves:
        array = move.apply(array, None)
    return np.asarray(array[0])
