"""TensorFlow's ops → what they are to a layer: its beginning, or a part of it.

A handler takes the op's output and the values of its inputs, one of which flows, and returns what
flows out of it. The settings of a layer are those of its op: strides, padding, dilation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qmath.layers import ACTIVATIONS, LAYERS, NORMALIZATION
from qmath.readers.architecture.graph import NotAGraphError
from qmath.readers.saved_model.functions import Output, key_of
from qmath.readers.saved_model.rebuilding.joins import averaged, joined
from qmath.readers.saved_model.rebuilding.params import (
    Param,
    batch_normalization,
    is_all_rows,
    shortest,
    target_shape,
)
from qmath.readers.saved_model.rebuilding.partial_layers import (
    NO_BROADCAST,
    LayerOutput,
    PartialLayers,
    Value,
    label_of,
    unknown,
)

__all__ = ["OPS"]

_ACTIVATIONS = {row.op: name for name, row in ACTIVATIONS.items() if row.op}
_POOLS = {"AvgPool": "AveragePooling", "MaxPool": "MaxPooling"}
_GLOBAL_POOLS = {"Mean": "GlobalAveragePooling", "Max": "GlobalMaxPooling"}
_TWO_OF_THREE = "UpSampling3D of two axes"  # a volume's upsampling under construction
_SLICES = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
_CONVOLUTIONS = {"Conv2D": "Conv2D", "DepthwiseConv2dNative": "DepthwiseConv2D",
                 "Conv2DBackpropInput": "Conv2DTranspose"}  # fmt: skip


def _dense(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow, weight = inputs
    attr = output.node.attr
    if not isinstance(flow, LayerOutput) or attr["transpose_a"].b or attr["transpose_b"].b:
        raise unknown(output)
    if flow.views not in ((), (("rows",),)):
        raise unknown(output)
    layer = layers.layer_of(weight, LAYERS["Dense"].kernel, output)
    config = {"activation": "linear", "use_bias": False}
    return layers.add("Dense", [flow], config, output, layer, flow.views)


def _convolution(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    node = output.node
    is_transposed = node.op == "Conv2DBackpropInput"
    flow, weight = inputs[2 if is_transposed else 0], inputs[1]
    if not isinstance(flow, LayerOutput):
        raise unknown(output)
    class_name = _CONVOLUTIONS[node.op]
    name = LAYERS[class_name].kernel
    layer = layers.layer_of(weight, name, output)
    strides, dilation = _spatial(node, "strides"), _spatial(node, "dilations")
    kinds = [view[0] for view in flow.views]
    if "axis" in kinds:
        if node.op != "Conv2D" or flow.views[-1] != ("axis", 1):
            raise unknown(output)
        class_name, strides, dilation = "Conv1D", strides[1:], dilation[1:]
    if "rows" in kinds or (kinds and is_transposed):
        raise unknown(output)
    config = {
        "strides": strides, "padding": _padding(output), "data_format": "channels_last",
        "dilation_rate": dilation, "activation": "linear", "use_bias": False,
    }  # fmt: skip
    if "blocks" in kinds and (set(strides + dilation) != {1} or config["padding"] != "valid"):
        raise unknown(output)
    made = layers.add(class_name, [flow], config, output, layer, flow.views)
    made.partial.config["kernel_size"] = list(layers.shapes[f"{layer}/{name}"][: len(strides)])
    return made


def _bias(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow, bias = inputs
    if not isinstance(flow, LayerOutput) or flow.views:
        raise unknown(output)
    partial = flow.partial
    layer = layers.layer_of(bias, "bias", output)
    if (
        layer != partial.layer
        or not layers.is_open(partial)
        or partial.config.get("use_bias", True)
    ):
        raise NotAGraphError(f"{output.name} adds a bias that is not its layer's")
    partial.config["use_bias"] = True
    partial.last = key_of(output)
    return flow


def _activation(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow = inputs[0]
    if not isinstance(flow, LayerOutput):
        raise unknown(output)
    partial, name = flow.partial, _ACTIVATIONS[output.node.op]
    is_part = "pre_activation" in partial.ranges or label_of(output.name) == partial.layer
    if (
        is_part
        and partial.config.get("activation") == "linear"
        and not flow.views
        and layers.is_open(partial, "post_activation")
    ):
        partial.config["activation"] = name
        partial.has_activation = True
        partial.last = key_of(output)
        return flow
    return layers.add("Activation", [flow], {"activation": name}, output)


def _leaky(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    attr = output.node.attr
    slope = shortest(attr["alpha"].f) if "alpha" in attr else 0.2
    config = {"max_value": None, "negative_slope": slope, "threshold": 0.0}
    return layers.add("ReLU", inputs, config, output)


def _clip(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    """Recognize the ReLU with a bound, which Keras makes of three ops, and extremes of layers."""
    flow, bound = inputs
    if isinstance(bound, LayerOutput):
        return joined(layers, output.node.op, output, inputs)
    if not isinstance(flow, LayerOutput) or not isinstance(bound, Param) or not bound.values:
        raise unknown(output)
    partial, limit = flow.partial, shortest(bound.values[0])
    if not layers.is_open(partial) or partial.ranges or flow.views:
        raise unknown(output)
    if output.node.op == "Minimum" and partial.config == {"activation": "relu"} and limit > 0:
        partial.class_name = "ReLU"
        partial.config = {"max_value": limit, "negative_slope": 0.0, "threshold": 0.0}
    elif output.node.op != "Maximum" or not partial.config.get("max_value") or limit:
        raise unknown(output)
    partial.last = key_of(output)
    return flow


def _sum(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    is_difference = output.node.op == "Sub"
    if len(inputs) == 2 and isinstance(inputs[0], LayerOutput) and isinstance(inputs[1], Param):
        flow, partial = inputs[0], inputs[0].partial
        layer = batch_normalization(partial.config.get("factor"), inputs[1], layers.tensor_of)
        if layer is None or not layers.is_open(partial) or is_difference:
            raise NotAGraphError(f"{output.name}: {NO_BROADCAST}")
        partial.class_name, partial.layer = "BatchNormalization", layer[0]
        partial.config = {"axis": [-1], "epsilon": layer[1]}
        partial.last = key_of(output)
        return flow
    if any(isinstance(value, Param) for value in inputs):
        raise NotAGraphError(f"{output.name}: {NO_BROADCAST}")
    if is_difference:
        return layers.add("Subtract", inputs, {}, output)
    return joined(layers, "Add", output, inputs)


def _scale(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    """Keep a factor until an op tells that it is a batch normalization's; multiply layers."""
    flow, factor = inputs
    if isinstance(flow, LayerOutput) and isinstance(factor, LayerOutput):
        return joined(layers, "Multiply", output, inputs)
    if not isinstance(flow, LayerOutput) or not isinstance(factor, Param):
        raise unknown(output)
    return layers.add("Mul", [flow], {"factor": factor}, output)


