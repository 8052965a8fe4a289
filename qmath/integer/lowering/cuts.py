"""Layers that qmath cannot compute: cut points, why, and what tells the shape of their outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from qmath.errors import QmathError
from qmath.integer.cuts import Layers, function_of, probed
from qmath.integer.lowering.values import Value
from qmath.integer.program import CutStep, Shape, Step
from qmath.model import Graph, Node

__all__ = ["Open", "Shapes", "UnsupportedError"]

_QUANTIZERS = ("pre_activation", "post_activation", "output")
# Classes of Keras that keep the shape of their input, whatever else they do.
_KEEP_SHAPE = frozenset({
    "AlphaDropout", "BatchNormalization", "Dropout", "ELU", "GaussianDropout", "GaussianNoise",
    "GroupNormalization", "LayerNormalization", "Masking", "PReLU", "Rescaling", "Softmax",
    "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "SyncBatchNormalization",
    "ThresholdedReLU", "UnitNormalization",
})  # fmt: skip
_SIZED = frozenset({"CenterCrop", "Resizing"})  # whose config has the size of what they make


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

        It is what the model's config says of the layer, or of one that it feeds; what the
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
        if not values:  # it follows a cut whose shape is not known
            return None
        if node.class_name in _KEEP_SHAPE:
            return values[0].shape
        if node.class_name in _SIZED:
            height, width = node.config.get("height"), node.config.get("width")
            if type(height) is int and type(width) is int:
                return (height, width, *values[0].shape[2:])
        function = function_of(self.layers, step, node.layer, node.class_name)
        if function is None:
            return None
        return probed(function, step, [value.shape for value in values])


class Open:
    """What follows cuts whose shape is not known, and is left out therefore.

    Parameters
    ----------
    tensors : collection of str
        The names of the model's tensors.

    Attributes
    ----------
    read : set of str
        The layers that a layer which is left out reads.
    """

    def __init__(self, tensors: Collection[str]) -> None:
        self.read: set[str] = set()
        self._tensors = tensors
        self._cuts: dict[str, tuple[str, ...]] = {}  # by the name of a layer that is left out
        self._left_out: dict[str, list[str]] = {}

    def before(self, node: Node) -> tuple[str, ...]:
        """Return the cuts of unknown shape that a layer follows."""
        found = (cut for name in node.inputs for cut in self._cuts.get(name, ()))
        return tuple(dict.fromkeys(found))

    def follow(
        self, node: Node, is_known: bool, steps: Sequence[Step], behind: tuple[str, ...]
    ) -> None:
        """Note what is left out with a layer, whose steps are the last ones.

        `is_known` says whether the shape of what it makes is known, `behind` is what `before` said.
        """
        made = [step.name for step in steps[-1:] if _is_open(step, node)]
        cuts = tuple(made) or behind
        if not is_known:
            self._cuts[node.name] = cuts
            self.read.update(node.inputs)
        for cut in cuts[:1]:
            places = _QUANTIZERS[:1] if is_known else _QUANTIZERS
            self._left_out.setdefault(cut, []).extend(
                f"{node.name}/{place}"
                for place in places
                if f"{node.layer}/{place}" in self._tensors
            )

    def noted(self, step: Step) -> Step:
        """Return a cut with what is left out for want of its shape, and any other step itself."""
        if not isinstance(step, CutStep) or step.name not in self._left_out:
            return step
        return replace(step, left_out=tuple(self._left_out[step.name]))


def _is_open(step: Step, node: Node) -> bool:
    return isinstance(step, CutStep) and not step.is_shaped and step.layer == node.layer


def _checked(step: str, shape: Shape) -> Shape:
    if not shape or not all(isinstance(n, (int, np.integer)) and n > 0 for n in shape):
        raise QmathError(
            f"{step}: the shape of what it makes is given as {shape}; it is that of one example, "
            "without the batch: one or more lengths above 0"
        )
    return shape
