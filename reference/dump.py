"""Write what TensorFlow computes: ``python -m reference.dump MODEL [DATA] -o FORWARD.npz``.

MODEL is a quantized Keras model, .h5, or the directory of a SavedModel; a .keras file only if Keras
can load it, which fails with TFMOT's QuantizeLayer. DATA is what ``qmath run`` takes, .npz or .npy;
without it, only the kernels are written. All arrays are float32, under the names that qmath gives
its tensors and steps:

``kernels/<layer path>/<weight>``
    Each weight as the ops of the forward pass read it, fake-quantized or not, in the axis order
    of its variable: ``kernels/conv1/kernel``. See `reference.forward`.
``<layer path>/pre_activation``, ``…/post_activation``, ``…/output``
    Each fake-quantized activation: ``conv1/post_activation``, ``relu6/output``,
    ``quantize_layer/output``. Layers of models inside models stand under their path,
    ``block/conv1/…``; further calls of a shared layer have their number, ``conv1#1/…``.
``outputs/0``, ``outputs/1``, …
    The model's own outputs, of a SavedModel in the order of its signature.

A live model runs eagerly, layer by layer, in inference mode, and each activation is what its
quantizer returned. A SavedModel runs as the graph that it is; there, activations are what an op
fake-quantizes by a stored range.
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

from qmath.containers.array_file import read_arrays
from reference import oracle, samples  # before TensorFlow: it sets the environment
from reference.forward import DumpError, graph_of_model, graph_of_saved_model

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)

__all__ = ["DumpError", "dump", "forward", "inputs_of", "kernels", "load"]

Arrays = dict[str, NDArray[np.float32]]
Record = Callable[[str, Any], None]


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


def kernels(model: Any) -> Arrays:
    """Return the weights that the ops of a live model read, by qmath's names."""
    _check_graph(model, model.name)
    return graph_of_model(model).kernels()


def forward(
    path: str | Path, data: Mapping[str, NDArray[Any]] | None = None, batch: int = 32,
    modules: Sequence[str] = (),
) -> Arrays:  # fmt: skip
    """Return all that a FORWARD.npz holds of a saved model.

    Parameters
    ----------
    path : str or path
        What Keras loads, or the directory of a SavedModel.
    data : mapping of str to ndarray, optional
        Arrays of which some are the inputs; without them, kernels alone are returned.
    batch, modules
        As of `dump` and `load`.
    """
    if Path(path).is_dir():
        graph = graph_of_saved_model(path)
        found, arrays = graph.kernels(), {}
        if data is not None:
            arrays = graph.run(_chosen(graph.inputs, data), batch)
    else:
        model = load(path, modules)
        found, arrays = kernels(model), {}
        if data is not None:
            arrays = dump(model, inputs_of(model, data), batch)
    return {f"kernels/{name}": array for name, array in found.items()} | arrays


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
    return _chosen(dict(zip(model.input_names, (x.shape for x in model.inputs), strict=True)), data)


def _chosen(inputs: Mapping[str, Any], data: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    if all(name in data for name in inputs):
        return {name: data[name] for name in inputs}
    (name, shape), *others = inputs.items()
    # A size that the model leaves open fits any.
    fitting = [key for key, array in data.items() if shape[1:].is_compatible_with(array.shape[1:])]
    if others or len(fitting) != 1:
        held = ", ".join(f"{key or 'an array'} {array.shape}" for key, array in data.items())
        raise DumpError(
            f"the model's inputs are {list(inputs)}, the data holds {held}; name the arrays "
            "after the inputs"
        )
    return {name: data[fitting[0]]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Dump the model that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.dump", description="Write what a forward pass reads and makes."
    )
    parser.add_argument("model", help="a quantized model, .h5 or SavedModel")
    parser.add_argument("data", nargs="?", type=Path, help=".npz or .npy; default: kernels alone")
    parser.add_argument("-o", "--output", required=True, metavar="FORWARD.npz")
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
    try:
        data = read_arrays(options.data) if options.data else None
        arrays = forward(options.model, data, options.batch, options.modules)
    except (ValueError, OSError) as error:  # of this module, of qmath, and of Keras as it loads
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
