"""Ranges whose zero lies between two integers: TensorFlow takes one, TFLite's converter the other.

A file holds any zero point, so it gets TensorFlow's. TFLite's numbers are derived from ranges: such
a range is replaced by the real values that its integers stand for, which gives the same integers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qmath.errors import QmathError
from qmath.integer.profiles.tflite_kernels import quantization
from qmath.integer.program import FloatStep, Program, QuantParams, Requantize, Step

__all__ = ["with_own_zero_points"]


def with_own_zero_points(program: Program) -> Program:
    """Return a program of the same integers from whose ranges TensorFlow's zero points follow."""
    found = {name: _settled(params) for name, params in program.quant_params.items()}
    if all(params is found[name] for name, params in program.quant_params.items()):
        return program
    return replace(program, steps=tuple(_with(step, found) for step in program.steps))


def _settled(params: QuantParams) -> QuantParams:
    try:
        quantization(params, "")
    except QmathError:
        low, high = (np.float64(params.scale) * end for end in params.limits)
        return replace(params, min=float(low), max=float(high))
    return params


def _with(step: Step, found: dict[str, QuantParams]) -> Step:
    if isinstance(step, Requantize):
        terms = tuple(replace(term, params=found[term.source]) for term in step.value.terms)
        return replace(step, value=replace(step.value, terms=terms), params=found[step.name])
    return step if isinstance(step, FloatStep) else replace(step, params=found[step.name])
