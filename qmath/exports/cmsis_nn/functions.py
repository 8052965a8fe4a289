"""The functions in C that run a layer, and that ask CMSIS-NN for the size of its buffer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from qmath.exports.c import source
from qmath.exports.cmsis_nn.records import Layer, Pool, Sum, Weighted, Window
from qmath.integer.program import Shape

__all__ = ["DIMENSIONS", "Call", "call"]

Named = Mapping[str, str]
DIMENSIONS = ("input", "filter", "bias", "output")
_FUNCTIONS = {
    "conv": "arm_convolve_wrapper",
    "dw_conv": "arm_depthwise_conv_wrapper",
    "transpose_conv": "arm_transpose_conv_wrapper",
}


class Call(NamedTuple):
    """Lines of C: definitions, and the bodies of the function that runs and of that of the size."""

    constants: list[str]
    run: list[str]
    size: list[str]


def call(layer: Layer, names: Named) -> Call:
    """Return the call of a layer.

    Parameters
    ----------
    layer : Layer
    names : mapping of str to str
        Of its macros and arrays, by what they are; of its parameters, ``"params"``; of the
        dimensions of its arrays, ``"dims_input"`` and so on; of the function of its buffer's size,
        ``"size"``.
    """
    if isinstance(layer, Pool):
        return _pool(layer, names)
    if isinstance(layer, Weighted):
        return _dense(layer, names) if layer.kind == "fc" else _convolution(layer, names)
    assert isinstance(layer, Sum)
    return _sum(layer, names)


def _convolution(layer: Weighted, names: Named) -> Call:
    function = f"{_FUNCTIONS[layer.kind]}_s{4 if layer.is_s4 else 8}"
    fields = {"input_offset": names["INPUT_OFFSET"], "output_offset": names["OUTPUT_OFFSET"]}
    if layer.kind == "dw_conv":
        fields["ch_mult"] = str(layer.out_shape[2] // layer.in_shape[2])
    fields |= _tiles(layer.window) | {"dilation": _tile(layer.window.dilation)}
    inputs, outputs = layer.in_shape[2], layer.out_shape[2]
    of_filter = (1, *layer.window.size, outputs)
    if layer.kind != "dw_conv":
        of_filter = (outputs, *layer.window.size, layer.weights.shape[-1])
    assert layer.kind != "transpose_conv" or of_filter[-1] == inputs
    height, width, _ = layer.in_shape
    if layer.kind == "conv" and height == 1:
        width = min(width, _columns_read(layer))
    shapes = (1, height, width, inputs), of_filter, (1, 1, 1, outputs), (1, *layer.out_shape)
    run = [f"const cmsis_nn_per_channel_quant_params quant = {{\n        {_pointers(names)}}};"]
    of_size = [
        f"return {function}_get_buffer_size(",
        f"    &{names['params']}, &{names['dims_input']}, &{names['dims_filter']}, "
        f"&{names['dims_output']});",
    ]
    contexts = "ctx"
    if layer.kind == "transpose_conv":
        split, of_size = _two_buffers(names)
        run += split
        contexts = "&own, &reversed"
    run += ["", f"return {function}(", *_arguments(contexts, names)]
    return Call(_constants(layer, names, fields, shapes), run, of_size)


def _columns_read(layer: Weighted) -> int:
    """Return how many columns a convolution needs; MVE's of one row takes others for padding."""
    (_, size), (_, stride), (_, pad), (_, dilation) = layer.window
    return (layer.out_shape[1] - 1) * stride + (size - 1) * dilation + 1 - pad


def _two_buffers(names: Named) -> tuple[list[str], list[str]]:
    """Return the statements that split a buffer in two, and those of the size of both.

    The second takes the kernel turned around, byte by byte.
    """
    start = "arm_transpose_conv_s8_get"
    params, before = f"&{names['params']}", f"&{names['dims_input']}"
    kernel, after = f"&{names['dims_filter']}", f"&{names['dims_output']}"
    sizes = [
        f"const int32_t size = {start}_buffer_size(\n"
        f"        {params}, {before}, {kernel}, {after});",
        f"const int32_t more = {start}_reverse_conv_buffer_size(\n"
        f"        {params}, {before}, {kernel});",
    ]
    contexts = [
        "const cmsis_nn_context own = {ctx->buf, size};",
        "const cmsis_nn_context reversed = {(int8_t *)ctx->buf + size, more};",
    ]
    return [*sizes, *contexts], [*sizes, "", "return size + more;"]


