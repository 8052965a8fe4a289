"""TFLite's operations that take parts of an axis, or join parts: slices, splits, packs, gathers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qmath.containers.tflite.file import Operation
from qmath.readers.tflite import moves
from qmath.readers.tflite.moves import Move, Span
from qmath.readers.tflite.network import Network, Rule

__all__ = ["SPANS"]

_MOST_LAYERS = 256  # of one operation


def _slice(net: Network, operation: Operation, name: str) -> bool | str:
    begin, sizes = (net.numbers(operation, at) for at in (1, 2))
    shape = net.file.tensors[operation.inputs[0]].shape
    if begin is None or sizes is None or not moves.is_ready(net, operation):
        return moves.UNKNOWN
    if not len(begin) == len(sizes) == len(shape):
        return moves.UNKNOWN
    spans = [
        Span(first, n - first if size == -1 else size)
        for first, size, n in zip(begin, sizes, shape, strict=True)
    ]
    return _spanned(net, operation, name, spans)


def _strided_slice(net: Network, operation: Operation, name: str) -> bool | str:
    options = operation.options
    places = [net.numbers(operation, at) for at in (1, 2, 3)]
    shape = net.file.tensors[operation.inputs[0]].shape
    if None in places or not moves.is_ready(net, operation):
        return moves.UNKNOWN
    begin, end, strides = (place or [] for place in places)
    if any(options[mask] for mask in ("ellipsis_mask", "new_axis_mask", "offset")):
        return moves.UNKNOWN
    if not len(begin) == len(end) == len(strides) <= len(shape):
        return moves.UNKNOWN
    if any(not 0 < step < 1 << 20 for step in strides):
        return "it reverses an axis"
    spans = []
    for axis, length in enumerate(shape):
        if axis >= len(begin):
            spans.append(Span(0, length))
            continue
        first, last, step = slice(begin[axis], end[axis]).indices(length)
        first = 0 if options["begin_mask"] >> axis & 1 else first
        last = length if options["end_mask"] >> axis & 1 else last
        step = strides[axis]
        if options["shrink_axis_mask"] >> axis & 1:
            first = begin[axis] + length * (begin[axis] < 0)
            last, step = first + 1, 1
        spans.append(Span(first, max(-(-(last - first) // step), 0), step))
    return _spanned(net, operation, name, spans)


def _spanned(net: Network, operation: Operation, name: str, spans: Sequence[Span]) -> bool | str:
    """Add the layers that keep a span of each axis, the first being the examples'."""
    shape = net.shape(operation.inputs[0])
    lengths = net.file.tensors[operation.inputs[0]].shape
    for n, (start, count, step) in zip(lengths, spans, strict=True):
        if not (start >= 0 and count > 0 and start + (count - 1) * step < n):
            return moves.UNKNOWN
    if spans[0] != (0, lengths[0], 1):
        return moves.BATCH
    cropped = [[s.start, n - s.start - s.length] for n, s in zip(shape, spans[1:], strict=True)]
    is_plain = all(span.step == 1 for span in spans) and len(shape) == 3 and not any(cropped[2])
    if is_plain:
        made = tuple(span.length for span in spans[1:])
        return moves.moved(
            net, operation, name, [Move("Cropping2D", {"cropping": cropped[:2]}, made)]
        )
    found: list[Move] = []
    for axis, (start, count, step) in enumerate(spans[1:]):
        if count != shape[axis]:
            found += moves.cut(shape, axis, start, count, step)
            shape = found[-1].shape
    return moves.moved(net, operation, name, found)


def _split(net: Network, operation: Operation, name: str) -> bool | str:
    place, data = (2, 0) if operation.name == "SPLIT_V" else (0, 1)
    if len(operation.inputs) <= data:
        return moves.UNKNOWN
    x, axes = operation.inputs[data], net.numbers(operation, place)
    if x not in net.made_by or not axes or not all(net.shape(x)):
        return moves.UNKNOWN
    rank = len(net.shape(x)) + 1
    if not -rank <= axes[0] < rank:
        return moves.UNKNOWN
    axis = axes[0] % rank
    counts = [_length(net, i, axis) for i in operation.outputs]
    return _pieces(net, operation, name, x, axis, counts)


