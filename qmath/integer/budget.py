"""How large what a model asks for may get: arrays of its shapes, constants, test vectors.

The shapes are those of a config, which costs its writer nothing. All that is made of them, before
anyone has given data, stays within one budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qmath.errors import QmathError
from qmath.integer.program import (
    FloatStep,
    Linear,
    Program,
    Shape,
    Step,
    UnroundedSum,
    sources,
    unrounded_sums,
)
from qmath.kernels.affine import smallest_dtype

__all__ = ["MAX_BYTES", "Budget", "check_size", "vectors_within", "work"]

MAX_BYTES = 1 << 31
_FLOAT = 4  # bytes of a value on its way
# Bytes of a constant for each element of a tensor, in float64 and with copies; of a term, and of
# each of its operations, by the time that Python takes for one; and how many additions take as long
# as an element takes memory.
_CONSTANT, _TERM, _OPERATION, _ADDITIONS = 64, 1 << 13, 16, 64


def check_size(name: str, shape: Sequence[int]) -> None:
    """Raise unless a tensor of a shape, of one example, is neither empty nor above the budget."""
    if min(shape, default=0) < 1:
        raise QmathError(
            f"{name}: its result would have the shape {_shown(shape)}, and so no elements; its "
            "input is smaller than its window, or the config was edited"
        )
    if math.prod(shape) * _FLOAT > MAX_BYTES:
        raise QmathError(
            f"{name}: one example would take {_size(math.prod(shape) * _FLOAT)} there, of shape "
            f"{_shown(shape)}, more than the {_size(MAX_BYTES)} that qmath makes; give the model a "
            "smaller input"
        )


class Budget:
    """What the constants of one program may take: those that have a tensor's whole shape."""

    def __init__(self) -> None:
        self._spent = 0

    def spend_constant(self, name: str, shape: Sequence[int]) -> None:
        """Count a constant of a shape, before it is made."""
        self._spent += math.prod(shape) * _CONSTANT
        self._check(name)

    def spend(self, name: str, value: UnroundedSum, linear: Linear, whole: int) -> None:
        """Count what an operation makes of a sum's constants, before it makes them.

        Parameters
        ----------
        name : str
            Of the layer.
        value : UnroundedSum
        linear : Linear
        whole : int
            How many of the constants have the whole shape, before it or after.
        """
        elements = max(math.prod(value.shape), math.prod(linear.shape), work(linear) // _ADDITIONS)
        self._spent += whole * elements * _CONSTANT
        self.spend_again(name, value)

    def spend_again(self, name: str, value: UnroundedSum) -> None:
        """Count the terms that a layer makes of a sum's, and their constants."""
        self._spent += value.offset.size * _CONSTANT
        for term in value.terms:
            self._spent += _TERM + _OPERATION * len(term.ops) + term.scale.size * _CONSTANT
        self._check(name)

    def _check(self, name: str) -> None:
        if self._spent > MAX_BYTES:
            raise QmathError(
                f"{name}: the constants of the model would take more than the {_size(MAX_BYTES)} "
                "that qmath makes; quantize the outputs of the layers before it, or give the model "
                "a smaller input"
            )


def work(linear: Linear) -> int:
    """Return how many values an operation gathers for one example, each as often as it is used."""
    if linear.weights is None:
        return math.prod(linear.shape) * (4 if linear.kind == "bilinear" else linear.gain)
    spatial = math.prod(linear.shape[:-1])
    if linear.kind == "depthwise_conv2d":
        return spatial * linear.weights.size
    return spatial * (linear.weights.size // linear.shape[-1])


def vectors_within(program: Program, count: int) -> tuple[int, str]:
    """Return how many test vectors the budget allows, and a note if these are fewer.

    What a vector holds is counted, and the most that a step needs to compute it.

    Examples
    --------
    >>> from qmath.integer.api import program_of
    >>> vectors_within(program_of("reference/samples/default8.h5"), 16)
    (16, '')
    """
    shapes = {step.name: step.shape for step in program.steps} | dict(program.inputs)
    held = sum(math.prod(shape) * _FLOAT for shape in program.feeds.values())
    for step in program.steps:
        if not isinstance(step, FloatStep):
            held += math.prod(step.shape) * smallest_dtype(step.params.num_bits, False).itemsize
    passing = max((_passing(step, shapes) for step in program.steps), default=0)
    each = held + passing * _FLOAT
    most = MAX_BYTES // max(each, 1)
    if most >= count:
        return count, ""
    return most, (
        f"{most or 'none'} of {count} test vectors {'is' if most == 1 else 'are'} made: each takes "
        f"{_size(each)}, and all may take {_size(MAX_BYTES)}; ask for fewer (--vectors {most}), or "
        "give the model a smaller input"
    )


def _passing(step: Step, shapes: dict[str, Shape]) -> int:
    """Return how many values are in memory while a step computes one example."""
    linears = [
        linear for value in unrounded_sums(step) for term in value.terms for linear in term.ops
    ]
    reads = sum(math.prod(shapes[name]) for name in sources(step))
    return reads + math.prod(step.shape) + max(map(work, linears), default=0)


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.3g} GiB"


def _shown(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"
