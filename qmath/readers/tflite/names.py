"""Names of layers, from the names that a converter gave to tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qmath.containers.tflite.file import Operation, TfliteFile

__all__ = ["WEIGHTED", "input_name", "layer_names"]

# What a converter puts around a model, and TFMOT around a layer.
_CALLS = re.compile(r"(Stateful)?PartitionedCall(_\d+)?(:\d+)?|functional(_\d+)?")
_QUANTIZERS = re.compile(r"\w*Quant(ize)?(_\d+)?|FakeQuant\w*")
_WRAPPED = re.compile(r"^quant_")
# The place of the weights among the inputs.
WEIGHTED = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1}
_PLACES = ("output", "post_activation")
_LONGEST = 200


def layer_names(file: TfliteFile) -> list[str]:
    """Return a name for each operation, none of them twice.

    A weighted operation has that of its weights, as what follows may be fused to it; any other that
    of its output: without what the converter and TFMOT put around it, and without the model's own
    name, which all begin with. Where nothing is left, it is the operation's.

    Parameters
    ----------
    file : TfliteFile

    Returns
    -------
    list of str
        In the order of the operations.
    """
    paths = [_path(_source(file, operation)) for operation in file.operations]
    first = {path[0] for path in paths if len(path) > 1}
    if len(first) == 1 and sum(len(path) > 1 for path in paths) > 1:
        paths = [path[1:] if path[:1] == [*first] else path for path in paths]
    kinds = [operation.name.lower() for operation in file.operations]
    wanted = ["/".join(path) or kind for path, kind in zip(paths, kinds, strict=True)]
    names: list[str] = []
    taken: set[str] = {input_name(file, i) for i in file.inputs}
    # What quantizers make has the layer's name and its place, and steps have either name.
    taken |= {f"{name}/{place}" for name in wanted for place in _PLACES}
    for name, kind in zip(wanted, kinds, strict=True):
        free = next(found for found in _candidates(name, kind) if found not in taken)
        names.append(free)
        taken.add(free)
    return names


def input_name(file: TfliteFile, index: int) -> str:
    """Return the name of a model's input."""
    name = file.tensors[index].name.removeprefix("serving_default_").partition(":")[0]
    return name if _is_plain(name) else f"input_{index}"


def _candidates(name: str, kind: str) -> Iterable[str]:
    yield name
    if not name.endswith(kind):
        name = f"{name}_{kind}"
        yield name
    number = 0
    while True:
        number += 1
        yield f"{name}_{number}"


def _source(file: TfliteFile, operation: Operation) -> str:
    """Return the name that an operation is named by."""
    at = WEIGHTED.get(operation.name)
    if at is not None and at < len(operation.inputs) and operation.inputs[at] >= 0:
        tensor = file.tensors[operation.inputs[at]]
        if tensor.is_constant and tensor.name:
            return tensor.name
    return file.tensors[operation.outputs[0]].name if operation.outputs else ""


def _path(name: str) -> list[str]:
    """Return the layer's path in a tensor's name: ``model/quant_conv1/Conv2D;…`` → model, conv1."""
    first = name.partition(";")[0]
    if not _is_plain(first):
        return []
    parts = [part for part in first.split("/") if part and not _CALLS.fullmatch(part)]
    for i, part in enumerate(parts):
        if i and _QUANTIZERS.fullmatch(part):
            return _bare(parts[:i])
    return _bare(parts[:-1] if len(parts) > 1 else [])


def _bare(parts: Sequence[str]) -> list[str]:
    return [_WRAPPED.sub("", part) for part in parts]


def _is_plain(name: str) -> bool:
    return bool(name) and name.isprintable() and len(name) <= _LONGEST
