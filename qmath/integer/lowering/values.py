"""What a layer's output can be while a model is lowered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from qmath.integer.program import QuantParams, Shape, UnroundedSum

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Integers:
    """Integers that a step makes."""

    name: str
    params: QuantParams
    shape: Shape


@dataclass(frozen=True, eq=False)
class Floats:
    """A value that a step makes in float32."""

    name: str
    shape: Shape


@dataclass(frozen=True, eq=False)
class Function:
    """An elementwise function of integers: a table, if a quantizer follows."""

    source: Integers
    function: Callable[[Array], Array]

    @property
    def shape(self) -> Shape:
        """Of the source."""
        return self.source.shape


Value = Integers | Floats | UnroundedSum | Function


@dataclass(frozen=True)
class FloatLayer:
    """A step in float32, the layer it is of, and what would have to be quantized to avoid it."""

    layer: str
    step: str
    remedy: str
