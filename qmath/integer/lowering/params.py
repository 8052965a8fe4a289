"""From a tensor's stored range to the quantization parameters of its integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.lowering.cuts import UnsupportedError
from qmath.integer.program import QuantParams
from qmath.kernels.affine import scale_and_zero_point
from qmath.model import QatTensor, QuantSpec, StatedParams

Array = NDArray[Any]


def quant_params(tensor: QatTensor) -> QuantParams:
    """Return the parameters of a quantized activation."""
    spec = tensor.spec
    if tensor.stated is not None:
        return _stated(tensor, tensor.stated)
    low, high = _ends(tensor)
    if low.ndim:
        layer, _, place = tensor.name.rpartition("/")
        raise UnsupportedError(
            layer, f"{place} has a range for each channel", "quantize it with per_axis=False",
            is_rounded=True,
        )  # fmt: skip
    scale, zero_point = scale_and_zero_point(
        low,
        high,
        spec.num_bits or 0,
        narrow_range=bool(spec.narrow_range),
        signed=False,
        name=tensor.name,
        build=spec.build,
        op="args" if spec.op == "args" else "vars",
    )
    if not scale:
        raise QmathError(
            f"{tensor.name}: its range is [0, 0], so it was never trained; train the "
            "model, or run it once with training=True on real data"
        )
    return QuantParams(
        float(scale),
        int(zero_point),
        int(bool(spec.narrow_range)),
        highest(spec),
        spec.num_bits or 0,
        float(low),
        float(high),
        spec.op,
        build=spec.build,
    )


def _stated(tensor: QatTensor, stated: StatedParams) -> QuantParams:
    """Return the parameters that a file states, with the range that they reach in float64.

    Scale and zero point follow from that range without rounding, as the products are exact.
    """
    scale, zero_point = float(stated.scale), int(stated.zero_point)
    if not scale:
        raise QmathError(f"{tensor.name}: its scale is 0, for which there are no integers")
    low, high = int(bool(tensor.spec.narrow_range)), highest(tensor.spec)
    least, greatest = ((end - zero_point) * scale for end in (low, high))
    return QuantParams(
        scale, zero_point, low, high, tensor.spec.num_bits or 0, least, greatest, tensor.spec.op,
        stated.is_unsigned, stated.is_from_float,
    )  # fmt: skip


def width_and_steps(tensor: QatTensor) -> tuple[Array, int]:
    """Return the width of a weight's range, in float64, and the number of its steps."""
    spec = tensor.spec
    if tensor.recovered is not None:
        steps = highest(spec)
        return tensor.recovered.scale.astype(np.float64) * steps, steps
    low, high = _ends(tensor)
    return high.astype(np.float64) - low.astype(np.float64), highest(spec) - bool(spec.narrow_range)


def highest(spec: QuantSpec) -> int:
    """Return the highest integer, counted from 0; the settings are known by now."""
    return int(2 ** (spec.num_bits or 0)) - 1


def _ends(tensor: QatTensor) -> tuple[Array, Array]:
    """Return the stored range, which every quantized tensor has."""
    if tensor.min is None or tensor.max is None:
        raise QmathError(f"{tensor.name}: the model holds no range for it")
    return tensor.min, tensor.max
