"""What a forward pass reads: the kernels that reach the ops of a model, and a SavedModel's tensors.

No setting, class or config of a quantizer is looked at. A model's inference is one graph of ops.
Where a tensor that hangs on variables alone enters an op that hangs on the data too, the layer
reads a weight: that tensor is the kernel, whatever made it. Moves that keep every bit (Conv1D's
ExpandDims, a GRU's Unpack) are undone, so that a kernel has the shape and the axes of its variable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

__all__ = ["DumpError", "Graph", "graph_of_model", "graph_of_saved_model"]

Arrays = dict[str, NDArray[np.float32]]
_MOVES = {"Identity", "ExpandDims", "Reshape", "Squeeze", "Split", "Unpack", "StridedSlice"}
_FAKE_QUANT = {"FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"}
_PLACES = ("pre_activation", "post_activation", "output")


class DumpError(ValueError):
    """The model or the data cannot be dumped; the message says why."""


class Graph:
    """The inference graph of a model, its functions inlined and its variables frozen.

    Parameters
    ----------
    concrete : ConcreteFunction
        What computes the outputs from the data.
    names : mapping of int to str
        The names that qmath gives variables, by the id of their handle; a variable without one
        has the name of its own, with the models around the layer that reads it.
    """

    def __init__(self, concrete: Any, names: Mapping[int, str]) -> None:
        owners = {id(variable.handle): variable for variable in concrete.variables}
        sources = {
            inner.op.name: owners[id(outer)]
            for outer, inner in concrete.graph.captures
            if id(outer) in owners
        }
        self._frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
        self._known = names
        self._variables: dict[str, frozenset[Any]] = {}
        self._of_data: set[str] = set()
        self._handles: dict[int, Any] = {}
        for op in _sorted(self._frozen.graph):
            found = [self._variables[tensor.op.name] for tensor in op.inputs]
            own = sources.get(op.name)
            if own is not None:
                self._handles[id(own.handle)] = own
                found.append(frozenset([id(own.handle)]))
            self._variables[op.name] = frozenset().union(*found)
            if op.type == "Placeholder" or any(t.op.name in self._of_data for t in op.inputs):
                self._of_data.add(op.name)

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs' shapes by their names, in the order of the graph."""
        return {tensor.op.name: tensor.shape for tensor in self._frozen.inputs}

    def kernels(self) -> Arrays:
        """Return every weight that an op reads, by qmath's name.

        A weight that is read in two ways is there twice, the second time as ``<name>#1``.
        """
        tensors: dict[str, list[Any]] = {}
        for op in self._frozen.graph.get_operations():
            for tensor in op.inputs if op.name in self._of_data else ():
                if tensor.op.name not in self._of_data:
                    # A PReLU multiplies by the negative of its weight.
                    is_negative = op.type == "Mul" and tensor.op.type == "Neg"
                    read = tensor.op.inputs[0] if is_negative else tensor
                    for name, moved in self._named(read, op):
                        places = tensors.setdefault(name, [])
                        if not any(moved is place for place in places):
                            places.append(moved)
        flat = [tensor for places in tensors.values() for tensor in places]
        values = iter(self._frozen.prune([], flat)() if flat else ())
        kernels: Arrays = {}
        for name, places in tensors.items():
            ways = {array.tobytes(): array for array in (next(values).numpy() for _ in places)}
            for i, array in enumerate(ways.values()):
                kernels[f"{name}#{i}" if i else name] = array
        return kernels

    def _named(self, tensor: Any, reader: Any) -> Iterator[tuple[str, Any]]:
        """Yield the weight's name and the tensor of its shape, where one variable made it."""
        found: dict[int, Any] = {}
        for key in self._variables[tensor.op.name]:
            moved = self._unmoved(tensor, key)
            if moved is not None:
                found[key] = moved
        # A quantizer's own variables are named after the weight's: kernel, kernel_min.
        names = {key: self._handles[key].name.split(":")[0] for key in found}
        first = [
            key
            for key, name in names.items()
            if not any(name != other and name.startswith(other) for other in names.values())
        ]
        known = [key for key in first if key in self._known]
        if len(known or first) == 1:
            (key,) = known or first
            yield self._known.get(key) or _scoped(names[key], reader.name), found[key]

    def _unmoved(self, tensor: Any, key: int) -> Any:
        """Return the nearest tensor before some moves that has the shape of a variable."""
        shape = self._handles[key].shape
        if not shape.rank or self._handles[key].dtype != tf.float32:
            return None
        while tensor.shape != shape:
            before = [x for x in tensor.op.inputs if key in self._variables[x.op.name]]
            if tensor.op.type not in _MOVES or len(before) != 1:
                return None
            (tensor,) = before
        return tensor

    def activations(self) -> dict[str, Any]:
        """Return the data that a stored range fake-quantizes, by the name of the range's variable.

        A range that two ops read is left out: their calls have no names in a graph.
        """
        found: dict[str, list[Any]] = {}
        for op in self._frozen.graph.get_operations():
            if op.type in _FAKE_QUANT and op.name in self._of_data:
                for key in self._variables[op.inputs[1].op.name]:
                    name = _range_name(self._handles[key].name.split(":")[0], op.name)
                    if name and op.inputs[1].op.name not in self._of_data:
                        found.setdefault(name, []).append(op.outputs[0])
        return {name: tensors[0] for name, tensors in found.items() if len(tensors) == 1}

    def run(self, data: Mapping[str, NDArray[Any]], batch: int = 32) -> Arrays:
        """Return fake-quantized activations and the outputs, of data by the inputs' names."""
        fetches = self.activations()
        fetches |= {f"outputs/{i}": tensor for i, tensor in enumerate(self._frozen.outputs)}
        function = self._frozen.prune(self._frozen.inputs, list(fetches.values()))
        arrays = [np.asarray(data[name], np.float32) for name in self.inputs]
        parts = []
        for start in range(0, len(arrays[0]), batch):
            tensors = [tf.constant(array[start : start + batch]) for array in arrays]
            parts.append([y.numpy() for y in function(*tensors)])
        return dict(zip(fetches, map(np.concatenate, zip(*parts, strict=True)), strict=True))


