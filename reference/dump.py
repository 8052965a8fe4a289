"""Write what TensorFlow computes: ``python -m reference.dump MODEL.h5 DATA.npz -o DUMP.npz``.

Every fake-quantized activation of a quantized Keras model, as float32, under the names that qmath
gives its steps: ``conv1/post_activation``, ``relu6/output``, ``quantize_layer/output``; layers of
models inside models under their path, ``block/conv1/…``; further calls of a shared layer with
their number, ``conv1#1/…``. The model's own outputs are ``outputs/0``, ``outputs/1`` and so on.
The layers run eagerly, one after the other, in inference mode.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference import oracle, samples  # before TensorFlow: it sets the environment

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)

__all__ = ["DumpError", "dump", "inputs_of", "load"]

Arrays = dict[str, NDArray[np.float32]]
Record = Callable[[str, Any], None]


class DumpError(ValueError):
    """The model or the data cannot be dumped; the message says why."""


def dump(model: Any, inputs: ArrayLike | Mapping[str, ArrayLike], batch: int = 32) -> Arrays:
    """Run a model and return its fake-quantized activations and its outputs.

    Parameters
    ----------
    model : tf_keras.Model
        Sequential or Functional.
    inputs : array-like or mapping of str to array-like
        Data of the input, or of each input by its layer's name.
    batch : int, optional
        How many examples run at a time. It changes no result.

    Returns
    -------
    dict of str to ndarray of float32
    """
    _check_graph(model, model.name)
    if not isinstance(inputs, Mapping):
        inputs = dict.fromkeys(model.input_names, inputs)
    arrays = [np.asarray(inputs[name], np.float32) for name in model.input_names]
    parts: dict[str, list[NDArray[np.float32]]] = {}

    def record(name: str, tensor: Any) -> None:
        parts.setdefault(name, []).append(tensor.numpy())

    for start in range(0, len(arrays[0]), batch):
        tensors = [tf.constant(array[start : start + batch]) for array in arrays]
        outputs = _run(model, tensors, "", 0, record)
        for i, tensor in enumerate(outputs):
            record(f"outputs/{i}", tensor)
    return {name: np.concatenate(part) for name, part in parts.items()}


def _check_graph(model: Any, name: str) -> None:
    if not getattr(model, "_is_graph_network", False):
        raise DumpError(
            f"{name} is no Sequential or Functional model: its layers have no graph, "
            "so their calls have no names"
        )


def _run(model: Any, inputs: Sequence[Any], path: str, call: int, record: Record) -> list[Any]:
    """Run a graph of layers as Keras does, telling `record` what is quantized where.

    Keras's own `Functional` runs its nodes in this order too, but does not tell a layer which of
    its calls it is.
    """
    # Keras keeps a tensor once for each use of it.
    uses = model._tensor_usage_count
    made = {str(id(x)): [y] * uses[str(id(x))] for x, y in zip(model.inputs, inputs, strict=True)}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = node.map_arguments(made)
            layer = node.layer
            calls = _calls(model, layer)
            number = call * len(calls) + calls.index(node)
            if isinstance(layer, tf.keras.Model):
                _check_graph(layer, f"{path}{layer.name}")
                feeds = tf.nest.flatten(args[0])
                outputs = _run(layer, feeds, f"{path}{layer.name}/", number, record)
            else:
                outputs = tf.nest.flatten(_call(layer, args, kwargs, path, number, record))
            for key, tensor in zip(node.flat_output_ids, outputs, strict=True):
                made[key] = [tensor] * uses[key]
    return [made[str(id(x))].pop() for x in model.outputs]


def _calls(model: Any, layer: Any) -> list[Any]:
    """Return the calls of a layer that belong to a model, in the order of its saved config."""
    inside = {id(node) for nodes in model._nodes_by_depth.values() for node in nodes}
    return [node for node in layer._inbound_nodes if id(node) in inside]


def _call(layer: Any, args: Any, kwargs: Any, path: str, number: int, record: Record) -> Any:
    """Call a layer that is no model."""
    inner = layer.layer if hasattr(layer, "quantize_config") else layer
    name = f"{path}{inner.name}" + (f"#{number}" if number else "")
    with ExitStack() as stack:
        for activation in getattr(layer, "_quantize_activations", ()):
            stack.enter_context(_recorded(activation, name, record))
        outputs = layer(*args, **kwargs)
    # What these quantizers return is what the layer returns.
    if isinstance(layer, QuantizeLayer):
        quantizers = [layer.quantizer] if layer.quantizer else []
    else:
        quantizers = getattr(layer, "_output_quantizers", None) or []
    if any(_quantizes(quantizer) for quantizer in quantizers):
        record(f"{name}/output", outputs)
    return outputs


@contextmanager
def _recorded(activation: Any, name: str, record: Record) -> Iterator[None]:
    """Record what one activation's quantizer returns, before and after the function itself."""
    quantizer = activation.quantizer
    places = [
        place
        for place in ("pre_activation", "post_activation")
        if hasattr(activation, f"_{place}_vars")
    ]

    def recording(x: Any, training: Any, weights: Any) -> Any:
        if not places:
            raise DumpError(
                f"{name} calls its activation more than once, so the calls have no "
                "names; a layer that calls it once can be dumped"
            )
        y = quantizer(x, training, weights=weights)
        place = places.pop(0)
        if _quantizes(quantizer):
            record(f"{name}/{place}", y)
        return y

    activation.quantizer = recording
    try:
        yield
    finally:
        activation.quantizer = quantizer


