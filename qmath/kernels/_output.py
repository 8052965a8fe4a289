"""Where results go: the caller's array or a new one."""

from __future__ import annotations

import numpy as np

from qmath.errors import QmathError
from qmath.kernels._float32 import Float32Array


def output(out: Float32Array | None, shape: tuple[int, ...]) -> Float32Array:
    """Return the array to write a result of this shape to, refusing what cannot hold it."""
    if out is None:
        return np.empty(shape, np.float32)
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape:
        raise QmathError(f"out must be a float32 array of shape {shape}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise QmathError("out must be C-contiguous and writeable")
    return out


def apart(x: Float32Array, out: Float32Array) -> Float32Array:
    """Return `x` flat, and copied if writing `out` would change elements that are not read yet."""
    if not x.flags.c_contiguous:
        return x.flatten()
    if np.may_share_memory(x, out) and x.ctypes.data != out.ctypes.data:
        return x.flatten()
    return x.reshape(-1)