def _sorted(graph: Any) -> list[Any]:
    """Return the ops so that each comes after its inputs, which freezing does not promise."""
    placed: set[str] = set()
    order: list[Any] = []
    for op in graph.get_operations():
        stack = [op]
        while stack:
            waiting = [x.op for x in stack[-1].inputs if x.op.name not in placed]
            if waiting:
                stack += waiting
                continue
            last = stack.pop()
            if last.name not in placed:
                placed.add(last.name)
                order.append(last)
    return order


def _scoped(variable: str, op: str) -> str:
    """Return qmath's name of a variable: with the models around its layer, without wrappers."""
    layer, *rest = _unwrapped(variable.split("/"))
    scopes = op.split("/")
    for i, scope in enumerate(scopes):
        if scope in (layer, f"quant_{layer}"):
            # Before a layer stand calls of functions, the model, and the models inside it.
            around = [part for part in scopes[:i] if not part.startswith(_CALLS)]
            return "/".join([*around[1:], layer, *rest])
    return "/".join([layer, *rest])


_CALLS = ("StatefulPartitionedCall", "PartitionedCall", "Func", "inputs")


def _unwrapped(parts: list[str]) -> list[str]:
    layer, *rest = parts
    if layer.startswith("quant_"):
        layer = layer.removeprefix("quant_")
        rest = rest[1:] if rest[0] == layer else rest
    return [layer, *rest]


def _range_name(variable: str, op: str) -> str | None:
    """Return the name of the activation whose lower end a variable is."""
    layer, *rest = variable.split("/")
    leaf = rest[-1].removesuffix("_min") if rest else ""
    if leaf == layer:  # a QuantizeLayer's range bears the layer's name
        return _scoped(f"{layer}/output", op)
    return _scoped(f"{layer}/{leaf}", op) if leaf in _PLACES else None


def graph_of_model(model: Any) -> Graph:
    """Return the inference graph of a live Keras model, its variables named as qmath names them.

    Wrappers keep the tensors of the last call, here those of this graph: save a model before.
    """
    specs = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in model.inputs]

    def call(*tensors: Any) -> Any:
        return model(list(tensors) if len(tensors) > 1 else tensors[0], training=False)

    names: dict[int, str] = {}
    for path, layer in _leaves(model, ""):
        if hasattr(layer, "_weight_vars"):
            for weight, *_ in layer._weight_vars:
                inner = layer.layer.name
                parts = _unwrapped(weight.name.split(":")[0].split("/"))
                rest = parts[parts.index(inner) + 1 :] if inner in parts else parts[-1:]
                names[id(weight.handle)] = "/".join([f"{path}{inner}", *rest])
    return Graph(tf.function(call).get_concrete_function(*specs), names)


def _leaves(model: Any, path: str) -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        if isinstance(layer, tf.keras.Model):
            yield from _leaves(layer, f"{path}{layer.name}/")
        else:
            yield path, layer


def graph_of_saved_model(path: str | Path, signature: str = "serving_default") -> Graph:
    """Return the graph of a SavedModel's signature, loaded by TensorFlow and by no Keras class."""
    loaded = tf.saved_model.load(str(path))
    if signature not in loaded.signatures:
        raise DumpError(
            f"{path} has no signature {signature}; it holds "
            f"{', '.join(loaded.signatures) or 'none'}"
        )
    return Graph(loaded.signatures[signature], {})
