"""Others' kernels at the end of a pipe: TensorFlow's fake_quant, TFLite's interpreter.

``qmath vectors OP --binary | python -m reference.pipe | qmath diff --op OP`` answers with

- TensorFlow's own op, of fake_quant;
- TFLite's interpreter, of layers of 8 signed bits under the profiles ``tflite`` (its reference
  kernels), ``xnnpack`` (what it runs by default), ``litert`` (without a delegate) and ``tflm``
  (that for microcontrollers): each layer becomes a file of one operation. ``reference``,
  ``default``, ``optimized`` or ``micro`` as an argument takes one of them whatever the profile.

The reader of the stream is of this file's own, from ``docs/testing.md`` alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from reference.tflite import _interpreter, packed

__all__ = ["answer"]

Array = NDArray[Any]
_OPERATORS = {
    "conv": "CONV_2D",
    "depthwise": "DEPTHWISE_CONV_2D",
    "dense": "FULLY_CONNECTED",
    "add": "ADD",
    "average_pool": "AVERAGE_POOL_2D",
    "max_pool": "MAX_POOL_2D",
}
_OPTIONS = {
    "conv": "Conv2DOptions",
    "depthwise": "DepthwiseConv2DOptions",
    "dense": "FullyConnectedOptions",
    "add": "AddOptions",
    "average_pool": "Pool2DOptions",
    "max_pool": "Pool2DOptions",
}
_RESOLVERS: Mapping[str, Any] = {
    "tflite": "reference", "xnnpack": "default", "litert": "optimized", "tflm": "micro",
}  # fmt: skip


def answer(stream: bytes, resolver: str | None = None) -> bytes:
    """Return a stream of cases with the results after them.

    Parameters
    ----------
    stream : bytes
        In the binary form.
    resolver : {"reference", "default", "optimized", "micro"}, optional
        TFLite's kernels; default: those that the cases' profile mirrors.
    """
    head, _, body = stream.partition(b"\n")
    words = dict(word.partition("=")[::2] for word in head.decode().split())
    case, result = (_dtype(words[key]) for key in ("case", "result"))
    cases = np.frombuffer(body, case)
    out = np.empty(len(cases), np.dtype([*case.descr, *result.descr]))
    for name in case.names or ():
        out[name] = cases[name]
    (name,) = result.names or ()
    if words["op"] == "fake_quant":
        out[name] = _fake_quant(cases, words["function"])
    else:
        for start, stop in _layers(cases):
            chosen = resolver or _RESOLVERS[words.get("profile", "tflite")]
            out[name][start:stop] = _layer(cases[start:stop], words, result[name].shape, chosen)
    return head + b"\n" + out.tobytes()


def _dtype(fields: str) -> np.dtype[Any]:
    found = []
    for field in fields.split(";"):
        name, kind, bits, lengths = re.fullmatch(r"(\w+):(\w)(\d+)(?:\[(.*)\])?", field).groups()
        shape = tuple(int(length) for length in (lengths or "").split(",") if length)
        found.append((name, f"<{kind}{int(bits) // 8}", shape))
    return np.dtype(found)


def _runs(keys: Array) -> Iterator[tuple[int, int]]:
    edges = [0, *(np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1), len(keys)]
    yield from pairwise(edges)


def _fake_quant(cases: Array, function: str) -> Array:
    out = np.empty(len(cases), np.float32)
    names = ("min", "max", "bits", "narrow")
    keys = np.stack([cases[name].view(np.int32) for name in names], axis=1)
    for start, stop in _runs(keys):
        low, high, bits, narrow = (cases[name][start] for name in names)
        x, rest = tf.constant(cases["x"][start:stop]), (int(bits), bool(narrow))
        if function == "per_channel":
            y = tf.quantization.fake_quant_with_min_max_vars_per_channel(
                x[:, None], [low], [high], *rest
            )[:, 0]
        elif function == "vars":
            y = tf.quantization.fake_quant_with_min_max_vars(x, low, high, *rest)
        else:
            y = tf.quantization.fake_quant_with_min_max_args(x, float(low), float(high), *rest)
        out[start:stop] = y
    return out


def _layers(cases: Array) -> Iterator[tuple[int, int]]:
    """Yield the runs of cases of the same layer."""
    names = [name for name in cases.dtype.names or () if name not in ("input", "a", "b")]
    if not names:
        yield 0, len(cases)
        return
    parts = [
        np.ascontiguousarray(cases[name]).reshape(len(cases), -1).view(np.uint8) for name in names
    ]
    yield from _runs(np.concatenate(parts, axis=1))


def _layer(cases: Array, words: Mapping[str, str], shape: tuple[int, ...], resolver: Any) -> Array:
    """Return what TFLite's interpreter makes of the inputs of one layer."""
    op = words["op"]
    inputs = [cases[name] for name in ("input", "a", "b") if name in (cases.dtype.names or ())]
    content = _file(cases[0], words, [x.shape for x in inputs], (len(cases), *shape))
    if resolver == "micro":
        return _micro(content, inputs)
    interpreter = _interpreter(content, resolver)
    interpreter.allocate_tensors()
    for detail, x in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], x)
    interpreter.invoke()
    (detail,) = interpreter.get_output_details()
    assert interpreter._get_ops_details()[0]["op_name"] == _OPERATORS[op]
    return np.asarray(interpreter.get_tensor(detail["index"]))


