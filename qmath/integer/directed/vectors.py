"""`directed_vectors`: for every step of a program inputs that find mistakes, within a budget."""

from __future__ import annotations

import math

import numpy as np

from qmath.errors import QmathError
from qmath.integer.directed.cases import Cases
from qmath.integer.directed.moved import cases_of_move, cases_of_quantizer, cases_of_table
from qmath.integer.directed.requantized import cases_of_sum
from qmath.integer.executor import Executor
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import (
    MoveStep,
    Program,
    QuantizedStep,
    QuantizeStep,
    Requantize,
    Shape,
    sources,
)
from qmath.kernels._environment import in_default_environment

__all__ = ["LAYER_BYTES", "MODEL_BYTES", "directed_vectors"]

LAYER_BYTES = 1 << 18
MODEL_BYTES = 1 << 22


@in_default_environment
def directed_vectors(
    program: Program,
    multiplier_bits: int = 31,
    *,
    layer_bytes: int = LAYER_BYTES,
    model_bytes: int = MODEL_BYTES,
) -> dict[str, Cases]:
    """Make inputs for each step by itself that show mistakes, and what it makes of them.

    Parameters
    ----------
    program : Program
        Such as `qmath.integer.api.program_of` returns.
    multiplier_bits : int
        Of the profile ``integer``, which the expected integers are those of.
    layer_bytes, model_bytes : int
        How many bytes the arrays of one step, and of all, may take. Each step gets one input
        whatever it takes; what else would fit the model is shared out evenly.

    Returns
    -------
    dict of str to Cases
        By the name of each step but those in float32. The same for the same program, always.

    Raises
    ------
    QmathError
        A number of bytes is negative.

    Notes
    -----
    ``docs/vectors.md`` says what is aimed at. A channel's accumulator is a whole function of its
    inputs: targets are found exactly, by the theory of numbers, then inputs for them. Whether
    an element serves a purpose is then looked at in the accumulators that the executor computes.

    Examples
    --------
    >>> from qmath.integer.api import program_of
    >>> found = directed_vectors(program_of("reference/samples/default8.h5"))
    >>> cases = found["dense/post_activation"]
    >>> cases.inputs["flatten"].shape[1:], cases.expected.shape[1:]
    ((256,), (10,))
    >>> cases.purposes["greatest accumulator"], cases.purposes["past the upper clamp"]
    (10, 10)
    """
    for name, value in (("layer_bytes", layer_bytes), ("model_bytes", model_bytes)):
        if value < 0:
            raise QmathError(f"{name} must not be negative, got {value}")
    executor = Executor(program, Integer(multiplier_bits))
    shapes: dict[str, Shape] = {step.name: step.shape for step in program.steps}
    steps = program.quantized
    least = [_bytes_of_one(step, shapes, executor) for step in steps]
    spare = max(0, model_bytes - sum(least))
    found = {}
    for number, (step, size) in enumerate(zip(steps, least, strict=True)):
        share = spare // (len(steps) - number)
        room = min(layer_bytes, size + share)
        found[step.name] = cases = _cases(executor, step, shapes, room, number)
        spare -= max(0, cases.nbytes - size)
        spare = max(spare, 0)
    return found


def _cases(
    executor: Executor, step: QuantizedStep, shapes: dict[str, Shape], room: int, seed: int
) -> Cases:
    if isinstance(step, Requantize):
        return cases_of_sum(executor, step, shapes, room, seed)
    if isinstance(step, QuantizeStep):
        return cases_of_quantizer(executor, step, room)
    if isinstance(step, MoveStep):
        return cases_of_move(executor, step, shapes, room, seed)
    return cases_of_table(executor, step, shapes, room)


def _bytes_of_one(step: QuantizedStep, shapes: dict[str, Shape], executor: Executor) -> int:
    """Return the bytes of one input and its output."""

    def size(shape: Shape, bits: int) -> int:
        return math.prod(shape) * -(-bits // 8)

    made = size(step.shape, step.params.num_bits)
    if isinstance(step, QuantizeStep):
        return made + size(step.shape, 8 * np.dtype(np.float32).itemsize)
    read = (size(shapes[n], executor.quant_params[n].num_bits) for n in {*sources(step)})
    return made + sum(read)
