"""The floating-point environment: what else runs in the process can change how floats are computed.

Another library may set the rounding mode of the thread, or let the processor flush subnormals to
zero; ``numpy.seterr`` may turn what IEEE 754 calls exceptions into Python's. The first changes
results and says nothing, so that every entry looks for it. The second changes nothing where
subnormals count as zero anyway, as in TensorFlow's kernels. Of the last, each computation that
may meet such an exception asks NumPy to be silent, in the thread that it runs in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

from qmath.errors import QmathError

P = ParamSpec("P")
R = TypeVar("R")

# A complex sum is two sums in one operation. In units of 2**-52 they are 1 + 3/4, which the
# modes down and toward zero round otherwise than to the nearest, and 1 + 1/4, which up does.
# They are names, not literals, so that no compiler adds them up beforehand.
_ONES = complex(1.0, 1.0)
_PARTS = complex(0.75 * 2.0**-52, 0.25 * 2.0**-52)
_NEAREST = complex(1.0 + 2.0**-52, 1.0)


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


check_rounding()  # for the constants that the other modules compute when they are imported
