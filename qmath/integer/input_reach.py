"""How far the data reach beyond the ranges of the model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import QmathError
from qmath.integer.program import Program, QuantizeStep

__all__ = ["InputReach"]

Array = NDArray[Any]


@dataclass
class _Reach:
    """Of one input: how many values lie outside, and far outside, and from where to where."""

    size: int = 0
    outside: int = 0
    far: int = 0
    least: float = float("inf")
    greatest: float = -float("inf")


class InputReach:
    """The values of a program's inputs, counted part by part.

    Parameters
    ----------
    program : Program
    """

    def __init__(self, program: Program) -> None:
        self._reaches = [
            (step, _Reach())
            for step in program.steps
            if isinstance(step, QuantizeStep) and step.source in program.inputs
        ]

    def add(self, arrays: Mapping[str, Array]) -> None:
        """Count the values of further examples."""
        for step, reach in self._reaches:
            x = arrays[step.source]
            if not x.size:
                continue
            scale = step.params.scale
            low, high = (limit * scale for limit in step.params.limits)
            width = high - low
            reach.size += x.size
            least, greatest = x.min(), x.max()
            reach.least = np.minimum(reach.least, least)
            reach.greatest = np.maximum(reach.greatest, greatest)
            if least < low - scale or greatest > high + scale or np.isnan(least):
                reach.outside += np.count_nonzero((x < low - scale) | (x > high + scale))
                reach.far += np.count_nonzero((x < low - width) | (x > high + width))

    def check(self) -> None:
        """Refuse data that the model's input would clip: training scaled them otherwise.

        Raises
        ------
        QmathError
            A quarter of them lies outside the range, or a hundredth far outside.
        """
        for step, reach in self._reaches:
            if 4 * reach.outside > reach.size or 100 * reach.far > reach.size:
                params = step.params
                raise QmathError(
                    f"{step.source}: {reach.outside / reach.size:.0%} of the data, from "
                    f"{reach.least:.6g} to {reach.greatest:.6g}, lie outside the range "
                    f"[{params.min:.6g}, {params.max:.6g}] of {step.name}; scale them as in "
                    "training"
                )
