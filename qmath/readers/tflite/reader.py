"""A TFLite file → a `QatModel`: its integers, scales and zero points as they are.

An operation that no layer of qmath computes is a cut point. A pair of MAXIMUM and MINIMUM that
clamps integers to fewer bits than int8 has is no layer: it is the width of what it clamps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from qmath.containers.source_files import SourceFiles
from qmath.containers.tflite.file import Operation, Tensor, TfliteFile, read_tflite
from qmath.errors import QmathError
from qmath.model import Graph, QatModel
from qmath.readers.records import ModelFile
from qmath.readers.tflite.layers import LAYERS, UNKNOWN
from qmath.readers.tflite.names import WEIGHTED, input_name, layer_names
from qmath.readers.tflite.network import Network
from qmath.readers.tflite.tensors import WIDTHS

__all__ = ["network", "read"]

_LOOKED_UP = frozenset(("ELU", "EXP", "GELU", "LOG"))
SEVERAL = frozenset(("SPLIT", "SPLIT_V", "UNPACK"))  # operations whose rules know their outputs


def read(file: ModelFile) -> QatModel:
    """Read a TFLite file.

    Raises
    ------
    FileFormatError
        It is damaged or hostile, or keeps its weights in a form that qmath does not read.
    QmathError
        Settings or an architecture were given, which the file holds itself.
    """
    file.refuse_architecture()
    if file.quantizers:
        raise QmathError(
            f"{file.path} holds its own integers, which no quantizer changes; leave quantizers out"
        )
    files = file.files([file.path])
    content = read_tflite(file.path)
    net, left_out, reasons = network(content)
    return _model(file.path, files, net, left_out, reasons)


def network(content: TfliteFile) -> tuple[Network, list[str], dict[str, str]]:
    """Return a file's layers, what is left out, and why some operations are cut points."""
    net = Network(content)
    net.widths, clamps = _clamped(content)
    for index in content.inputs:
        _add_input(net, index)
    left_out: list[str] = []
    reasons: dict[str, str] = {}
    for number, (operation, name) in enumerate(
        zip(content.operations, layer_names(content), strict=True)
    ):
        if number in clamps:
            net.made_by[operation.outputs[0]] = net.made_by[clamps[number]]
            continue
        if net.is_of_shapes(operation):
            continue
        reason = _add(net, operation, name)
        if reason is None:
            continue
        computed = net.computed(operation)
        if computed:
            net.cut(operation, name, computed)
            reasons[f"{name} ({operation.name})"] = reason
        else:
            left_out.append(f"{name} ({operation.name})")
    return net, left_out, reasons


def _add(net: Network, operation: Operation, name: str) -> str | None:
    """Add the layers of an operation, or return why none of qmath's computes it."""
    rule = None if operation.is_custom else LAYERS.get(operation.name)
    if rule is None or not operation.inputs or not operation.outputs:
        return UNKNOWN.get(operation.name, "") if not operation.is_custom else ""
    if len(operation.outputs) > 1 and operation.name not in SEVERAL:
        return "it has several outputs"
    if not all(map(net.is_understood, operation.outputs)):
        return "its integers have no meaning that qmath's have"
    mark = net.mark()
    found = rule(net, operation, name)
    if found is True:
        return None
    net.go_back(mark, operation)
    return found or ""


def _add_input(net: Network, index: int) -> None:
    """Add an input; one of integers is quantized, as data are floats."""
    tensor = net.file.tensors[index]
    open_ends = [
        n if stated >= 0 or axis == 0 else None
        for axis, (n, stated) in enumerate(zip(tensor.shape, tensor.signature, strict=False))
    ]
    name = input_name(net.file, index)
    net.add(name, "InputLayer", (), {"batch_input_shape": [None, *open_ends[1:]]})
    net.made_by[index] = name
    if tensor.quantization is not None:
        layer = net.add(f"{name}/quantize", "QuantizeLayer", [index])
        net.end(Operation("QUANTIZE", (index,), (index,)), layer, "output", "input")


