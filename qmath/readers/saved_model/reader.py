"""SavedModels → a `Reading`: what a checkpoint tells, and what the graph runs.

The variables lie in a checkpoint, whose object graph is that of the SavedModel: walked side by
side, the two tell which variable a fake-quant op reads. Width, narrowness, axis and, where
training functions were saved, the kind of every quantizer are those of the ops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qmath.containers.bounded_json import parse_json
from qmath.containers.lazy_array import LazyArray
from qmath.containers.saved_model import SavedModel
from qmath.errors import FileFormatError
from qmath.readers import notes as words
from qmath.readers.architecture.config import is_model
from qmath.readers.architecture.graph import NotAGraphError
from qmath.readers.architecture.parsing import Architecture, read_architecture
from qmath.readers.completion import complete, notes_on
from qmath.readers.records import ModelFile, Reading, StoredLayer, StoredTensor
from qmath.readers.saved_model.assignment import Assignment
from qmath.readers.saved_model.evaluation import Evaluator, NotEvaluatedError
from qmath.readers.saved_model.fake_quants import find_updates
from qmath.readers.saved_model.functions import Frame, FunctionGraph
from qmath.readers.saved_model.inference import find_inference
from qmath.readers.saved_model.placement import Places
from qmath.readers.saved_model.rebuilding.rebuild import rebuild
from qmath.readers.saved_model.scopes import (
    exported_layers,
    inference_frames,
    read_scopes,
    renamed,
    serving,
)
from qmath.readers.settings.tfmot import class_names
from qmath.readers.tensorflow.checkpoint import paired_layers
from qmath.readers.tensorflow.object_graph import ObjectGraph, read_object_graph

__all__ = ["read"]


def read(file: ModelFile) -> Reading:
    """Read a SavedModel.

    ``model.save(…, save_format="tf")`` keeps the config, so that names and layers are those of
    the ``.h5``; ``tf.saved_model.save`` and ``model.export`` keep variables and functions, whose
    scopes give names, and whose ops tell the layers, unless an architecture is given, of a
    Sequential or Functional model.

    Raises
    ------
    FileFormatError
        The file is damaged, hostile, of TensorFlow 1, or without variables; or the architecture is
        of another model.
    QmathError
        An architecture is given for a file that holds its own.
    MissingExtraError
        protobuf or google-crc32c is not installed.

    Notes
    -----
    More than any other file, it tells what runs: nothing about widths is left to ask, whatever
    ``get_config`` of the quantizers returned.
    """
    saved = SavedModel(file.path)
    where = saved.directory
    objects = read_object_graph(saved.bundle, is_saved_model=True)
    known = _architecture(saved, where)
    if known is not None:
        file.refuse_architecture()
    elif file.architecture is not None:
        known = file.architecture
        where = known.where(where)
    layers = paired_layers(saved.bundle, objects, known.config if known else None, where)
    graph = FunctionGraph(saved, where)
    keys = _keys(saved, objects, where)
    frames = inference_frames(saved, graph)
    found = find_inference(graph, frames, where)
    served = serving(saved, graph) if known is None else None
    if known is None:
        scopes = read_scopes(graph, served[1]) if served else {}
        by_key = {keys[number]: paths for number, paths in scopes.items() if number in keys}
        if layers:
            layers = renamed(layers, by_key)
        else:
            layers = exported_layers(saved.bundle, objects, by_key, found, keys)
    assignment = Assignment(
        found,
        find_updates(graph, saved.bound),
        keys,
        Evaluator(graph, _reader(saved, keys), where),
        where,
    )
    if frames:
        layers = assignment.layers(layers, Places(known.layers if known else ()))
    tensors = complete(layers, where)
    notes = [] if known else [words.NO_CONFIG]
    # The graph shows where a quantizer acts that keeps no variables.
    unplaced = {words.fixed_unplaced(name) for layer in layers for name in class_names(layer.facts)}
    notes += [note for note in notes_on(layers, tensors) if not frames or note not in unplaced]
    notes += assignment.notes
    notes += words.compiled_functions(saved.compiled, file.build)
    if known is None:
        variables = _by_source(layers, keys, assignment.by_op)
        known = _rebuilt(saved, graph, served, variables)
    files = file.files(saved.files, saved.directory)
    return Reading(tuple(tensors), known, files, tuple(notes))


def _rebuilt(
    saved: SavedModel,
    graph: FunctionGraph,
    served: tuple[str, Frame] | None,
    variables: Mapping[object, StoredTensor],
) -> Architecture:
    """Return the layers that what serves runs, as far as they are known."""
    if served is None:
        return Architecture(notes=(words.no_graph("the file has no function that serves"),))
    signature, frame = served
    try:
        layers = rebuild(graph, frame, saved.signatures.get(signature), variables)
    except NotAGraphError as error:
        return Architecture(notes=(words.no_graph(str(error)),))
    return Architecture(graph=layers)


def _by_source(
    layers: Sequence[StoredLayer], keys: Mapping[int | None, str], by_op: Mapping[object, str]
) -> dict[object, StoredTensor]:
    """Return tensors by what makes them.

    That is the number of the variable of their values, or of their lower end; or the op.
    """
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    by_key = {
        _key(tensor.min if tensor.values is None else tensor.values): tensor for tensor in tensors
    }
    by_name = {tensor.name: tensor for tensor in tensors}
    found: dict[object, StoredTensor] = {
        number: by_key[key] for number, key in keys.items() if key and key in by_key
    }
    return found | {op: by_name[name] for op, name in by_op.items() if name in by_name}


def _reader(saved: SavedModel, keys: Mapping[int | None, str]) -> Callable[[int], LazyArray]:
    """Return what reads a variable, by its number."""

    def read(number: int) -> LazyArray:
        if number not in keys:
            raise NotEvaluatedError("a variable that is not in the file")
        return saved.bundle.array(keys[number])

    return read


def _architecture(saved: SavedModel, where: str) -> Architecture | None:
    """Return what Keras says of the model, ``None`` if nothing or if it was subclassed."""
    text = saved.metadata.get(0)
    if not text:
        return None
    metadata = parse_json(text, f"{where}: Keras's metadata")
    config = _plain(metadata)
    return read_architecture(config, where) if is_model(config) else None


def _plain(value: Any) -> Any:
    """Return JSON as ``.h5`` files hold it: lists for tuples, no numbers of shared objects.

    `parse_json` has bounded the depth.
    """
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__tuple__" and isinstance(value.get("items"), list):
        return _plain(value["items"])
    return {key: _plain(item) for key, item in value.items() if key != "shared_object_id"}


def _keys(saved: SavedModel, objects: ObjectGraph, where: str) -> dict[int | None, str]:
    """Return the keys in the checkpoint of the variables among the saved objects.

    Both graphs are walked side by side, from what was saved, by the names of attributes.
    """
    twins = {0: 0}
    stack = [0]
    while stack:
        number = stack.pop()
        if not 0 <= number < len(saved.objects):
            raise FileFormatError(f"{where}: an object refers to one that is not there")
        there = objects[twins[number]].children
        for child in saved.objects[number].children:
            objects.spend("")
            twin = there.get(child.local_name)
            if twin is None:
                continue
            if child.node_id not in twins:
                twins[child.node_id] = twin
                stack.append(child.node_id)
            elif twins[child.node_id] != twin:
                raise FileFormatError(
                    f"{where}: the objects of its graph are not those of its variables; files of "
                    f"two models were mixed, copy the directory again"
                )
    return {number: objects[twin].key for number, twin in twins.items() if objects[twin].key}


def _key(values: Any) -> str:
    return values.path if isinstance(values, LazyArray) else ""
