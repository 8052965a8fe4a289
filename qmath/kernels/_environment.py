"""The floating-point environment: what else runs in the process can change how floats are computed.

Another library may set the rounding mode of the thread, or let the processor flush subnormals to
zero; ``numpy.seterr`` may turn what IEEE 754 calls exceptions into Python's. The first changes
results and says nothing, so that every entry looks for it. The second changes nothing where
subnormals count as zero anyway, as in TensorFlow's kernels; elsewhere, what may meet one is
refused. Of the last, each computation that may meet such an exception asks NumPy to be silent, in
the thread that it runs in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError

P = ParamSpec("P")
R = TypeVar("R")

# A complex sum is two sums in one operation. In units of 2**-52 they are 1 + 3/4, which the
# modes down and toward zero round otherwise than to the nearest, and 1 + 1/4, which up does.
# They are names, not literals, so that no compiler adds them up beforehand, and read from texts,
# as a compiler computes 2.0**-52 in whatever mode it runs in, and a power of two is none in some.
_ONES = complex(1.0, 1.0)
_PARTS = complex(float.fromhex("0x1.8p-53"), float.fromhex("0x1p-54"))
_NEAREST = complex(float.fromhex("0x1.0000000000001p+0"), 1.0)


def check_rounding() -> None:
    """Raise unless this thread rounds to the nearest, ties to even, as every process begins.

    The threads that it starts inherit its mode.
    """
    if _ONES + _PARTS != _NEAREST:
        raise QmathError(
            "this thread does not round floats to the nearest: another library has changed the "
            "rounding mode, by which results would differ in silence; set it back (in C, "
            "fesetround(FE_TONEAREST)), or use qmath in another process"
        )


def in_default_environment(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function check the rounding mode first, and run without NumPy's warnings."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        check_rounding()
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return run


def flushes_subnormals() -> bool:
    """Return whether this thread's results, or operands, count as zero where they are subnormal."""
    smallest = np.array([2.0**-126], np.float32)
    with np.errstate(all="ignore"):
        half = smallest * np.float32(0.5)
        return not (half + half).any()


def least_magnitude(array: NDArray[Any]) -> float:
    """Return the least magnitude among floats but zero, and infinity if there is none.

    It is looked for by the bits: a subnormal is found, though it may be returned as zero.
    """
    if array.dtype.itemsize > 8:  # which the processor's setting does not concern
        return float(np.abs(array[array != 0]).min(initial=np.inf))
    integers = np.dtype(f"i{array.dtype.itemsize}")
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    bits = native.view(integers) & np.iinfo(integers).max
    found = bits[bits > 0]
    return float(found.min().view(native.dtype)) if found.size else math.inf


def check_kept(what: str, least: float, limit: float = 2.0**-126) -> None:
    """Raise if subnormals may be met, as magnitudes are below a limit, and would be lost.

    Parameters
    ----------
    what : str
        What has them, for the message.
    least : float
        The least magnitude.
    limit : float, optional
    """
    if least < limit and flushes_subnormals():
        raise QmathError(
            f"{what} has magnitudes below 2**{math.frexp(limit)[1] - 1}, and this thread takes "
            "subnormals for zero: another library has set that; run the model in another process"
        )


check_rounding()  # for the constants that the other modules compute when they are imported
