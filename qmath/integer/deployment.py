"""What an export holds of the integer model: its program, constants, and golden test vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import MissingSettingsError, QmathError
from qmath.integer.budget import vectors_within
from qmath.integer.describe import arrays, describe
from qmath.integer.lowering.lower import lower
from qmath.integer.lowering.operations import Quantize
from qmath.integer.profiles.fixed import Integer, constants
from qmath.integer.program import Program
from qmath.integer.whole_inputs import Vectors, check_vectors, drawn, given, recorded
from qmath.model import QatModel, QatTensor

if TYPE_CHECKING:
    from qmath.integer.directed.cases import Cases

__all__ = ["VECTOR_BYTES", "Deployment", "deploy", "described"]

VECTOR_BYTES = 1 << 22  # of the directed vectors of a model
_LAYERS = 16  # one layer gets at most its share of so many, if that is more than is usual


@dataclass(frozen=True, eq=False)
class Deployment:
    """The integer model of an export; without one, all is empty and `notes` may say why.

    Attributes
    ----------
    program, constants, vectors
        As in `qmath.exports.bundle.Bundle`.
    description : dict or None
        As `qmath.integer.describe.describe` returns it.
    directed : mapping of str to Cases
        By step; their arrays are among the vectors, too.
    options : dict
        How the vectors were made: ``vectors`` and, if there are directed ones, ``vector_bytes``.
    notes : tuple of str
    """

    program: Program | None = None
    description: dict[str, Any] | None = None
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    vectors: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    directed: Mapping[str, Cases] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def deploy(
    model: QatModel,
    vectors: Vectors,
    multiplier_bits: int,
    quantize: Quantize = QatTensor.quantize,
    *,
    vector_bytes: int = VECTOR_BYTES,
) -> Deployment:
    """Return the integer model of a model, if it has one.

    Parameters
    ----------
    model : QatModel
    vectors : int, array-like or mapping of str to array-like
        How many inputs of the whole model to draw, if the budget allows so many: else fewer,
        with a note; or inputs. With any, there are directed vectors of every step.
    multiplier_bits : int
        Of the profile ``integer``.
    quantize : callable, optional
        As for `qmath.integer.lowering.lower.lower`.
    vector_bytes : int
        How many bytes the directed vectors may take.

    Raises
    ------
    QmathError
        A number is out of range; inputs are not the model's.
    """
    profile = Integer(multiplier_bits)
    check_vectors(vectors)
    if not vector_bytes >= 0:
        raise QmathError(f"vector_bytes must not be negative, got {vector_bytes}")
    nothing: dict[str, Any] = {"vectors": vectors if isinstance(vectors, int) else 0}
    if model.graph is None:
        return Deployment(options=nothing)
    try:
        program = lower(model, quantize=quantize)
        fixed = constants(program, multiplier_bits)
    except MissingSettingsError:  # which the bundle asks for in a note of its own
        return Deployment(options=nothing)
    except QmathError as error:
        return Deployment(notes=(f"no integer model is exported: {error}",), options=nothing)
    description, notes = describe(program, fixed), program.notes
    if isinstance(vectors, int):
        vectors, note = vectors_within(program, vectors)
        notes += (note,) if note else ()
        if not vectors:
            return Deployment(
                program, description, arrays(program, fixed), notes=notes, options={"vectors": 0}
            )
    golden, options = _golden(program, vectors, profile)
    directed: dict[str, Cases] = {}
    if vector_bytes:
        from qmath.integer.directed.vectors import LAYER_BYTES, directed_vectors

        most = max(vector_bytes // _LAYERS, LAYER_BYTES)
        directed = directed_vectors(
            program, multiplier_bits, layer_bytes=most, model_bytes=vector_bytes
        )
    for name, cases in directed.items():
        keys = _keys(name, cases)
        golden |= {keys["inputs"][source]: x for source, x in cases.inputs.items()}
        golden |= {keys["expected"]: cases.expected, keys["tags"]: cases.tags}
    return Deployment(
        program, description, arrays(program, fixed), golden, directed,
        options | {"vector_bytes": vector_bytes}, notes,
    )  # fmt: skip


def _golden(
    program: Program, vectors: Vectors, profile: Integer
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Run a program on drawn or given inputs; return the arrays, and how they were made.

    What runs in float32 is left out: its last bits depend on the machine.
    """
    from qmath.integer.executor import Executor, batches, counted_from  # which few exports need

    executor = Executor(program, profile)
    options: dict[str, Any] = {"vectors": vectors}
    if isinstance(vectors, int):
        inputs = drawn(program, vectors)
    else:
        inputs = given(executor, vectors)
        options = {"vectors": recorded(inputs)}
    parts = []
    for start, batch in batches(inputs, executor.examples):
        with counted_from(start):
            parts.append(executor.run(batch, keep=program.quant_params))
    results = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {f"vectors/{name}": array for name, array in (inputs | results).items()}, options


def described(directed: Mapping[str, Cases]) -> dict[str, Any]:
    """Return directed vectors as JSON values, ``directed`` in ``manifest.schema.json``."""
    from qmath.integer.directed.cases import PURPOSES

    return {
        "purposes": list(PURPOSES),
        "bytes": sum(cases.nbytes for cases in directed.values()),
        "steps": {
            name: {
                **_keys(name, cases),
                "count": len(cases.expected),
                "unreachable": {key: dict(why) for key, why in cases.unreachable.items()},
                "missed": dict(cases.missed),
            }
            for name, cases in directed.items()
        },
    }


def _keys(name: str, cases: Cases) -> dict[str, Any]:
    """Return under which keys the arrays of a step are."""
    return {
        "inputs": {
            source: f"directed/{name}.input.{number}" for number, source in enumerate(cases.inputs)
        },
        "expected": f"directed/{name}.expected",
        "tags": f"directed/{name}.tags",
    }
