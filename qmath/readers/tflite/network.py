"""The graph of a TFLite file as layers: nodes, their tensors, and which node makes what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from qmath.containers.tflite.file import Operation, Tensor, TfliteFile
from qmath.containers.tflite.schema import ACTIVATIONS
from qmath.model import Node, QatTensor, Role
from qmath.readers.tflite import tensors

__all__ = ["Network", "Rule"]

_ACTIVATIONS = {number: name.lower() for name, number in ACTIVATIONS.items()}
_ACTIVATIONS[ACTIVATIONS["NONE"]] = "linear"


class Network:
    """Layers under construction.

    Attributes
    ----------
    file : TfliteFile
    nodes : list of Node
    tensors : dict of str to QatTensor
    made_by : dict of int to str
        The node that makes a tensor.
    shapes : dict of str to tuple
        Of what cut points make, without the batch.
    widths : dict of int to int
        Of tensors that operations clamp to fewer bits than their type holds.
    """

    def __init__(self, file: TfliteFile) -> None:
        self.file = file
        self.nodes: list[Node] = []
        self.tensors: dict[str, QatTensor] = {}
        self.made_by: dict[int, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.widths: dict[int, int] = {}
        self._constants: dict[int, Tensor] = {}
        self._of_shapes: set[int] = set()
        self.readers = Counter(i for op in file.operations for i in op.inputs)
        self.readers.update(file.outputs)

    # ---- what the file holds

    def tensor(self, index: int) -> Tensor:
        """Return a tensor, with its elements where an operation made it from constants."""
        return self._constants.get(index) or self.file.tensors[index]

    def shape(self, index: int) -> tuple[int, ...]:
        """Return a tensor's shape without the batch."""
        return self.file.tensors[index].shape[1:]

    def computed(self, operation: Operation) -> list[int]:
        """Return the inputs of an operation that are computed."""
        return [i for i in operation.inputs if i in self.made_by]

    def constant(self, operation: Operation, at: int) -> Tensor | None:
        """Return an input that is a constant, ``None`` of any other."""
        if at >= len(operation.inputs) or operation.inputs[at] < 0:
            return None
        tensor = self.tensor(operation.inputs[at])
        return tensor if tensor.data is not None else None

    def numbers(self, operation: Operation, at: int) -> list[int] | None:
        """Return an input that is a constant vector of integers."""
        tensor = self.constant(operation, at)
        if tensor is None or tensor.data is None or tensor.data.dtype.kind != "i":
            return None
        return [int(n) for n in tensor.data.reshape(-1)]

    def set_constant(self, index: int, values: NDArray[Any]) -> None:
        """Keep what an operation makes of constants."""
        self._constants[index] = replace(
            self.file.tensors[index], type="FLOAT32", data=values, is_constant=True
        )

    def is_of_shapes(self, operation: Operation) -> bool:
        """Whether an operation computes with shapes alone, which the file states, too."""
        given = [i for i in operation.inputs if i >= 0 and not self.tensor(i).is_constant]
        is_one = operation.name == "SHAPE" or (given and all(i in self._of_shapes for i in given))
        if is_one:
            self._of_shapes.update(operation.outputs)
        return bool(is_one)

    def same_integers(self, indexes: Iterable[int]) -> bool:
        """Whether the integers of tensors all mean the same, or all are floats."""
        found = set()
        for index in indexes:
            found.add(self.meaning(self.file.tensors[index]))
        return len(found) == 1

    def meaning(self, tensor: Tensor) -> tuple[str, Any]:
        """Return what tells apart the meanings of integers."""
        q = tensor.quantization
        return tensor.type, (q.scale.tobytes(), q.zero_point.tobytes()) if q else None

    def is_integer(self, index: int) -> bool:
        """Whether a tensor holds integers of a scale."""
        tensor = self.file.tensors[index]
        return tensor.type in tensors.WIDTHS and tensor.quantization is not None

    def is_understood(self, index: int) -> bool:
        """Whether a tensor's integers have a meaning that an activation of qmath's can have."""
        tensor = self.file.tensors[index]
        if tensor.quantization is None or tensor.type not in tensors.WIDTHS:
            return True
        return tensors.activation("", tensor, "output", self.widths.get(index)) is not None

    def fused(self, operation: Operation) -> str:
        """Return the activation that an operation ends with, in Keras's words."""
        number = operation.options.get("fused_activation_function", 0)
        is_integer = self.file.tensors[operation.outputs[0]].type in tensors.WIDTHS
        if number == ACTIVATIONS["TANH"] and is_integer:  # which TFLite's kernels leave out
            return f"activation_{number}"
        if number == ACTIVATIONS["RELU_N1_TO_1"]:  # a layer of its own, see `end`
            return "linear"
        return _ACTIVATIONS.get(number, f"activation_{number}")

    # ---- what is made of it

    def mark(self) -> tuple[int, int]:
        """Return how much there is, for `go_back`."""
        return len(self.nodes), len(self.tensors)

    def go_back(self, mark: tuple[int, int], operation: Operation) -> None:
        """Take back all that the rule of an operation added before it gave up."""
        nodes, held = mark
        del self.nodes[nodes:]
        while len(self.tensors) > held:
            self.tensors.popitem()
        for index in operation.outputs:
            self.made_by.pop(index, None)

    def add(
        self,
        name: str,
        class_name: str,
        inputs: Sequence[int] | Sequence[str],
        config: Mapping[str, Any] | None = None,
        outputs: int = 1,
    ) -> str:
        """Add a layer; return its name."""
        sources = tuple(i if isinstance(i, str) else self.made_by[i] for i in inputs)
        self.nodes.append(
            Node(name, name, class_name, sources, {"name": name, **(config or {})}, outputs=outputs)
        )
        return name

    def hold(self, *found: QatTensor) -> None:
        """Add tensors."""
        self.tensors.update((tensor.name, tensor) for tensor in found)

    def end(self, operation: Operation, name: str, which: str, role: Role = "output") -> None:
        """Say that a node makes an operation's output, which it rounds as the file says."""
        (index,) = operation.outputs
        bits = self.widths.get(index)
        is_from_float = (
            operation.name == "QUANTIZE" and self.tensor(operation.inputs[0]).type == "FLOAT32"
        )
        found = tensors.activation(
            f"{name}/{which}", self.file.tensors[index], role, bits, is_from_float=is_from_float
        )
        if found is not None:
            self.hold(found)
        fused = operation.options.get("fused_activation_function")
        if fused == ACTIVATIONS["RELU_N1_TO_1"]:
            name = self._clip(name, index, bits)
        self.made_by[index] = name

    def _clip(self, name: str, index: int, bits: int | None) -> str:
        """Add the layer of bounds at -1 and 1, which commutes with the rounding before it."""
        kernel = "RELU_N1_TO_1" if self.is_integer(index) else ""
        name = self.add(
            f"{name}/clip", "Activation", [name],
            {"activation": "tflite.clip", "low": -1.0, "high": 1.0, "kernel": kernel},
        )  # fmt: skip
        tensor = self.file.tensors[index]
        found = tensors.activation(f"{name}/post_activation", tensor, "output", bits)
        if found is not None:
            self.hold(found)
        return name

    def cut(self, operation: Operation, name: str, computed: Sequence[int]) -> None:
        """Add a layer for an operation that no layer class of qmath computes."""
        used = [i for i in operation.outputs if self.readers[i]] or list(operation.outputs[:1])
        class_name = operation.name if operation.name.isprintable() else "CUSTOM"
        self.add(name, class_name, computed, dict(operation.options), max(len(used), 1))
        for index in operation.outputs:
            self.made_by[index] = name
        if len(used) == 1:
            shape = self.shape(used[0])
            if shape and all(shape):
                self.shapes[name] = shape
            if len(operation.outputs) == 1:
                self.end(operation, name, "output")


Rule = Callable[[Network, Operation, str], bool | str]
"""Adds layers of an operation's name, and says whether it did, or why it cannot."""
