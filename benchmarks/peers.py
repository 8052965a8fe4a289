"""What the kernels are measured against: each peer's fastest way to the same result.

A peer is a function of a `Case` that returns what to run, or None where it has no such operation;
it imports its library when it is asked for the first time, and is skipped if that is missing.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import qmath
from benchmarks import allocator

Run = Callable[[], object]


class Case(NamedTuple):
    """One operation on one tensor.

    Attributes
    ----------
    operation : str
        ``"fake_quant"``, ``"gradient"``, ``"int8"``, ``"uint8"`` or ``"4 bit"`` (packed).
    x : ndarray of float32
        The tensor, shape ``(…, C)``.
    low, high : ndarray of float32
        The range: symmetric, shape ``()`` or ``(C,)``.
    threads : int
        How many threads everyone may use.
    """

    operation: str
    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    threads: int

    @property
    def per_channel(self) -> bool:
        """Whether there is a range for each channel."""
        return bool(self.low.ndim)

    @property
    def num_bits(self) -> int:
        """Width of the integers."""
        return 4 if self.operation == "4 bit" else 8


def memcpy(case: Case) -> Run:
    """Copy the floats: what memory takes to read and write them."""
    out = np.empty_like(case.x)
    return lambda: np.copyto(out, case.x)


def ours(case: Case, *, reuse: bool = False) -> Run | None:
    """Return qmath's own, with or without an array to write to."""
    kind = "vars_per_channel" if case.per_channel else "vars"
    x, low, high = case.x, case.low, case.high
    out = {"out": np.empty_like(x)} if reuse else {}
    if case.operation == "fake_quant":
        forward = getattr(qmath, f"fake_quant_with_min_max_{kind}")
        return lambda: forward(x, low, high, **out)
    if case.operation == "gradient":
        backward = getattr(qmath, f"fake_quant_with_min_max_{kind}_gradient")
        return lambda: backward(x, x, low, high, **out)
    signed = case.operation != "uint8"
    if reuse:
        out = {"out": np.empty(x.shape, np.int8 if signed else np.uint8)}

    def quantize() -> np.ndarray:
        q = qmath.quantize(
            x, low, high, case.num_bits, per_axis=case.per_channel, signed=signed, **out
        )
        return qmath.pack(q.values, 4, "nibbles") if case.num_bits == 4 else q.values

    return quantize


def ours_reusing(case: Case) -> Run | None:
    """Return qmath's own, writing to the same array every time."""
    return ours(case, reuse=True)


def naive(case: Case) -> Run | None:
    """Return NumPy as one would write it down: a pass and a temporary for every operation."""
    if case.operation == "gradient":
        return None
    levels = np.float32(2**case.num_bits - 1)
    scale = (case.high - case.low) / levels
    zero = np.round(-case.low / scale)
    q = lambda: np.clip(np.floor(case.x / scale + zero + np.float32(0.5)), 0, levels)  # noqa: E731
    if case.operation == "fake_quant":
        return lambda: (q() - zero) * scale
    if case.operation == "4 bit":
        return lambda: q().astype(np.uint8).reshape(-1, 2) @ np.uint8([1, 16])
    shift = 128 if case.operation == "int8" else 0
    return lambda: (q() - shift).astype(case.operation)


