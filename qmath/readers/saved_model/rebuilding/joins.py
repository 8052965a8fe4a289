"""Layers of several inputs: Keras makes them of ops of two, a sum and then the next input."""

from __future__ import annotations

from collections.abc import Sequence

from qmath.readers.saved_model.functions import Output, key_of
from qmath.readers.saved_model.rebuilding.params import Param
from qmath.readers.saved_model.rebuilding.partial_layers import (
    LayerOutput,
    PartialLayer,
    PartialLayers,
    Value,
    label_of,
    unknown,
)

__all__ = ["averaged", "joined"]


def joined(
    layers: PartialLayers, class_name: str, output: Output, inputs: Sequence[Value]
) -> LayerOutput:
    """Begin a layer of several inputs, or give one more to a layer whose op came before.

    Keras puts axes of length 1 after the batch, where an input has fewer axes than another: so does
    the layer.
    """
    flows = [_broadcast(value, output) for value in inputs]
    first, *others = flows
    partial = first.partial
    if partial.class_name == class_name and _is_part(partial, output) and layers.is_open(partial):
        partial.inputs += tuple(other.partial for other in others)
        partial.last = key_of(output)
        layers.layers.remove(partial)  # behind what it reads now
        layers.layers.append(partial)
        return first
    if class_name != "Add" and any(_is_part(flow.partial, output) for flow in flows):
        raise unknown(output)  # of a function that is made of several ops
    return layers.add(class_name, flows, {}, output)


def averaged(layers: PartialLayers, output: Output, inputs: Sequence[Value]) -> Value:
    """Recognize ``Average``, which Keras makes of a sum and how many there are."""
    flow, count = inputs
    if not isinstance(flow, LayerOutput) or not isinstance(count, Param) or flow.views:
        raise unknown(output)
    partial = flow.partial
    is_sum = partial.class_name == "Add" and _is_part(partial, output) and layers.is_open(partial)
    if not is_sum or count.values != (len(partial.inputs),):
        raise unknown(output)
    partial.class_name = "Average"
    partial.last = key_of(output)
    return flow


def _broadcast(value: Value, output: Output) -> LayerOutput:
    if not isinstance(value, LayerOutput) or any(view != ("axis", 1) for view in value.views):
        raise unknown(output)
    return LayerOutput(value.partial)


def _is_part(partial: PartialLayer, output: Output) -> bool:
    """Whether an op is of the layer that is under construction, by its scope."""
    return not partial.ranges and label_of(partial.scope) == label_of(output.name)
