"""Run ops with the kernels of any TensorFlow through its C API: ``python driver.py LIBRARY …``.

It needs nothing but the standard library, and runs under other Pythons and processors, too.
The libraries are loaded in this order. A line then says which version they are. Each call comes as
a line of JSON with ``op``, ``attributes`` and ``shapes``, and after it the float32 of its inputs;
its answer is a line with the number of bytes that follow, all outputs one after the other.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
from typing import Any

FLOAT = 1
POINTER = ctypes.c_void_p
TEXT = ctypes.c_char_p
INT64S = ctypes.POINTER(ctypes.c_int64)
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "TF_Version": (TEXT, []),
    "TF_NewStatus": (POINTER, []),
    "TF_GetCode": (ctypes.c_int, [POINTER]),
    "TF_Message": (TEXT, [POINTER]),
    "TF_AllocateTensor": (POINTER, [ctypes.c_int, INT64S, ctypes.c_int, ctypes.c_size_t]),
    "TF_TensorData": (POINTER, [POINTER]),
    "TF_TensorByteSize": (ctypes.c_size_t, [POINTER]),
    "TF_DeleteTensor": (None, [POINTER]),
    "TFE_NewContextOptions": (POINTER, []),
    "TFE_NewContext": (POINTER, [POINTER, POINTER]),
    "TFE_ContextOptionsSetConfig": (None, [POINTER, TEXT, ctypes.c_size_t, POINTER]),
    "TFE_NewOp": (POINTER, [POINTER, TEXT, POINTER]),
    "TFE_OpAddInput": (None, [POINTER, POINTER, POINTER]),
    "TFE_OpSetAttrInt": (None, [POINTER, TEXT, ctypes.c_int64]),
    "TFE_OpSetAttrBool": (None, [POINTER, TEXT, ctypes.c_ubyte]),
    "TFE_OpSetAttrFloat": (None, [POINTER, TEXT, ctypes.c_float]),
    "TFE_Execute": (
        None,
        [POINTER, ctypes.POINTER(POINTER), ctypes.POINTER(ctypes.c_int), POINTER],
    ),
    "TFE_NewTensorHandle": (POINTER, [POINTER, POINTER]),
    "TFE_TensorHandleResolve": (POINTER, [POINTER, POINTER]),
    "TFE_DeleteTensorHandle": (None, [POINTER]),
    "TFE_DeleteOp": (None, [POINTER]),
}
ONE_THREAD = b"\x10\x01"  # a ConfigProto: intra_op_parallelism_threads is its field 2


class TensorFlow:
    """The C API of one build, and an eager context with one intra-op thread."""

    def __init__(self, libraries: list[str]) -> None:
        for path in libraries:
            self.api = ctypes.CDLL(path, mode=os.RTLD_LAZY | os.RTLD_GLOBAL)
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(self.api, name)
            function.restype, function.argtypes = result, arguments
        self.status = self.api.TF_NewStatus()
        options = self.api.TFE_NewContextOptions()
        self.api.TFE_ContextOptionsSetConfig(options, ONE_THREAD, len(ONE_THREAD), self.status)
        self.context = self.checked(self.api.TFE_NewContext(options, self.status))

    def checked(self, result: Any = None) -> Any:
        """Return what a function returned, if the status says that all is well."""
        if self.api.TF_GetCode(self.status):
            raise RuntimeError(self.api.TF_Message(self.status).decode())
        return result

    def handle(self, data: bytes, shape: list[int]) -> Any:
        """Return the handle of a float32 tensor."""
        dims = (ctypes.c_int64 * max(1, len(shape)))(*shape)
        tensor = self.api.TF_AllocateTensor(FLOAT, dims, len(shape), len(data))
        ctypes.memmove(self.api.TF_TensorData(tensor), data, len(data))
        found = self.checked(self.api.TFE_NewTensorHandle(tensor, self.status))
        self.api.TF_DeleteTensor(tensor)
        return found

    def run(self, op: str, inputs: list[Any], attributes: dict[str, Any]) -> list[bytes]:
        """Return the outputs of an op."""
        api = self.api
        made = self.checked(api.TFE_NewOp(self.context, op.encode(), self.status))
        for tensor in inputs:
            api.TFE_OpAddInput(made, tensor, self.status)
            self.checked()
        setters = {
            bool: api.TFE_OpSetAttrBool,
            int: api.TFE_OpSetAttrInt,
            float: api.TFE_OpSetAttrFloat,
        }
        for name, value in attributes.items():
            setters[type(value)](made, name.encode(), value)
        outputs, count = (POINTER * 4)(), ctypes.c_int(4)
        api.TFE_Execute(made, outputs, ctypes.byref(count), self.status)
        self.checked()
        api.TFE_DeleteOp(made)
        return [self.taken(outputs[place]) for place in range(count.value)]

    def taken(self, handle: Any) -> bytes:
        """Return the bytes of a tensor, and free it."""
        tensor = self.checked(self.api.TFE_TensorHandleResolve(handle, self.status))
        size = self.api.TF_TensorByteSize(tensor)
        data = ctypes.string_at(self.api.TF_TensorData(tensor), size)
        self.api.TF_DeleteTensor(tensor)
        self.api.TFE_DeleteTensorHandle(handle)
        return data


def main(libraries: list[str]) -> None:
    """Answer calls until there are no more."""
    tensorflow = TensorFlow(libraries)
    calls, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(tensorflow.api.TF_Version() + b"\n")
    answers.flush()
    for line in calls:
        call = json.loads(line)
        handles = [
            tensorflow.handle(calls.read(4 * math.prod(shape)), shape) for shape in call["shapes"]
        ]
        outputs = b"".join(tensorflow.run(call["op"], handles, call["attributes"]))
        for handle in handles:
            tensorflow.api.TFE_DeleteTensorHandle(handle)
        answers.write(b"%d\n" % len(outputs))
        answers.write(outputs)
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
