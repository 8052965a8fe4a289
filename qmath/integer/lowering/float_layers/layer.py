"""What a float layer is made of: a call of a Keras layer, its weights, and what computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.integer.lowering import activations
from qmath.integer.program import Shape
from qmath.model import Node

__all__ = ["Call", "Computation", "Float64Array", "function_named"]

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Computation:
    """What computes a layer: float64 arrays in, one out, and the shape of that of one example.

    The executor hands over float32 values and rounds the result to float32: nothing in between is
    rounded, so that what differs from Keras is Keras's own float32 arithmetic.
    """

    apply: Callable[..., Float64Array]
    shape: Shape


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a layer.

    Attributes
    ----------
    node : Node
    shapes : tuple of tuple
        Of its inputs, without the batch.
    weights : mapping of str to ndarray
        The values that inference uses, dequantized where they are quantized, by what follows the
        layer's path in their names: ``gamma``, ``lstm_cell/kernel``.
    """

    node: Node
    shapes: tuple[Shape, ...]
    weights: Mapping[str, NDArray[np.float32]]

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the layer."""
        return self.node.config

    def weight(self, name: str) -> Float64Array | None:
        """Return the one weight whose name ends so, ``None`` if there is none."""
        found = [array for key, array in self.weights.items() if key.split("/")[-1] == name]
        return found[0].astype(np.float64) if len(found) == 1 else None

    def within(self, path: str, config: Mapping[str, Any]) -> Call:
        """Return the call of a layer inside, whose weights' names begin with `path`."""
        weights = {
            key.removeprefix(path): array
            for key, array in self.weights.items()
            if key.startswith(path)
        }
        return replace(self, node=replace(self.node, config=config), weights=weights)


def function_named(name: object) -> Callable[[Float64Array], Float64Array] | None:
    """Return an activation that is used inside a layer, ``None`` if it is not known."""
    if name == "hard_sigmoid":
        return lambda x: np.clip(0.2 * x + 0.5, 0, 1)
    if name is None or (name in activations.PIECEWISE):
        activation = activations.PIECEWISE[str(name)] if name else None
        if activation is None:
            return lambda x: x
        return lambda x: activations.piecewise(x, activation)
    return activations.SMOOTH.get(str(name))
