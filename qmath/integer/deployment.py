"""What an export holds of the integer model: its program, constants, and golden test vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import MissingSettingsError, QmathError
from qmath.integer.budget import vectors_within
from qmath.integer.describe import arrays, describe
from qmath.integer.lowering.lower import lower
from qmath.integer.lowering.operations import Quantize
from qmath.integer.profiles.fixed import Integer, constants
from qmath.integer.program import FloatStep, Program, QuantizeStep
from qmath.model import QatModel, QatTensor

__all__ = ["Deployment", "deploy"]

_MOST_VECTORS = 1 << 16


@dataclass(frozen=True, eq=False)
class Deployment:
    """The integer model of an export; without one, all is empty and `notes` may say why.

    Attributes
    ----------
    program, constants, vectors
        As in `qmath.exports.bundle.Bundle`.
    count : int
        How many test vectors there are, or would be of a model that has a program.
    description : dict or None
        As `qmath.integer.describe.describe` returns it.
    notes : tuple of str
    """

    program: Program | None = None
    description: dict[str, Any] | None = None
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    vectors: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    count: int = 0


def deploy(
    model: QatModel,
    vectors: int,
    multiplier_bits: int,
    quantize: Quantize = QatTensor.quantize,
) -> Deployment:
    """Return the integer model of a model, if it has one.

    Parameters
    ----------
    model : QatModel
    vectors : int
        How many test vectors to make, if the budget allows so many: else fewer, with a note.
    multiplier_bits : int
        Of the profile ``integer``.
    quantize : callable, optional
        As for `qmath.integer.lowering.lower.lower`.

    Raises
    ------
    QmathError
        A number is out of range.
    """
    profile = Integer(multiplier_bits)
    if not 0 <= vectors <= _MOST_VECTORS:
        raise QmathError(f"the number of test vectors must be 0 to {_MOST_VECTORS}, got {vectors}")
    if model.graph is None:
        return Deployment(count=vectors)
    try:
        program = lower(model, quantize=quantize)
        fixed = constants(program, multiplier_bits)
    except MissingSettingsError:  # which the bundle asks for in a note of its own
        return Deployment(count=vectors)
    except QmathError as error:
        return Deployment(notes=(f"no integer model is exported: {error}",), count=vectors)
    count, note = vectors_within(program, vectors)
    return Deployment(
        program,
        describe(program, fixed),
        arrays(program, fixed),
        _golden(program, count, profile) if count else {},
        (*program.notes, *([note] if note else [])),
        count,
    )


def _golden(program: Program, count: int, profile: Integer) -> dict[str, NDArray[Any]]:
    """Run a program on inputs drawn evenly from the ranges of its inputs.

    What runs in float32 is left out: its last bits depend on the machine.
    """
    from qmath.integer.executor import Executor  # which few exports need

    ranges = {s.source: s.params for s in program.steps if isinstance(s, QuantizeStep)}
    # The stream of this generator is frozen: every NumPy draws the same numbers.
    rng = np.random.RandomState(0)
    inputs = {}
    for name, shape in program.inputs.items():
        params = ranges.get(name)
        low, high = (params.min, params.max) if params else (-1.0, 1.0)
        inputs[name] = rng.uniform(low, high, (count, *shape)).astype(np.float32)
    steps = [step.name for step in program.steps if not isinstance(step, FloatStep)]
    results = Executor(program, profile).run(inputs, keep=steps)
    return {f"vectors/{name}": array for name, array in (inputs | results).items()}
