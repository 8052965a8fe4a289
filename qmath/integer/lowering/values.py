"""What a layer's output can be while a model is lowered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """An elementwise function of integers, or a softmax: a table, if a quantizer follows.

    `axis` is that of a softmax, counted from the last one; `name` is what Keras calls the function,
    if it does; `kernel` is the operation of a TFLite file that it is on integers, if any.
    """

    source: Integers
    function: Callable[[Array], Array]
    axis: int | None = None
    name: str = ""
    kernel: str = ""

    @property
    def shape(self) -> Shape:
        """Of the source."""
        return self.source.shape


@dataclass(frozen=True, eq=False)
class Extreme:
    """The least or greatest of tensors, which are the rows of a sum that is not rounded yet.

    Rounding is monotone: if a quantizer follows, the sum is rounded by it first.
    """

    source: UnroundedSum
    function: Callable[[Array], Array]
    attributes: Mapping[str, Any]
    shape: Shape


Value = Integers | Floats | UnroundedSum | Function | Extreme


@dataclass(frozen=True)
class FloatLayer:
    """A step in float32, the layer it is of, and what would have to be quantized to avoid it."""

    layer: str
    step: str
    remedy: str
