"""TFLite files of one operation each, that take the branches no converted model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qmath.containers.tflite.schema import (
    ACTIVATIONS,
    OPERATORS,
    OPTION_NUMBERS,
    OPTIONS,
    TENSOR_TYPES,
)
from reference.corpus import Entry
from reference.flatbuffers import encoded

__all__ = ["clamps", "model", "written"]

_IMAGE = (1, 4, 4, 2)
_DTYPES = {"FLOAT32": "<f4", "INT32": "<i4", "INT8": "<i1", "UINT8": "<u1", "INT64": "<i8",
           "FLOAT16": "<f2", "INT16": "<i2"}  # fmt: skip
Values = dict[str, Any]


def tensor(shape: Sequence[int], kind: str = "INT8", name: str = "", **more: Any) -> Values:
    """Return a tensor; of integers it has a scale."""
    found: Values = {"shape": np.int32(shape), "type": TENSOR_TYPES[kind], "name": name}
    if kind in ("INT8", "UINT8", "INT16"):
        found["quantization"] = {"scale": np.float32([0.1]), "zero_point": np.int64([0])}
    return found | more


def model(
    name: str,
    out: Sequence[int],
    *constants: Any,
    shape: Sequence[int] = _IMAGE,
    kind: str = "INT8",
    options: Values | None = None,
    order: Sequence[int] = (),
    of: Values | None = None,
    made: Values | None = None,
    **more: Any,
) -> Values:
    """Return a model of one operation: an input, constants, an output.

    `order` are the operation's inputs, tensor 0 being the model's; `of` is said of each constant,
    `made` of the output, and the rest of the model.
    """
    tensors = [tensor(shape, kind, "x")]
    buffers: list[Values] = [{}]
    for constant in constants:
        array = np.asarray(constant)
        word = next(k for k, dtype in _DTYPES.items() if np.dtype(dtype) == array.dtype)
        buffers.append({"data": np.frombuffer(array.tobytes(), np.uint8)})
        held = tensor(array.shape, word, "model/layer/Op", buffer=len(buffers) - 1)
        tensors.append(held | (of or {}))
    tensors.append(tensor(out, kind, "model/layer/Out") | (made or {}))
    inputs = np.int32(order or range(len(tensors) - 1))
    operation: Values = {
        "opcode_index": 0, "inputs": inputs, "outputs": np.int32([len(tensors) - 1])
    }  # fmt: skip
    if options is not None:
        table = OPTIONS[name]
        operation |= {
            "builtin_options_type": OPTION_NUMBERS[table],
            "builtin_options": {"kind": table, **options},
        }
    number = OPERATORS[name]
    graph = {
        "tensors": tensors, "operators": [operation],
        "inputs": np.int32([0]), "outputs": operation["outputs"],
    }  # fmt: skip
    return {
        "version": 3, "operator_codes": [{"deprecated_builtin_code": min(number, 127),
        "builtin_code": number}], "subgraphs": [graph], "buffers": buffers,
    } | more  # fmt: skip


def _weighted() -> Iterator[Values]:
    kernel, stride = np.ones((3, 1, 1, 2), np.int8), {"stride_w": 1, "stride_h": 1}
    out, bias = (1, 4, 4, 3), np.zeros(3, np.int32)
    yield model("CONV_2D", out, kernel, bias, options=stride)
    yield model("CONV_2D", out, kernel, bias, options={"stride_w": 0, "stride_h": 0})
    yield model("CONV_2D", out, kernel, np.zeros(2, np.int32), options=stride)
    yield model("CONV_2D", out, kernel, options=stride, order=(0, 1, -1))
    yield model("CONV_2D", out, kernel, options=stride, order=(1, 0))
    yield model("CONV_2D", out, kernel, options=stride, kind="FLOAT32")
    for order in ((0,), (0, -1)):
        yield model("CONV_2D", out, kernel, options=stride, order=order)
    tanh = {"fused_activation_function": ACTIVATIONS["TANH"]}
    yield model("CONV_2D", out, kernel, bias, options=stride | tanh)
    yield model("CONV_2D", out, kernel[..., 0], options=stride)
    yield model("CONV_2D", out, np.ones((3, 1, 1, 3), np.int8), options=stride)
    yield model("CONV_2D", out, kernel.astype(np.int32), options=stride)
    yield model("CONV_2D", out, kernel.astype("f4"), np.zeros(3, "f4"), kind="FLOAT32",
                options=stride)  # fmt: skip
    yield model("CONV_2D", out, kernel, options=stride, of={"quantization": {}})
    along = {"scale": np.float32([1, 2]), "zero_point": np.int64([0]), "quantized_dimension": 3}
    yield model("CONV_2D", out, kernel, options=stride, of={"quantization": along})
    for size in ((1, 3, 3, 2), (2, 3, 3, 2), (1, 3, 3, 3), (1, 3, 3, 4)):
        made = (1, 4, 4, size[3])
        yield model("DEPTHWISE_CONV_2D", made, np.ones(size, np.int8), options=stride)
    yield model("DEPTHWISE_CONV_2D", _IMAGE, np.ones((1, 3, 3), np.int8), options=stride)
    yield model("DEPTHWISE_CONV_2D", (1, 2), np.ones((1, 3, 3, 2), np.int8), options=stride,
                shape=(1, 2))  # fmt: skip
    yield model("CONV_2D", (1, 2), kernel, options=stride, shape=(1, 2))
    wrong = {**along, "quantized_dimension": 2, "scale": np.float32([1, 2, 3])}
    yield model("DEPTHWISE_CONV_2D", _IMAGE, np.ones((1, 3, 3, 2), np.int8), options=stride,
                of={"quantization": wrong})  # fmt: skip
    place, two = np.int32([1, 8, 8, 3]), {"stride_w": 2, "stride_h": 2}
    for made in ((1, 8, 8, 3), (1, 7, 8, 3), (1, 30, 8, 3), (1, 8, 3)):
        yield model("TRANSPOSE_CONV", made, place, np.ones((3, 3, 3, 2), np.int8), options=two,
                    order=(1, 2, 0))  # fmt: skip
    yield model("TRANSPOSE_CONV", (1, 9, 9, 3), place, np.ones((3, 3, 3, 2), np.int8),
                options=two | {"padding": 1}, order=(1, 2, 0))  # fmt: skip
    yield model("TRANSPOSE_CONV", (1, 8, 8, 3), place, np.ones((3, 3, 3, 2), np.int8), options=two,
                order=(1, 2))  # fmt: skip
    yield model("TRANSPOSE_CONV", (1, 8, 8, 3), place, np.ones((3, 3, 3, 2), np.int8), options=two,
                order=(1, 2, 0), of={"quantization": {}})  # fmt: skip
    dense = np.ones((3, 32), np.int8)
    yield model("FULLY_CONNECTED", (1, 3), dense, options={})
    yield model("FULLY_CONNECTED", (1, 3), dense, options={"weights_format": 1})
    yield model("FULLY_CONNECTED", (1, 3), dense[:, :5], options={})
    yield model("FULLY_CONNECTED", (1, 3), dense, options={}, of={"quantization": {}})
    yield model("FULLY_CONNECTED", (1, 4, 4, 3), dense[:, :2], options={"keep_num_dims": 1})
    yield model("FULLY_CONNECTED", (1, 3), dense.view(np.uint8), options={})


def _without_weights() -> Iterator[Values]:
    axes, other = np.int32([1, 2]), {"quantization": {"scale": np.float32([0.3])}}
    for name in ("MEAN", "REDUCE_MAX"):
        yield model(name, (1, 2), axes, options={})
        yield model(name, (1, 2), np.int32([1]), options={})
        yield model(name, (1, 2), axes, options={}, made=other)
        yield model(name, (1, 2), axes.astype("f4"), options={})
    window = {"stride_w": 2, "stride_h": 2, "filter_width": 2, "filter_height": 2}
    for name in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
        yield model(name, (1, 2, 2, 2), options=window | {"padding": 1})
        yield model(name, (1, 2, 2, 2), options=window | {"fused_activation_function": 1})
        yield model(name, (1, 2, 2, 2), options=window, made=other)
        yield model(name, (1, 2, 2, 2), options=window | {"stride_w": 0})
    for name in ("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "CONCATENATION"):
        out = (1, 4, 4, 4) if name == "CONCATENATION" else _IMAGE
        yield model(name, out, options={}, order=(0, 0))
        yield model(name, out, options={"axis": 3}, order=(0, 0))
        yield model(name, out, options={}, order=(0, 0), made=other)
        yield model(name, out, np.ones(_IMAGE, np.int8), options={})
    yield model("CONCATENATION", (1, 4, 4, 4), options={"axis": 3}, order=(0, 0), made=other)
    for name, out in (("RESHAPE", (1, 32)), ("SQUEEZE", (32,)), ("EXPAND_DIMS", (4, 8))):
        yield model(name, out, options={})
        yield model(name, out, options={}, made=other)
    for pads in ([0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 0, 1], [0, 0], [0, 0, -1, 0] * 2):
        held = np.int32(pads).reshape(-1, 2)
        yield model("PAD", (1, 6, 6, 2), held, options={})
        for value in (0, 5):
            yield model("PADV2", (1, 6, 6, 2), held, np.int8([value]), options={})
    yield model("PAD", (1, 6, 2), np.int32([[0, 0], [1, 1], [0, 0]]), options={}, shape=(1, 4, 2))
    yield model("PAD", (1, 6, 6, 2), options={})
    for out in ((1, 8, 8, 2), (1, 7, 8, 2)):
        for align in (0, 1):
            yield model("RESIZE_NEAREST_NEIGHBOR", out, np.int32(out[1:3]),
                        options={"align_corners": align})  # fmt: skip
    for order in ([0, 3, 1, 2], [1, 0, 2, 3], [0, 1, 1, 2]):
        yield model("TRANSPOSE", (1, 2, 4, 4), np.int32(order), options={})
    ends = [np.int32(v) for v in ([0, 1, 1, 0], [1, 3, 4, 2], [1, 1, 1, 1], [1, 2, 1, 1])]
    yield model("STRIDED_SLICE", (1, 2, 3, 2), *ends[:3], options={})
    yield model("STRIDED_SLICE", (1, 2, 3, 2), *ends[:3], options={"begin_mask": 15})
    yield model("STRIDED_SLICE", (1, 2, 3, 2), *ends[:3], options={"shrink_axis_mask": 1})
    yield model("STRIDED_SLICE", (1, 2, 3, 2), ends[0], ends[1], ends[3], options={})
    yield model("STRIDED_SLICE", (1, 2, 3, 2), ends[1], ends[0], ends[2], options={})
    yield model("STRIDED_SLICE", (1, 2, 3, 2), ends[0], options={})


def _of_values() -> Iterator[Values]:
    for name in ("RELU", "RELU6", "ELU", "LOGISTIC", "TANH"):
        yield model(name, _IMAGE)
    yield model("SOFTMAX", _IMAGE, options={"beta": 1.0})
    yield model("SOFTMAX", _IMAGE, options={"beta": 2.0})
    yield model("GELU", _IMAGE, options={})
    yield model("GELU", _IMAGE, options={"approximate": 1})
    yield model("LEAKY_RELU", _IMAGE, options={"alpha": 0.25})
    yield model("LEAKY_RELU", _IMAGE, options={"alpha": float("inf")})
    yield model("RELU", _IMAGE, np.ones(_IMAGE, np.int8), order=(1,))
    yield model("QUANTIZE", _IMAGE, options={}, kind="FLOAT32")
    yield model("QUANTIZE", _IMAGE, np.ones(_IMAGE, np.int8), options={}, order=(1,))
    for array in (np.ones(_IMAGE, "f2"), np.ones(_IMAGE, np.int8)):
        whole = model("DEQUANTIZE", _IMAGE, array, options={}, order=(1,), kind="FLOAT32")
        yield whole
    whole = model("DEQUANTIZE", (2,), np.ones(2, np.int8), options={}, order=(1,), kind="FLOAT32",
                  of={"quantization": {"scale": np.float32([1, 2])}})  # fmt: skip
    yield whole
    yield model("SHAPE", (4,), options={}, made={"type": TENSOR_TYPES["INT32"]})
    yield model("SIN", _IMAGE, made={"name": "\n"})
    yield model("SIN", (0,))


def _moves() -> Iterator[Values]:
    """Yield moves as they should be, of other grids, and with numbers that mean nothing."""
    other = {"quantization": {"scale": np.float32([0.3])}}
    for begin, size in (([0, 1, 0, 0], [1, 2, -1, 2]), ([0] * 3, [1] * 3), ([1, 0, 0, 0], [0] * 4),
                        ([0, 3, 0, 0], [1, 9, 4, 2]), ([0, 0, 0, 1], [1, 4, 4, 1])):  # fmt: skip
        for made in (None, other):
            yield model("SLICE", (1, *(max(n, 1) for n in size[1:4])), np.int32(begin),
                        np.int32(size), options={}, made=made)  # fmt: skip
    yield model("SLICE", _IMAGE, options={})
    ends = [np.int32(v) for v in ([0, 0, 1, 0], [1, 4, 4, 2])]
    for steps in ([1, 2, 1, 1], [1, 3, 3, 1], [1, -1, 1, 1], [1, 0, 1, 1]):
        yield model("STRIDED_SLICE", (1, 2, 1, 2), *ends, np.int32(steps), options={})
    for options in ({"ellipsis_mask": 1}, {"shrink_axis_mask": 2}, {"shrink_axis_mask": 1}):
        yield model("STRIDED_SLICE", (1, 3, 2), *ends, np.int32([1] * 4), options=options)
    for name, constants, order in (("SPLIT", [2], (1, 0)), ("SPLIT", [9], (1, 0)),
                                   ("SPLIT", [0], (1, 0)), ("SPLIT", [2], (0,)),
                                   ("SPLIT_V", [[4], 2], ()), ("SPLIT_V", [[4]], ())):  # fmt: skip
        arrays = [np.int32(c) for c in constants]
        yield model(name, _IMAGE, *arrays, order=order, options={})
        yield model(name, (1, 4, 1, 2), *arrays, order=order, options={}, made=other)
    for axis in (0, 1, 2, 3, 9):
        yield model("UNPACK", (1, 4, 2), options={"axis": axis, "num": 1})
        for order in ((0, 0), (0,), (0, -1)):
            yield model("PACK", (1, 4, 4, 2, 2), options={"axis": axis + 1}, order=order)
            yield model("PACK", (1, 2, 4, 4, 2), options={"axis": axis}, order=order, made=other)
        for places in ([0, 1, 3], [0], [7], [-1], []):
            yield model("GATHER", (1, 3, 4, 2), np.int32(places), options={"axis": axis})
    yield model("GATHER", _IMAGE, np.int32([0]), options={"axis": 1, "batch_dims": 1})
    for name in ("TILE", "BROADCAST_TO"):
        for out in ((1, 8, 4, 2), (2, 4, 4, 2), (1, 7, 4, 2), (1, 4)):
            yield model(name, out, np.int32([1, 2, 1, 1]), options={})
    for name, out in (("SPACE_TO_DEPTH", (1, 2, 2, 8)), ("DEPTH_TO_SPACE", (1, 8, 8, 1))):
        for size in (0, 2, 3):
            yield model(name, out, options={"block_size": size})
    for out in ((1, 2, 2, 2), (1, 3, 3, 2), (1, 7, 7, 2), (1, 8, 8), (1, 1, 1, 2)):
        for options in ({"align_corners": 1}, {"half_pixel_centers": 1}, {}):
            for name in ("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"):
                yield model(name, out, np.int32(out[1:3]), options=options)
    yield model("RESIZE_BILINEAR", (1, 8, 8, 2), np.int32([8, 8]),
                options={"half_pixel_centers": 1}, made=other)  # fmt: skip


def _constants() -> Iterator[Values]:
    other = {"quantization": {"scale": np.float32([0.3])}}
    nothing: Values = {"quantization": {}}
    shapes = ((), (2,), (1, 1, 1, 2), (4, 4, 2), (3,), (1, 1, 1, 1, 2), (2, 4, 4, 2))
    for name in ("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM"):
        for shape in shapes:
            for order in ((), (1, 0)):
                held = np.ones(shape, np.int8)
                yield model(name, _IMAGE, held, options={}, order=order)
        for of in (other, nothing):
            yield model(name, _IMAGE, np.ones(1, np.int8), options={}, of=of)
        yield model(name, _IMAGE, np.ones(1, "f4"), options={}, kind="FLOAT32")
        yield model(name, _IMAGE, np.float32([np.inf]), options={}, kind="FLOAT32")
        yield model(name, (1, 4, 4, 3), np.ones(3, np.int8), options={})
        yield model(name, _IMAGE, np.ones(1, np.int8), options={}, order=(0, 1, 1))
    for shape in ((2,), (1, 1, 2), (1, 4, 4, 2), (3,), (1, 1, 1, 1, 2)):
        yield model("PRELU", _IMAGE, np.ones(shape, np.int8))
        yield model("PRELU", _IMAGE, np.ones(shape, np.int8), of=nothing)
        yield model("PRELU", _IMAGE, np.ones(shape, "f4"), kind="FLOAT32")
    yield model("PRELU", _IMAGE, order=(0, 0))
    for name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
        for axes in ([3], [2, 3], [0], [9], [], [1, 2, 3], [-1]):
            for out in ((1, 4, 4), (1, 4), (1,), (1, 5)):
                yield model(name, out, np.int32(axes), options={})
                yield model(name, out, np.int32(axes), options={}, made=other)
    for name in ("RELU_N1_TO_1", "RELU_0_TO_1", "ABS", "EXP", "LOG", "SQRT", "NEG", "SQUARE"):
        for kind in ("INT8", "INT16", "FLOAT32"):
            yield model(name, _IMAGE, kind=kind)
    volume = {"stride_d": 1, "stride_w": 1, "stride_h": 1}
    for shape, kernel in (((1, 3, 4, 4, 2), (1, 1, 1, 2, 3)), ((1, 4, 4, 2), (1, 1, 1, 2, 3))):
        for options in (volume, {}):
            yield model("CONV_3D", (*shape[:-1], 3), np.ones(kernel, "f4"), shape=shape,
                        kind="FLOAT32", options=options)  # fmt: skip
    clip = {"stride_w": 1, "stride_h": 1, "fused_activation_function": 2}
    yield model("CONV_2D", (1, 4, 4, 3), np.ones((3, 1, 1, 2), np.int8), options=clip)


def _of_other_forms() -> Iterator[Values]:
    """Yield operations whose inputs, outputs or settings are none that a converter writes."""
    other = {"quantization": {"scale": np.float32([0.3])}}
    one, place = np.ones(1, np.int8), np.int32([1, 8, 8, 3])
    batch = np.int32([[1, 0], [0, 0], [0, 0], [0, 0]])
    yield model("PAD", (2, 4, 4, 2), batch, options={})
    yield model("TRANSPOSE", _IMAGE, np.float32([0, 1, 2, 3]), options={})
    yield model("DEPTH_TO_SPACE", (1, 8, 8, 2), shape=(1, 4, 4, 8), options={"block_size": 2})
    yield model("RESIZE_NEAREST_NEIGHBOR", (1, 1 << 17, 4, 2), np.int32([1 << 17, 4]), options={},
                shape=(1, 3, 4, 2))  # fmt: skip
    for begin, end in (([0, 1, 0], [1, 3, 4, 2]), ([0, 1], [1, 3])):
        yield model("STRIDED_SLICE", (1, 2, 4, 2), np.int32(begin), np.int32(end),
                    np.ones(len(begin), np.int32), options={})  # fmt: skip
    yield model("SLICE", _IMAGE, np.int32([1, 0, 0, 0]), np.int32(_IMAGE), options={},
                shape=(2, 4, 4, 2))  # fmt: skip
    for out, made in ((_IMAGE, other), ((1, 5, 4, 2), None)):
        yield model("SPLIT", out, np.int32(2), order=(1, 0), options={}, made=made)
    yield model("PACK", (2, 1, 4, 4, 2), options={"axis": 0}, order=(0, 0))
    yield model("GATHER", (1, 80, 4, 2), np.int32([0, 2] * 40), options={"axis": 1})
    for order in ((0,), (0, -1)):
        yield model("ADD", _IMAGE, options={}, order=order)
    yield model("CONCATENATION", _IMAGE, one, options={"axis": 3})
    yield model("ADD", _IMAGE, one.astype(np.int16), options={})
    same = {"quantization": tensor(())["quantization"]}
    yield model("MAXIMUM", _IMAGE, one, options={}, of=same, made=other)
    yield model("REDUCE_MIN", (1, 2), np.int32([1, 2]), options={}, kind="FLOAT32")
    stride = {"stride_w": 1, "stride_h": 1}
    yield model("TRANSPOSE_CONV", (1, 8, 8, 3), place, np.ones((3, 3, 3, 2), np.int8),
                options={"stride_w": 2, "stride_h": 2}, order=(0, 2, 0))  # fmt: skip
    volume = stride | {"stride_d": 1}
    yield model("CONV_3D", (1, 3, 4, 4, 3), np.ones((1, 1, 1, 2, 3), np.int32),
                shape=(1, 3, 4, 4, 2), kind="FLOAT32", options=volume)  # fmt: skip
    clip = stride | {"fused_activation_function": ACTIVATIONS["RELU_N1_TO_1"]}
    yield model("CONV_2D", (1, 4, 4, 3), np.ones((3, 1, 1, 2), "f4"), kind="FLOAT32", options=clip)
    for name, constants, order in (("RELU", (), ()), ("SPLIT", (np.int32(0),), (1, 0))):
        options = {"num_splits": 2} if constants else None
        several = model(name, _IMAGE, *constants, order=order, options=options)
        graph = several["subgraphs"][0]
        graph["tensors"].append(tensor(_IMAGE))
        made = graph["operators"][0]["outputs"]
        graph["operators"][0]["outputs"] = np.int32([*made, made[0] + 1])
        yield several
    twice = clamps("INT8", 7, 0.1)
    twice["subgraphs"][0]["operators"][1]["opcode_index"] = 2
    yield twice


def _of_files() -> Iterator[Values]:
    plain = model("RELU", _IMAGE)
    yield {**plain, "subgraphs": plain["subgraphs"] * 2}
    yield {**plain, "operator_codes": [{"builtin_code": 250}]}
    yield {**plain, "operator_codes": [{"builtin_code": -1, "deprecated_builtin_code": -1}]}
    yield {**plain, "operator_codes": [{"builtin_code": 32, "custom_code": "mine"}]}
    yield {**plain, "subgraphs": [{**plain["subgraphs"][0], "outputs": np.int32([])}]}
    yield {**plain, "subgraphs": [{**plain["subgraphs"][0], "operators": []}]}
    yield model("RELU", _IMAGE, made={"type": 200})
    yield model("RELU", _IMAGE, made={"external_buffer": 1})
    yield model("RELU", _IMAGE, made={"quantization": {"scale": np.float32([0]),
                "zero_point": np.int64([500])}})  # fmt: skip
    yield model("RELU", _IMAGE, made={"quantization": {"scale": np.float32([1]),
                "zero_point": np.int64([500])}})  # fmt: skip
    yield model("RELU", _IMAGE, kind="INT16")
    open_ended = model("RELU", _IMAGE)
    open_ended["subgraphs"][0]["tensors"][0]["shape_signature"] = np.int32([-1, -1, 4, 2])
    yield open_ended
    yield clamps("INT8", 7, 0.1)
    yield clamps("INT8", 6, 0.1)
    yield clamps("UINT8", 7, 0.1)
    yield clamps("INT8", 7, 0.2)
    yield clamps("INT8", 7, 0.1, zero_point=-100)


def clamps(kind: str, high: int, scale: float, zero_point: int = 0) -> Values:
    """Return a ReLU whose result is clamped, to 4 bits if `high` is 7, by constants of a scale."""
    whole = model("RELU", _IMAGE)
    graph = whole["subgraphs"][0]
    for name, number in (("low", -8), ("high", high)):
        whole["buffers"].append({"data": np.uint8([number & 255])})
        held = tensor((), kind, name, buffer=len(whole["buffers"]) - 1)
        held["quantization"]["scale"] = np.float32([scale])
        graph["tensors"].append(held)
    graph["tensors"] += [tensor(_IMAGE), tensor(_IMAGE)]
    for made in graph["tensors"][1:]:
        made["quantization"]["zero_point"] = np.int64([zero_point])
    for i, name in enumerate(("MAXIMUM", "MINIMUM")):
        whole["operator_codes"].append(
            {"builtin_code": OPERATORS[name], "deprecated_builtin_code": OPERATORS[name]}
        )
        graph["operators"].append({
            "opcode_index": i + 1, "inputs": np.int32([(1, 4)[i], 2 + i]),
            "outputs": np.int32([4 + i]),
        })  # fmt: skip
    graph["outputs"] = np.int32([5])
    return whole


def written() -> Iterator[Entry]:
    """Yield each file as an entry of the corpus."""
    for part in (
        _weighted, _without_weights, _moves, _constants, _of_values, _of_other_forms, _of_files,
    ):  # fmt: skip
        for values in part():
            yield Entry({"m/model.tflite": encoded(values)}, "m/model.tflite")
    plain = {"m/model.tflite": encoded(model("RELU", _IMAGE))}
    settings = {"num_bits": 8, "per_axis": False, "symmetric": True, "narrow_range": True}
    yield Entry(plain, "m/model.tflite", told={"x": ("LastValueQuantizer", settings)})
