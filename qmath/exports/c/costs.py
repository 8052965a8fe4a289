"""What each layer costs: bytes of memory and of constants, multiplications, accumulator bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from qmath.exports.c import source
from qmath.exports.c.arena import Buffer
from qmath.integer.program import Linear, QuantizedStep, Requantize, Shape

__all__ = ["Cost", "multiplications", "ram_bytes", "table"]


class Cost(NamedTuple):
    """What a layer costs.

    Attributes
    ----------
    ram : int
        Bytes of the arena that are needed while it runs.
    flash : int
        Bytes of its weights and constants; weights that layers share are counted in each.
    multiplications : int
        By weights, or by another tensor; those of the rounding are not counted.
    accumulator_bits : int
        Of the widest accumulator; 0 of a layer that has none.
    """

    ram: int
    flash: int
    multiplications: int
    accumulator_bits: int


def ram_bytes(buffers: Sequence[Buffer], time: int) -> int:
    """Return the bytes that are needed at a point in time."""
    return sum(b.size for b in buffers if b.first <= time <= b.last)


def multiplications(step: QuantizedStep, shapes: Mapping[str, Shape]) -> int:
    """Return how many products a step adds up, `shapes` being those of its sources."""
    if not isinstance(step, Requantize):
        return 0
    total = 0
    for term in step.value.terms:
        shape = shapes[term.source]
        for op in term.ops:
            total += _products(op, shape)
            shape = op.shape
    return total


def _products(op: Linear, before: Shape) -> int:
    if op.factor is not None:
        return math.prod(op.shape)
    if op.weights is None:
        return 0
    # Each input of a transposed convolution meets each weight of its channel.
    places = before if op.kind == "conv2d_transpose" else op.shape
    return math.prod(places[:-1]) * op.weights.size


def table(costs: Mapping[str, Cost], arena_bytes: int) -> Iterator[str]:
    """Yield the lines of a comment."""
    rows: list[tuple[str, ...]] = [("layer", "RAM", "flash", "multiplications", "accumulator bits")]
    rows += [(source.plain(name), *map(str, cost)) for name, cost in costs.items()]
    total = [sum(cost[i] for cost in costs.values()) for i in (1, 2)]
    rows.append(("all", str(arena_bytes), *map(str, total), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield "/* RAM: bytes of the arena that are needed while a layer runs. Flash: of its constants."
    yield " *"
    for name, *numbers in rows:
        cells = (n.rjust(width) for n, width in zip(numbers, widths[1:], strict=True))
        yield f" * {name.ljust(widths[0])}  {'  '.join(cells)}".rstrip()
    yield " */"