def _unpack(net: Network, operation: Operation, name: str) -> bool | str:
    x, axis = operation.inputs[0], operation.options["axis"]
    rank = len(net.shape(x)) + 1
    if not moves.is_ready(net, operation) or not -rank <= axis < rank:
        return moves.UNKNOWN
    return _pieces(net, operation, name, x, axis % rank, [1] * len(operation.outputs))


def _length(net: Network, index: int, axis: int) -> int:
    shape = net.file.tensors[index].shape
    return shape[axis] if axis < len(shape) else 0


def _pieces(
    net: Network, operation: Operation, name: str, x: int, axis: int, counts: Sequence[int]
) -> bool | str:
    """Add the layers of each output: a piece of an axis."""
    shape = net.shape(x)
    if axis == 0:
        return moves.BATCH
    if sum(counts) != shape[axis - 1] or not all(counts):
        return moves.UNKNOWN
    if not net.same_integers((x, *operation.outputs)):
        return moves.OTHER_GRID
    start = 0
    for number, (index, count) in enumerate(zip(operation.outputs, counts, strict=True)):
        found = moves.cut(shape, axis - 1, start, count)
        if math.prod(net.shape(index)) != math.prod(found[-1].shape):
            return moves.UNKNOWN
        found[-1] = moves.reshaped(net.shape(index))
        start += count
        net.made_by[index] = moves.add_moves(net, f"{name}/{number}", net.made_by[x], found)
    return True


def _pack(net: Network, operation: Operation, name: str) -> bool | str:
    out, axis = net.shape(operation.outputs[0]), operation.options["axis"]
    rank = len(out) + 1
    if any(i not in net.made_by for i in operation.inputs) or not -rank <= axis < rank:
        return moves.UNKNOWN
    if not net.same_integers((*operation.inputs, *operation.outputs)):
        return moves.OTHER_GRID
    axis %= rank
    if axis == 0:
        return moves.BATCH
    single = (*out[: axis - 1], 1, *out[axis:])
    if any(math.prod(net.shape(i)) != math.prod(single) for i in operation.inputs):
        return moves.UNKNOWN
    parts = [
        moves.add_moves(net, f"{name}/{number}", net.made_by[i], [moves.reshaped(single)])
        for number, i in enumerate(operation.inputs)
    ]
    if len(parts) == 1:
        net.made_by[operation.outputs[0]] = parts[0]
        return True
    net.add(name, "Concatenate", parts, {"axis": axis})
    net.end(operation, name, "output")
    return True


def _gather(net: Network, operation: Operation, name: str) -> bool | str:
    x, indexes = operation.inputs[0], net.numbers(operation, 1)
    axis, rank = operation.options["axis"], len(net.shape(x)) + 1
    if not moves.is_ready(net, operation) or indexes is None or operation.options["batch_dims"]:
        return moves.UNKNOWN
    if not -rank <= axis < rank or not net.same_integers((x, *operation.outputs)):
        return moves.UNKNOWN
    axis %= rank
    if axis == 0:
        return moves.BATCH
    shape, runs = net.shape(x), _runs(indexes)
    if not runs or 4 * len(runs) > _MOST_LAYERS:
        return "it takes too many indexes one by one"
    if any(not 0 <= run.start <= run.start + run.length <= shape[axis - 1] for run in runs):
        return moves.UNKNOWN
    pieces = [moves.cut(shape, axis - 1, run.start, run.length) for run in runs]
    if len(pieces) == 1:
        return moves.moved(net, operation, name, pieces[0])
    parts = [
        moves.add_moves(net, f"{name}/{number}", net.made_by[x], found)
        for number, found in enumerate(pieces)
    ]
    made = moves.with_length(shape, axis - 1, len(indexes))
    if made != net.shape(operation.outputs[0]):
        return moves.UNKNOWN
    net.add(name, "Concatenate", parts, {"axis": axis})
    net.end(operation, name, "output")
    return True


def _runs(indexes: Sequence[int]) -> list[Span]:
    """Return neighbours that follow each other."""
    runs: list[Span] = []
    for index in indexes:
        if runs and index == runs[-1].start + runs[-1].length:
            runs[-1] = Span(runs[-1].start, runs[-1].length + 1)
        else:
            runs.append(Span(index, 1))
    return runs


SPANS: Mapping[str, Rule] = {
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "SPLIT": _split,
    "SPLIT_V": _split,
    "PACK": _pack,
    "UNPACK": _unpack,
    "GATHER": _gather,
}
