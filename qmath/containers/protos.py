"""TensorFlow's protobuf messages, without TensorFlow: only the fields that qmath reads.

The descriptors are built from a table in a pool of their own. Generated modules would register
TensorFlow's file names in the default pool, and a later ``import tensorflow`` would fail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from qmath.errors import FileFormatError, MissingExtraError

__all__ = ["MESSAGES", "parse", "parse_text"]

# TensorFlow's name (nested ones after a dot; Keras's own after "keras.") → {number: field}, in
# the words of a .proto file, with "in X" for a member of "oneof X". Enumerations are int32, which
# is what they are on the wire.
MESSAGES: Mapping[str, Mapping[int, str]] = {
    # tensor_bundle.proto, tensor_shape.proto, tensor_slice.proto, versions.proto
    "BundleHeaderProto": {
        1: "int32 num_shards",
        2: "int32 endianness",
        3: "VersionDef version",
    },
    "BundleEntryProto": {
        1: "int32 dtype",
        2: "TensorShapeProto shape",
        3: "int32 shard_id",
        4: "int64 offset",
        5: "int64 size",
        6: "fixed32 crc32c",
        7: "repeated TensorSliceProto slices",
    },
    "TensorShapeProto": {2: "repeated TensorShapeProto.Dim dim", 3: "bool unknown_rank"},
    "TensorShapeProto.Dim": {1: "int64 size", 2: "string name"},
    "TensorSliceProto": {1: "repeated TensorSliceProto.Extent extent"},
    "TensorSliceProto.Extent": {1: "int64 start", 2: "int64 length in has_length_hack"},
    "VersionDef": {1: "int32 producer", 2: "int32 min_consumer", 3: "repeated int32 bad_consumers"},
    # checkpoint_state.proto, in text form in the file "checkpoint"
    "CheckpointState": {
        1: "string model_checkpoint_path",
        2: "repeated string all_model_checkpoint_paths",
        3: "repeated double all_model_checkpoint_timestamps",
        4: "double last_preserved_timestamp",
    },
    # trackable_object_graph.proto
    "TrackableObjectGraph": {1: "repeated TrackableObjectGraph.TrackableObject nodes"},
    "TrackableObjectGraph.TrackableObject": {
        1: "repeated TrackableObjectGraph.TrackableObject.ObjectReference children",
        2: "repeated TrackableObjectGraph.TrackableObject.SerializedTensor attributes",
        3: "repeated TrackableObjectGraph.TrackableObject.SlotVariableReference slot_variables",
    },
    "TrackableObjectGraph.TrackableObject.ObjectReference": {
        1: "int32 node_id",
        2: "string local_name",
    },
    "TrackableObjectGraph.TrackableObject.SerializedTensor": {
        1: "string name",
        2: "string full_name",
        3: "string checkpoint_key",
    },
    "TrackableObjectGraph.TrackableObject.SlotVariableReference": {
        1: "int32 original_variable_node_id",
        2: "string slot_name",
        3: "int32 slot_variable_node_id",
    },
    # saved_model.proto, meta_graph.proto
    "SavedModel": {1: "int64 saved_model_schema_version", 2: "repeated MetaGraphDef meta_graphs"},
    "MetaGraphDef": {
        1: "MetaGraphDef.MetaInfoDef meta_info_def",
        2: "GraphDef graph_def",
        5: "map<string, SignatureDef> signature_def",
        7: "SavedObjectGraph object_graph_def",
    },
    "MetaGraphDef.MetaInfoDef": {
        4: "repeated string tags",
        5: "string tensorflow_version",
        7: "bool stripped_default_attrs",
    },
    "SignatureDef": {
        1: "map<string, TensorInfo> inputs",
        2: "map<string, TensorInfo> outputs",
        3: "string method_name",
    },
    "TensorInfo": {
        1: "string name in encoding",
        2: "int32 dtype",
        3: "TensorShapeProto tensor_shape",
    },
    # graph.proto, function.proto, op_def.proto, node_def.proto, attr_value.proto, tensor.proto
    "GraphDef": {
        1: "repeated NodeDef node",
        2: "FunctionDefLibrary library",
        4: "VersionDef versions",
    },
    "FunctionDefLibrary": {1: "repeated FunctionDef function"},
    "FunctionDef": {
        1: "OpDef signature",
        3: "repeated NodeDef node_def",
        4: "map<string, string> ret",
        5: "map<string, AttrValue> attr",
    },
    "OpDef": {
        1: "string name",
        2: "repeated OpDef.ArgDef input_arg",
        3: "repeated OpDef.ArgDef output_arg",
    },
    "OpDef.ArgDef": {1: "string name", 3: "int32 type"},
    "NodeDef": {
        1: "string name",
        2: "string op",
        3: "repeated string input",
        5: "map<string, AttrValue> attr",
    },
    "AttrValue": {
        1: "AttrValue.ListValue list in value",
        2: "bytes s in value",
        3: "int64 i in value",
        4: "float f in value",
        5: "bool b in value",
        6: "int32 type in value",
        7: "TensorShapeProto shape in value",
        8: "TensorProto tensor in value",
        10: "NameAttrList func in value",
    },
    "AttrValue.ListValue": {
        2: "repeated bytes s",
        3: "repeated int64 i",
        4: "repeated float f",
        5: "repeated bool b",
        6: "repeated int32 type",
        7: "repeated TensorShapeProto shape",
        9: "repeated NameAttrList func",
    },
    "NameAttrList": {1: "string name", 2: "map<string, AttrValue> attr"},
    "TensorProto": {
        1: "int32 dtype",
        2: "TensorShapeProto tensor_shape",
        4: "bytes tensor_content",
        5: "repeated float float_val",
        6: "repeated double double_val",
        7: "repeated int32 int_val",
        8: "repeated bytes string_val",
        10: "repeated int64 int64_val",
        11: "repeated bool bool_val",
    },
    # saved_object_graph.proto
    "SavedObjectGraph": {
        1: "repeated SavedObject nodes",
        2: "map<string, SavedConcreteFunction> concrete_functions",
    },
    "SavedObject": {
        1: "repeated TrackableObjectGraph.TrackableObject.ObjectReference children",
        4: "SavedUserObject user_object in kind",
        6: "SavedFunction function in kind",
        7: "SavedVariable variable in kind",
        8: "SavedBareConcreteFunction bare_concrete_function in kind",
        9: "SavedConstant constant in kind",
    },
    "SavedUserObject": {1: "string identifier", 2: "VersionDef version", 3: "string metadata"},
    "SavedFunction": {1: "repeated string concrete_functions"},
    "SavedVariable": {
        1: "int32 dtype",
        2: "TensorShapeProto shape",
        3: "bool trainable",
        6: "string name",
    },
    "SavedBareConcreteFunction": {
        1: "string concrete_function_name",
        2: "repeated string argument_keywords",
        3: "int64 allowed_positional_arguments",
    },
    "SavedConstant": {1: "string operation"},
    "SavedConcreteFunction": {2: "repeated int32 bound_inputs"},
    # Keras's saved_metadata.proto, of keras_metadata.pb
    "keras.SavedMetadata": {1: "repeated keras.SavedObject nodes"},
    "keras.SavedObject": {
        2: "int32 node_id",
        3: "string node_path",
        4: "string identifier",
        5: "string metadata",
    },
}

_FIELD = re.compile(
    r"(?:(?P<repeated>repeated) |map<(?P<key>\w+), )?(?P<type>[\w.]+)>? (?P<name>\w+)"
    r"(?: in (?P<oneof>\w+))?"
)
_PACKAGE = "qmath"


def parse(message: str, data: bytes, where: str) -> Any:
    r"""Return the message that some bytes hold.

    Parameters
    ----------
    message : str
        A key of `MESSAGES`. Fields that are not declared there are skipped.
    data : bytes
        Of any size: a caller bounds it, as the objects may take 30 times its memory, and more.
    where : str
        File and place, for the error message.

    Raises
    ------
    FileFormatError
        The bytes are not such a message, hold text that is not UTF-8, or nest too deeply.
    MissingExtraError
        protobuf is not installed.

    Examples
    --------
    >>> parse("TensorShapeProto", b"\x12\x02\x08\x03", "an example").dim[0].size
    3
    """
    types = _types_for(where)
    try:
        return types[message].FromString(data)
    # protobuf's DecodeError is not a ValueError; its pure-Python parser also raises others.
    except Exception as error:
        raise _damage(message, error, where) from None


def parse_text(message: str, text: str, where: str) -> Any:
    """Return the message that a text in protobuf's text format holds.

    Parameters, errors
    ------------------
    As `parse`; undeclared fields are an error.

    Examples
    --------
    >>> parse_text("SavedConstant", 'operation: "x"', "an example").operation
    'x'
    """
    types = _types_for(where)
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, types[message]())
    except Exception as error:
        raise _damage(message, error, where) from None


def _types_for(where: str) -> dict[str, Any]:
    try:
        return _types()
    except ImportError:
        raise MissingExtraError(
            f"{where}: reading it needs protobuf; install it with "
            f"pip install 'qmath-tfmot[checkpoints]'"
        ) from None


def _damage(message: str, error: Exception, where: str) -> FileFormatError:
    said = "".join(c for c in " ".join(str(error).split()) if c.isprintable())
    reason = said[:200] or type(error).__name__
    return FileFormatError(
        f"{where}: this is no {message.rpartition('.')[2]} that TensorFlow wrote ({reason}); "
        f"the file is damaged, copy it or save the model again"
    )


@cache
def _types() -> dict[str, Any]:
    """Return the message classes, built once."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="qmath/protos.proto", package=_PACKAGE, syntax="proto3"
    )
    for message, fields in MESSAGES.items():
        _describe(file.message_type.add(name=_flat(message)), fields)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        message: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{_PACKAGE}.{_flat(message)}")
        )
        for message in MESSAGES
    }


