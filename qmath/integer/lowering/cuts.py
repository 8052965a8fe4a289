"""Layers that qmath cannot compute: cut points, why, and what tells the shape of their outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qmath.errors import QmathError
from qmath.integer.cuts import Layers, function_of, probed
from qmath.integer.lowering.values import Value
from qmath.integer.program import Shape
from qmath.model import Graph, Node

__all__ = ["Shapes", "UnsupportedError"]

_QUANTIZERS = ("pre_activation", "post_activation", "output")
# Classes of Keras that keep the shape of their input, whatever else they do.
_KEEP_SHAPE = frozenset({
    "AlphaDropout", "BatchNormalization", "Dropout", "ELU", "GaussianDropout", "GaussianNoise",
    "GroupNormalization", "LayerNormalization", "Masking", "PReLU", "Rescaling", "Softmax",
    "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "SyncBatchNormalization",
    "ThresholdedReLU", "UnitNormalization",
})  # fmt: skip


class UnsupportedError(QmathError):
    """A layer of a known class has a setting that qmath does not compute: the layer is a cut point.

    Parameters
    ----------
    name : str
        Of the layer.
    reason : str
        What follows "because".
    remedy : str
        What else to do than to compute the layer oneself, as an imperative.
    is_rounded : bool
        Whether what the layer makes is meant after its quantizers, one of which is the reason.
    """

    def __init__(self, name: str, reason: str, remedy: str, is_rounded: bool = False) -> None:
        super().__init__(f"{name}: qmath does not compute this layer because {reason}; {remedy}")
        self.reason, self.remedy, self.is_rounded = reason, remedy, is_rounded


class Shapes:
    """Where the shapes of unknown layers' outputs are found.

    Parameters
    ----------
    graph : Graph
    given : mapping of str to tuple
        Shapes without the batch: of layers by name, or of the tensors that they are quantized to.
    layers : mapping of str to callable
        Functions of layers, see `qmath.integer.cuts.bind`.
    """

    def __init__(self, graph: Graph, given: Mapping[str, Shape], layers: Layers) -> None:
        self.given, self.layers = given, layers
        self._built: dict[str, tuple[int | None, ...]] = {}
        for node in graph.nodes:
            if len(node.built_for) == len(node.inputs):
                for name, shape in zip(node.inputs, node.built_for, strict=True):
                    if None not in shape:
                        self._built.setdefault(name, shape)

    def of(self, node: Node, step: str, values: Sequence[Value]) -> Shape | None:
        """Return the shape of what a layer makes, ``None`` if nothing tells it.

        It is what the model's config says of a layer that it feeds, or of a Lambda layer; what the
        user says; the input's, of classes that keep it; or what the user's function makes.
        """
        built = self._built.get(node.name)
        declared = node.config.get("output_shape") if node.class_name == "Lambda" else None
        if built is None and isinstance(declared, list):
            built = tuple(declared)
        if built and all(type(n) is int and n > 0 for n in built):
            return tuple(n for n in built if n)
        for name in (step, node.name, *(f"{node.name}/{which}" for which in _QUANTIZERS)):
            if name in self.given:
                return _checked(step, tuple(self.given[name]))
        if node.class_name in _KEEP_SHAPE:
            return values[0].shape
        function = function_of(self.layers, step, node.layer, node.class_name)
        if function is None:
            return None
        return probed(function, step, [value.shape for value in values])


def _checked(step: str, shape: Shape) -> Shape:
    if not shape or not all(isinstance(n, (int, np.integer)) and n > 0 for n in shape):
        raise QmathError(
            f"{step}: the shape of what it makes is given as {shape}; it is that of one example, "
            "without the batch: one or more lengths above 0"
        )
    return shape
