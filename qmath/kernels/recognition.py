"""Which build made fake-quantized floats: every build computes them again, and all bits count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from qmath.errors import QmathError
from qmath.kernels._float32 import Float32Array, as_float32
from qmath.kernels._xla import XLA_CPU, XLA_CPU_NOFMA, has_short_rows
from qmath.kernels.affine import check_flag, check_num_bits
from qmath.kernels.builds import BUILDS, Build
from qmath.kernels.fake_quant import (
    fake_quant_with_min_max_args,
    fake_quant_with_min_max_vars,
    fake_quant_with_min_max_vars_per_channel,
)

__all__ = ["RecognizedBuild", "recognize_build"]


@dataclass(frozen=True)
class RecognizedBuild:
    """Which builds give some fake-quantized floats.

    Attributes
    ----------
    elements : int
        Floats compared.
    differing : mapping of str to int
        For each build how many of them it computes otherwise.
    """

    elements: int
    differing: Mapping[Build, int]

    @property
    def builds(self) -> tuple[Build, ...]:
        """The builds that give every one: several cannot be told apart, none made these floats."""
        return tuple(build for build, count in self.differing.items() if not count)

    @property
    def build(self) -> Build | None:
        """The build that made them, if only one can have."""
        return self.builds[0] if len(self.builds) == 1 else None

    @property
    def deciding(self) -> int:
        """How many elements the nearest of the builds that are ruled out gives otherwise."""
        others = [count for count in self.differing.values() if count]
        return min(others) if others and self.builds else 0

    def __str__(self) -> str:
        if not self.builds:
            near, count = min(self.differing.items(), key=lambda item: item[1])
            return (
                f"of no build that qmath knows; {near} is the nearest, which gives {count:,} of "
                f"{self.elements:,} elements otherwise"
            )
        if not self.deciding:
            return "of any build: these elements cannot tell the builds apart"
        words = f"{self.deciding:,} of {self.elements:,} elements decide"
        if self.build is not None:
            return f"of the build {self.build}; {words} it"
        return f"of {' or '.join(self.builds)}, which cannot be told apart; {words} against others"


def recognize_build(
    outputs: ArrayLike,
    min: ArrayLike,
    max: ArrayLike,
    num_bits: SupportsIndex,
    *,
    inputs: ArrayLike | None = None,
    narrow_range: bool = False,
    per_axis: bool = False,
    op: Literal["vars", "args"] = "vars",
) -> RecognizedBuild:
    """Find out which build of TensorFlow fake-quantized floats.

    Parameters
    ----------
    outputs : array-like of float
        What the op returned.
    min, max, num_bits, narrow_range, per_axis, op
        As for `qmath.quantize`.
    inputs : array-like of float, optional
        What it was given. Without them only the values tell: every build finds its own again, but
        which integer an input near a tie became is not seen.

    Returns
    -------
    RecognizedBuild

    Raises
    ------
    QmathError
        As the op of this range; `op` is another; a flag is no bool; `inputs` have another shape
        than `outputs`.

    Notes
    -----
    A step counted from real zero gives multiples of the scale, one counted from the minimum what
    two roundings, or a fused one, leave of them. XLA's scale is another in its last place, too.

    Examples
    --------
    >>> import qmath
    >>> x = [0.1, 0.2, 0.3]
    >>> y = qmath.fake_quant_with_min_max_vars(x, -0.7, 1.1, build="xla-cpu")
    >>> found = recognize_build(y, -0.7, 1.1, 8, inputs=x)
    >>> found.build, found.deciding
    ('xla-cpu', 1)
    """
    y = as_float32(outputs, "outputs")
    x = y if inputs is None else as_float32(inputs, "inputs")
    if x.shape != y.shape:
        raise QmathError(f"inputs and outputs must have the same shape, got {x.shape}, {y.shape}")
    if op not in ("vars", "args"):
        raise QmathError(f"op must be 'vars' or 'args', got {op!r}")
    bits = check_num_bits(num_bits)
    by_axis, narrow = check_flag(per_axis, "per_axis"), check_flag(narrow_range, "narrow_range")
    differing: dict[Build, int] = {}
    for arithmetic in BUILDS.values():
        build = arithmetic.name
        if by_axis:
            made = fake_quant_with_min_max_vars_per_channel(x, min, max, bits, narrow, build=build)
        elif op == "args":
            ends = as_float32(min, "min"), as_float32(max, "max")
            made = _with_args(x, y, *ends, bits, narrow, build)
        else:
            made = fake_quant_with_min_max_vars(x, min, max, bits, narrow, build=build)
        differing[build] = _count_differing(made, y)
    return RecognizedBuild(y.size, differing)


def _with_args(
    x: Float32Array, y: Float32Array, min: Any, max: Any, bits: int, narrow: bool, build: Build
) -> Float32Array:
    """Fake-quantize with a range of two numbers; where XLA has two results, `y` may be either."""
    known = fake_quant_with_min_max_args(x.reshape(-1), min, max, bits, narrow, build=build)
    made = known.reshape(x.shape)
    if build == "xla-cpu" and has_short_rows(x.shape):
        fused, apart = (
            fake_quant_with_min_max_args(np.inf, min, max, bits, narrow, build=of)
            for of in (XLA_CPU.name, XLA_CPU_NOFMA.name)
        )
        made = np.where((made == fused) & (y == apart), y, made)
    return made


def _count_differing(made: Float32Array, y: Float32Array) -> int:
    """Count the elements that differ; NaN equals NaN, and a zero another."""
    return int(np.count_nonzero((made != y) & ~(np.isnan(made) & np.isnan(y))))