def _dense(layer: Weighted, names: Named) -> Call:
    rows, inputs, outputs = layer.in_shape[0], layer.in_shape[2], layer.out_shape[2]
    fields = {
        "input_offset": names["INPUT_OFFSET"],
        "filter_offset": "0",
        "output_offset": names["OUTPUT_OFFSET"],
    }
    shapes = (
        (rows, 1, 1, inputs),
        (inputs, 1, 1, outputs),
        (1, 1, 1, outputs),
        (rows, 1, 1, outputs),
    )
    constants = _constants(layer, names, fields, shapes)
    if layer.is_s4:
        values = f"*{names['multiplier']}, *{names['shift']}"
        quant = f"const cmsis_nn_per_tensor_quant_params quant = {{\n        {values}}};"
        run = [quant, "", "return arm_fully_connected_s4(", *_arguments("ctx", names)]
        return Call(constants, run, ["return 0; /* It uses no buffer. */"])
    values = f"{_pointers(names)}, {layer.multiplier.ndim}"
    run = [
        f"const cmsis_nn_quant_params quant = {{\n        {values}}};",
        "",
        "/* A build that asks for a buffer takes from it the sums of the weights, and the bias. */",
        f"if ({names['size']}() > 0)",
        f"    arm_vector_sum_s8((int32_t *)ctx->buf, {inputs}, {outputs}, {names['weights']},",
        f"                      {names['INPUT_OFFSET']}, 0, {names['bias']});",
        "return arm_fully_connected_wrapper_s8(",
        *_arguments("ctx", names),
    ]
    size = f"return arm_fully_connected_s8_get_buffer_size(&{names['dims_filter']});"
    return Call(constants, run, [size])


def _pool(layer: Pool, names: Named) -> Call:
    window, channels = layer.window, layer.out_shape[2]
    shapes = (1, *layer.in_shape), (1, *window.size, 1), (1, *layer.out_shape)
    arguments = (
        f"ctx, &{names['params']}, &{names['dims_input']}, input, &{names['dims_filter']}, "
        f"&{names['dims_output']}, output);"
    )
    if layer.kernel is None:
        constants = _constants(layer, names, _tiles(window), shapes)
        run = ["return arm_max_pool_s8(", f"    {arguments}"]
        return Call(constants, run, ["return 0; /* It uses no buffer. */"])
    (before,) = layer.inputs
    fields = _tiles(window) | {"activation": f"{{{before.low}, {before.high}}}"}
    low, high = names["ACTIVATION_MIN"], names["ACTIVATION_MAX"]
    run = [
        "const arm_cmsis_nn_status status = arm_avgpool_s8(",
        f"    {arguments}",
        "int32_t i;",
        "",
        "/* The average has the parameters of the input; give it its own. */",
        f"for (i = 0; i < {math.prod(layer.out_shape)}; ++i) {{",
        "    int32_t value = arm_nn_requantize(",
        f"        output[i] + {names['INPUT_OFFSET']}, {names['OUTPUT_MULTIPLIER']},",
        f"        {names['OUTPUT_SHIFT']}) + {names['OUTPUT_OFFSET']};",
        f"    value = value < {low} ? {low} : value;",
        f"    output[i] = (int8_t)(value > {high} ? {high} : value);",
        "}",
        "return status;",
    ]
    size = f"return arm_avgpool_s8_get_buffer_size({layer.out_shape[1]}, {channels});"
    return Call(_constants(layer, names, fields, shapes), run, [size])


def _sum(layer: Sum, names: Named) -> Call:
    inputs = (
        f"{names[f'INPUT_{i}_OFFSET']}, {names[f'INPUT_{i}_MULTIPLIER']}, "
        f"{names[f'INPUT_{i}_SHIFT']},"
        for i in (1, 2)
    )
    run = [
        "(void)ctx;",
        "return arm_elementwise_add_s8(",
        "    input_1, input_2,",
        *(f"    {line}" for line in inputs),
        f"    {names['LEFT_SHIFT']}, output,",
        f"    {names['OUTPUT_OFFSET']}, {names['OUTPUT_MULTIPLIER']}, {names['OUTPUT_SHIFT']},",
        f"    {names['ACTIVATION_MIN']}, {names['ACTIVATION_MAX']}, {math.prod(layer.out_shape)});",
    ]
    return Call([], run, ["return 0; /* It uses no buffer. */"])


def _constants(
    layer: Layer, names: Named, fields: dict[str, str], shapes: tuple[Shape, ...]
) -> list[str]:
    """Return the definitions of the parameters and dimensions."""
    ends = f"{{\n        {names['ACTIVATION_MIN']}, {names['ACTIVATION_MAX']}}}"
    fields = {**fields, "activation": fields.get("activation", ends)}
    parts = [part for part in DIMENSIONS if f"dims_{part}" in names]
    kind = "pool" if isinstance(layer, Pool) else layer.kind
    return [
        f"static const cmsis_nn_{kind}_params {names['params']} = {{",
        *(f"    .{field} = {value}," for field, value in fields.items()),
        "};",
        *(
            f"static const cmsis_nn_dims {names[f'dims_{part}']} = {source.braces(shape)};"
            for part, shape in zip(parts, shapes, strict=True)
        ),
    ]


def _arguments(contexts: str, names: Named) -> list[str]:
    """Return the arguments of a layer with weights."""
    return [
        f"    {contexts}, &{names['params']}, &quant, &{names['dims_input']}, input,",
        f"    &{names['dims_filter']}, {names['weights']},",
        f"    &{names['dims_bias']}, {names['bias']}, &{names['dims_output']}, output);",
    ]


def _pointers(names: Named) -> str:
    """Return what the functions do not write to, though they say so."""
    return f"(int32_t *){names['multiplier']}, (int32_t *){names['shift']}"


def _tiles(window: Window) -> dict[str, str]:
    return {"stride": _tile(window.stride), "padding": _tile(window.pad)}


def _tile(values: Shape) -> str:
    return f"{{.w = {values[1]}, .h = {values[0]}}}"
