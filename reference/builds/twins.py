"""What the kernels of another build return: those of XLA in this process, others in their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from qmath.kernels.builds import Build
from reference.builds.inputs import Case
from reference.builds.running import of_release
from reference.builds.wheels import RELEASES
from reference.jit import Call, answer

__all__ = ["outputs"]

PREFIX = "fake_quant_with_min_max_"


def outputs(
    build: Build, function: str, arrays: tuple[np.ndarray, ...], settings: tuple[Any, ...]
) -> tuple[np.ndarray, ...]:
    """Return the outputs of a function of ``tf.quantization``, called as qmath's own.

    Parameters
    ----------
    build : str
        With fused multiply-adds or without is decided by ``XLA_FLAGS``, before the first call.
    function : str
    arrays : tuple of ndarray
        Gradients and inputs.
    settings : tuple
        The range, the width, and whether it is narrow.
    """
    low, high, bits, narrow = settings
    op = function.removeprefix(PREFIX).replace("_gradient", " gradient")
    if build.startswith("xla"):
        is_args = op.startswith("args")
        ends = (float(low), float(high)) if is_args else ()
        given = arrays if is_args else (*arrays, low, high)
        return answer(Call(function, given, bits, narrow, ends))
    release = next(release for release in RELEASES if release.build == build)
    case = Case(op.replace("vars_per_channel", "per_channel"), arrays, low, high, bits, narrow)
    return tuple(of_release(release, [case])[1][0])