def _clamped(file: TfliteFile) -> tuple[dict[int, int], dict[int, int]]:
    """Return the widths of tensors that operations clamp, and what these operations clamp.

    The second is by the number of the operation: the tensor that its output then stands for.
    """
    readers = Counter(i for op in file.operations for i in op.inputs)
    readers.update(file.outputs)
    makers = {i: n for n, op in enumerate(file.operations) for i in op.outputs}
    widths: dict[int, int] = {}
    clamps: dict[int, int] = {}
    for number, last in enumerate(file.operations):
        if last.name != "MINIMUM" or len(last.inputs) != 2 or last.inputs[0] not in makers:
            continue
        before = makers[last.inputs[0]]
        first = file.operations[before]
        if first.name != "MAXIMUM" or len(first.inputs) != 2 or first.inputs[0] not in makers:
            continue
        origin = first.inputs[0]
        low, high = (_end(file, op, origin) for op in (first, last))
        is_alone = readers[origin] == 1 and readers[last.inputs[0]] == 1
        if low is None or high is None or not is_alone or len(last.outputs) != 1:
            continue
        bits = (high + 1).bit_length()
        is_width = 2 <= bits <= 8 and (low, high) == (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        zero_point = _zero_point(file.tensors[origin])
        if is_width and zero_point is not None and low <= zero_point <= high:
            widths[origin] = bits
            clamps |= {before: origin, number: origin}
    return widths, clamps


def _end(file: TfliteFile, operation: Operation, origin: int) -> int | None:
    """Return the integer that an operation clamps to, if its parameters are those of `origin`."""
    bound, out = file.tensors[operation.inputs[1]], file.tensors[operation.outputs[0]]
    meaning = _meaning(file.tensors[origin])
    if bound.data is None or bound.data.size != 1 or bound.type != "INT8":
        return None
    if _meaning(bound) != meaning or _meaning(out) != meaning:
        return None
    return int(bound.data.reshape(()))


def _zero_point(tensor: Tensor) -> int | None:
    q = tensor.quantization
    return None if q is None or q.zero_point.size != 1 else int(q.zero_point[0])


def _meaning(tensor: Tensor) -> Any:
    q = tensor.quantization
    return q and (tensor.type, q.scale.tobytes(), q.zero_point.tobytes())


def _model(
    path: str, files: SourceFiles, net: Network, left_out: list[str], reasons: Mapping[str, str]
) -> QatModel:
    content, notes = net.file, list[str]()
    names = {node.name for node in net.nodes}
    outputs = tuple(
        dict.fromkeys(net.made_by[i] for i in content.outputs if net.made_by.get(i) in names)
    )
    inputs = tuple(net.made_by[i] for i in content.inputs)
    graph = None
    if inputs and outputs:
        graph = Graph(tuple(net.nodes), tuple(_first(net, name) for name in inputs), outputs)
    else:
        notes.append(
            "The order of the layers is not known: no operation leads from an input to an output"
        )
    if content.graphs > 1:
        notes.append(
            f"The file holds {content.graphs} graphs; the first, which runs, is the one read."
        )
    if left_out:
        notes.append(
            f"These operations have no inputs that depend on the data and are left out: "
            f"{', '.join(left_out)}."
        )
    if told := [f"{name}: {why}" for name, why in reasons.items() if why]:
        notes.append(f"These operations are cut points: {'; '.join(told)}.")
    notes += _not_mirrored(content)
    if hybrid := _hybrid(content):
        notes.append(
            "These operations have float inputs and integer weights. TFLite's kernels quantize "
            "such inputs at run time; qmath computes them in float32, with the real values of the "
            f"weights: {', '.join(hybrid)}."
        )
    return QatModel(net.tensors, graph, tuple(notes), path, files, net.shapes)


def _not_mirrored(file: TfliteFile) -> list[str]:
    """Return notes on operations whose integers no profile has."""
    wide, sums = [], []
    for operation, name in zip(file.operations, layer_names(file), strict=True):
        kinds = {file.tensors[i].type for i in operation.outputs}
        if "INT16" in kinds and operation.name in _LOOKED_UP:
            wide.append(name)
        if operation.name == "SUM" and kinds & WIDTHS.keys():
            sums.append(name)
    notes = []
    if wide:
        notes.append(
            "TFLite interpolates these functions of 16 bits in tables, which no profile does; they "
            f"may be off by some steps: {', '.join(wide)}."
        )
    if sums:
        notes.append(
            "TFLite's reference kernels change no scale in a SUM of integers, against its own "
            f"definition; the profile tflite does: {', '.join(sums)}."
        )
    return notes


def _hybrid(file: TfliteFile) -> list[str]:
    """Return the names of operations on floats whose weights are integers."""
    found = []
    for operation, name in zip(file.operations, layer_names(file), strict=True):
        place = 2 if operation.name == "TRANSPOSE_CONV" else 0
        if operation.name not in WEIGHTED or len(operation.inputs) <= max(place, 1):
            continue
        source, weights = operation.inputs[place], operation.inputs[1]
        if source < 0 or weights < 0:
            continue
        is_float = file.tensors[source].type == "FLOAT32"
        if is_float and file.tensors[weights].is_constant and file.tensors[weights].type in WIDTHS:
            found.append(name)
    return found


def _first(net: Network, name: str) -> str:
    """Return the input that a node quantizes, or the node."""
    node = next(node for node in net.nodes if node.name == name)
    return node.inputs[0] if node.inputs else name
