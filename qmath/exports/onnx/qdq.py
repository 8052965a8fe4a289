"""The ``.onnx`` format: the whole network, quantizers as QuantizeLinear and DequantizeLinear.

Weights are int4 or int8 (int16 beyond 8 bits; int2 from opset 25 on; int8 at least, where asked
for), activations uint8 or uint16,
with a Clip before where they have fewer bits; biases and batch normalization stay float.
``docs/onnx.md`` says what ONNX Runtime makes of it.
"""

from __future__ import annotations

import numpy as np

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle, QuantizedRange
from qmath.exports.exporter import option
from qmath.exports.onnx import library
from qmath.exports.onnx.exporter import NetworkExporter
from qmath.exports.onnx.graph import GraphBuilder, Value, arranged, scale_axis
from qmath.exports.onnx.network import Network, Weight, build

__all__ = ["Onnx"]

_OPSETS = range(21, 26)  # the first with int4, the first with int2


class Onnx(NetworkExporter):
    """The ``.onnx`` format."""

    name = "onnx"
    opset: int = option(
        21, "of ONNX; from 25 on 2-bit weights are stored as int2, before that as int4", _OPSETS
    )
    # No factor may be 0; one below 0 makes a scale below 0. The graph is a convolution between
    # quantizers then, which a runtime can compute with integers.
    fold: bool = option(
        False,
        "multiply the weights' scales by the batch normalizations that follow directly",
    )

    weights: str = option(
        "narrowest",
        "the type of weights: the narrowest that holds them, or no narrower one than int8, for "
        "runtimes without int4",
        ("narrowest", "int8"),
    )

    def network(self, bundle: Bundle) -> Network:
        """Return the network that `files` writes."""
        onnx = library.library(self.name)
        if self.opset > onnx.defs.onnx_opset_version():
            raise OutputError(
                f"opset={self.opset}: the onnx library {onnx.__version__} knows opsets up to "
                f"{onnx.defs.onnx_opset_version()}; update it"
            )
        return build(
            onnx, bundle, _Qdq(bundle, self._narrowest), {"": self.opset}, format=self.name,
            options=self.given, fold=self.fold,
        )  # fmt: skip

    @property
    def _narrowest(self) -> int:
        """The width of the narrowest type of weights."""
        if self.weights == "int8":
            return 8
        return 2 if self.opset >= 25 else 4


class _Qdq:
    """Quantizers as QuantizeLinear and DequantizeLinear; a weight's QuantizeLinear is done."""

    clamps = adds_biases = False  # where runtimes look for both

    def __init__(self, bundle: Bundle, narrowest: int) -> None:
        self.weights, self.signed = bundle.weights, bundle.manifest["options"]["signed"]
        self.narrowest = narrowest
        self._real: dict[str, str] = {}

    def weight(self, builder: GraphBuilder, weight: Weight) -> str:
        name = weight.tensor.name
        if name in self._real and weight.factor is None:  # a layer that is called again
            return self._real[name]
        q = self.weights[name]
        values = arranged(q.values, weight.layout)
        axis = scale_axis(weight.layout, values.ndim, q.axis)
        scale, zero_point = q.scale, q.zero_point
        if scale.ndim:
            scale, zero_point = scale.ravel(), zero_point.ravel()
        if "M" in (weight.layout or "") and scale.ndim:  # which run along the multiplier
            count = len(values) // len(scale)
            scale, zero_point = np.tile(scale, count), np.tile(zero_point, count)
        scale_name, zero_point_name = f"{name}.scale", f"{name}.zero_point"
        if weight.factor is not None:
            axis = 1 if weight.layout in ("HWOI", "WOI") else axis
            scale = np.float32(scale.astype(np.float64) * weight.factor)
            zero_point = np.broadcast_to(zero_point, scale.shape)
            scale_name, zero_point_name = (
                builder.unique(f"{key}/folded") for key in (scale_name, zero_point_name)
            )
        kind = ("" if self.signed else "U") + f"INT{self._width(q.num_bits)}"
        inputs = [
            builder.parameter(name, kind, values),
            builder.parameter(scale_name, "FLOAT", scale),
            builder.parameter(zero_point_name, kind, zero_point),
        ]
        along = {"axis": axis} if scale.ndim else {}
        real = builder.node("DequantizeLinear", inputs, f"{name}/dequantized", **along)
        if weight.factor is None:
            self._real[name] = real
        return real

    def _width(self, num_bits: int) -> int:
        """Return the width of the narrowest ONNX type that holds integers of `num_bits`."""
        return next(w for w in (2, 4, 8, 16) if w >= max(num_bits, self.narrowest))

    def activation(
        self, builder: GraphBuilder, value: Value, step: str, tensor: str, params: QuantizedRange
    ) -> tuple[str, Value]:
        width = 8 if params.num_bits <= 8 else 16
        x = value.name
        if params.num_bits < width or params.narrow_range:
            limits = np.array([params.narrow_range, 2**params.num_bits - 1]) - params.zero_point
            ends = [
                builder.constant(f"{step}/{end}", limit)
                for end, limit in zip(("min", "max"), limits.astype(np.float32) * params.scale,
                                      strict=True)
            ]  # fmt: skip
            x = builder.node("Clip", [x, *ends], f"{step}/Clip")
        parameters = [
            builder.parameter(f"{tensor}.scale", "FLOAT", params.scale),
            builder.parameter(f"{tensor}.zero_point", f"UINT{width}", params.zero_point),
        ]
        integers = builder.node("QuantizeLinear", [x, *parameters], step)
        real = builder.node("DequantizeLinear", [integers, *parameters], f"{step}/dequantized")
        return integers, Value(real, value.shape, value.channels_first)
