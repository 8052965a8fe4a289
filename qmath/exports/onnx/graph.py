"""An ONNX graph under construction: unique names, constants, nodes and the order of axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.exports.onnx import library
from qmath.exports.output.identifiers import UniqueNames
from qmath.integer.program import Shape
from qmath.model import Node

__all__ = ["GraphBuilder", "Value", "arranged", "restored", "scale_axis"]

Array = NDArray[Any]

# Which axes of a kernel, in its own order, are ONNX's axes: output channels, input channels, space;
# of a transposed convolution, input channels come first. A depthwise kernel's are joined besides.
_KERNELS = {"HWIO": (3, 2, 0, 1), "WIO": (2, 1, 0), "WOI": (2, 1, 0), "HWOI": (3, 2, 0, 1),
            "HWIM": (2, 3, 0, 1), "WIM": (1, 2, 0), "IO": (0, 1),
            "DHWIO": (4, 3, 0, 1, 2)}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A float tensor of the graph.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Without the batch, channels last, whatever the order in the graph.
    channels_first : bool
        Whether the graph's tensor has its channels right after the batch.
    """

    name: str
    shape: Shape
    channels_first: bool = False


class GraphBuilder(UniqueNames):
    """Nodes and initializers, in order.

    Parameters
    ----------
    onnx : module
    reserved : iterable of str
        Names that only `parameter` gives.
    """

    def __init__(self, onnx: Any, reserved: Iterable[str]) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        super().__init__(reserved)
        self._transposes: dict[tuple[str, Shape], str] = {}

    def parameter(self, name: str, kind: str, values: Array) -> str:
        """Add an initializer under a reserved name, once; return the name."""
        if name not in self.initializers:
            self.initializers[name] = library.tensor(self.onnx, name, kind, values)
        return name

    def constant(self, wanted: str, values: Any, kind: str = "FLOAT") -> str:
        """Add an initializer; return its name."""
        return self.parameter(self.unique(wanted), kind, np.asarray(values))

    def operands(self, node: Node, name: str, value: Value) -> list[Value | str]:
        """Return what the operation of an activation takes besides its input."""
        if name == "tflite.square":
            return [value]
        ends = ("low", "high") if name == "tflite.clip" else ()
        return [self.constant(f"{node.name}/{end}", node.config[end]) for end in ends]

    def node(self, op: str, inputs: Iterable[str], wanted: str, **attributes: Any) -> str:
        """Add a node of one output; return the output's name, which is also the node's."""
        name = self.unique(wanted)
        self.nodes.append(
            self.onnx.helper.make_node(op, list(inputs), [name], name=name, **attributes)
        )
        return name

    def layer(
        self,
        op: str,
        inputs: Sequence[Value | str],
        layer: str,
        shape: Sequence[int] | None = None,
        **attributes: Any,
    ) -> Value:
        """Add a node of a layer; the result has its first input's order, and its shape."""
        first = inputs[0]
        assert isinstance(first, Value)
        names = [x.name if isinstance(x, Value) else x for x in inputs]
        name = self.node(op, names, f"{layer}/{op}", **attributes)
        return replace(first, name=name, shape=first.shape if shape is None else tuple(shape))

    def channels_first(self, value: Value) -> Value:
        """Return the value with its channels right after the batch."""
        rank = len(value.shape)
        if value.channels_first or rank < 2:
            return value
        return self._transposed(value, (0, rank, *range(1, rank)), True)

    def channels_last(self, value: Value) -> Value:
        """Return the value as Keras has it."""
        if not value.channels_first:
            return value
        return self._transposed(value, (0, *range(2, len(value.shape) + 1), 1), False)

    def _transposed(self, value: Value, axes: Shape, channels_first: bool) -> Value:
        ending = "channels_first" if channels_first else "channels_last"
        key = value.name, axes
        if key not in self._transposes:
            self._transposes[key] = self.node(
                "Transpose", [value.name], f"{value.name}/{ending}", perm=axes
            )
        return replace(value, name=self._transposes[key], channels_first=channels_first)

    def model(
        self,
        name: str,
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, Shape],
        opsets: Mapping[str, int],
        batch: int | str,
    ) -> Any:
        """Return the ``ModelProto``."""
        helper = self.onnx.helper
        infos = (
            [
                helper.make_tensor_value_info(
                    key, self.onnx.TensorProto.FLOAT, [batch, *map(int, shape)]
                )
                for key, shape in given.items()
            ]
            for given in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, name, *infos, list(self.initializers.values()))
        imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        return helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=helper.find_min_ir_version_for(imports, ignore_unknown=True),
            producer_name="qmath",
        )


def arranged(values: Array, layout: str | None) -> Array:
    """Return a kernel in ONNX's order of axes; what has no layout stays as it is."""
    if layout is None:
        return values
    moved = values.transpose(_KERNELS[layout])
    if "M" in layout:
        moved = moved.reshape(-1, 1, *moved.shape[2:])
    return np.ascontiguousarray(moved)


def restored(values: Array, layout: str | None, shape: Shape) -> Array:
    """Return a kernel in its own order of axes, and of that shape: the reverse of `arranged`.

    What has no layout may have more axes, of length 1.

    Raises
    ------
    ValueError
        The array has another shape.
    """
    if layout is None:
        expected = shape
    else:
        axes = _KERNELS[layout]
        expected = tuple(shape[axis] for axis in axes)
        if "M" in layout:
            expected = (expected[0] * expected[1], 1, *expected[2:])
    is_spread = layout is None and len(values.shape) > len(shape) and values.size == np.prod(shape)
    if values.shape != expected and not is_spread:
        raise ValueError(f"its shape is {values.shape} instead of {expected}")
    if layout is None:
        return values.reshape(shape)
    moved = values.reshape([shape[axis] for axis in axes])
    return np.ascontiguousarray(moved.transpose(np.argsort(axes)))


def scale_axis(layout: str | None, rank: int, axis: int | None = None) -> int:
    """Return the axis of an arranged kernel that its scales run along.

    That is the last of the kernel's own, or `axis`, which is the one of its output channels.
    """
    if layout in ("HWOI", "WOI") and axis == layout.index("O"):
        return 1
    return rank - 1 if layout in (None, "IO") else 0
