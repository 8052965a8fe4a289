"""Test vectors in a TFLite file, and for each step a graph that runs it by itself.

A runtime starts at a graph's inputs, and directed vectors are of single steps: so each step gets a
graph of its own operators, with the model's constants, and a signature that names it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.exports.arrays.npz import write_arrays
from qmath.exports.bundle import Bundle
from qmath.exports.tflite.graph import Tensor, with_metadata
from qmath.integer.directed.cases import Cases
from qmath.integer.executor import Executor
from qmath.integer.profiles.exact import Exact, Profile
from qmath.integer.profiles.litert import Litert
from qmath.integer.profiles.tflite import Kernel, Tflite
from qmath.integer.profiles.tflm import Tflm
from qmath.integer.profiles.xnnpack import Xnnpack
from qmath.integer.program import MoveStep, Program, QuantizeStep, Requantize, TableStep

__all__ = ["VECTORS", "InFile", "Micro", "with_vectors"]

Array = NDArray[Any]
Table = dict[str, Any]

VECTORS = "qmath.vectors"  # name of the model's metadata


class Micro(Tflm):
    """tflite-micro's arithmetic of a file: it has a RELU and a MINIMUM for a ReLU6 by itself."""

    def _activated(self, kernel: Kernel, x: Array) -> Array:
        return Tflite._activated(self, kernel, x)

    def _limits(self, kernel: Kernel) -> tuple[int, int]:
        return kernel.limits


# The integers of all but the first are in a file where they differ from its.
_RUNTIMES: tuple[type[Tflite], ...] = (Tflite, Xnnpack, Litert, Micro)
_MOST_BITS = 8  # of activations whose arithmetic a profile has


class InFile:
    """A profile's arithmetic for a file's own operators; those in float32 are `Exact`'s."""

    def __init__(self, profile: Tflite, floats: Sequence[str]) -> None:
        self.name, self.profile, self.floats = profile.name, profile, frozenset(floats)

    def requantize(
        self, step: Requantize, sums: Sequence[Array], intervals: Sequence[tuple[int, int]]
    ) -> Array:
        """Return the integers relative to the output's zero point."""
        chosen: Profile = Exact() if step.name in self.floats else self.profile
        return np.asarray(chosen.requantize(step, sums, intervals))


def with_vectors(
    model: Table,
    bundle: Bundle,
    program: Program,
    values: Mapping[str, Tensor],
    in_float: Sequence[str],
    narrow: Mapping[str, int],
) -> Table:
    """Return a model with a bundle's vectors as metadata, and with the graphs that run them.

    Parameters
    ----------
    model : dict
        As `qmath.exports.tflite.graph.GraphBuilder.model` returns it.
    bundle : Bundle
    program : Program
        Of which the model was written.
    values : mapping of str to Tensor
        By step, and by input of the program.
    in_float : sequence of str
        Steps that the model computes in float32: they get no vectors.
    narrow : mapping of str to int
        Bits of the weights that the model packs, by which XNNPACK chooses its kernels.
    """
    arrays = dict(_whole(bundle, program, values, in_float))
    graphs, signatures = list(model["subgraphs"]), list(model["signature_defs"])
    runtimes = [
        Executor(program, Xnnpack(converts=False, packed=narrow))
        if kind is Xnnpack
        else Executor(program, kind(converts=False))
        for kind in _RUNTIMES
    ]
    for step in program.quantized:
        cases = bundle.directed.get(step.name)
        if cases is None or step.name in in_float or not _is_predicted(step, program):
            continue
        found = _graph_of(graphs[0], values[step.name], [values[name] for name in cases.inputs])
        if found is None:
            continue
        key = f"directed/{step.name}"
        signatures.append(_signature(key, found, len(graphs)))
        graphs.append(found | {"name": key})
        arrays |= _arrays(key, cases, program, [r.apply(step, cases.inputs) for r in runtimes])
    held = io.BytesIO()
    write_arrays(held, arrays.items())
    made = model | {"subgraphs": graphs, "signature_defs": signatures}
    return with_metadata(made, VECTORS, held.getvalue())