def _micro(content: bytes, inputs: list[Array]) -> Array:
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content, arena_size=1 << 20)
    for number, x in enumerate(inputs):
        interpreter.set_input(x, number)
    interpreter.invoke()
    return np.asarray(interpreter.get_output(0))


def _file(
    case: Any, words: Mapping[str, str], shapes: list[tuple[int, ...]], out: tuple[int, ...]
) -> bytes:
    """Return a TFLite file of one operation."""
    op, names = words["op"], set(case.dtype.names)
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    graph.tensors, graph.inputs = [], []
    scales = np.atleast_1d(case["input_scale"]) if "input_scale" in names else [1.0, 1.0]
    points = [f"{prefix}_zero_point" for prefix in ("input", "a", "b")]
    zeros = [int(case[name]) for name in points if name in names] or [0]
    for shape, scale, zero in zip(shapes, scales, zeros, strict=False):
        graph.inputs.append(_tensor(model, graph, shape, np.int8, [scale], [zero]))
    operator = schema.OperatorT()
    operator.inputs = list(graph.inputs)
    if "weights" in names:
        operator.inputs += _weights(model, graph, case, op, float(scales[0]))
    zero = int(case["output_zero_point"]) if "output_zero_point" in names else zeros[0]
    scale = case["output_scale"] if "output_scale" in names else scales[0]
    graph.outputs = [_tensor(model, graph, out, np.int8, [scale], [zero])]
    operator.outputs = list(graph.outputs)
    has_relu = "low" in names and int(case["low"]) > -128
    operator.builtinOptions = _options(op, words, has_relu)
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, _OPTIONS[op])
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, _OPERATORS[op])
    code.deprecatedBuiltinCode = code.builtinCode
    code.version = 2 if op.endswith("pool") else 5
    graph.operators, model.operatorCodes = [operator], [code]
    return packed(model)


def _weights(model: Any, graph: Any, case: Any, op: str, scale: float) -> list[int]:
    weights = case["weights"]
    if op == "depthwise":
        weights = weights.reshape(1, *weights.shape[:2], -1)
    else:
        weights = np.moveaxis(weights, -1, 0)
    axis = 3 if op == "depthwise" else 0
    zeros = [0] * len(case["weight_scale"])
    return [
        _tensor(model, graph, weights.shape, np.int8, case["weight_scale"], zeros, weights, axis),
        _tensor(
            model, graph, case["bias"].shape, np.int32,
            np.float32(scale) * case["weight_scale"], zeros, case["bias"],
        ),
    ]  # fmt: skip


def _tensor(
    model: Any, graph: Any, shape: tuple[int, ...], dtype: Any, scales: Any, zeros: Any,
    values: Array | None = None, axis: int = 0,
) -> int:  # fmt: skip
    tensor, quantization = schema.TensorT(), schema.QuantizationParametersT()
    tensor.shape, tensor.name = list(shape), f"t{len(graph.tensors)}"
    tensor.type = {np.int8: schema.TensorType.INT8, np.int32: schema.TensorType.INT32}[dtype]
    quantization.scale = [float(scale) for scale in scales]
    quantization.zeroPoint = [int(zero) for zero in zeros]
    quantization.quantizedDimension = axis
    tensor.quantization = quantization
    if values is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values, dtype).tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _options(op: str, words: Mapping[str, str], has_relu: bool) -> Any:
    options = getattr(schema, f"{_OPTIONS[op]}T")()
    options.fusedActivationFunction = int(has_relu)  # RELU is 1
    if "strides" in words:
        options.strideH, options.strideW = (int(n) for n in words["strides"].split("x"))
        options.padding = getattr(schema.Padding, words["padding"].upper())
    if op.endswith("pool"):
        options.filterHeight, options.filterWidth = (int(n) for n in words["kernel"].split("x"))
    if op in ("conv", "depthwise"):
        options.dilationHFactor = options.dilationWFactor = 1
    if op == "depthwise":
        options.depthMultiplier = int(words["channels"])
    return options


if __name__ == "__main__":
    sys.stdout.buffer.write(answer(sys.stdin.buffer.read(), *sys.argv[1:2]))
