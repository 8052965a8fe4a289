"""A plain kernel in NumPy of every layer, written from the documentation, with places for mistakes.

Each intermediate value passes `Kernel.at` with the name of its stage, where a mistake may act:

stage         value
``input``     unsigned integers of a source ``(N, …)``
``zeros``     zero points: of each source, then of the output
``weights``   stored integers, of the axes HWIO, HWIM, HWOI or IO
``offset``    the weights' zero point
``window``    a `Window`
``groups``    accumulators of a depthwise layer, ``(N, H, W, I, M)``
``factor``    integers of a product's factor ``(N, …)``, relative to their zero point
``sums``      the accumulators of each term
``constants`` `Constants`
``total``     products and addend, before the shift
``rounded``   after the shift
``clamped``   within the clamps
``output``    unsigned integers
``negative``  where a leaky ReLU's negative side counts
``extreme``   the function of a maximum or minimum
``moved``     what a move makes, relative to the zero point
``table``     a table
``floats``    what a quantizer rounds, in steps
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.mistakes.layers import Constants, Layer, Op, Term

__all__ = ["Change", "Here", "Kernel", "Window", "window_of"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Window:
    """Where a window of an output reads: pairs are height and width.

    `before` and `after` are what is padded, with `fill` relative to the zero point.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    fill: int = 0


@dataclass(frozen=True, eq=False)
class Here:
    """What else is known where a mistake may act."""

    layer: Layer
    kind: str = ""
    op: Op | None = None
    source: str = ""
    zero_point: int = 0
    constants: Constants | None = None
    sums: Sequence[Array] = ()
    before: Array | None = None  # the value of the stage before
    is_negative_side: bool = False


Change = Callable[[Any, Here], Any]