def tensorflow(case: Case) -> Run | None:
    """Return TensorFlow's fused kernel, followed by a conversion where integers are asked for."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(case.threads)
    kind = "vars_per_channel" if case.per_channel else "vars"
    x, low, high = map(tf.constant, (case.x, case.low, case.high))
    if case.operation == "gradient":
        backward = getattr(tf.quantization, f"fake_quant_with_min_max_{kind}_gradient")
        return lambda: backward(x, x, low, high)
    forward = getattr(tf.quantization, f"fake_quant_with_min_max_{kind}")
    if case.operation == "fake_quant":
        return lambda: forward(x, low, high)
    scale = (high - low) / np.float32(2**case.num_bits - 1)
    dtype = tf.uint8 if case.operation == "uint8" else tf.int8

    def quantize() -> object:  # without packing, for which TensorFlow has nothing
        return tf.cast(tf.round(forward(x, low, high, case.num_bits) / scale), dtype)

    return quantize


def ai_edge_quantizer(case: Case) -> Run | None:
    """Return the NumPy function of Google's quantizer of TFLite files; it rounds otherwise."""
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor
    from ai_edge_quantizer.qtyping import UniformQuantParams

    if case.operation not in ("int8", "uint8"):
        return None
    x, signed = case.x, case.operation == "int8"
    scale = np.asarray((case.high - case.low) / np.float32(255))
    scale = scale.reshape(-1 if case.per_channel else (1,) * x.ndim)
    parameters = UniformQuantParams(
        num_bits=8,
        quantized_dimension=x.ndim - 1 if case.per_channel else None,
        scale=scale,
        zero_point=np.full(scale.shape, 0 if signed else 128, np.int32),
        symmetric=False,
        signed=signed,
    )
    return lambda: uniform_quantize_tensor.uniform_quantize(x, parameters)


def torch(case: Case) -> Run | None:
    """Return PyTorch's kernels, whose rounding is another one."""
    import torch

    if case.num_bits != 8 or case.operation == "gradient":
        return None
    torch.set_num_threads(case.threads)
    x = torch.from_numpy(case.x)
    scale = torch.from_numpy(np.asarray((case.high - case.low) / np.float32(255)))
    signed = case.operation != "uint8"
    lowest, axis = (-128 if signed else 0), case.x.ndim - 1
    zero = torch.zeros_like(scale, dtype=torch.int32) + lowest + 128
    if case.operation == "fake_quant":
        if case.per_channel:
            fake = torch.fake_quantize_per_channel_affine
            return lambda: fake(x, scale, zero, axis, lowest, lowest + 255)
        return lambda: torch.fake_quantize_per_tensor_affine(x, scale, zero, lowest, lowest + 255)
    dtype = torch.qint8 if signed else torch.quint8
    if case.per_channel:
        return lambda: torch.quantize_per_channel(x, scale.double(), zero.long(), axis, dtype)
    return lambda: torch.quantize_per_tensor(x, float(scale), int(zero), dtype)


def onnx_runtime(case: Case) -> Run | None:
    """Return ONNX Runtime's QuantizeLinear, whose rounding is another one."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    if case.operation not in ("int8", "uint8"):
        return None
    scale = np.asarray((case.high - case.low) / np.float32(255))
    zero = np.full_like(scale, 0 if case.operation == "int8" else 128).astype(case.operation)
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], axis=case.x.ndim - 1)
    kind = TensorProto.INT8 if case.operation == "int8" else TensorProto.UINT8
    graph = helper.make_graph(
        [node],
        "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.x.shape)],
        [helper.make_tensor_value_info("y", kind, case.x.shape)],
        [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(zero, "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": case.x})


KEPT = "TensorFlow, memory kept"  # the same, while `allocator.keeping`
PEERS: dict[str, Callable[[Case], Run | None]] = {
    "memcpy": memcpy,
    "qmath": ours,
    "qmath, out=": ours_reusing,
    "TensorFlow": tensorflow,
    KEPT: tensorflow,
    "PyTorch": torch,
    "ONNX Runtime": onnx_runtime,
    "ai-edge-quantizer": ai_edge_quantizer,
    "naive NumPy": naive,
}
LIBRARIES = {
    "TensorFlow": "tensorflow",
    KEPT: "tensorflow",
    "PyTorch": "torch",
    "ONNX Runtime": "onnxruntime",
    "ai-edge-quantizer": "ai_edge_quantizer",
}


def missing() -> list[str]:
    """Return the peers that cannot be had: not installed, or no glibc."""
    absent = [name for name, module in LIBRARIES.items() if not importlib.util.find_spec(module)]
    if KEPT not in absent and not allocator.available():
        absent.append(KEPT)
    return absent
