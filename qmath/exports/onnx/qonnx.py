"""The ``.qonnx`` format: the whole network, each quantizer one ``Quant`` node of any width.

`QONNX <https://github.com/fastmachinelearning/qonnx>`_ adds ``Quant`` nodes to ONNX. A weight is
its real values, ``(integer - zero_point) * scale``, and a ``Quant`` node that maps each to itself.
``docs/onnx.md`` has the details, and which of QONNX's readers refuse what.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.exports.bundle import Bundle, QuantizedRange
from qmath.exports.exporter import option
from qmath.exports.onnx import integer_graph, integer_sums, library
from qmath.exports.onnx.exporter import NetworkExporter
from qmath.exports.onnx.graph import GraphBuilder, Value, arranged, scale_axis
from qmath.exports.onnx.network import Network, Weight, build
from qmath.kernels.quantized_tensor import QuantizedTensor

__all__ = ["Qonnx"]

_DOMAIN = integer_sums.DOMAIN
_MOST_BATCH = 1 << 31
_OPSETS = {"": 13, _DOMAIN: 1}
# How QONNX calls rounding halves away from zero: of the unsigned integers of activations, up, as
# TensorFlow does. hls4ml knows only the second, halves to even.
_ROUNDINGS = ("HALF_UP", "ROUND")


class Qonnx(NetworkExporter):
    """The ``.qonnx`` format."""

    name = "qonnx"
    rounding: str = option(
        "HALF_UP",
        "the activations' rounding mode: halves up, as in TensorFlow, or to even",
        _ROUNDINGS,
    )
    arithmetic: str = option(
        "float",
        "real values between quantizers, or the integer model: integers, multipliers and floors",
        ("float", "integer"),
    )
    batch: int = option(
        1, "how many examples the network takes; QONNX's tools want a number", range(1, _MOST_BATCH)
    )

    def network(self, bundle: Bundle) -> Network:
        """Return the network that `files` writes."""
        onnx = library.library(self.name)
        if self.arithmetic == "integer":
            return integer_graph.build(
                onnx, bundle, _OPSETS, options=self.given, batch=self.batch
            )  # fmt: skip
        return build(
            onnx, bundle, _Quant(bundle, self.rounding), _OPSETS,
            format=self.name, options=self.given, batch=self.batch,
        )  # fmt: skip

    def integers(self, name: str, held: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
        """Return the integers of a weight's real values, ``None`` if its scale is elsewhere."""
        if not {f"{name}.scale", f"{name}.zero_point"} <= held.keys():
            return None
        real, scale, zero_point = (held[name + part] for part in ("", ".scale", ".zero_point"))
        if np.broadcast_shapes(real.shape, scale.shape, zero_point.shape) != real.shape:
            raise ValueError("its scales do not fit its shape")
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.rint(real.astype(np.float64) / scale) + zero_point)


class _Quant:
    """Quantizers as ``Quant`` nodes, which clamp.

    QONNX's range analysis takes no convolution with a bias, and hls4ml no ``Clip``.
    """

    clamps = adds_biases = True

    def __init__(self, bundle: Bundle, rounding: str) -> None:
        self.weights, self.rounding = bundle.weights, rounding
        self._real: dict[str, str] = {}

    def weight(self, builder: GraphBuilder, weight: Weight) -> str:
        name = weight.tensor.name
        if name not in self._real:  # else a layer that is called again
            q = self.weights[name]
            values = arranged(q.dequantize(), weight.layout)
            scale: NDArray[Any] = q.scale
            zero_point: NDArray[Any] = q.zero_point
            if scale.ndim:
                scale, zero_point = scale.ravel(), zero_point.ravel()
                axis = scale_axis(weight.layout, values.ndim, q.axis)
                column = (-1, *(1,) * (values.ndim - 1 - axis))
                count = values.shape[axis] // len(scale)  # of a depthwise kernel
                scale = np.tile(scale, count).reshape(column)
                zero_point = np.tile(zero_point, count).reshape(column)
            x = builder.parameter(name, "FLOAT", values)
            self._real[name] = self._node(
                builder, x, f"{name}/quantized", name, q, scale, zero_point
            )
        return self._real[name]

    def activation(
        self, builder: GraphBuilder, value: Value, step: str, tensor: str, params: QuantizedRange
    ) -> tuple[str, Value]:
        name = self._node(
            builder, value.name, step, tensor, params, params.scale, params.zero_point
        )
        return name, Value(name, value.shape, value.channels_first)

    def _node(
        self,
        builder: GraphBuilder,
        x: str,
        wanted: str,
        tensor: str,
        q: QuantizedTensor | QuantizedRange,
        scale: NDArray[Any],
        zero_point: NDArray[Any],
    ) -> str:
        names = {"scale": f"{tensor}.scale", "zeropt": f"{tensor}.zero_point"}
        if not scale.all():  # a channel of zeros, which QONNX would divide by its scale
            names["scale"] = builder.unique(f"{wanted}/scale")
            scale = np.where(scale == 0, np.float32(1), scale)
        if q.narrow_range and not q.signed:  # ours end at 2**n - 1, QONNX's at 2**n - 2
            names["zeropt"] = builder.unique(f"{wanted}/zeropt")
            zero_point = zero_point - 1
        inputs = [
            x,
            builder.parameter(names["scale"], "FLOAT", scale),
            builder.parameter(names["zeropt"], "FLOAT", zero_point),
            builder.constant(f"{wanted}/bitwidth", q.num_bits),
        ]
        return builder.node(
            "Quant", inputs, wanted, domain=_DOMAIN, signed=int(q.signed),
            narrow=int(q.narrow_range), rounding_mode=self.rounding,
        )  # fmt: skip