class Kernel:
    """Computes layers, with one mistake or none.

    Parameters
    ----------
    stage : str
        Where the mistake acts.
    change : callable, optional
        ``change(value, here)`` returns what the mistake makes of the right value.
    """

    margin = 1  # accumulators by which a run of equal results may end before or after a quotient

    def __init__(self, stage: str = "", change: Change | None = None) -> None:
        self.stage, self.change = stage, change

    def at(self, stage: str, value: Any, here: Here) -> Any:
        """Return the value of a stage, with the mistake if it acts there."""
        return self.change(value, here) if self.change and stage == self.stage else value

    def run(self, layer: Layer, inputs: Mapping[str, Array]) -> Array:
        """Return the layer's unsigned integers."""
        *zeros, zero = self.zeros(layer)
        first = inputs[layer.entry["sources"][0]]
        if layer.kind == "quantize":
            return self._quantize(layer, first, zero)
        if layer.kind == "table":
            assert layer.table is not None
            made = self.at("table", layer.table.astype(np.int64), Here(layer))[first]
            return np.asarray(self.at("output", made + zero, Here(layer, zero_point=zero)))
        relative = {}
        for source, zero_in in zip(layer.entry["sources"], zeros, strict=True):
            here = Here(layer, source=source, zero_point=layer.grids[source].zero_point)
            relative[source] = self.at("input", inputs[source].astype(np.int64), here) - zero_in
        if layer.kind == "requantize":
            sums = [self.sums(layer, term, relative) for term in layer.terms]
            return self.requantize(layer, sums, zero)
        made = self._move(layer, relative[layer.entry["sources"][0]])
        return np.asarray(self.at("output", made + zero, Here(layer, zero_point=zero)))

    def zeros(self, layer: Layer) -> tuple[int, ...]:
        """Return the zero points of the sources and of the output."""
        names = layer.entry["sources"] if layer.kind in ("requantize", "move") else ()
        grids = [layer.grids[name] for name in names]
        right = tuple(grid.zero_point for grid in (*grids, layer.grid))
        return tuple(self.at("zeros", right, Here(layer)))

    def sums(self, layer: Layer, term: Term, relative: Mapping[str, Array]) -> Array:
        """Return the accumulators of a term, of the sources' integers."""
        x, zero = relative[term.source], layer.grids[term.source].zero_point
        for op in term.ops:
            here = Here(layer, op.entry["kind"], op, term.source, zero)
            if here.kind == "multiply":
                name = op.entry["factor"]
                zero_point = layer.grids[name].zero_point
                here = replace(here, source=name, zero_point=zero_point)
                factor = self.at("factor", relative[name], here)
                x = _aligned(x, op.entry["shape"]) * _aligned(factor, op.entry["shape"])
                continue
            x = self._linear(x, op, here) if op.integers is not None else self._other(x, here)
        return x

    def weights(self, op: Op, here: Here) -> Array:
        """Return weights relative to their zero point, which has the last axis of the layout."""
        assert op.integers is not None
        integers = self.at("weights", op.integers, here)
        return np.asarray(integers - self.at("offset", op.zero_point, here))

    def constants(self, layer: Layer) -> tuple[Constants, Constants | None]:
        """Return the constants of both sides of an activation."""
        positive = self.at("constants", layer.constants, Here(layer))
        if layer.negative is None:
            return positive, None
        return positive, self.at("constants", layer.negative, Here(layer, is_negative_side=True))

    def requantize(
        self,
        layer: Layer,
        sums: Sequence[Array],
        zero: int,
        constants: tuple[Constants, Constants | None] | None = None,
    ) -> Array:
        """Return unsigned integers of accumulators."""
        here = Here(layer)
        positive, negative = constants or self.constants(layer)
        sums = [self.at("sums", a, replace(here, op=None, source=str(i)))
                for i, a in enumerate(sums)]  # fmt: skip
        total, y = self._side(positive, sums, here)
        if negative is not None:
            _, below = self._side(negative, sums, replace(here, is_negative_side=True))
            is_negative = total < np.int64(1) << (positive.shift - 1)
            y = np.where(self.at("negative", is_negative, here), below, y)
        here = replace(here, constants=positive, zero_point=zero)
        clamped = np.clip(y, positive.low, positive.high)
        y = self.at("clamped", clamped, replace(here, before=y))
        return np.asarray(self.at("output", y + zero, here))

    def _side(self, c: Constants, sums: Sequence[Array], here: Here) -> tuple[Array, Array]:
        here = replace(here, constants=c, sums=sums)
        products = [a * m for a, m in zip(sums, c.multipliers, strict=True)]
        total = self.at("total", sum(products, start=c.addend), here)
        return total, self.at("rounded", total >> c.shift, replace(here, before=total))

    def _quantize(self, layer: Layer, x: Array, zero: int) -> Array:
        grid, one = layer.grid, np.float32(1)
        ends = (np.float32(grid.low - grid.zero_point), np.float32(grid.high - grid.zero_point))
        low, high = (end * grid.scale for end in ends)
        clamped = np.clip(np.nan_to_num(x, nan=low, posinf=high, neginf=low), low, high) - low
        steps = clamped / grid.scale if layer.divides else clamped * (one / grid.scale)
        steps = self.at("floats", steps + ends[0], Here(layer, before=x))
        whole = np.floor(steps + np.float32(0.5)).astype(np.int64)
        return np.asarray(self.at("output", whole + zero, Here(layer)))

    def _linear(self, x: Array, op: Op, here: Here) -> Array:
        w = self.weights(op, here)
        if here.kind == "dense":
            return _product(x, w)
        is_flat = x.ndim == 3  # one dimension
        x = x[:, None] if is_flat else x
        w = w[None] if w.ndim == 3 else w
        window = self.at("window", window_of(op.entry, x.shape[1:], w.shape), here)
        shape = ((1,) * is_flat + tuple(op.entry["shape"]))[-3:]
        if here.kind == "conv2d_transpose":
            y = _scattered(x, w, window, shape)
        elif here.kind == "depthwise_conv2d":
            parts = (x_at[..., None] * w[i, j] for i, j, x_at in _taps(x, window, shape))
            y = self.at("groups", sum(parts, start=np.int64(0)), here)
            y = y.reshape(len(x), *shape)
        else:
            y = sum(
                (_grouped(x_at, w[i, j]) for i, j, x_at in _taps(x, window, shape)),
                start=np.zeros((len(x), *shape), np.int64),
            )
        return y[:, 0] if is_flat else y

    def _other(self, x: Array, here: Here) -> Array:
        """Return an operation without weights; the batch is the first axis throughout."""
        assert here.op is not None
        entry, shape = here.op.entry, tuple(here.op.entry["shape"])
        if here.kind == "pool_sum":
            return self._pool(x, entry, shape, here, sum)
        if here.kind == "bilinear":
            return _resized(x, entry["size"])
        return _rearranged(x, entry, shape)

    def _pool(self, x: Array, entry: Mapping[str, Any], shape: Any, here: Here, what: Any) -> Array:
        image = x.reshape(len(x), *(1,) * (4 - x.ndim), *x.shape[1:])
        window = self.at("window", window_of(entry, image.shape[1:]), here)
        size = (1, 1, 1, *shape)[-3:]
        return np.asarray(what(x_at for *_, x_at in _taps(image, window, size))).reshape(-1, *shape)

    def _move(self, layer: Layer, x: Array) -> Array:
        op, shape = layer.entry["op"], layer.shape
        here = Here(layer, op["kind"], zero_point=layer.grid.zero_point)
        if op["kind"] in ("pool_max", "pool_min"):
            right = np.maximum if op["kind"] == "pool_max" else np.minimum
            best = partial(_best, self.at("extreme", right, here))
            if "rows" in op:
                made = best(iter(np.moveaxis(x.reshape(len(x), op["rows"], *shape), 1, 0)))
            else:
                made = self._pool(x, op, shape, here, best)
        else:
            made = _rearranged(x, op, shape)
        return np.asarray(self.at("moved", made, here))


