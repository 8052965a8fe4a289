"""A SavedModel, trusted with nothing: its functions, its objects, and the variables beside them.

``saved_model.pb`` is read at once, as protobuf leaves no choice, so its size is bounded; variables
stay in their TensorFlow checkpoint until they are asked for. The graph is never run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from qmath.containers.protos import parse
from qmath.containers.source_files import open_source, stamp_of, unchanged
from qmath.containers.tensor_bundle import TensorBundle
from qmath.errors import FileFormatError

__all__ = ["SavedModel"]

# Eight times what Keras writes of MobileNetV2. Parsed, such a file takes four times the memory; one
# of empty messages, which are two bytes each, 30 times.
_MAX_GRAPH = 1 << 26
_MAX_METADATA = 1 << 26
_GRAPH = "saved_model.pb"
_COMPILED = "_XlaMustCompile"
_METADATA = "keras_metadata.pb"
_SERVE = "serve"


class SavedModel:
    """The output of ``tf.saved_model.save``, ``model.save(…, save_format="tf")``, ``.export()``.

    Parameters
    ----------
    path : str
        The directory, or its ``saved_model.pb``.

    Attributes
    ----------
    path : str
    directory : str
    objects : sequence of messages
        ``SavedObject`` of the object graph; the first is the object that was saved.
    functions : mapping of str to message
        ``FunctionDef`` of all functions, by name.
    bound : mapping of str to sequence of int
        For each function that was saved with an object, the objects of its last arguments.
    signatures : mapping of str to message
        ``SignatureDef`` by name.
    version : str
        The version of TensorFlow that wrote it.

    Raises
    ------
    FileFormatError
        The file is missing, damaged, too large, of TensorFlow 1, or without variables.
    MissingExtraError
        protobuf or google-crc32c is not installed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        is_file = os.path.isfile(path)
        self.directory = (os.path.dirname(path) or os.curdir) if is_file else path
        self._graph = path if is_file else os.path.join(path, _GRAPH)
        saved = parse("SavedModel", _read(self._graph, _MAX_GRAPH), self._graph)
        meta = _meta_graph(saved, self._graph)
        self.version: str = meta.meta_info_def.tensorflow_version
        self.objects = meta.object_graph_def.nodes
        self.bound = {
            name: function.bound_inputs
            for name, function in meta.object_graph_def.concrete_functions.items()
        }
        self.signatures: Mapping[str, Any] = dict(meta.signature_def.items())
        functions = meta.graph_def.library.function
        self.functions = {function.signature.name: function for function in functions}
        if len(self.functions) < len(functions):
            raise FileFormatError(
                f"{self._graph}: two of its functions have one name; the file is damaged"
            )

    @cached_property
    def compiled(self) -> list[str]:
        """The names of the functions that ``jit_compile=True`` marks."""
        return [
            name
            for name, function in self.functions.items()
            if _COMPILED in function.attr and function.attr[_COMPILED].b
        ]

    @cached_property
    def bundle(self) -> TensorBundle:
        """The variables.

        Raises
        ------
        FileFormatError
            There are none, or they are damaged.
        """
        prefix = os.path.join(self.directory, "variables", "variables")
        if not os.path.exists(f"{prefix}.index"):
            raise FileFormatError(
                f"{self.directory}: this SavedModel lies here without its variables "
                f"({prefix}.index): copy its whole directory. If it never had any, it is a frozen "
                "graph, which does not separate weights from other constants; save the Keras model"
            )
        return TensorBundle(prefix)

    @cached_property
    def metadata(self) -> Mapping[int, str]:
        """Keras's metadata of its objects, as JSON, by their numbers; empty if there are none.

        Keras since TensorFlow 2.5 writes it into a file beside, before that into the objects.
        """
        path = os.path.join(self.directory, _METADATA)
        if not os.path.exists(path):
            users = ((i, node.user_object) for i, node in enumerate(self.objects))
            return {i: user.metadata for i, user in users if user.metadata}
        saved = parse("keras.SavedMetadata", _read(path, _MAX_METADATA), path)
        return {node.node_id: node.metadata for node in saved.nodes}

    @property
    def files(self) -> list[str]:
        """The paths of the files that were read."""
        metadata = os.path.join(self.directory, _METADATA)
        beside = [metadata] if os.path.exists(metadata) else []
        return [self._graph, *beside, self.bundle.index, *self.bundle.shards]


def _meta_graph(saved: Any, path: str) -> Any:
    """Return the graph that serves: the only one, or the one with that tag alone."""
    if not saved.meta_graphs:
        raise FileFormatError(f"{path}: there is no graph in it; the file is damaged, copy it")
    tagged = [meta for meta in saved.meta_graphs if list(meta.meta_info_def.tags) == [_SERVE]]
    meta = tagged[0] if tagged else saved.meta_graphs[0]
    if not meta.object_graph_def.nodes:
        raise FileFormatError(
            f"{path}: this SavedModel has no object graph, so it was saved by TensorFlow 1, which "
            f"qmath does not read; load it in TensorFlow 2 and save the model again"
        )
    return meta


def _read(path: str, limit: int) -> bytes:
    try:
        with open_source(path) as file, unchanged(file, stamp_of(file), path):
            size = file.seek(0, os.SEEK_END)
            if size > limit:
                raise FileFormatError(
                    f"{path}: {size} bytes are more than the {limit} that qmath reads of a graph"
                )
            file.seek(0)
            return file.read(size)  # memory is taken for what read asks
    except OSError as error:
        raise FileFormatError(f"{path}: it cannot be read ({error.strerror})") from None
