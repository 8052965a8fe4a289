"""The layers of an export with their vectors, read from the arrays and the manifest of an ``.npz``.

Nothing of qmath's integer model is used: what a kernel needs must stand in the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Constants", "Grid", "Layer", "Op", "Term", "layers_of"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """The integers of a tensor: unsigned, from `low` to `high`."""

    zero_point: int
    low: int
    high: int
    scale: np.float32


@dataclass(frozen=True, eq=False)
class Constants:
    """Of ``(sum(a * multiplier) + addend) >> shift``, kept from `low` to `high`.

    Each is int64, of shape ``()``, ``(C,)`` or that of the output; a multiplier for each term.
    """

    multipliers: tuple[Array, ...]
    addend: Array
    shift: Array
    low: Array
    high: Array

    def arrays(self) -> tuple[Array, ...]:
        """Return all arrays."""
        return (*self.multipliers, self.addend, self.shift, self.low, self.high)


@dataclass(frozen=True, eq=False)
class Op:
    """An operation on accumulators: its entry in the manifest, and its weights if it has some.

    `integers` are the weights as stored, `zero_point` is theirs, `layout` their axes' letters.
    """

    entry: Mapping[str, Any]
    integers: Array | None = None
    zero_point: Array | None = None
    layout: str = ""
    num_bits: int = 8


@dataclass(frozen=True, eq=False)
class Term:
    """A source and the operations that make accumulators of it, of so many bits."""

    source: str
    ops: tuple[Op, ...]
    bits: int


@dataclass(frozen=True, eq=False)
class Layer:
    """A step of the integer model, with its directed vectors and with noise.

    Attributes
    ----------
    kind : str
        ``"quantize"``, ``"requantize"``, ``"move"`` or ``"table"``.
    grid : Grid
        Of the output; `grids` has those of all tensors.
    constants, negative : Constants or None
        Of a requantization; of a leaky ReLU's negative side.
    inputs, expected, tags
        The directed vectors.
    noise : tuple of (mapping, ndarray) or None
        What the whole-model vectors give the layer, and what it makes of them; ``None`` if a float
        layer is before it.
    """

    name: str
    kind: str
    entry: Mapping[str, Any]
    grid: Grid
    grids: Mapping[str, Grid]
    terms: tuple[Term, ...]
    constants: Constants | None
    negative: Constants | None
    table: Array | None
    divides: bool
    multiplier_bits: int
    purposes: tuple[str, ...]
    inputs: Mapping[str, Array]
    expected: Array
    tags: Array
    noise: tuple[Mapping[str, Array], Array] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output, without the batch."""
        return tuple(self.entry["shape"])

    def failing(self, made: Array) -> tuple[str, ...]:
        """Return the purposes of the elements that differ; "noise" if only untagged ones do."""
        wrong = (made != self.expected).reshape(-1)
        bits = np.bitwise_or.reduce(self.tags[wrong[self.tags[:, 0]], 1], initial=np.uint32(0))
        found = tuple(p for i, p in enumerate(self.purposes) if int(bits) >> i & 1)
        return found or (("noise between",) if wrong.any() else ())


def layers_of(path: str | os.PathLike[str]) -> Iterator[Layer]:
    """Yield the layers of an ``.npz`` that was exported with vectors, but those in float32."""
    with np.load(path) as arrays:
        manifest = json.loads(arrays["manifest"].tobytes())
        steps = [step for step in manifest["program"]["steps"] if "grid" in step]
        grids = {step["name"]: _grid(step["grid"]) for step in steps}
        for step in steps:
            if step["name"] in manifest["directed"]["steps"]:
                yield _layer(step, grids, arrays, manifest)


def _grid(entry: Mapping[str, Any]) -> Grid:
    (scale,) = np.array([int(entry["scale_bits"], 16)], np.uint32).view(np.float32)
    return Grid(entry["zero_point"], entry["low"], entry["high"], scale)


def _layer(
    step: Mapping[str, Any], grids: Mapping[str, Grid], arrays: Any, manifest: Mapping[str, Any]
) -> Layer:
    name, keys = step["name"], manifest["directed"]["steps"][step["name"]]
    is_sum = step["kind"] == "requantize"
    shapes = {step["name"]: step for step in manifest["program"]["steps"]}
    terms = tuple(
        Term(
            term["source"],
            tuple(
                _op(op, before["shape"][-1], arrays, manifest)
                for before, op in pairwise((shapes[term["source"]], *term["ops"]))
            ),
            term["accumulator_bits"],
        )
        for term in step.get("terms", ())
    )
    has_negative = f"{name}.negative.shift" in arrays
    given = [f"vectors/{source}" for source in step["sources"]]
    is_given = all(key in arrays for key in given)  # but for what a float layer makes
    noise = {key[len("vectors/") :]: arrays[key] for key in given if is_given}
    return Layer(
        name=name,
        kind=step["kind"],
        entry=step,
        grid=grids[name],
        grids=grids,
        terms=terms,
        constants=_constants(name, "", len(terms), arrays) if is_sum else None,
        negative=_constants(name, ".negative", len(terms), arrays) if has_negative else None,
        table=arrays[f"{name}.table"] if step["kind"] == "table" else None,
        divides=manifest["tensors"].get(name, {}).get("op") == "vars",
        multiplier_bits=manifest["options"]["multiplier_bits"],
        purposes=tuple(manifest["directed"]["purposes"]),
        inputs={source: arrays[key] for source, key in keys["inputs"].items()},
        expected=arrays[keys["expected"]].astype(np.int64),
        tags=arrays[keys["tags"]],
        noise=(noise, arrays[f"vectors/{name}"].astype(np.int64)) if is_given else None,
    )


def _op(entry: Mapping[str, Any], depth: int, arrays: Any, manifest: Mapping[str, Any]) -> Op:
    if "weights" not in entry:
        return Op(entry)
    name = entry["weights"]
    tensor = manifest["tensors"][name]
    integers = arrays[name].astype(np.int64)
    zero_point = arrays[f"{name}.zero_point"].astype(np.int64)
    if "part" in entry:
        letter, first, step = entry["part"]
        axis = tensor["layout"].index(letter)
        # Of input channels the operation has as many as reach it.
        end = first + step * depth if letter == "I" else None
        integers = integers[(slice(None),) * axis + (slice(first, end, step),)]
        if zero_point.size > 1 and axis == integers.ndim - 1:
            zero_point = zero_point[first:end:step]
    return Op(entry, integers, zero_point, tensor["layout"], tensor["num_bits"])


def _constants(name: str, side: str, terms: int, arrays: Any) -> Constants:
    def of(key: str) -> Array:
        return np.asarray(arrays[key], np.int64)

    keys = [f"{name}{side}.multiplier{f'.{i}' if terms > 1 else ''}" for i in range(terms)]
    ends = of(f"{name}.low"), of(f"{name}.high")
    addend, shift = of(f"{name}{side}.addend"), of(f"{name}{side}.shift")
    return Constants(tuple(map(of, keys)), addend, shift, *ends)
