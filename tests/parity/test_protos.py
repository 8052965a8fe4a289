"""The table of messages against TensorFlow's and Keras's own descriptors."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
from google.protobuf import descriptor_pool

from qmath.containers import protos

for _module in (
    "tensorflow.core.protobuf.saved_model_pb2",  # brings all of a graph
    "tensorflow.core.protobuf.tensor_bundle_pb2",
    "tensorflow.core.protobuf.trackable_object_graph_pb2",
    "tf_keras.protobuf.saved_metadata_pb2",
):
    import_module(_module)

ENUM, INT32 = 14, 5
USE = "from qmath.containers import protos; protos.parse('NodeDef', b'', '')"
TENSORFLOW = "import tensorflow.core.protobuf.saved_model_pb2"


def their_name(message: str) -> str:
    """TensorFlow's full name of a message."""
    if message.startswith("keras."):
        return message.replace("keras.", "third_party.py.tf_keras.protobuf.")
    return f"tensorflow.{message}"


OURS = {protos._types()[name].DESCRIPTOR.full_name: their_name(name) for name in protos.MESSAGES}


def described(field: Any) -> tuple[Any, ...]:
    """What decides how a field is read; of a map, what decides it for keys and values."""
    kind = INT32 if field.type == ENUM else field.type
    message: Any = None
    if field.message_type is not None:
        message = OURS.get(field.message_type.full_name, field.message_type.full_name)
        if field.message_type.GetOptions().map_entry:
            message = [described(part) for part in field.message_type.fields]
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return field.number, field.name, kind, field.is_repeated, oneof, message


@pytest.mark.parametrize("message", protos.MESSAGES)
def test_fields_are_tensorflows(message: str) -> None:
    theirs = descriptor_pool.Default().FindMessageTypeByName(their_name(message))
    for field in protos._types()[message].DESCRIPTOR.fields:
        assert described(field) == described(theirs.fields_by_number[field.number])


@pytest.mark.slow
@pytest.mark.parametrize("code", [f"{USE}; {TENSORFLOW}", f"{TENSORFLOW}; {USE}"])
def test_tensorflow_can_be_imported_before_and_after(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