def _describe(described: Any, fields: Mapping[int, str]) -> None:
    """Fill in a ``DescriptorProto``."""
    oneofs: list[str] = []
    for number, text in fields.items():
        parts = _FIELD.fullmatch(text)
        assert parts is not None, text
        field = described.field.add(name=parts["name"], number=number)
        field.label = 3 if parts["repeated"] or parts["key"] else 1
        if parts["key"]:
            name = "".join(map(str.capitalize, parts["name"].split("_"))) + "Entry"
            entry = described.nested_type.add(name=name)
            entry.options.map_entry = True
            _describe(entry, {1: f"{parts['key']} key", 2: f"{parts['type']} value"})
            field.type, field.type_name = 11, f".{_PACKAGE}.{described.name}.{name}"
        elif parts["type"] in _SCALARS:
            field.type = _SCALARS[parts["type"]]
        else:
            field.type, field.type_name = 11, f".{_PACKAGE}.{_flat(parts['type'])}"
        if parts["oneof"]:
            if parts["oneof"] not in oneofs:
                oneofs.append(parts["oneof"])
                described.oneof_decl.add(name=parts["oneof"])
            field.oneof_index = oneofs.index(parts["oneof"])


# FieldDescriptorProto.Type; 11 is a message.
_SCALARS = {
    "double": 1,
    "float": 2,
    "int64": 3,
    "int32": 5,
    "fixed32": 7,
    "bool": 8,
    "string": 9,
    "bytes": 12,
}


def _flat(message: str) -> str:
    return message.replace(".", "_")
