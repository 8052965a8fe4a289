"""A program in plain JSON and arrays: all that an implementation needs besides the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.profiles.exact import clamps
from qmath.integer.profiles.fixed import FixedPoint
from qmath.integer.program import (
    CutStep,
    FloatStep,
    Linear,
    MoveStep,
    Program,
    QuantizeStep,
    QuantParams,
    Requantize,
    SoftmaxStep,
    Step,
    TableStep,
    sources,
)

__all__ = ["arrays", "describe"]

Constants = Mapping[str, tuple[FixedPoint, ...]]
_KINDS: dict[type[Any], str] = {
    QuantizeStep: "quantize",
    Requantize: "requantize",
    MoveStep: "move",
    TableStep: "table",
    SoftmaxStep: "softmax",
    FloatStep: "float",
    CutStep: "cut",
}


def describe(program: Program, constants: Constants) -> dict[str, Any]:
    """Return a program as JSON values; what is not in them is in `arrays`.

    Parameters
    ----------
    program : Program
    constants : mapping
        What `qmath.integer.profiles.fixed.constants` returns for it.

    Returns
    -------
    dict
        As ``program`` in ``manifest.schema.json``.

    Examples
    --------
    >>> from qmath.integer.api import program_of
    >>> from qmath.integer.profiles.fixed import constants
    >>> program = program_of("reference/samples/default8.h5")
    >>> step = describe(program, constants(program))["steps"][1]
    >>> step["name"], step["kind"], step["terms"][0]["ops"][0]["weights"]
    ('conv1/post_activation', 'requantize', 'conv1/kernel')
    """
    return {
        "inputs": {name: list(shape) for name, shape in program.inputs.items()},
        "outputs": list(program.outputs),
        "steps": [_step(step, constants) for step in program.steps],
        "islands": dict(program.float_layers),
    }


def arrays(program: Program, constants: Constants) -> dict[str, NDArray[Any]]:
    """Return the constants of a program's steps by name.

    With ``y = sum(accumulator * NAME.multiplier) + NAME.addend``, whose addend holds the rounding's
    half, ``y >> NAME.shift`` clamped to ``NAME.low … NAME.high`` is the integer relative to the
    zero point. Of several terms the multipliers are ``NAME.multiplier.0``, ``.1``, …; of a leaky
    ReLU, ``NAME.negative`` holds the constants that count where ``y`` is below that half,
    ``1 << (NAME.shift - 1)``. ``NAME.accumulator_bits`` is the two's complement width that the
    accumulators need, proved from the weights. Where the multiplier is a power of two in every
    channel, ``accumulator + NAME.shift_only.bias >> NAME.shift_only.shift`` is the same integer,
    without a multiplication. ``NAME.table`` holds the integer, relative to the
    zero point, for each unsigned integer of the source; ``NAME.exponentials`` those of a softmax,
    see `qmath.integer.softmax`.

    Returns
    -------
    dict of str to ndarray
        int64 multipliers, addends and shifts, of shape ``()``, ``(C,)`` or the output's; int32 the
        rest.
    """
    found: dict[str, NDArray[Any]] = {}
    for step in program.steps:
        if isinstance(step, TableStep):
            found[f"{step.name}.table"] = step.table.astype(np.int32)
        if isinstance(step, SoftmaxStep):
            found[f"{step.name}.exponentials"] = step.exponentials
        if not isinstance(step, Requantize):
            continue
        for side, fixed in zip(("", ".negative"), constants[step.name], strict=False):
            suffixes = [f".{i}" for i in range(len(fixed.multipliers))]
            suffixes = suffixes if len(suffixes) > 1 else [""]
            for suffix, multiplier, bits in zip(
                suffixes, fixed.multipliers, fixed.accumulator_bits, strict=True
            ):
                found[f"{step.name}{side}.multiplier{suffix}"] = multiplier
                found[f"{step.name}.accumulator_bits{suffix}"] = bits.astype(np.int32)
            found[f"{step.name}{side}.addend"] = fixed.addend
            found[f"{step.name}{side}.shift"] = fixed.shift
        alone = constants[step.name][0].shift_only if len(constants[step.name]) == 1 else None
        if alone is not None:
            found[f"{step.name}.shift_only.bias"], found[f"{step.name}.shift_only.shift"] = alone
        for end, limit in zip(("low", "high"), clamps(step), strict=True):
            found[f"{step.name}.{end}"] = np.asarray(limit, np.int32)
    return found


def _step(step: Step, constants: Constants) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": step.name,
        "kind": _KINDS[type(step)],
        "sources": sources(step),
        "shape": list(step.shape),
    }
    if isinstance(step, CutStep):
        entry |= {
            "class_name": step.class_name,
            "shape": entry["shape"] if step.is_shaped else None,
        }
    if not isinstance(step, FloatStep):
        entry["grid"] = _quant_params(step.params)
    if isinstance(step, MoveStep):
        entry["op"] = _json(step.attributes)
    if isinstance(step, SoftmaxStep):
        entry["op"] = {
            "kind": "softmax", "axis": step.axis, "multiplier": step.multiplier,
            "shift": step.shift,
        }  # fmt: skip
        entry["error"] = step.error
    if isinstance(step, Requantize):
        first = constants[step.name][0]
        entry["terms"] = [
            {
                "source": term.source,
                "ops": [_op(op) for op in term.ops],
                "accumulator_bits": int(bits.max()),
            }
            for term, bits in zip(step.value.terms, first.accumulator_bits, strict=True)
        ]
        entry["error"] = first.error
    return entry


def _quant_params(params: QuantParams) -> dict[str, Any]:
    return {
        "num_bits": params.num_bits,
        "zero_point": params.zero_point,
        "low": params.low,
        "high": params.high,
        "scale_bits": f"0x{np.float32(params.scale).view(np.uint32):08x}",
    }


def _op(op: Linear) -> dict[str, Any]:
    weights = {"weights": op.name} if op.name else {}
    if op.factor:
        weights = {"factor": op.factor.source}
    return {"kind": op.kind, **weights, "shape": list(op.shape), **_json(op.attributes)}


def _json(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in attributes.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
