"""The ``.qonnx`` format: the whole network, each quantizer one ``Quant`` node of any width.

`QONNX <https://github.com/fastmachinelearning/qonnx>`_ adds ``Quant`` nodes to ONNX. A weight is
its real values, ``(integer - zero_point) * scale``, and a ``Quant`` node that maps each to itself.
``docs/onnx.md`` has the details, and which of QONNX's readers refuse what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle, QuantizedRange
from qmath.exports.onnx import library, reading
from qmath.exports.onnx.graph import GraphBuilder, Value, arranged, scale_axis
from qmath.exports.onnx.network import Network, Weight, build
from qmath.kernels.quantized_tensor import QuantizedTensor

__all__ = ["differences", "read", "write"]

_FORMAT = "qonnx"
_DOMAIN = "qonnx.custom_op.general"
_OPSETS = {"": 13, _DOMAIN: 1}
# How QONNX calls rounding halves away from zero: of the unsigned integers of activations, up, as
# TensorFlow does. hls4ml knows only the second, halves to even.
_ROUNDINGS = ("HALF_UP", "ROUND")


def write(bundle: Bundle, file: BinaryIO, *, rounding: str = "HALF_UP", batch: int = 1) -> None:
    """Write `bundle` to an open file.

    Parameters
    ----------
    bundle : Bundle
    file : file
    rounding : {"HALF_UP", "ROUND"}
        The rounding mode of the activations' quantizers: halves up, as in TensorFlow, or to even.
    batch : int
        How many examples the network takes; QONNX's tools want a number.

    Raises
    ------
    OutputError
        The model is no network, or a setting is unknown.
    MissingExtraError
        onnx is not installed.
    """
    network = _network(bundle, rounding, batch)
    library.save(network.model, bundle.manifest | {"export": network.export}, file)


def read(file: BinaryIO) -> tuple[dict[str, Any], Mapping[str, NDArray[Any]]]:
    """Return the manifest of what `write` wrote, and the arrays that are parts of the graph.

    Raises
    ------
    FileFormatError
        The file is damaged, or not one of qmath's.
    MissingExtraError
        onnx is not installed.
    """
    return reading.read(file, _FORMAT, _integers)


def differences(
    file: BinaryIO,
    bundle: Bundle,
    manifest: Mapping[str, Any],
    *,
    rounding: str = "HALF_UP",
    batch: int = 1,
) -> Iterable[str]:
    """Tell in words where the network of a file differs from the one that `write` would write."""
    return reading.differences(file, manifest, _network(bundle, rounding, batch))


def _network(bundle: Bundle, rounding: str, batch: int) -> Network:
    if rounding not in _ROUNDINGS or type(batch) is not int or batch < 1:
        raise OutputError(
            f"rounding={rounding!r}, batch={batch!r}: rounding must be {' or '.join(_ROUNDINGS)}, "
            "and batch 1 or more"
        )
    onnx, quantizers = library.library(_FORMAT), _Quant(bundle, rounding)
    options = {"rounding": rounding, "batch": batch}
    return build(onnx, bundle, quantizers, _OPSETS, format=_FORMAT, options=options, batch=batch)


def _integers(name: str, held: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """Return the integers of a weight's real values, ``None`` if its scale is written otherwise."""
    if not {f"{name}.scale", f"{name}.zero_point"} <= held.keys():
        return None
    real, scale, zero_point = (held[name + part] for part in ("", ".scale", ".zero_point"))
    if np.broadcast_shapes(real.shape, scale.shape, zero_point.shape) != real.shape:
        raise ValueError("its scales do not fit its shape")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.rint(real.astype(np.float64) / scale) + zero_point)


class _Quant:
    """Quantizers as ``Quant`` nodes."""

    def __init__(self, bundle: Bundle, rounding: str) -> None:
        self.signed = bundle.manifest["options"]["signed"]
        self.rounding = rounding
        self._real: dict[str, str] = {}

    def weight(self, builder: GraphBuilder, weight: Weight) -> str:
        name = weight.tensor.name
        if name not in self._real:  # else a layer that is called again
            q = weight.tensor.quantize(signed=self.signed)
            values = arranged(q.dequantize(), weight.layout)
            scale: NDArray[Any] = q.scale
            zero_point: NDArray[Any] = q.zero_point
            if scale.ndim:
                axis = scale_axis(weight.layout, values.ndim)
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