def _is_predicted(step: object, program: Program) -> bool:
    """Whether a profile has the arithmetic that runtimes compute a step with."""
    if isinstance(step, Requantize):
        names = [step.name, *(term.source for term in step.value.terms)]
        return all(program.quant_params[name].num_bits <= _MOST_BITS for name in names)
    return isinstance(step, MoveStep | TableStep)


def _whole(
    bundle: Bundle, program: Program, values: Mapping[str, Tensor], in_float: Sequence[str]
) -> Iterator[tuple[str, Array]]:
    """Yield inputs of the whole model, as the file takes them, and the integers of every step."""
    inputs = {name: bundle.vectors[f"vectors/{name}"] for name in program.inputs}
    executor = Executor(program, InFile(Tflite(converts=False), in_float))
    found = executor.run(inputs, keep=program.quant_params)
    readers = {s.source: s.name for s in program.steps if isinstance(s, QuantizeStep)}
    for name, array in inputs.items():
        if not values[name].is_float:
            step = readers[name]
            array = _signed(found[step], step, program, values[name].kind)
        yield f"vectors/{name}", array
    for name, array in found.items():
        yield f"vectors/{name}", _signed(array, name, program)


def _arrays(
    key: str, cases: Cases, program: Program, made: Sequence[Array]
) -> Iterator[tuple[str, Array]]:
    """Yield a step's inputs, what runtimes make of them, and the tags."""
    for number, (source, array) in enumerate(cases.inputs.items()):
        yield f"{key}.input.{number}", _signed(array, source, program)
    expected, *others = (_signed(array, cases.step, program) for array in made)
    yield f"{key}.expected", expected
    for other, array in zip(_RUNTIMES[1:], others, strict=True):
        if not np.array_equal(array, expected):
            yield f"{key}.expected.{other.name}", array
    yield f"{key}.tags", cases.tags


def _signed(array: Array, name: str, program: Program, kind: str = "") -> Array:
    """Return TensorFlow's integers as a file has them."""
    bits = program.quant_params[name].num_bits
    if kind == "UINT8":
        return np.asarray(array, np.uint8)
    dtype = np.int8 if bits <= _MOST_BITS else np.int16
    return (array.astype(np.int32) - (1 << (bits - 1))).astype(dtype)


def _graph_of(whole: Table, output: Tensor, inputs: Sequence[Tensor]) -> Table | None:
    """Return a graph of the operators from some tensors to another one, ``None`` without any."""
    makers = {op["outputs"][0]: op for op in whole["operators"]}
    ends, operators = {x.index for x in inputs}, []
    numbers: dict[int, int] = {}
    waiting = [output.index]
    while waiting:
        index = waiting.pop()
        if index in numbers:
            continue
        numbers[index] = len(numbers)
        if index not in ends and index in makers:
            operators.append(makers[index])
            waiting += makers[index]["inputs"]
    if not operators or not ends <= numbers.keys():
        return None
    order = {id(op): place for place, op in enumerate(whole["operators"])}
    operators.sort(key=lambda op: order[id(op)])
    return {
        "tensors": [whole["tensors"][index] for index in numbers],
        "inputs": [numbers[x.index] for x in inputs],
        "outputs": [numbers[output.index]],
        "operators": [
            op | {key: [numbers[i] for i in op[key]] for key in ("inputs", "outputs")}
            for op in operators
        ],
    }


def _signature(key: str, graph: Table, number: int) -> Table:
    inputs = [
        {"name": f"input.{place}", "tensor_index": index}
        for place, index in enumerate(graph["inputs"])
    ]
    outputs = [{"name": "expected", "tensor_index": graph["outputs"][0]}]
    return {
        "inputs": inputs, "outputs": outputs, "signature_key": key, "subgraph_index": number
    }  # fmt: skip
