"""The layers as array operations: NumPy kernels that keep the dtype they are given.

Integers travel through them as float32 or float64, which BLAS multiplies fastest; whoever calls
proves that the sums stay exact. Arrays are ``(N, …, C)``, channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pads = tuple[tuple[int, int], ...]

# im2col copies every pixel once for each kernel position: cut the batch to stay in the cache, and
# an image of which so many are made that memory would end.
_COLUMNS, _MOST_COLUMNS = 1 << 20, 1 << 26


def same_pads(size: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> Pads:
    """Return TensorFlow's ``"same"`` padding of each spatial axis: the odd one goes last."""
    pads = []
    for n, k, s in zip(size, kernel, strides, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        pads.append((total // 2, total - total // 2))
    return tuple(pads)


def pad(x: Array, pads: Pads, value: float = 0) -> Array:
    """Pad the axes after the batch; `pads` may leave out the last ones."""
    if not any(map(any, pads)):
        return x
    widths = ((0, 0), *pads, *((0, 0),) * (x.ndim - 1 - len(pads)))
    out = np.full([n + sum(w) for n, w in zip(x.shape, widths, strict=True)], value, x.dtype)
    out[tuple(slice(w[0], w[0] + n) for n, w in zip(x.shape, widths, strict=True))] = x
    return out


def windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Array:
    """Return a view ``(N, H, W, kh, kw, C)`` of the windows of an ``(N, H, W, C)`` array.

    There may be a depth before the height.
    """
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    axes = tuple(range(1, len(spans) + 1))
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)
    steps = [tuple(slice(None, None, n) for n in of) for of in (strides, dilation)]
    every = slice(None)
    index = (every, *steps[0], every, *steps[1])
    return np.moveaxis(view[index], len(spans) + 1, -1)


def conv2d(
    x: Array, kernel: Array, strides: Sequence[int], pads: Pads, dilation: Sequence[int] = (1, 1)
) -> Array:
    """Convolve ``(N, H, W, I)`` with an HWIO kernel; ``I`` may be a multiple of the kernel's."""
    x = pad(x, pads)
    height, width, depth, channels = kernel.shape
    groups = x.shape[-1] // depth
    if groups > 1:
        parts = zip(np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True)
        return np.concatenate([conv2d(a, b, strides, (), dilation) for a, b in parts], -1)
    matrix = np.ascontiguousarray(kernel.reshape(-1, channels))
    if (height, width) == (1, 1):
        return np.asarray(x[:, :: strides[0], :: strides[1]] @ matrix)
    view = windows(x, (height, width), strides, dilation)
    out = np.empty((*view.shape[:3], channels), x.dtype)
    images = max(1, _COLUMNS // max(1, view[:1].size))
    rows = max(1, view.shape[1] * _MOST_COLUMNS // max(_MOST_COLUMNS, view[:1].size))
    for start in range(0, len(x), images):
        for top in range(0, view.shape[1], rows):
            part = (slice(start, start + images), slice(top, top + rows))
            columns = view[part].reshape(-1, len(matrix))
            np.matmul(columns, matrix, out=out[part].reshape(-1, channels))
    return out


def conv3d(
    x: Array, kernel: Array, strides: Sequence[int], pads: Pads, dilation: Sequence[int]
) -> Array:
    """Convolve ``(N, D, H, W, I)`` with a DHWIO kernel: the planes of it are `conv2d`'s."""
    x = pad(x, pads)
    depth = (x.shape[1] - (len(kernel) - 1) * dilation[0] - 1) // strides[0] + 1
    total: Array | None = None
    for i, plane in enumerate(kernel):
        first = i * dilation[0]
        read = x[:, first : first + (depth - 1) * strides[0] + 1 : strides[0]]
        part = conv2d(read.reshape(-1, *x.shape[2:]), plane, strides[1:], (), dilation[1:])
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None  # a kernel has at least one plane
    return total.reshape(len(x), depth, *total.shape[1:])


def depthwise_conv2d(
    x: Array, kernel: Array, strides: Sequence[int], pads: Pads, dilation: Sequence[int] = (1, 1)
) -> Array:
    """Convolve each channel with its own kernels, HWIM: output channel ``c * M + m``."""
    x = pad(x, pads)
    height, width, channels, multiplier = kernel.shape
    if multiplier > 1:
        x = np.repeat(x, multiplier, axis=-1)
    taps = kernel.reshape(height, width, channels * multiplier)
    rows, columns = (
        (x.shape[1 + i] - (kernel.shape[i] - 1) * dilation[i] - 1) // strides[i] + 1 for i in (0, 1)
    )
    out = np.zeros((len(x), rows, columns, channels * multiplier), x.dtype)
    product = np.empty_like(out)
    for i in range(height):
        for j in range(width):
            top, left = i * dilation[0], j * dilation[1]
            shifted = x[
                :,
                top : top + (rows - 1) * strides[0] + 1 : strides[0],
                left : left + (columns - 1) * strides[1] + 1 : strides[1],
            ]
            out += np.multiply(shifted, taps[i, j], out=product)
    return out


def conv2d_transpose(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    crops: Pads,
    size: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> Array:
    """Scatter ``(N, H, W, I)`` through an HWOI kernel, then crop to `size`."""
    height, width, channels, _ = kernel.shape
    rows, columns = x.shape[1:3]
    full = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip((rows, columns), strides, (height, width), dilation, strict=True)
    ]
    extent = [max(f, c[0] + n) for f, c, n in zip(full, crops, size, strict=True)]
    out = np.zeros((len(x), *extent, channels), x.dtype)
    for i in range(height):
        for j in range(width):
            top, left = i * dilation[0], j * dilation[1]
            out[
                :,
                top : top + (rows - 1) * strides[0] + 1 : strides[0],
                left : left + (columns - 1) * strides[1] + 1 : strides[1],
            ] += x @ np.ascontiguousarray(kernel[i, j].T)
    (top, _), (left, _) = crops
    return out[:, top : top + size[0], left : left + size[1]]


def pool(
    x: Array, reduce: Any, size: Sequence[int], strides: Sequence[int], pads: Pads, fill: float
) -> Array:
    """Reduce the windows of ``(N, H, W, C)`` with a ufunc, one kernel position at a time."""
    x = pad(x, pads, fill)
    rows, columns = ((x.shape[1 + i] - size[i]) // strides[i] + 1 for i in (0, 1))
    out: Array | None = None
    for i in range(size[0]):
        for j in range(size[1]):
            part = x[
                :,
                i : i + (rows - 1) * strides[0] + 1 : strides[0],
                j : j + (columns - 1) * strides[1] + 1 : strides[1],
            ]
            out = part.copy() if out is None else reduce(out, part, out=out)
    assert out is not None  # a pool has at least one position
    return out


def bilinear_steps(factor: int) -> int:
    """Return the steps in which a bilinear resize by a factor weighs: its weights are whole."""
    return factor if factor % 2 else 2 * factor


def bilinear(x: Array, factors: Sequence[int]) -> Array:
    """Resize ``(N, H, W, C)`` as TensorFlow does with half-pixel centers, times all steps."""
    for axis, factor in enumerate(factors, 1):
        steps, length = bilinear_steps(factor), x.shape[axis]
        place = (2 * np.arange(length * factor) + 1 - factor) * steps // (2 * factor)
        below, share = np.divmod(place, steps)
        share = share.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1 - axis))
        low, high = (x.take(np.clip(i, 0, length - 1), axis) for i in (below, below + 1))
        x = low * (x.dtype.type(steps) - share) + high * share
    return x


def pool_counts(
    shape: Sequence[int], size: Sequence[int], strides: Sequence[int], pads: Pads
) -> Array:
    """Return how many real pixels each window of an average pool holds, ``(…, 1)``."""
    counts = []
    for n, k, s, (before, after) in zip(shape, size, strides, pads, strict=False):
        first = np.arange((n + before + after - k) // s + 1) * s - before
        counts.append(np.minimum(first + k, n) - np.maximum(first, 0))
    total = np.ones(())
    for count in counts:
        total = np.multiply.outer(total, count)
    return np.asarray(total[..., np.newaxis], np.float64)
