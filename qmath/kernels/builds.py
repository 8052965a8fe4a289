"""Which TensorFlow's kernels: a table of the builds whose arithmetic qmath knows.

A *profile* is the integer arithmetic of a run; a *build* is what computed in floats when the model
was trained.
"""

from __future__ import annotations

from collections.abc import Mapping

from qmath.errors import QmathError
from qmath.kernels._eager import TF
from qmath.kernels._old_tf import OLD_TF
from qmath.kernels._range import Arithmetic, Build
from qmath.kernels._xla import XLA_CPU, XLA_CPU_NOFMA

__all__ = ["BUILDS", "Build", "arithmetic_of", "check_build"]

BUILDS: Mapping[str, Arithmetic] = {
    arithmetic.name: arithmetic for arithmetic in (TF, OLD_TF, XLA_CPU, XLA_CPU_NOFMA)
}


def arithmetic_of(build: str, prefix: str = "") -> Arithmetic:
    """Return how a build computes.

    Raises
    ------
    QmathError
        There is no such build.
    """
    found = BUILDS.get(build) if isinstance(build, str) else None
    if found is None:
        known = ", ".join(map(repr, BUILDS))
        raise QmathError(f"{prefix}build must be one of {known}, got {build!r}")
    return found


def check_build(build: str) -> Build:
    """Return the name of a build, if it is one."""
    return arithmetic_of(build).name
