"""``tf.quantization``'s functions under TensorFlow's own names, in NumPy.

A script that calls ``tf.quantization.quantize`` calls ``qmath.tf.quantize`` in its place: the
same arguments, the same bits. `quantize` here is TensorFlow's op, whose integers follow another
convention than those of `qmath.quantize`. Absent are ``quantized_concat``, whose op rescales with
an arithmetic of its own, and ``experimental``.
"""

from __future__ import annotations

from typing import Any

from qmath.kernels.fake_quant import (
    fake_quant_with_min_max_args,
    fake_quant_with_min_max_args_gradient,
    fake_quant_with_min_max_vars,
    fake_quant_with_min_max_vars_gradient,
    fake_quant_with_min_max_vars_per_channel,
    fake_quant_with_min_max_vars_per_channel_gradient,
)
from qmath.kernels.quantize_and_dequantize import quantize_and_dequantize_v2
from qmath.kernels.quantize_v2 import dequantize, quantize

# TensorFlow's older name calls the older op, whose kernel and bits are the same.
quantize_and_dequantize = quantize_and_dequantize_v2

__all__ = [
    "dequantize",
    "fake_quant_with_min_max_args",
    "fake_quant_with_min_max_args_gradient",
    "fake_quant_with_min_max_vars",
    "fake_quant_with_min_max_vars_gradient",
    "fake_quant_with_min_max_vars_per_channel",
    "fake_quant_with_min_max_vars_per_channel_gradient",
    "quantize",
    "quantize_and_dequantize",
    "quantize_and_dequantize_v2",
]


def __getattr__(name: str) -> Any:
    absent = {"quantized_concat": "rescales by an arithmetic of its own", "experimental": "changes"}
    if name in absent:
        raise AttributeError(f"tf.quantization.{name} is not in qmath: it {absent[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
