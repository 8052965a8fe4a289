"""Layers under construction, each taking in the ops that belong to it, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from qmath.errors import FileFormatError
from qmath.layers import supports
from qmath.model import Graph, Node
from qmath.readers.architecture.fields import check_config
from qmath.readers.architecture.graph import NotAGraphError
from qmath.readers.completion import RANGE_ROLES
from qmath.readers.records import StoredTensor
from qmath.readers.saved_model.functions import Output, key_of
from qmath.readers.saved_model.rebuilding.params import Param

__all__ = [
    "NO_BROADCAST",
    "LayerOutput",
    "PartialLayer",
    "PartialLayers",
    "Value",
    "label_of",
    "unknown",
]

NO_BROADCAST = "a constant is added or multiplied"
_RANGES = tuple(RANGE_ROLES)


@dataclass(eq=False)
class PartialLayer:
    """A layer that may yet take in ops that follow.

    Attributes
    ----------
    class_name, inputs, config, layer, name
        As in `Node`; `layer` is empty until a variable tells it.
    scope : str
        The name of its first op, with all scopes.
    last : object
        The key of the op whose output is the layer's.
    ranges : list of str
        Where it quantizes what it computes.
    has_activation : bool
    """

    class_name: str
    inputs: tuple[PartialLayer, ...]
    config: dict[str, Any]
    scope: str
    last: object
    layer: str = ""
    ranges: list[str] = field(default_factory=list)
    has_activation: bool = False
    name: str = ""


class LayerOutput(NamedTuple):
    """What flows out of a layer.

    Attributes
    ----------
    partial : PartialLayer
    views : tuple
        How its layout differs for the moment: ``("axis", 1)``, an axis that makes a signal an
        image; ``("blocks", (2, 2), (1, 1, 1, 1))``, pixels apart put side by side, with padding;
        ``("rows",)``, all axes but the last put together; ``("steps", 1, 12)``, an axis cut in its
        steps; ``("step", 1, 12, 3)``, one of them.
    """

    partial: PartialLayer
    views: tuple[tuple[Any, ...], ...] = ()


Value = Param | LayerOutput


class PartialLayers:
    """All layers of a model.

    Parameters
    ----------
    variables : mapping of object to StoredTensor
        By the number of the variable that holds the values, or, of an activation, the lower end of
        the range; or by `key_of` the op that makes the quantized values.
    uses : Counter
        How many ops read the output of an op, by its key.

    Attributes
    ----------
    weights, ranges : dict of object to str
        Names of tensors by variable or op: of weights, and of activations.
    shapes : dict of str to tuple
        Of the weights, by name.
    """

    def __init__(self, variables: Mapping[object, StoredTensor], uses: Counter[object]) -> None:
        weights = {i: tensor for i, tensor in variables.items() if tensor.values is not None}
        self.weights = {i: tensor.name for i, tensor in weights.items()}
        self.ranges = {i: tensor.name for i, tensor in variables.items() if i not in weights}
        self.shapes = {tensor.name: np.shape(tensor.values) for tensor in weights.values()}
        self._quantized = {t.name for t in weights.values() if t.min is not None}
        self.uses = uses
        self.layers: list[PartialLayer] = []

    def add(
        self,
        class_name: str,
        inputs: Sequence[Value],
        config: dict[str, Any],
        output: Output,
        layer: str = "",
        views: tuple[tuple[Any, ...], ...] = (),
    ) -> LayerOutput:
        """Begin a layer; its inputs must be laid out as `views` says."""
        feeds = []
        for value in inputs:
            if not isinstance(value, LayerOutput) or value.views != views:
                raise unknown(output)
            feeds.append(value.partial)
        partial = PartialLayer(class_name, tuple(feeds), config, output.name, key_of(output), layer)
        self.layers.append(partial)
        return LayerOutput(partial, views)

    def moved(self, partial: PartialLayer, output: Output) -> None:
        """Let a layer end with an op that changes nothing, if nothing else uses what is before."""
        if self.uses[partial.last] == 1:
            partial.last = key_of(output)

    def merge(self, partial: PartialLayer) -> PartialLayer:
        """Make an activation part of the layer before it, and return that."""
        (previous,) = partial.inputs
        previous.config["activation"] = partial.config["activation"]
        previous.has_activation = True
        previous.last = partial.last
        self.layers.remove(partial)
        return previous

    def is_open(self, partial: PartialLayer, which: str = "pre_activation") -> bool:
        """Tell whether a layer can take in an op for `which`: nothing else uses what is before."""
        if self.uses[partial.last] != 1:
            return False
        place = _RANGES.index(which)
        if which == "pre_activation" and partial.has_activation:
            return False
        return all(_RANGES.index(other) < place for other in partial.ranges)

    def layer_of(self, param: Value, name: str, output: Output) -> str:
        """Return the layer whose variable of this name a parameter is, quantized if it must be."""
        tensor = self.tensor_of(param)
        layer, _, leaf = tensor.rpartition("/")
        if leaf != name:
            raise NotAGraphError(f"{output.name} does not use the {name} of a layer")
        return layer

    def tensor_of(self, param: Value) -> str:
        """Return the name of the tensor that a parameter is, ``""`` if none."""
        is_quantized = False
        if not isinstance(param, Param):
            return ""
        while param.op in ("FakeQuant", "Transpose", "ExpandDims") and param.args:
            is_quantized |= param.op == "FakeQuant"
            param = param.args[0]
        return param.name if is_quantized == (param.name in self._quantized) else ""

    def graph(self, inputs: Sequence[PartialLayer], ends: Sequence[PartialLayer]) -> Graph:
        """Return the layers, if each quantizes what it should."""
        ranged: dict[str, list[str]] = {}
        for name in dict.fromkeys(self.ranges.values()):
            layer, _, which = name.rpartition("/")
            ranged.setdefault(layer, []).append(which)
        taken = ranged.keys() | {partial.layer for partial in self.layers}
        counts: Counter[str] = Counter()
        nodes = []
        for partial in self.layers:
            if not supports(partial.class_name, "ops"):  # a factor that no layer took in
                raise NotAGraphError(f"{partial.scope}: {NO_BROADCAST}")
            if not partial.layer:
                partial.layer = label_of(partial.scope)
                if partial.layer in taken or counts[partial.layer]:
                    partial.layer += f"/{partial.scope.rpartition('/')[2]}"
            wanted = sorted(ranged.get(partial.layer, ()), key=_RANGES.index)
            if partial.ranges != wanted:
                raise NotAGraphError(
                    f"{partial.scope}: it is not clear what {partial.layer} quantizes"
                )
            number = counts[partial.layer]
            counts[partial.layer] += 1
            partial.name = partial.layer + (f"#{number}" if number else "")
            feeds = tuple(feed.name for feed in partial.inputs)
            config = {"name": partial.layer.rpartition("/")[2], **partial.config}
            try:
                check_config(partial.class_name, config, partial.scope)
            except FileFormatError as error:
                raise NotAGraphError(str(error)) from None
            nodes.append(Node(partial.name, partial.layer, partial.class_name, feeds, config))
        if len({node.name for node in nodes}) < len(nodes):
            raise NotAGraphError("two of its layers have one name")
        return Graph(tuple(nodes), tuple(d.name for d in inputs), tuple(d.name for d in ends))


def unknown(output: Output) -> NotAGraphError:
    """Return the error that an op is not understood."""
    shown = "".join(c for c in output.name if c.isprintable())
    return NotAGraphError(f"the op {output.node.op} ({shown}) is not one of a layer that is known")


def label_of(scope: str) -> str:
    """Return the path of the layer that an op lies in, by its scopes below the model's."""
    parts = [part.removeprefix("quant_") for part in scope.split("/")]
    return "/".join(parts[1:-1]) or parts[-1]