def _quantizes(quantizer: Any) -> bool:
    return not isinstance(quantizer, oracle.quantizers.NoQuantizer)


def load(path: str | Path, modules: Sequence[str] = ()) -> Any:
    """Load a quantized model that Keras saved.

    Parameters
    ----------
    path : str or path
    modules : sequence of str, optional
        Modules to import: the classes in them are known to Keras while it loads.
    """
    objects: dict[str, Any] = samples.custom_objects()
    for module in modules:
        objects |= {
            name: value
            for name, value in vars(importlib.import_module(module)).items()
            if isinstance(value, type)
        }
    with tfmot.quantization.keras.quantize_scope(objects):
        return tf.keras.models.load_model(path, compile=False)


def inputs_of(model: Any, data: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Pick a model's inputs: the arrays of their names, or the only one of the input's shape."""
    _check_graph(model, model.name)
    names = model.input_names
    if all(name in data for name in names):
        return {name: data[name] for name in names}
    shape = tuple(model.inputs[0].shape[1:])
    fitting = [name for name, array in data.items() if array.shape[1:] == shape]
    if len(names) > 1 or len(fitting) != 1:
        held = ", ".join(f"{name} {array.shape}" for name, array in data.items())
        raise DumpError(
            f"the model's inputs are {names}, the data holds {held}; name the arrays "
            "after the inputs"
        )
    return {names[0]: data[fitting[0]]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Dump the model that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.dump", description="Write a model's fake-quantized activations."
    )
    parser.add_argument("model", help="a quantized Keras model, .h5")
    parser.add_argument("data", help=".npz with an array for each input")
    parser.add_argument("-o", "--output", required=True, metavar="DUMP.npz")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="examples at a time")
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="modules",
        metavar="MODULE",
        help="a module with the model's own classes; may be repeated",
    )
    options = parser.parse_args(arguments)
    model = load(options.model, options.modules)
    try:
        with np.load(options.data) as data:
            arrays = dump(model, inputs_of(model, dict(data)), options.batch)
    except DumpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    np.savez(options.output, **arrays)
    print(
        f"{options.output}: {len(arrays)} tensors, "
        f"{sum(array.size for array in arrays.values()):,} elements"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
