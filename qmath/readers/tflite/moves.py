"""TFLite's operations that only move values, as Keras's layers: reshapes, paddings, repetitions.

What Keras has no layer for is done by several: an axis is cut, repeated or padded as the middle one
of three, and the last layer, which has the operation's name, restores the shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qmath.containers.tflite.file import Operation
from qmath.readers.tflite.network import Network, Rule

__all__ = [
    "BATCH",
    "MOVES",
    "OTHER_GRID",
    "UNKNOWN",
    "Move",
    "Span",
    "add_moves",
    "cut",
    "is_ready",
    "moved",
    "reshaped",
    "with_length",
]

Shape = tuple[int, ...]
OTHER_GRID = "its input and its output have other scales"
UNKNOWN = "its settings are computed, or of a form that qmath does not read"
BATCH = "it changes the axis of the examples"


class Move(NamedTuple):
    """A layer that moves values, and the shape that it makes, without the batch."""

    class_name: str
    config: Mapping[str, Any]
    shape: Shape


def add_moves(net: Network, name: str, source: str, moves: Sequence[Move]) -> str:
    """Add layers one after the other, the last one of the name `name`; return it."""
    for i, move in enumerate(moves):
        last = i == len(moves) - 1
        own = name if last else f"{name}/{move.class_name.lower()}{i}"
        source = net.add(own, move.class_name, [source], move.config)
    return source


def reshaped(shape: Shape) -> Move:
    """Return the layer that gives an example a shape."""
    return Move("Reshape", {"target_shape": list(shape)}, shape)


def middle(shape: Shape, axis: int) -> tuple[int, int, int]:
    """Return how many values lie before, along and after an axis."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def with_length(shape: Shape, axis: int, length: int) -> Shape:
    """Return a shape with another length of one axis."""
    return (*shape[:axis], length, *shape[axis + 1 :])


class Span(NamedTuple):
    """Indexes of an axis: the first, how many, and the distance of one to the next."""

    start: int
    length: int
    step: int = 1


def cut(shape: Shape, axis: int, start: int, count: int, step: int = 1) -> list[Move]:
    """Return the layers that keep every `step`-th index of an axis, from `start` on."""
    before, n, after = middle(shape, axis)
    if step == 1 or count == 1:
        crop = {"cropping": [[0, 0], [start, n - start - count]]}
        kept = Move("Cropping2D", crop, (before, count, after))
        return [reshaped((before, n, after)), kept, reshaped(with_length(shape, axis, count))]
    moves = [reshaped((before, n, after))]
    short = max(count * step - n, 0)
    if short:  # the last step reaches beyond the end
        moves.append(Move("ZeroPadding2D", {"padding": [[0, 0], [0, short]]}, ()))
        n += short
    first = min(start, n - count * step)
    crop = {"cropping": [[0, 0], [first, n - first - count * step]]}
    moves += [Move("Cropping2D", crop, ()), reshaped((before * count, step, after))]
    phase = start - first
    moves.append(Move("Cropping2D", {"cropping": [[0, 0], [phase, step - phase - 1]]}, ()))
    return [*moves, reshaped(with_length(shape, axis, count))]


def _repeated(shape: Shape, axis: int, times: int, is_tiled: bool) -> list[Move]:
    """Return the layers that repeat an axis: as a whole, or each index by itself."""
    before, n, after = middle(shape, axis)
    rows = (before, 1, n * after) if is_tiled else (before, n, after)
    size = {"size": [1, times], "interpolation": "nearest"}
    return [
        reshaped(rows),
        Move("UpSampling2D", size, (rows[0], rows[1] * times, rows[2])),
        reshaped(with_length(shape, axis, n * times)),
    ]


def moved(net: Network, operation: Operation, name: str, moves: Sequence[Move]) -> bool | str:
    """Add the layers of an operation, if the integers mean the same before and after."""
    x, output = operation.inputs[0], operation.outputs[0]
    if not net.same_integers((x, output)):
        return OTHER_GRID
    made = moves[-1].shape if moves else net.shape(x)
    if not moves or made != net.shape(output):
        if math.prod(made) != math.prod(net.shape(output)):
            return UNKNOWN
        moves = [*moves, reshaped(net.shape(output))]
    net.made_by[output] = add_moves(net, name, net.made_by[x], moves)
    return True


def is_ready(net: Network, operation: Operation, least: int = 1) -> bool:
    """Whether the first input is computed, of a known shape of so many axes with the batch."""
    x = operation.inputs[0]
    return x in net.made_by and len(net.shape(x)) >= least - 1 and all(net.shape(x))


def _reshape(net: Network, operation: Operation, name: str) -> bool | str:
    x, out = operation.inputs[0], net.file.tensors[operation.outputs[0]].shape
    if x not in net.made_by or len(out) < 2 or not all(out):
        return BATCH if len(out) < 2 else False
    if math.prod(net.shape(x)) != math.prod(out[1:]):
        return BATCH
    return moved(net, operation, name, [reshaped(out[1:])])


