"""Convolutions without an integer form: of volumes transposed, with a kernel for each place."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from qmath.integer import ops
from qmath.integer.budget import check_size
from qmath.integer.lowering import geometry
from qmath.integer.lowering.float_layers.layer import Call, Computation, Float64Array

__all__ = ["conv3d_transpose", "locally_connected"]


def conv3d_transpose(call: Call) -> Computation | None:
    """Return Keras's Conv3DTranspose without its activation."""
    (shape,), kernel, bias, node = (
        call.shapes,
        call.weight("kernel"),
        call.weight("bias"),
        call.node,
    )
    strides, dilation = geometry.of_axes(node, "strides"), geometry.of_axes(node, "dilation_rate")
    if (
        kernel is None
        or kernel.ndim != 5
        or kernel.shape[-1] != shape[-1]
        or dilation != (1, 1, 1)
        or call.config.get("data_format") == "channels_first"
    ):
        return None
    size, channels = kernel.shape[:3], kernel.shape[3]
    out = geometry.transposed_size(node, shape, size, strides)
    is_same = call.config.get("padding") == "same"
    crops = ops.same_pads(out, size, strides) if is_same else ((0, 0),) * 3
    full = [
        max((n - 1) * s + k, first + after)
        for n, s, k, (first, _), after in zip(shape, strides, size, crops, out, strict=False)
    ]
    check_size(node.name, (*full, channels))
    shift = 0.0 if bias is None else bias
    inside = (slice(first, first + n) for (first, _), n in zip(crops, out, strict=True))
    whole = (slice(None), *inside)

    def apply(x: Float64Array) -> Float64Array:
        total = np.zeros((len(x), *full, channels))
        for at in np.ndindex(*size):
            places = [slice(None)]
            places += [
                slice(first, first + (n - 1) * s + 1, s)
                for first, n, s in zip(at, shape, strides, strict=False)
            ]
            total[tuple(places)] += x @ kernel[at].T
        return np.asarray(total[whole] + shift)

    return Computation(apply, (*out, channels))


def locally_connected(call: Call) -> Computation | None:
    """Return Keras's LocallyConnected1D or 2D, of its first implementation, without activation."""
    (shape,), kernel, bias, node = (
        call.shapes,
        call.weight("kernel"),
        call.weight("bias"),
        call.node,
    )
    if kernel is None or kernel.ndim != 3 or call.config.get("data_format") == "channels_first":
        return None
    rank = len(shape) - 1
    size, strides = (geometry.of_axes(node, key)[-rank:] for key in ("kernel_size", "strides"))
    out = tuple((n - k) // s + 1 for n, k, s in zip(shape, size, strides, strict=False))
    if kernel.shape[:2] != (math.prod(out), math.prod(size) * shape[-1]):
        return None
    made = (*out, kernel.shape[-1])
    check_size(node.name, (*kernel.shape[:2],))
    shift = 0.0 if bias is None else bias
    axes = tuple(range(1, rank + 1))
    steps = (slice(None), *(slice(None, None, s) for s in strides))

    def apply(x: Float64Array) -> Float64Array:
        # The channels come before the window's axes here, and after them in the kernel.
        windows = np.moveaxis(sliding_window_view(x, size, axis=axes)[steps], rank + 1, -1)
        rows = windows.reshape(len(x), *kernel.shape[:2])
        sums = (rows[:, :, np.newaxis] @ kernel)[:, :, 0]
        return np.asarray(sums.reshape(len(x), *made) + shift)

    return Computation(apply, made)