def _normalize(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow, *params = inputs
    attr = output.node.attr
    is_inference = "is_training" in attr and not attr["is_training"].b
    if not is_inference or len(params) != 4 or _layout(output) != b"NHWC":
        raise unknown(output)
    owners = set()
    for param, (name, neutral) in zip(params, NORMALIZATION.items(), strict=True):
        is_left_out = isinstance(param, Param) and set(param.values or ()) == {neutral}
        if name.startswith("moving_") or not is_left_out:
            owners.add(layers.layer_of(param, name, output))
    if len(owners) != 1:
        raise unknown(output)
    epsilon = shortest(attr["epsilon"].f) if "epsilon" in attr else 1e-4
    config = {"axis": [-1], "epsilon": epsilon}
    return layers.add("BatchNormalization", [flow], config, output, owners.pop())


def _split(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    axis, flow = inputs
    if len(_values(axis)) != 1 or not isinstance(flow, LayerOutput):
        raise unknown(output)
    return _viewed(layers, output, flow, ("steps", *_values(axis), output.node.attr["num_split"].i))


def _repeated(layers: PartialLayers, output: Output, axis: int, flows: list[Value]) -> Value:
    """Recognize upsampling by all steps of an axis, each repeated: Keras's of signals and volumes.

    That of volumes goes on with the second and the third axis.
    """
    steps = [flow.views[-1] for flow in flows if isinstance(flow, LayerOutput)]
    count = steps[0][2]
    size = len(flows) // count
    if steps != [("step", axis, count, i // size) for i in range(count * size)]:
        raise unknown(output)
    (whole,) = {
        LayerOutput(flow.partial, flow.views[:-1])
        for flow in flows
        if isinstance(flow, LayerOutput)
    }
    if axis == 1:
        return layers.add("UpSampling1D", [whole], {"size": size}, output)
    partial = whole.partial
    is_next = partial.class_name == ("UpSampling1D" if axis == 2 else _TWO_OF_THREE)
    if not is_next or partial.ranges or whole.views:
        raise unknown(output)
    sizes = partial.config["size"]
    partial.config["size"] = [*(sizes if axis == 3 else [sizes]), size]
    partial.class_name = "UpSampling3D" if axis == 3 else _TWO_OF_THREE
    partial.last = key_of(output)
    return whole


def _tile(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    """Recognize ``RepeatVector``, which Keras makes of an axis and its repetitions."""
    flow, counts = inputs
    if not isinstance(flow, LayerOutput) or flow.views != (("axis", 1),):
        raise unknown(output)
    first, count, last = _values(counts)
    if (first, last) != (1, 1):
        raise unknown(output)
    return layers.add("RepeatVector", [LayerOutput(flow.partial)], {"n": int(count)}, output)


def _crop(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow, begins, ends, strides = inputs
    attr, rank = output.node.attr, len(_values(begins)) - 2
    masks = {name: attr[name].i if name in attr else 0 for name in _SLICES}
    outer = 1 | 1 << rank + 1
    if rank not in (1, 2, 3) or set(_values(strides)) != {1}:
        raise unknown(output)
    if any(masks[name] for name in _SLICES[2:]) or any(
        masks[name] & outer != outer for name in _SLICES[:2]
    ):
        raise unknown(output)
    cropping = [
        [0 if masks[mask] >> axis & 1 else sign * int(_values(value)[axis]) for mask, value, sign
         in zip(_SLICES, (begins, ends), (1, -1), strict=False)]
        for axis in range(1, rank + 1)
    ]  # fmt: skip
    if min(min(pair) for pair in cropping) < 0:
        raise unknown(output)
    config = {"cropping": cropping[0] if rank == 1 else cropping}
    return layers.add(f"Cropping{rank}D", [flow], config, output)


def _concatenate(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    *flows, axis = inputs
    first = flows[0]
    if len(_values(axis)) == 1 and isinstance(first, LayerOutput) and first.views[-1:]:
        return _repeated(layers, output, _values(axis)[0], flows)
    if not isinstance(axis, Param) or not axis.values or len(axis.values) != 1:
        raise unknown(output)
    return layers.add("Concatenate", flows, {"axis": int(axis.values[0])}, output)


def _pool(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow = inputs[0]
    size, strides = (_spatial(output.node, key) for key in ("ksize", "strides"))
    views = flow.views if isinstance(flow, LayerOutput) else ()
    if views:
        if views != (("axis", 2),) or size[1] != 1 or strides[1] != 1:
            raise unknown(output)
        size, strides = size[:1], strides[:1]
    config = {"pool_size": size, "strides": strides, "padding": _padding(output)}
    name = f"{_POOLS[output.node.op]}{len(size)}D"
    return layers.add(name, [flow], config, output, views=views)


def _global_pool(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow, axes = inputs
    rank = {(1,): 1, (1, 2): 2}.get(_values(axes))
    if rank is None:
        raise unknown(output)
    config = {"keepdims": output.node.attr["keep_dims"].b}
    return layers.add(f"{_GLOBAL_POOLS[output.node.op]}{rank}D", [flow], config, output)


def _pad(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow, widths, *fill = inputs
    pads = [int(n) for n in _values(widths)]
    if len(pads) not in (6, 8, 10) or any(pads[:2] + pads[-2:]):
        raise unknown(output)
    if any(_values(value) != (0.0,) for value in fill):
        raise unknown(output)
    inner = pads[2:-2]
    padding: Any = inner if len(inner) == 2 else [inner[i : i + 2] for i in range(0, len(inner), 2)]
    return layers.add(f"ZeroPadding{len(inner) // 2}D", [flow], {"padding": padding}, output)


def _upsample(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow, size = inputs
    is_product = isinstance(size, Param) and size.op == "Mul" and len(size.args) == 2
    factors = size.args[1].values if isinstance(size, Param) and is_product else None
    if not factors or len(factors) != 2 or not output.node.attr["half_pixel_centers"].b:
        raise unknown(output)
    config = {"size": [int(n) for n in factors], "interpolation": "nearest"}
    return layers.add("UpSampling2D", [flow], config, output)


def _reshape(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow, shape = inputs
    if not isinstance(flow, LayerOutput) or not isinstance(shape, Param):
        raise unknown(output)
    if flow.views == (("rows",),) and shape.op == "ConcatV2":
        return _unviewed(layers, output, flow)
    if not flow.views and is_all_rows(shape):
        return _viewed(layers, output, flow, ("rows",))
    target = target_shape(shape)
    if target is None:
        raise unknown(output)
    return layers.add("Reshape", [flow], {"target_shape": target}, output)


def _transpose(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    axes = [int(axis) for axis in _values(inputs[1])]
    flow = inputs[0]
    if axes and axes == list(range(len(axes))) and isinstance(flow, LayerOutput):
        layers.moved(flow.partial, output)
        return flow
    if axes[:1] != [0]:
        raise unknown(output)
    return layers.add("Permute", [flow], {"dims": axes[1:]}, output)


def _expand(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow, axis = inputs
    place = {(1,): 1, (2,): 2, (-3,): 1, (-2,): 2}.get(_values(axis))
    if place is None or not isinstance(flow, LayerOutput):
        raise unknown(output)
    return _viewed(layers, output, flow, ("axis", place))


def _squeeze(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow = inputs[0]
    axes = list(output.node.attr["squeeze_dims"].list.i)
    if not isinstance(flow, LayerOutput) or len(axes) != 1 or axes[0] not in range(-4, 4):
        raise unknown(output)
    if flow.views[-1:] != (("axis", axes[0] % 4),):
        raise unknown(output)
    return _unviewed(layers, output, flow)


def _to_blocks(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    flow, block, pads = inputs
    if not isinstance(flow, LayerOutput) or len(_values(pads)) != 2 * len(_values(block)):
        raise unknown(output)
    return _viewed(layers, output, flow, ("blocks", _values(block), _values(pads)))


def _from_blocks(layers: PartialLayers, output: Output, inputs: list[Value]) -> Value:
    """Recognize a dilated convolution, which TensorFlow runs on pixels put side by side."""
    flow, block, crops = inputs
    if not isinstance(flow, LayerOutput) or flow.views[-1:] == () or flow.views[-1][0] != "blocks":
        raise unknown(output)
    _, dilation, pads = flow.views[-1]
    config, cut = flow.partial.config, _values(crops)
    size = config.get("kernel_size")
    if dilation != _values(block) or len(cut) != len(pads) or size is None or any(cut[::2]):
        raise unknown(output)
    spans = [(k - 1) * d for k, d in zip(size, dilation, strict=True)]
    same = [end for span in spans for end in (span // 2, span - span // 2)]
    rest = [pad - crop for pad, crop in zip(pads, cut, strict=True)]
    if rest not in (same, [0] * len(same)):
        raise unknown(output)
    config["padding"] = "same" if rest == same else "valid"
    config["dilation_rate"] = [int(n) for n in dilation]
    return _unviewed(layers, output, flow)


def _viewed(
    layers: PartialLayers, output: Output, flow: LayerOutput, view: tuple[Any, ...]
) -> LayerOutput:
    layers.moved(flow.partial, output)
    return LayerOutput(flow.partial, (*flow.views, view))


def _unviewed(layers: PartialLayers, output: Output, flow: LayerOutput) -> LayerOutput:
    layers.moved(flow.partial, output)
    return LayerOutput(flow.partial, flow.views[:-1])


def _values(value: Value) -> tuple[Any, ...]:
    return value.values or () if isinstance(value, Param) else ()


def _spatial(node: Any, key: str) -> list[int]:
    values = list(node.attr[key].list.i) if key in node.attr else [1, 1, 1, 1]
    if len(values) != 4 or values[0] != 1 or values[3] != 1 or min(values) < 1:
        raise NotAGraphError(f"the op {node.op} has the {key} {values[:8]}")
    return [int(n) for n in values[1:3]]


def _padding(output: Output) -> str:
    attr = output.node.attr
    padding = attr["padding"].s if "padding" in attr else b""
    if padding not in (b"SAME", b"VALID") or _layout(output) != b"NHWC":
        raise unknown(output)
    return "same" if padding == b"SAME" else "valid"


def _layout(output: Output) -> bytes:
    attr = output.node.attr
    layout: bytes = attr["data_format"].s if "data_format" in attr else b"NHWC"
    return layout


OPS: Mapping[str, Callable[[PartialLayers, Output, list[Value]], Value]] = {
    **dict.fromkeys(("Add", "AddN", "AddV2", "Sub"), _sum),
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_GLOBAL_POOLS, _global_pool),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("Maximum", "Minimum"), _clip),
    **dict.fromkeys(("Pad", "PadV2"), _pad),
    "BatchToSpaceND": _from_blocks,
    "BiasAdd": _bias,
    "ConcatV2": _concatenate,
    "ExpandDims": _expand,
    "FusedBatchNormV3": _normalize,
    "LeakyRelu": _leaky,
    "MatMul": _dense,
    "Mul": _scale,
    "Reshape": _reshape,
    "RealDiv": averaged,
    "ResizeNearestNeighbor": _upsample,
    "SpaceToBatchND": _to_blocks,
    "Split": _split,
    "Squeeze": _squeeze,
    "StridedSlice": _crop,
    "Tile": _tile,
    "Transpose": _transpose,
}