def _pad(net: Network, operation: Operation, name: str) -> bool | str:
    x, pads = operation.inputs[0], net.numbers(operation, 1)
    if pads is None or not is_ready(net, operation):
        return UNKNOWN
    shape = net.shape(x)
    if len(pads) != 2 * len(shape) + 2 or any(not 0 <= n < 1 << 20 for n in pads):
        return UNKNOWN
    pairs = [pads[i : i + 2] for i in range(0, len(pads), 2)]
    if any(pairs[0]):
        return BATCH
    if operation.name == "PADV2":
        value, q = net.numbers(operation, 2), net.file.tensors[x].quantization
        if value is None or q is None or q.zero_point.size != 1 or value != [q.zero_point[0]]:
            return "it pads with another value than zero"
    if len(shape) in (2, 3) and not any(pairs[-1]):
        rank = len(shape) - 1
        made = (*(n + sum(p) for n, p in zip(shape, pairs[1:-1], strict=False)), shape[-1])
        config = {"padding": pairs[1:-1] if rank == 2 else pairs[1]}
        return moved(net, operation, name, [Move(f"ZeroPadding{rank}D", config, made)])
    moves: list[Move] = []
    for axis, pair in enumerate(pairs[1:]):
        if any(pair):
            before, n, after = middle(shape, axis)
            shape = with_length(shape, axis, n + sum(pair))
            wider = Move("ZeroPadding2D", {"padding": [[0, 0], pair]}, (before, shape[axis], after))
            moves += [reshaped((before, n, after)), wider, reshaped(shape)]
    return moved(net, operation, name, moves)


def _transpose(net: Network, operation: Operation, name: str) -> bool | str:
    order = net.numbers(operation, 1)
    if order is None or not is_ready(net, operation):
        return UNKNOWN
    shape = net.shape(operation.inputs[0])
    if sorted(order) != list(range(len(shape) + 1)):
        return UNKNOWN
    if order[:1] != [0]:
        return BATCH
    made = tuple(shape[axis - 1] for axis in order[1:])
    return moved(net, operation, name, [Move("Permute", {"dims": order[1:]}, made)])


def _tile(net: Network, operation: Operation, name: str) -> bool | str:
    wanted = net.numbers(operation, 1)
    out, shape = net.file.tensors[operation.outputs[0]].shape, net.shape(operation.inputs[0])
    if wanted is None or not is_ready(net, operation) or len(out) != len(shape) + 1:
        return UNKNOWN
    if out[0] != net.file.tensors[operation.inputs[0]].shape[0]:
        return BATCH
    moves: list[Move] = []
    for axis, (n, made) in enumerate(zip(shape, out[1:], strict=True)):
        if made % n or (operation.name == "BROADCAST_TO" and made != n != 1):
            return UNKNOWN
        if made != n:
            moves += _repeated(shape, axis, made // n, is_tiled=True)
            shape = moves[-1].shape
    return moved(net, operation, name, moves)


def _blocks(net: Network, operation: Operation, name: str) -> bool | str:
    """Add the layers that move blocks of points to channels, or channels to blocks."""
    size, shape = operation.options["block_size"], net.shape(operation.inputs[0])
    if not is_ready(net, operation) or len(shape) != 3 or not 0 < size < 1 << 10:
        return UNKNOWN
    height, width, channels = shape
    if operation.name == "SPACE_TO_DEPTH":
        if height % size or width % size:
            return UNKNOWN
        split = (height // size, size, width // size, size, channels)
        made, order = (split[0], split[2], size * size * channels), [1, 3, 2, 4, 5]
    else:
        if channels % (size * size):
            return UNKNOWN
        split = (height, width, size, size, channels // (size * size))
        made, order = (height * size, width * size, split[4]), [1, 3, 2, 4, 5]
    moves = [reshaped(split), Move("Permute", {"dims": order}, ()), reshaped(made)]
    return moved(net, operation, name, moves)


def _nearest(net: Network, operation: Operation, name: str) -> bool | str:
    x, options = operation.inputs[0], operation.options
    before, out = net.shape(x), net.shape(operation.outputs[0])
    if not is_ready(net, operation) or len(before) != 3 or len(out) != 3 or not all(out):
        return UNKNOWN
    sizes = list(zip(before[:2], out[:2], strict=True))
    if all(b % a == 0 for a, b in sizes) and not options["align_corners"]:
        size = [b // a for a, b in sizes]
        config = {"size": size, "interpolation": "nearest"}
        return moved(net, operation, name, [Move("UpSampling2D", config, out)])
    moves: list[Move] = []
    shape: Shape = before
    for axis, (a, b) in enumerate(sizes):
        found = _taken(a, b, bool(options["align_corners"]), bool(options["half_pixel_centers"]))
        if found is None:
            return "it takes points at uneven distances"
        moves += (
            _repeated(shape, axis, b // a, is_tiled=False)
            if isinstance(found, int)
            else cut(shape, axis, *found)
        )
        shape = moves[-1].shape
    return moved(net, operation, name, moves)


def _taken(n: int, count: int, corners: bool, centers: bool) -> Span | int | None:
    """Return the indexes that a nearest neighbour resizing takes of an axis.

    Returns
    -------
    Span, int or None
        A span, or how often each index is repeated; ``None`` if it is neither.
    """
    if count > 1 << 16:
        return None
    # In float32, as TFLite's kernel.
    scale = (
        np.float32(n - 1) / np.float32(count - 1)
        if corners and count > 1
        else (np.float32(n) / np.float32(count))
    )
    reals = (np.arange(count, dtype=np.float32) + np.float32(0.5 * centers)) * scale
    rounded = np.floor(reals + np.float32(0.5)) if corners else np.floor(reals)
    places = [int(place) for place in np.minimum(rounded, n - 1)]
    step = places[1] - places[0] if count > 1 else 1
    if step and places == list(range(places[0], places[0] + step * count, step)):
        return Span(places[0], count, step)
    if count % n == 0 and places == [i // (count // n) for i in range(count)]:
        return count // n
    return None


MOVES: Mapping[str, Rule] = {
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "PAD": _pad,
    "PADV2": _pad,
    "TRANSPOSE": _transpose,
    "TILE": _tile,
    "BROADCAST_TO": _tile,
    "SPACE_TO_DEPTH": _blocks,
    "DEPTH_TO_SPACE": _blocks,
    "RESIZE_NEAREST_NEIGHBOR": _nearest,
}
