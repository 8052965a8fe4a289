"""The array operations against their definition, element by element."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qmath.integer import ops

RNG = np.random.default_rng(0)
X = RNG.integers(-9, 10, (2, 7, 6, 4)).astype(np.float32)


def at(x: np.ndarray, n: int, i: int, j: int) -> np.ndarray:
    """Return a pixel, zero outside."""
    inside = 0 <= i < x.shape[1] and 0 <= j < x.shape[2]
    return x[n, i, j] if inside else np.zeros(x.shape[3], x.dtype)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 2)])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 3)])
def test_convolutions(padding: str, strides: tuple, dilation: tuple, size: tuple) -> None:
    spans = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    pads = ops.same_pads(X.shape[1:3], spans, strides) if padding == "same" else ((0, 0), (0, 0))
    kernel = RNG.integers(-3, 4, (*size, 4, 5)).astype(np.float32)
    found = ops.conv2d(X, kernel, strides, pads, dilation)
    depthwise = ops.depthwise_conv2d(X, kernel, strides, pads, dilation)
    for n, r, c in itertools.product(range(2), range(found.shape[1]), range(found.shape[2])):
        total, each = np.zeros(5), np.zeros((4, 5))
        for i, j in itertools.product(range(size[0]), range(size[1])):
            row = r * strides[0] - pads[0][0] + i * dilation[0]
            column = c * strides[1] - pads[1][0] + j * dilation[1]
            pixel = at(X, n, row, column)
            total += pixel @ kernel[i, j]
            each += pixel[:, np.newaxis] * kernel[i, j]
        np.testing.assert_array_equal(found[n, r, c], total)
        np.testing.assert_array_equal(depthwise[n, r, c], each.ravel())


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 3, 1)])
@pytest.mark.parametrize("dilation", [(1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_of_three_axes(
    padding: str, strides: tuple, dilation: tuple, groups: int
) -> None:
    x = RNG.integers(-9, 10, (2, 5, 4, 7, 4)).astype(np.float32)
    size = (3, 2, 2)
    spans = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    pads = ops.same_pads(x.shape[1:4], spans, strides) if padding == "same" else ((0, 0),) * 3
    kernel = RNG.integers(-3, 4, (*size, 4 // groups, 6)).astype(np.float32)
    found = ops.conv3d(x, kernel, strides, pads, dilation)
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    whole = np.zeros((*size, 4, 6), np.float32)
    for i in range(groups):
        part = (
            slice(4 // groups * i, 4 // groups * (i + 1)),
            slice(6 // groups * i, 6 // groups * (i + 1)),
        )
        whole[..., part[0], part[1]] = kernel[..., part[1]]
    for at in np.ndindex(*found.shape[1:4]):
        first = [i * s for i, s in zip(at, strides, strict=True)]
        window = tuple(slice(f, f + n, d) for f, n, d in zip(first, spans, dilation, strict=True))
        expected = np.tensordot(padded[(slice(None), *window)], whole, 4)
        np.testing.assert_array_equal(found[(slice(None), *at)], expected)
    counts = [(n - k) // s + 1 for n, k, s in zip(padded.shape[1:], spans, strides, strict=False)]
    assert list(found.shape[1:4]) == counts


def test_groups() -> None:
    kernel = RNG.integers(-3, 4, (3, 3, 2, 6)).astype(np.float32)
    found = ops.conv2d(X, kernel, (1, 1), ())
    halves = [ops.conv2d(X[..., s], kernel[..., t], (1, 1), ())
              for s, t in ((slice(2), slice(3)), (slice(2, 4), slice(3, 6)))]  # fmt: skip
    np.testing.assert_array_equal(found, np.concatenate(halves, -1))


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (4, 3)])
def test_transposed_convolution_is_the_adjoint(
    strides: tuple, size: tuple, dilation: tuple
) -> None:
    """It scatters what a convolution of the same geometry would gather."""
    kernel = RNG.integers(-3, 4, (*size, 5, 4)).astype(np.float64)  # HWOI
    span = tuple((k - 1) * d + 1 for k, d in zip(size, dilation, strict=True))
    for same in (False, True):
        shape = X.shape[1:3]
        if same:
            out = tuple(n * s for n, s in zip(shape, strides, strict=True))
            pads = ops.same_pads(out, span, strides)
        else:
            out = tuple((n - 1) * s + k for n, s, k in zip(shape, strides, span, strict=True))
            pads = ((0, 0), (0, 0))
        found = ops.conv2d_transpose(X.astype(float), kernel, strides, pads, out, dilation)
        y = RNG.integers(-3, 4, (2, *out, 5)).astype(float)
        gathered = ops.conv2d(y, kernel, strides, pads, dilation)
        assert gathered.shape == X.shape
        assert (found * y).sum() == (gathered * X).sum()


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_pools(strides: tuple) -> None:
    pads = ops.same_pads(X.shape[1:3], (3, 2), strides)
    sums = ops.pool(X, np.add, (3, 2), strides, pads, 0.0)
    highest = ops.pool(X, np.maximum, (3, 2), strides, pads, -np.inf)
    counts = ops.pool_counts(X.shape[1:3], (3, 2), strides, pads)
    for r, c in itertools.product(range(sums.shape[1]), range(sums.shape[2])):
        top, left = r * strides[0] - pads[0][0], c * strides[1] - pads[1][0]
        window = X[:, max(top, 0) : top + 3, max(left, 0) : left + 2]
        np.testing.assert_array_equal(sums[:, r, c], window.sum((1, 2)))
        np.testing.assert_array_equal(highest[:, r, c], window.max((1, 2)))
        assert counts[r, c, 0] == window[0, ..., 0].size