def window_of(
    entry: Mapping[str, Any], shape: tuple[int, ...], weights: tuple[int, ...] = ()
) -> Window:
    """Return the window of an operation on ``(H, W, C)``; maxima are padded with the lowest."""
    fill = -(1 << 20) if entry["kind"] == "pool_max" else 0
    if entry.get("global"):
        return Window((shape[0], shape[1]), (1, 1), (1, 1), (0, 0), (0, 0), fill)

    def pair(values: Any, least: int) -> tuple[int, int]:
        return (least, *values)[-2:]

    pads = ((0, 0), *entry.get("pads", entry.get("crops", ())))[-2:]
    before, after = zip(*pads, strict=True)
    return Window(
        pair(weights[:2] or entry["size"], 1),
        pair(entry["strides"], 1),
        pair(entry.get("dilation", (1, 1)), 1),
        before,
        after,
        fill,
    )


def _taps(x: Array, w: Window, shape: Sequence[int]) -> Iterator[tuple[int, int, Array]]:
    """Yield for each position of the kernel what all outputs read there."""
    pads = [(0, 0)]
    for axis in (0, 1):
        reach = (shape[axis] - 1) * w.strides[axis] + (w.kernel[axis] - 1) * w.dilation[axis] + 1
        pads.append((w.before[axis], max(0, reach - x.shape[axis + 1] - w.before[axis])))
    padded = np.pad(x, [*pads, (0, 0)], constant_values=w.fill)
    for i in range(w.kernel[0]):
        for j in range(w.kernel[1]):
            y, x0 = i * w.dilation[0], j * w.dilation[1]
            rows = slice(y, y + (shape[0] - 1) * w.strides[0] + 1, w.strides[0])
            columns = slice(x0, x0 + (shape[1] - 1) * w.strides[1] + 1, w.strides[1])
            yield i, j, padded[:, rows, columns]


def _product(x: Array, w: Array) -> Array:
    """Multiply matrices of integers; float64 is exact, as accumulators stay below 2**53."""
    return np.asarray((x.astype(np.float64) @ w.astype(np.float64)).astype(np.int64))


def _grouped(x: Array, w: Array) -> Array:
    """Return the products of one position; the weights have the inputs of one group."""
    groups = x.shape[-1] // w.shape[0]
    parts = zip(np.split(x, groups, -1), np.split(w, groups, -1), strict=True)
    return np.concatenate([_product(a, b) for a, b in parts], -1)


def _scattered(x: Array, w: Array, window: Window, shape: Sequence[int]) -> Array:
    """Add every input to all outputs that it reaches; what lies outside is cropped."""
    steps = [(x.shape[a + 1] - 1) * window.strides[a] + 1 for a in (0, 1)]
    full = [steps[a] + (window.kernel[a] - 1) * window.dilation[a] for a in (0, 1)]
    room = [max(full[a], window.before[a] + shape[a]) for a in (0, 1)]
    y = np.zeros((len(x), *room, shape[2]), np.int64)
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            top, left = i * window.dilation[0], j * window.dilation[1]
            rows = slice(top, top + steps[0], window.strides[0])
            columns = slice(left, left + steps[1], window.strides[1])
            y[:, rows, columns] += _product(x, w[i, j].T)
    top, left = window.before
    return y[:, top : top + shape[0], left : left + shape[1]]


def _resized(x: Array, factors: Sequence[int]) -> Array:
    """Weigh the pixels around each output by their nearness, in halves of its own step."""
    for axis, factor in enumerate(factors, 1):
        count = x.shape[axis]
        places = np.clip(2 * np.arange(count * factor) + 1 - factor, 0, 2 * factor * (count - 1))
        apart = np.abs(places[:, np.newaxis] - 2 * factor * np.arange(count))
        shares = np.maximum(2 * factor - apart, 0) // (1 + factor % 2)
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ shares.T, -1, axis)
    return x


def _rearranged(x: Array, op: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
    if op["kind"] == "permute":
        return np.asarray(x.transpose(op["axes"]))
    if op["kind"] == "pad":
        return np.pad(x, [(0, 0), *map(tuple, op["pads"])])
    if op["kind"] == "crop":
        ends = (slice(a, n - b) for (a, b), n in zip(op["crops"], x.shape[1:], strict=True))
        kept = (slice(None), *ends)
        return x[kept]
    if op["kind"] == "broadcast":
        x = _aligned(x, shape)
    if op["kind"] in ("upsample", "broadcast"):
        for axis, times in enumerate(op["size"], 1):
            x = x.repeat(times, axis)
        return x
    assert math.prod(shape) == math.prod(x.shape[1:])
    return x.reshape(-1, *shape)


def _best(better: Callable[[Array, Array], Array], parts: Iterator[Array]) -> Array:
    return reduce(better, parts)


def _aligned(x: Array, shape: Sequence[int]) -> Array:
    """Give integers the rank of a shape: the axes that they lack come first."""
    return x.reshape(len(x), *(1,) * (len(shape) - x.ndim + 1), *x.shape[1:])
