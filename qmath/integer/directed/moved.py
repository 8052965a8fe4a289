"""The directed vectors of steps that do not sum: quantizers of floats, moves and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.directed.cases import Cases, Tags
from qmath.integer.executor import Executor
from qmath.integer.program import MoveStep, QuantizeStep, QuantParams, Shape, SoftmaxStep, TableStep
from qmath.kernels.affine import smallest_dtype

__all__ = ["cases_of_move", "cases_of_quantizer", "cases_of_table"]

Array = NDArray[Any]
Float32Array = NDArray[np.float32]
_MOST_TAGS = 256


def cases_of_table(
    executor: Executor, step: TableStep | SoftmaxStep, shapes: Mapping[str, Shape], room: int
) -> Cases:
    """Return every integer of a table's source, or of a softmax's."""
    params = executor.quant_params[step.source]
    size = max(math.prod(shapes[step.source]), 1)
    values = np.arange(params.low, params.high + 1)
    maps = min(-(-len(values) // size), max(1, room // (4 * size)))
    chosen = _spread(values, maps * size)
    inputs = _unsigned(np.resize(chosen, maps * size), params).reshape(maps, *shapes[step.source])
    tags = Tags()
    tags.add("every integer", range(min(len(chosen), maps * size, _MOST_TAGS)))
    missed = {} if len(chosen) == len(values) else {"every integer": "for want of bytes"}
    return _finished(executor, step, inputs, tags, missed)


def cases_of_move(
    executor: Executor, step: MoveStep, shapes: Mapping[str, Shape], room: int, seed: int
) -> Cases:
    """Return inputs that tell every position from every other, and maxima from what pads them."""
    shape = shapes[step.source]
    size = math.prod(shape)
    params = step.params
    count = params.high - params.low + 1
    index = np.arange(size)
    parts = [params.low + index % count]
    while count ** len(parts) < size:
        parts.append(params.low + index // count ** len(parts) % count)
    if step.attributes.get("kind") == "pool_max":
        parts.insert(0, _pooled(step, shape, np.random.RandomState(seed)))
    bytes_of_map = (size + math.prod(step.shape)) * (1 if params.num_bits <= 8 else 2)
    maps = min(len(parts), max(1, (room - 8 * _MOST_TAGS) // max(bytes_of_map, 1)))
    inputs = _unsigned(np.stack(parts[:maps]), params).reshape(maps, *shape)
    tags = Tags()
    made = maps * math.prod(step.shape)
    tags.add("position", _spread(np.arange(made), _MOST_TAGS))
    missed = {} if maps == len(parts) else {"position": "for want of bytes"}
    return _finished(executor, step, inputs, tags, missed)


def _pooled(step: MoveStep, shape: Shape, rng: np.random.RandomState) -> Array:
    """Return noise, below the zero point where windows can reach over the border."""
    params = step.params
    drawn = rng.randint(params.low, params.high + 1, shape, np.int64)
    below = rng.randint(params.low, max(params.zero_point, params.low + 1), shape, np.int64)
    inner = tuple(
        slice(kernel, n - kernel)
        for n, kernel in zip(
            shape, step.attributes.get("size", ())[-len(shape) + 1 :], strict=False
        )
    )
    below[inner] = drawn[inner]
    return below.reshape(-1) if inner else drawn.reshape(-1)


def cases_of_quantizer(executor: Executor, step: QuantizeStep, room: int) -> Cases:
    """Return the floats on both sides of every tie, and those at and beyond the range's ends."""
    params = step.params
    size = max(math.prod(step.shape), 1)
    tags = Tags()
    above = _thresholds(params, np.arange(params.low + 1, params.high + 1), step.source)
    low, high = np.float32(params.min), np.float32(params.max)
    width = np.float32(high - low)
    tiny = np.float32(np.finfo(np.float32).tiny)
    beyond = [low, high, low - width, high + width, np.float32(-3e38), np.float32(3e38)]
    ends = np.array([*beyond, 0.0, -0.0, tiny, -tiny], np.float32)
    most = max(1, (room - 8 * _MOST_TAGS) // (6 * size)) * size
    count = max(1, (most - len(ends)) // 2)
    chosen = _spread(above, count)
    values = np.concatenate([ends, chosen, np.nextafter(chosen, np.float32(-np.inf))])
    maps = -(-len(values) // size)
    x = np.resize(values, maps * size).astype(np.float32)
    first = len(ends)
    tags.add("end of the range", range(first))
    picked = _spread(np.arange(len(chosen)), _MOST_TAGS)
    tags.add("above a tie", first + picked)
    tags.add("below a tie", first + len(chosen) + picked)
    missed = {}
    if len(chosen) < len(above):
        missed = dict.fromkeys(("above a tie", "below a tie"), "for want of bytes")
    return _finished(executor, step, x.reshape(maps, *step.shape), tags, missed)


def _thresholds(params: QuantParams, integers: Array, name: str) -> Float32Array:
    """Return the least float that each integer, or a greater one, is made of."""

    def ordered(x: Any) -> NDArray[np.int64]:
        """Return floats as integers in the same order."""
        bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    def floats(order: NDArray[np.int64]) -> Float32Array:
        bits = np.where(order < 0, -order | 0x80000000, order)
        return bits.astype(np.uint32).view(np.float32)

    wanted = integers - params.zero_point
    width = np.float32(params.max) - np.float32(params.min)
    low = np.full(len(wanted), ordered(np.float32(params.min) - width))
    high = np.full(len(wanted), ordered(np.float32(params.max) + width))
    while (high - low > 1).any():
        middle = (low + high) >> 1
        reached = params.quantize(floats(middle), name) >= wanted
        high, low = np.where(reached, middle, high), np.where(reached, low, middle)
    return floats(high)


def _spread(values: Array, most: int) -> Array:
    """Return values, or as many as there may be, evenly spaced."""
    if len(values) <= most:
        return values
    return values[np.arange(most) * (len(values) - 1) // max(most - 1, 1)]


def _unsigned(values: Array, params: QuantParams) -> Array:
    return values.astype(smallest_dtype(params.num_bits, signed=False))


def _finished(
    executor: Executor, step: QuantizeStep | MoveStep | TableStep | SoftmaxStep, inputs: Array,
    tags: Tags, missed: Mapping[str, str],
) -> Cases:  # fmt: skip
    given = {step.source: inputs}
    return Cases(step.name, given, executor.apply(step, given), tags.array(), {}, missed)
